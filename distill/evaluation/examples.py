"""Choose the examples of a split to analyse, and cut them into chunks that fit on the device."""

import torch
from torch import Tensor

from distill.data.loaders import evaluation_batches
from distill.data.splits import Split, Splits
from distill.recipe.schema import Augment

BATCH_SIZE = 500

# Largest number of pixel values in one forward pass where gradients are needed.
CHUNK_PIXELS = 2**22


def evenly_spaced(count: int, wanted: int) -> Tensor:
    """Return at most `wanted` of the positions 0 … `count` - 1, evenly spaced and in order."""
    wanted = min(count, wanted)
    return torch.arange(wanted) * count // max(wanted, 1)


def first_per_class(labels: Tensor, classes: list[int], count: int) -> Tensor:
    """Return the positions of the first `count` examples of each of some classes, in order."""
    positions = [(labels == label).nonzero()[:count, 0] for label in classes]
    if not positions:
        return torch.zeros(0, dtype=torch.long)
    return torch.cat(positions).sort().values


def evaluation_images(
    splits: Splits, split: Split, augment: Augment, device: torch.device, positions: Tensor
) -> Tensor:
    """Return images of a split ``[N, C, H, W]``, uint8, cropped for evaluation."""
    batches = evaluation_batches(splits, split, augment, BATCH_SIZE, device, positions)
    return torch.cat([batch.views for batch in batches])


def chunks(images: Tensor, *others: Tensor) -> list[tuple[Tensor, ...]]:
    """Split tensors of N examples into chunks that fit on a device with their gradients.

    Args:
        images: ``[N, C, H, W]``; their size decides how large a chunk is.
        others: more tensors ``[N, …]``.

    Returns:
        for each chunk, its part of every tensor.
    """
    size = 1
    if len(images):
        size = max(1, min(BATCH_SIZE, CHUNK_PIXELS // max(1, images[0].numel())))
    return list(zip(*(tensor.split(size) for tensor in (images, *others)), strict=True))
