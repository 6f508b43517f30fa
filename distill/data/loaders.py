"""Batches on the device: from memory if the data set fits there, else decoded by workers."""

from collections.abc import Iterator

import torch
from torch import Tensor

from distill.data.augment import (
    Batch,
    augment_batch,
    epoch_order,
    evaluation_crop,
    mix,
    mixup_partners,
)
from distill.data.splits import Split, Splits
from distill.data.workers import unwrap
from distill.recipe.schema import Augment

# Images in memory are augmented in groups of up to this many bytes: for small batches, the calls
# take longer than the work.
AUGMENT_TOGETHER_BYTES = 2**23


def training_batches(  # noqa: PLR0913 (the trainer calls it by position)
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
    """Yield one epoch of augmented batches of the training split.

    Examples at the end of the epoch that do not fill a batch are skipped.

    Args:
        splits: the data set.
        augment: how to make the views.
        batch_size: examples per optimizer step, over all processes.
        seed: seed of the run.
        epoch: number of the epoch.
        device: where batches are put.
        rank: number of this process.
        world: number of processes. Each gets every `world`-th example of every batch.
        first: number of the first batch to yield, for an epoch that is resumed.
    """
    split = splits.train
    num_classes = len(splits.class_names)
    order = epoch_order(len(split), seed, epoch)
    batches = [batch[rank::world] for batch in order.split(batch_size) if len(batch) == batch_size]
    size = len(batches[0])
    together = _batches_together(splits, size)
    groups = [
        torch.cat(batches[start : start + together])
        for start in range(first, len(batches), together)
    ]

    # Each group reads its images and, for mixup or cutmix, their partners after them.
    reads = groups
    if augment.mixes:
        partners = [mixup_partners(group, len(split), seed, epoch) for group in groups]
        reads = [torch.cat(pair) for pair in zip(groups, partners, strict=True)]

    labels = split.labels.to(device)
    for group, (index, images) in zip(
        groups, read_batches(splits, split, reads, device), strict=True
    ):
        views = augment_batch(images, index, augment, seed, epoch)
        batch = Batch(views, labels[index])
        if augment.mixes:
            own = Batch(batch.views[: len(group)], batch.labels[: len(group)])
            partner = Batch(batch.views[len(group) :], batch.labels[len(group) :])
            batch = mix(own, partner, group, num_classes, augment, seed, epoch)
        for batch_views, batch_labels in zip(
            batch.views.split(size), batch.labels.split(size), strict=True
        ):
            yield Batch(batch_views, batch_labels)


def evaluation_batches(
    splits: Splits,
    split: Split,
    augment: Augment,
    batch_size: int,
    device: torch.device,
    positions: Tensor | None = None,
) -> Iterator[Batch]:
    """Yield a split in order, each example once, without random augmentation.

    Args:
        splits: the data set.
        split: which of its splits.
        augment: the augmentation of training; evaluation uses its crop, at the centre.
        batch_size: examples per batch; the last one may be smaller.
        device: where batches are put.
        positions: numbers of the examples within the split; all examples by default.
    """
    if positions is None:
        positions = torch.arange(len(split))
    if not len(positions):
        return
    labels = split.labels.to(device)
    parts = list(positions.split(batch_size))
    for index, images in read_batches(splits, split, parts, device):
        yield Batch(evaluation_crop(images, augment), labels[index])


def read_batches(
    splits: Splits, split: Split, parts: list[Tensor], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of decoded images without augmentation.

    Args:
        splits: the data set.
        split: which of its splits.
        parts: for each batch the numbers of its examples within the split, on the CPU.
        device: where batches are put.

    Yields:
        The numbers ``[B]`` and their uint8 images ``[B, C, H, W]``, on the device.
    """
    # All numbers are copied at once: a copy in every step would synchronise the device.
    sizes = [len(part) for part in parts]
    numbers = torch.cat(parts).to(device).split(sizes)
    images = split.images
    if splits.fits_in_memory:
        splits.load_into_memory()
        # The pixels stay on the device for later calls.
        images.pixels = images.pixels.to(device)
        positions = split.positions.to(device)
        for index in numbers:
            yield index, images.pixels.index_select(0, positions[index])
        return
    decoded = images.stream(
        [split.positions[part].tolist() for part in parts],
        splits.settings.workers,
        pinned=device.type == "cuda",
    )
    yield from zip(numbers, _to_device(decoded, device), strict=True)


def _batches_together(splits: Splits, batch_size: int) -> int:
    """Return how many batches to read and augment together; 1 if images are streamed."""
    if not splits.fits_in_memory:
        return 1
    channels, height, width = splits.shape
    return max(1, AUGMENT_TOGETHER_BYTES // (batch_size * channels * height * width))


def _to_device(batches: Iterator[Tensor | str], device: torch.device) -> Iterator[Tensor]:
    """Copy decoded batches to the device; a GPU receives one batch while it computes on another."""
    if device.type != "cuda":
        for batch in batches:
            yield unwrap(batch).to(device)
        return
    copy_stream = torch.cuda.Stream(device)
    previous: tuple[Tensor, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copy_stream):
            copy = unwrap(batch).to(device, non_blocking=True)
            copied = copy_stream.record_event()
        if previous is not None:
            yield _wait_for_copy(*previous)
        previous = (copy, copied)
    if previous is not None:
        yield _wait_for_copy(*previous)


def _wait_for_copy(copy: Tensor, copied: torch.cuda.Event) -> Tensor:
    """Make the current stream wait until a copy on another stream is complete; return the copy."""
    stream = torch.cuda.current_stream(copy.device)
    stream.wait_event(copied)
    # The allocator must not reuse this memory before the current stream has finished with it.
    copy.record_stream(stream)
    return copy
