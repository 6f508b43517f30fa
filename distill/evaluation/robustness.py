"""Attacks on a classifier in pixel space.

Images and attacked images are in [0, 1]; the classifier normalises them itself.

A failed attack alone proves little. Where the gradient vanishes, an attack finds no adversarial
example even if there is one (gradient masking, Athalye et al. 2018). So report attacks on
cross-entropy together with attacks on the margin and attacks with another network's gradient.
`zero_gradient` marks the examples whose gradient is 0 and so gives an attack no direction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Classify = Callable[[Tensor], Tensor]
"""A network with its normalisation: images ``[B, C, H, W]`` in [0, 1] to logits ``[B, K]``."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""A loss that attacks maximise: logits ``[B, K]`` and labels ``[B]`` to ``[B]``."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``-log p_y``, ``[B]``."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``max_k≠y z_k - z_y``, ``[B]`` (Carlini and Wagner 2017).

    It is positive for a wrong prediction. Unlike cross-entropy it does not saturate.
    """
    own = labels[:, None]
    highest_other = logits.scatter(1, own, -torch.inf).amax(1)
    return highest_other - logits.gather(1, own)[:, 0]


def gradient(
    classify: Classify, images: Tensor, labels: Tensor, loss: Loss = cross_entropy
) -> Tensor:
    """Return the gradient of each image's own loss with respect to its pixels, ``[B, C, H, W]``.

    It is the gradient of the sum over the batch, not of the mean: dividing by the batch size could
    round small gradients to 0.
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(loss(classify(images), labels).sum(), images)[0]


def zero_gradient(classify: Classify, images: Tensor, labels: Tensor) -> Tensor:
    """Return whether the gradient of cross-entropy is exactly 0 at every pixel, ``[B]``."""
    return gradient(classify, images, labels).flatten(1).abs().amax(1) == 0


def fgsm(classify: Classify, images: Tensor, labels: Tensor, radius: float) -> Tensor:
    """Attack by one step of `radius` along the gradient's sign (Goodfellow et al. 2015)."""
    return (images + radius * gradient(classify, images, labels).sign()).clamp(0, 1)


@dataclass(frozen=True)
class Ball:
    """How far an attack may move an image.

    Attributes:
        radius: how far it may move any pixel (`linf`) or the whole image (`l2`), with pixels in [0,
            1].
        norm: the maximum norm `linf`, or the Euclidean norm `l2`.
    """

    radius: float
    norm: Literal["linf", "l2"] = "linf"

    def random_moves(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return a random move of each image ``[B, C, H, W]``.

        In `linf` it is uniform in every pixel, in `l2` it has a random direction and a uniform
        length.
        """
        moves = torch.rand(images.shape, generator=generator).to(images) * 2 - 1
        if self.norm == "l2":
            # Keep the order of the draws, so that stored results can be repeated.
            moves = torch.randn(images.shape, generator=generator).to(images)
            length = torch.rand(len(images), 1, 1, 1, generator=generator).to(images)
            moves *= length / _l2_norm(moves)
        return self.radius * moves

    def steepest(self, gradients: Tensor) -> Tensor:
        """Return the directions ``[B, C, H, W]`` of norm 1 in which the loss rises fastest."""
        if self.norm == "linf":
            return gradients.sign()
        return gradients / _l2_norm(gradients)

    def move(self, images: Tensor, moves: Tensor) -> Tensor:
        """Return moved images ``[B, C, H, W]``, kept in the ball around `images` and in [0, 1]."""
        if self.norm == "linf":
            moves = moves.clamp(-self.radius, self.radius)
        else:
            moves = moves * (self.radius / _l2_norm(moves)).clamp(max=1)
        return (images + moves).clamp(0, 1)


def pgd(
    classify: Classify,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    *,
    loss: Loss = cross_entropy,
    steps: int = 20,
    seed: int = 0,
) -> Tensor:
    """Attack by projected gradient ascent from a random start (Madry et al. 2018).

    Args:
        classify: the network with its normalisation.
        images: ``[B, C, H, W]`` in [0, 1].
        labels: ``[B]``.
        ball: how far an image may be moved; a step has the length 2.5 radius / steps.
        loss: the loss to maximise: `cross_entropy` or `margin`.
        steps: at least 1.
        seed: seed of the random start.

    Returns:
        images ``[B, C, H, W]`` in [0, 1] and in the ball.
    """
    step_size = 2.5 * ball.radius / steps
    start = ball.random_moves(images, torch.Generator().manual_seed(seed))
    attacked = ball.move(images, start)
    for _ in range(steps):
        direction = ball.steepest(gradient(classify, attacked, labels, loss))
        attacked = ball.move(images, attacked + step_size * direction - images)
    return attacked


def _l2_norm(x: Tensor) -> Tensor:
    """Return the Euclidean norm of each image, ``[B, 1, 1, 1]``, never 0."""
    # Divide by the largest value first: the squares of tiny values would underflow to 0.
    largest = x.abs().amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    scaled_norm = torch.linalg.vector_norm(x / largest, dim=(1, 2, 3), keepdim=True)
    return largest * scaled_norm.clamp(min=0.5)
