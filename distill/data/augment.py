"""Augmentation of whole batches, on any device, without a random generator.

A view (an augmented image) is a function of (seed, epoch, image number) alone: its random numbers
come from a counter-based hash of these three. So a view is the same in any batch, in any process
and on any device. Pixels stay in [0, 255] here, because each network normalises the view itself.
"""

import hashlib
import math
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.special import betaincinv
from torch import Tensor

from distill.recipe.schema import Augment

LOWEST_32_BITS = 0xFFFFFFFF


class Batch(NamedTuple):
    """A batch on the device.

    Attributes:
        views: pixels in [0, 255], ``[B, C, H, W]``, uint8 or float.
        labels: classes ``[B]``, or soft labels ``[B, K]``.
    """

    views: Tensor
    labels: Tensor


# ----------------------------------------------------------------------------------- random numbers


def derive_seed(*parts: int | str) -> int:
    """Return a 31-bit number that depends on all parts and is the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1


def uniforms(stream: int, index: Tensor, draws: int) -> Tensor:
    """Return uniform numbers in [0, 1) that depend on (stream, index) alone.

    Args:
        stream: a number below 2^31 from `derive_seed`.
        index: image numbers ``[B]``.
        draws: how many numbers each image gets.

    Returns:
        float32 ``[B, draws]``, on the device of `index`.
    """
    counter = index[:, None] * draws + torch.arange(draws, device=index.device)
    hashed = _hash((counter & LOWEST_32_BITS) ^ stream)
    hashed = _hash(hashed ^ (stream * 0x9E3779B1 & LOWEST_32_BITS))
    # A float32 has 24 bits of precision.
    return (hashed >> 8).float() * 2.0**-24


def _hash(x: Tensor) -> Tensor:
    """Hash 32-bit integers, held in int64.

    The multipliers are below 2^31, so that products stay below 2^63.
    """
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & LOWEST_32_BITS
    x = ((x ^ (x >> 15)) * 0x735A2D97) & LOWEST_32_BITS
    return x ^ (x >> 15)


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the order ``[count]`` in which an epoch visits `count` examples, on the CPU."""
    generator = torch.Generator().manual_seed(derive_seed("order", seed, epoch))
    return torch.randperm(count, generator=generator)


# -------------------------------------------------------------------------------------------- views


class _Draws(NamedTuple):
    """The random decisions of a batch of views: uniform numbers ``[B]`` for each."""

    shift_y: Tensor
    shift_x: Tensor
    flip: Tensor
    area: Tensor
    aspect: Tensor
    resized_crop_y: Tensor
    resized_crop_x: Tensor
    crop_y: Tensor
    crop_x: Tensor
    # The number of draws is part of the hash's counter: without this one, all views would change.
    unused: Tensor


def augment_batch(images: Tensor, index: Tensor, augment: Augment, seed: int, epoch: int) -> Tensor:
    """Return the training views of a batch.

    Args:
        images: uint8 ``[B, C, H, W]``.
        index: the images' numbers ``[B]``, on the same device.
        augment: which transformations to apply.
        seed: seed of the run.
        epoch: number of the epoch.

    Returns:
        ``[B, C, H', W']`` in [0, 255]: uint8, or float if a resized crop interpolates.
    """
    if not augment.moves:
        return images
    stream = derive_seed("view", seed, epoch)
    draws = _Draws(*uniforms(stream, index, len(_Draws._fields)).T)
    if augment.shift:
        images = _random_shift(images, augment.shift, draws)
    if augment.scale < 1:
        images = _random_resized_crop(images, augment.scale, draws)
    if augment.crop:
        images = _random_crop(images, augment.crop, draws)
    if augment.flip:
        is_flipped = (draws.flip < 0.5)[:, None, None, None]
        images = torch.where(is_flipped, images.flip(3), images)
    return images


def evaluation_crop(images: Tensor, augment: Augment) -> Tensor:
    """Return the views for evaluation: the centre crop if training crops, else whole images."""
    if not augment.crop:
        return images
    height, width = images.shape[2:]
    top = (height - augment.crop) // 2
    left = (width - augment.crop) // 2
    return images[:, :, top : top + augment.crop, left : left + augment.crop]


def _random_shift(images: Tensor, shift: int, draws: _Draws) -> Tensor:
    """Shift each image by up to `shift` pixels in x and y, with black padding."""
    padded = F.pad(images, [shift] * 4)
    positions = 2 * shift + 1
    top = (draws.shift_y * positions).long()
    left = (draws.shift_x * positions).long()
    return _cut_windows(padded, tuple(images.shape[2:]), top, left)


def _random_crop(images: Tensor, side: int, draws: _Draws) -> Tensor:
    """Cut a random square of the given side out of each image."""
    height, width = images.shape[2:]
    top = (draws.crop_y * (height - side + 1)).long()
    left = (draws.crop_x * (width - side + 1)).long()
    return _cut_windows(images, (side, side), top, left)


def _cut_windows(images: Tensor, size: tuple[int, int], top: Tensor, left: Tensor) -> Tensor:
    """Cut a window of the same size (height, width) out of each image, at its own position.

    Each window is copied as one contiguous span of memory, from its first pixel to its last, and
    then viewed with the strides of the whole image. On a CPU this is twenty times as fast as
    advanced indexing, which copies pixel by pixel.
    """
    count, channels, height, width = images.shape
    flat = images.contiguous().view(-1)
    span = ((channels - 1) * height + size[0] - 1) * width + size[1]
    # Row i of this view is the span of memory that begins at element i.
    spans = flat.as_strided((len(flat) - span + 1, span), (1, 1))
    image_start = torch.arange(count, device=images.device) * (channels * height * width)
    window_start = image_start + top * width + left
    windows = spans.index_select(0, window_start)
    return windows.as_strided((count, channels, *size), (span, height * width, width, 1))


def _random_resized_crop(images: Tensor, smallest_area: float, draws: _Draws) -> Tensor:
    """Cut a random part out of each image and resize it to the image's full size.

    The part has a fraction of the area in [smallest_area, 1] and an aspect ratio in [3/4, 4/3].
    """
    area = smallest_area + (1 - smallest_area) * draws.area
    ratio = torch.exp(math.log(4 / 3) * (2 * draws.aspect - 1))
    width = (area * ratio).sqrt().clamp(max=1)
    height = (area / ratio).sqrt().clamp(max=1)
    # The part's centre in the coordinates of affine_grid, where an image spans [-1, 1].
    x = (2 * draws.resized_crop_x - 1) * (1 - width)
    y = (2 * draws.resized_crop_y - 1) * (1 - height)
    zero = torch.zeros_like(x)
    first_row = torch.stack([width, zero, x], 1)
    second_row = torch.stack([zero, height, y], 1)
    theta = torch.stack([first_row, second_row], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )


# ------------------------------------------------------------------------------------ normalisation


def normalise(
    pixels: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Return ``(pixels / 255 - mean) / std`` per channel.

    Args:
        pixels: ``[B, C, H, W]`` in [0, 255], uint8 or float.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].
        size: height and width; images of another size are resized to it first.

    Returns:
        float32 ``[B, C, H', W']``.
    """
    if size and tuple(pixels.shape[-2:]) != size:
        pixels = F.interpolate(
            pixels.float(), size, mode="bilinear", antialias=True, align_corners=False
        )
    factor, offset = _factor_and_offset(mean, std, pixels.device)
    return (pixels * factor).sub_(offset)


# Cached on the device: a copy from the host in every step would synchronise the device.
@cache
def _factor_and_offset(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return ``1 / (255 std)`` and ``mean / std``, each float32 ``[C, 1, 1]``."""
    means = torch.tensor(mean, dtype=torch.float64).view(-1, 1, 1)
    stds = torch.tensor(std, dtype=torch.float64).view(-1, 1, 1)
    factor = (1 / (255 * stds)).float().to(device)
    offset = (means / stds).float().to(device)
    return factor, offset


# --------------------------------------------------------------------------------- mixup and cutmix


def mixup_partners(index: Tensor, count: int, seed: int, epoch: int) -> Tensor:
    """Draw for each image the number of its mixing partner, from the whole split.

    timm's Mixup pairs the images of a batch and draws from the global random generator. A view
    must not depend on either. So this module has its own mixup and cutmix, with the same
    distributions.

    Args:
        index: image numbers ``[B]``, on the CPU.
        count: number of images in the split.
        seed: seed of the run.
        epoch: number of the epoch.

    Returns:
        Image numbers ``[B]``.
    """
    stream = derive_seed("partner", seed, epoch)
    # Use float64, because float32 is too coarse for the product in large splits.
    return (uniforms(stream, index, 1)[:, 0].double() * count).long()


def mix(
    batch: Batch,
    partners: Batch,
    index: Tensor,
    num_classes: int,
    augment: Augment,
    seed: int,
    epoch: int,
) -> Batch:
    """Mix views with their partners: mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019).

    Args:
        batch: views ``[B, C, H, W]`` and classes ``[B]``.
        partners: views and classes of the images to mix them with.
        index: the numbers of the batch's images ``[B]``.
        num_classes: K.
        augment: the parameters of mixup's and cutmix's Beta distributions.
        seed: seed of the run.
        epoch: number of the epoch.

    Returns:
        Float views, and soft labels ``[B, K]`` without label smoothing, which the loss applies.
    """
    device = batch.views.device
    height, width = batch.views.shape[2:]
    draws = uniforms(derive_seed("mix", seed, epoch), index.cpu(), 4).double()
    is_cutmix = _choose_cutmix(draws[:, 0], augment)
    share = _draw_shares(draws[:, 1], is_cutmix, augment)
    box = _cutmix_boxes(share, (height, width), draws[:, 2], draws[:, 3])

    # The edge of the image clips a box, so the labels' shares come from the clipped box.
    share_outside_box = 1 - box.double().mean((1, 2))
    share = torch.where(is_cutmix, share_outside_box, share).float()
    share = share.to(device, non_blocking=True)
    is_cutmix = is_cutmix.to(device)[:, None, None, None]
    box = box.to(device)[:, None]

    pixel_share = share[:, None, None, None]
    mixup_views = pixel_share * batch.views + (1 - pixel_share) * partners.views
    cutmix_views = torch.where(box, partners.views.float(), batch.views.float())
    views = torch.where(is_cutmix, cutmix_views, mixup_views)

    label_share = share[:, None]
    own_labels = F.one_hot(batch.labels, num_classes)
    partner_labels = F.one_hot(partners.labels, num_classes)
    labels = label_share * own_labels + (1 - label_share) * partner_labels
    return Batch(views, labels)


def _choose_cutmix(draw: Tensor, augment: Augment) -> Tensor:
    """Return for each view ``[B]`` whether it uses cutmix: with probability ½ if both are on."""
    if augment.mixup > 0 and augment.cutmix > 0:
        return draw < 0.5
    return torch.full((len(draw),), augment.mixup == 0)


def _draw_shares(draw: Tensor, is_cutmix: Tensor, augment: Augment) -> Tensor:
    """Draw each image's share ``[B]`` in its mixture from Beta(α, α), by the inverse CDF."""
    alpha = torch.where(is_cutmix, augment.cutmix or 1.0, augment.mixup or 1.0).double().numpy()
    return torch.from_numpy(betaincinv(alpha, alpha, draw.numpy()))


def _cutmix_boxes(
    share: Tensor, size: tuple[int, int], centre_y: Tensor, centre_x: Tensor
) -> Tensor:
    """Return the masks ``[B, H, W]`` of boxes that take ``1 - share`` of an image's area.

    Args:
        share: share of the image's own area outside the box, ``[B]``.
        size: H and W.
        centre_y: the box's vertical centre ``[B]``, in [0, 1); the image's edge clips the box.
        centre_x: the box's horizontal centre ``[B]``, in [0, 1).
    """
    relative_side = (1 - share).sqrt()
    rows = _cutmix_interval(relative_side, size[0], centre_y)
    columns = _cutmix_interval(relative_side, size[1], centre_x)
    return rows[:, :, None] & columns[:, None, :]


def _cutmix_interval(relative_side: Tensor, length: int, draw: Tensor) -> Tensor:
    """Return the mask ``[B, length]`` of the pixels in a box, along one dimension."""
    side = (relative_side * length).long()
    centre = (draw * length).long()
    low = (centre - side // 2).clamp(min=0)
    high = (centre - side // 2 + side).clamp(max=length)
    pixel = torch.arange(length)
    return (pixel >= low[:, None]) & (pixel < high[:, None])
