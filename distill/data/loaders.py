"""Batches: from memory where a split is resident on the device, else decoded by worker processes."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from distill.data.augment import augment_batch, epoch_order, evaluation_crop, mix, mixup_partners
from distill.data.image_dataset import checked
from distill.data.splits import Split, Splits
from distill.recipe.schema import Augment

AT_ONCE = (
    2**23
)  # bytes of resident images whose views are made together: small batches cost more calls than work


class Batch(NamedTuple):
    """What a step sees: pixels in [0, 255] ``[B, C, H, W]``, labels ``[B]`` or ``[B, K]``, on the device."""

    views: Tensor
    labels: Tensor


def read_batches(
    splits: Splits, split: Split, parts: list[Tensor], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each part (numbers within the split, on the CPU): the numbers and their uint8 images, on the device.

    The numbers are copied to the device once, before the first batch.
    """
    images = split.images
    numbers = torch.cat(parts).to(device).split([len(part) for part in parts])
    if splits.resident:
        images.pixels = images.pixels.to(device)  # the first time only
        positions = split.positions.to(device)
        for number in numbers:
            yield number, images.pixels.index_select(0, positions[number])
        return
    decoded = images.stream(
        [split.positions[part].tolist() for part in parts],
        splits.settings.workers,
        pinned=device.type == "cuda",
    )
    yield from zip(numbers, _copied(decoded, device), strict=True)


def _copied(batches: Iterator[Tensor | str], device: torch.device) -> Iterator[Tensor]:
    """Decoded batches on the device; on a GPU the next one is copied while the last one is worked on."""
    if device.type != "cuda":
        yield from (checked(batch).to(device) for batch in batches)
        return
    beside, ready = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(beside):
            copy = checked(batch).to(device, non_blocking=True)
            done = beside.record_event()
        if ready:
            yield _arrived(*ready)
        ready = copy, done
    if ready:
        yield _arrived(*ready)


def _arrived(copy: Tensor, done: torch.cuda.Event) -> Tensor:
    """A copy made on another stream, for the one that works."""
    stream = torch.cuda.current_stream(copy.device)
    stream.wait_event(done)
    copy.record_stream(stream)
    return copy


def training_batches(
    splits: Splits,
    augment: Augment,
    batch_size: int,
    seed: int,
    epoch: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    first: int = 0,
) -> Iterator[Batch]:
    """One epoch of views of the training split, from its `first` batch on; a rest that does not fill a batch waits for
    another epoch.

    With several processes, each sees its part (every `world`-th example) of every batch.
    """
    split, classes = splits.train, len(splits.class_names)
    mixing = augment.mixup > 0 or augment.cutmix > 0
    order = epoch_order(len(split), seed, epoch)
    batches = [b[rank::world] for b in order.split(batch_size) if len(b) == batch_size]
    size, together = len(batches[0]), _batches_together(splits, len(batches[0]))
    groups = [torch.cat(batches[i : i + together]) for i in range(first, len(batches), together)]
    parts = (
        [torch.cat([g, mixup_partners(g, len(split), seed, epoch)]) for g in groups]
        if mixing
        else groups
    )
    labels = split.labels.to(device)
    for own, (number, images) in zip(
        groups, read_batches(splits, split, parts, device), strict=True
    ):
        views, target = augment_batch(images, number, augment, seed, epoch), labels[number]
        if mixing:
            half = len(own)
            views, target = mix(
                views[:half],
                views[half:],
                target[:half],
                target[half:],
                own,
                classes,
                augment,
                seed,
                epoch,
            )
        yield from map(Batch, views.split(size), target.split(size))


def _batches_together(splits: Splits, size: int) -> int:
    """How many batches of so many examples are read and seen at once; streamed ones come one by one."""
    channels, height, width = splits.shape
    return max(1, AT_ONCE // (size * channels * height * width)) if splits.resident else 1


def evaluation_batches(
    splits: Splits,
    split: Split,
    augment: Augment,
    batch_size: int,
    device: torch.device,
    positions: Tensor | None = None,
) -> Iterator[Batch]:
    """A split (or some of it) in order, each example once, without anything random."""
    positions = torch.arange(len(split)) if positions is None else positions
    labels = split.labels.to(device)
    if len(positions):
        for number, images in read_batches(
            splits, split, list(positions.split(batch_size)), device
        ):
            yield Batch(evaluation_crop(images, augment), labels[number])
