"""Attacks on a classifier in pixel space: images and what is made of them lie in [0, 1], normalisation is inside.

An attack that fails tells little by itself: where the gradient vanishes it finds nothing, though there is something
to find (gradient masking, Athalye et al. 2018). So attacks by margin and by another network's gradient belong beside
those by cross-entropy, and `zero_gradient` counts the examples that give an attack no direction.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Classify = Callable[[Tensor], Tensor]  # images [B, C, H, W] in [0, 1] -> logits [B, K]
Loss = Callable[
    [Tensor, Tensor], Tensor
]  # logits [B, K], labels [B] -> [B], larger for worse answers


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``-log p_y``, ``[B]``."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """``max_k≠y z_k - z_y``, ``[B]``: positive for a wrong answer (Carlini and Wagner 2017). It does not saturate."""
    own = labels[:, None]
    return logits.scatter(1, own, -torch.inf).amax(1) - logits.gather(1, own)[:, 0]


def gradient(
    classify: Classify, images: Tensor, labels: Tensor, loss: Loss = cross_entropy
) -> Tensor:
    """Of each image's own loss by its pixels, ``[B, C, H, W]``; of their sum, so that no batch rounds it off."""
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(loss(classify(images), labels).sum(), images)[0]


def zero_gradient(classify: Classify, images: Tensor, labels: Tensor) -> Tensor:
    """Whether the gradient of cross-entropy is exactly 0 in every pixel, ``[B]``."""
    return gradient(classify, images, labels).flatten(1).abs().amax(1) == 0


def fgsm(classify: Classify, images: Tensor, labels: Tensor, radius: float) -> Tensor:
    """One step of `radius` in every pixel, up the sign of the gradient (Goodfellow et al. 2015)."""
    return (images + radius * gradient(classify, images, labels).sign()).clamp(0, 1)


def pgd(
    classify: Classify,
    images: Tensor,
    labels: Tensor,
    radius: float,
    *,
    norm: Literal["linf", "l2"] = "linf",
    loss: Loss = cross_entropy,
    steps: int = 20,
    seed: int = 0,
) -> Tensor:
    """Projected gradient ascent from a random start (Madry et al. 2018), in steps of 2.5 radius / steps.

    Args:
        classify: the network with its normalisation.
        images: ``[B, C, H, W]`` in [0, 1].
        labels: ``[B]``.
        radius: how far any pixel (`linf`) or the whole image (`l2`) may be moved, in units of [0, 1].
        norm: of the ball.
        loss: what is raised: cross-entropy, or the `margin`.
        steps: at least 1.
        seed: of the start.

    Returns:
        images within the ball and in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(images.shape, generator=generator).to(images) * 2 - 1
    if norm == "l2":  # any direction, any distance
        start = torch.randn(images.shape, generator=generator).to(images)
        start *= torch.rand(len(images), 1, 1, 1, generator=generator).to(images) / _length(start)
    step, attacked = 2.5 * radius / steps, _within(images, radius * start, radius, norm)
    for _ in range(steps):
        slope = gradient(classify, attacked, labels, loss)
        direction = slope.sign() if norm == "linf" else slope / _length(slope)
        attacked = _within(images, attacked + step * direction - images, radius, norm)
    return attacked


def _within(images: Tensor, moves: Tensor, radius: float, norm: str) -> Tensor:
    """ImageDataset moved, but not out of the ball nor out of [0, 1]."""
    moves = (
        moves.clamp(-radius, radius)
        if norm == "linf"
        else moves * (radius / _length(moves)).clamp(max=1)
    )
    return (images + moves).clamp(0, 1)


def _length(x: Tensor) -> Tensor:
    """Euclidean length of each image ``[B, 1, 1, 1]``, never 0."""
    largest = (
        x.abs().amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    )  # squares of tiny ones are 0
    return largest * torch.linalg.vector_norm(x / largest, dim=(1, 2, 3), keepdim=True).clamp(
        min=0.5
    )
