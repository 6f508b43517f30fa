"""Batches: from memory where a split is resident on the device, else decoded by worker processes."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from distill.data.readers import checked, stack
from distill.data.sources import Split, Splits
from distill.data.views import epoch_order, evaluation_view, make_views, mix, partners
from distill.recipe import Augment


class Batch(NamedTuple):
    """What a step sees: pixels in [0, 255] ``[B, C, H, W]``, labels ``[B]`` or ``[B, K]``, on the device."""

    views: Tensor
    labels: Tensor


def read_batches(splits: Splits, split: Split, parts: list[Tensor],
                 device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """For each part (numbers within the split, on the CPU): the numbers and their uint8 images, on the device.

    The numbers are copied to the device once, before the first batch.
    """
    images = split.images
    numbers = torch.cat(parts).to(device).split([len(part) for part in parts])
    if splits.resident:
        images.pixels = images.pixels.to(device)  # the first time only
        positions = split.positions.to(device)
        for number in numbers:
            yield number, images.pixels[positions[number]]
        return
    loader = DataLoader(Subset(images, split.positions.tolist()), batch_sampler=[p.tolist() for p in parts],
                        collate_fn=stack, pin_memory=device.type == "cuda",
                        **images.processes(splits.settings.workers))
    for number, batch in zip(numbers, loader, strict=True):
        yield number, checked(batch).to(device, non_blocking=True)


def training_batches(splits: Splits, augment: Augment, batch_size: int, seed: int, epoch: int, device: torch.device,
                     rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """One epoch of views of the training split; a rest that does not fill a batch waits for another epoch.

    With several processes, each sees its part (every `world`-th example) of every batch.
    """
    split, classes = splits.train, len(splits.class_names)
    mixing = augment.mixup > 0 or augment.cutmix > 0
    order = epoch_order(len(split), seed, epoch)
    batches = [b[rank::world] for b in order.split(batch_size) if len(b) == batch_size]
    parts = [torch.cat([b, partners(b, len(split), seed, epoch)]) for b in batches] if mixing else batches
    labels = split.labels.to(device)
    for own, (number, images) in zip(batches, read_batches(splits, split, parts, device), strict=True):
        views, target = make_views(images, number, augment, seed, epoch), labels[number]
        if mixing:
            half = len(own)
            views, target = mix(views[:half], views[half:], target[:half], target[half:], own, classes, augment,
                                seed, epoch)
        yield Batch(views, target)


def evaluation_batches(splits: Splits, split: Split, augment: Augment, batch_size: int, device: torch.device,
                       positions: Tensor | None = None) -> Iterator[Batch]:
    """A split (or some of it) in order, each example once, without anything random."""
    positions = torch.arange(len(split)) if positions is None else positions
    labels = split.labels.to(device)
    if len(positions):
        for number, images in read_batches(splits, split, list(positions.split(batch_size)), device):
            yield Batch(evaluation_view(images, augment), labels[number])
