"""Views: what augmentation makes of images, a batch at a time, on whatever device they are.

A view is a function of (seed, epoch, index) alone: its draws come from a counter-based hash of these
numbers, not from a generator. So a view is the same in any batch, in any process and on any device.
Pixels stay in [0, 255] here; each network is given its own normalisation of the one view.
"""

import hashlib
import math
from functools import cache

import torch
import torch.nn.functional as F
from scipy.special import betaincinv
from torch import Tensor

from distill.recipe.schema import Augment

MASK = 0xFFFFFFFF
DRAWS = 10  # shift y, x · flip · area, aspect, top, left of a resized crop · crop y, x · one spare


def key(*parts: int | str) -> int:
    """A 31-bit number that depends on all parts; the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1


def uniforms(stream: int, index: Tensor, draws: int) -> Tensor:
    """Uniform numbers ``[B, draws]`` in [0, 1), float32, a function of (stream, index) alone.

    A counter is hashed twice by a 32-bit integer finaliser whose multipliers stay below 2^31, so that
    products stay below 2^63.
    """
    counter = index[:, None] * draws + torch.arange(draws, device=index.device)
    return (
        _hash(_hash(counter & MASK ^ stream) ^ (stream * 0x9E3779B1 & MASK)) >> 8
    ).float() * 2.0**-24


def _hash(x: Tensor) -> Tensor:
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & MASK
    x = ((x ^ (x >> 15)) * 0x735A2D97) & MASK
    return x ^ (x >> 15)


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch goes through `count` examples, on the CPU."""
    generator = torch.Generator().manual_seed(key("order", seed, epoch))
    return torch.randperm(count, generator=generator)


def augment_batch(images: Tensor, index: Tensor, augment: Augment, seed: int, epoch: int) -> Tensor:
    """Training views of uint8 images ``[B, C, H, W]``: uint8, or float where a view is interpolated."""
    if not augment.moves:
        return images
    draws = uniforms(key("view", seed, epoch), index, DRAWS).T
    if augment.shift:
        side = 2 * augment.shift + 1
        padded = F.pad(images, [augment.shift] * 4)
        images = _windows(
            padded, images.shape[2:], (draws[0] * side).long(), (draws[1] * side).long()
        )
    if augment.scale < 1:
        images = _resized_crop(images, augment.scale, *draws[3:7])
    if augment.crop:
        free = [side - augment.crop for side in images.shape[2:]]
        top, left = (
            (draw * (space + 1)).long() for draw, space in zip(draws[7:9], free, strict=True)
        )
        images = _windows(images, (augment.crop, augment.crop), top, left)
    if augment.flip:
        images = torch.where((draws[2] < 0.5)[:, None, None, None], images.flip(3), images)
    return images


def evaluation_crop(images: Tensor, augment: Augment) -> Tensor:
    """ImageDataset as they are judged: nothing random, the centre where training crops."""
    if not augment.crop:
        return images
    top, left = ((side - augment.crop) // 2 for side in images.shape[2:])
    return images[:, :, top : top + augment.crop, left : left + augment.crop]


def normalise(
    pixels: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    size: tuple[int, int] | None = None,
) -> Tensor:
    """``(pixels / 255 - mean) / std`` per channel, as float32; resized first where `size` (H, W) is another."""
    if size and tuple(pixels.shape[-2:]) != size:
        pixels = F.interpolate(
            pixels.float(), size, mode="bilinear", antialias=True, align_corners=False
        )
    factor, shift = _constants(mean, std, pixels.device)
    return (pixels * factor).sub_(shift)


@cache
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """``1 / (255 std)`` and ``mean / std``, on the device once: a copy from the host in every step would stop it."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std))
    return (1 / (255 * std)).float().to(device), (mean / std).float().to(device)


def _windows(images: Tensor, size: tuple[int, int], top: Tensor, left: Tensor) -> Tensor:
    """A window of each image: one copy of all memory from its first pixel to its last, seen with the old strides.

    (Twenty times as fast on a CPU as an index of each dimension, which goes pixel by pixel.)
    """
    count, channels, height, width = images.shape
    flat = images.contiguous().view(-1)
    length = ((channels - 1) * height + size[0] - 1) * width + size[1]
    spans = flat.as_strided((len(flat) - length + 1, length), (1, 1))
    first = (
        torch.arange(count, device=images.device) * (channels * height * width) + top * width + left
    )
    return spans.index_select(0, first).as_strided(
        (count, channels, *size), (length, height * width, width, 1)
    )


def _resized_crop(
    images: Tensor, scale: float, area: Tensor, aspect: Tensor, top: Tensor, left: Tensor
) -> Tensor:
    """A random part of each image, its area in [scale, 1] and its aspect in [3/4, 4/3], at the full size."""
    area = scale + (1 - scale) * area
    ratio = torch.exp(math.log(4 / 3) * (2 * aspect - 1))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    x, y = (2 * left - 1) * (1 - width), (2 * top - 1) * (1 - height)
    zero = torch.zeros_like(x)
    theta = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )


# -------------------------------------------------------------------------------------------- mixup and cutmix


def mixup_partners(index: Tensor, count: int, seed: int, epoch: int) -> Tensor:
    """For each example, the number of the one it is mixed with: any of the split's, `index` on the CPU.

    timm's Mixup pairs examples within a batch and draws from a global generator; a view may depend on
    neither, so its two mixtures are made here, with the same distributions.
    """
    return (uniforms(key("partner", seed, epoch), index, 1)[:, 0].double() * count).long()


def mix(
    views: Tensor,
    others: Tensor,
    labels: Tensor,
    other_labels: Tensor,
    index: Tensor,
    classes: int,
    augment: Augment,
    seed: int,
    epoch: int,
) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019) of views ``[B, C, H, W]`` with their mixup_partners.

    Returns:
        float pixels, and soft labels ``[B, K]`` that are not smoothed: the loss does that, once.
    """
    draws = uniforms(key("mix", seed, epoch), index.cpu(), 4).double()
    cut = (
        torch.full((len(index),), augment.mixup == 0)
        if 0 in (augment.mixup, augment.cutmix)
        else draws[:, 0] < 0.5
    )
    shape = torch.where(cut, augment.cutmix or 1.0, augment.mixup or 1.0).double()
    share = torch.from_numpy(betaincinv(shape.numpy(), shape.numpy(), draws[:, 1].numpy()))

    height, width = views.shape[2:]
    sides = [((1 - share).sqrt() * side).long() for side in (height, width)]
    inside = []
    for side, length, draw in zip(sides, (height, width), draws.T[2:], strict=True):
        centre = (draw * length).long()
        low, high = (centre - side // 2).clamp(min=0), (centre - side // 2 + side).clamp(max=length)
        place = torch.arange(length)
        inside.append((place >= low[:, None]) & (place < high[:, None]))
    box = inside[0][:, :, None] & inside[1][:, None, :]
    share = (
        torch.where(cut, 1 - box.double().mean((1, 2)), share)
        .float()
        .to(views.device, non_blocking=True)
    )
    own = share[:, None, None, None]
    cut, box = cut.to(views.device)[:, None, None, None], box.to(views.device)[:, None]
    mixed = torch.where(
        cut, torch.where(box, others.float(), views.float()), own * views + (1 - own) * others
    )
    soft = share[:, None] * F.one_hot(labels, classes) + (1 - share[:, None]) * F.one_hot(
        other_labels, classes
    )
    return mixed, soft
