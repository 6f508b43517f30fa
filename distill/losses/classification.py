"""Losses on labels: cross-entropy with label smoothing, and losses that replace it.

See `margins` for margins on the label's logit, `regularizers` for penalties that are added to these
losses, and `online_targets` for label smoothing with learned targets.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from distill.losses.label_smoothing import (
    SmoothOver,
    UnitInterval,
    per_class_tensor,
    prior_tensor,
    smoothed_targets,
    uniform_mass,
    warn_if_smoothed,
)
from distill.losses.tensor_ops import (
    flatten_labels,
    flatten_logits,
    mask_ignored,
    select_class,
    split_class,
    to_float32,
    unflatten_loss,
)

__all__ = ["cross_entropy", "focal", "poly1", "sparse_probabilities", "sparse_softmax"]


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    smoothing: UnitInterval = 0.0,
    smooth_over: SmoothOver = "all",
    prior: list[float] | Literal["data"] | None = None,
    class_weights: list[float] | Literal["balanced"] | None = None,
    subtract_entropy: bool = False,
) -> Tensor:
    """Compute the cross-entropy with label smoothing, ``H(q, p) = -Σ_k q_k log p_k``.

    Smoothing a over all K classes gives ``q = (1 - a) y + a / K`` (Szegedy et al. 2016; Müller et
    al. 2019, section 1.1; PyTorch and timm). Smoothing a over the K - 1 wrong classes gives them
    ``q_j = a / (K - 1)`` (Shen et al. 2021), which equals the first form with ``a K / (K - 1)``.
    The minimum of the loss is H(q), which is 0 only without smoothing.

    Args:
        logits: ``[B, K]`` or ``[B, K, d…]``.
        labels: Classes ``[B, d…]``, or distributions in the shape of the logits, as mixup makes
            them. This function smooths distributions, too, so pass them without smoothing.
        smoothing: Mass a in [0, 1]; over the wrong classes at most (K - 1) / K, where the target is
            uniform.
        smooth_over: Which classes share the mass.
        prior: A distribution over the K classes that gets the mass instead (unigram smoothing,
            Pereyra et al. 2017). In a recipe, "data" stands for the class frequencies of the
            training split.
        class_weights: K factors; an example's loss is multiplied by the factor of its label. In a
            recipe, "balanced" stands for 1 / (K · class frequency). Unlike PyTorch's `weight`, the
            factors do not move the optimum q, and the mean is over examples and not over weights.
        subtract_entropy: Return H(q, p) - H(q) = KL(q ‖ p), with the same gradient and minimum 0.

    Returns:
        One loss per example, ``[B]`` or ``[B, d…]``, in nats.

    Raises:
        ValueError: If smoothing is out of its range, a list does not have one valid value per
            class, or prior is combined with ``smooth_over="wrong"``.
    """
    logits = to_float32(logits)
    num_classes = logits.shape[1]
    mass = uniform_mass(smoothing, num_classes, smooth_over)
    soft = labels.is_floating_point()
    if soft:
        labels = labels.to(logits.dtype)

    # On an accelerator, this check would synchronise the device.
    if labels.device.type == "cpu":
        warn_if_smoothed(labels, smoothing)

    if prior is None:
        loss = F.cross_entropy(logits, labels, label_smoothing=mass, reduction="none")
    else:
        if smooth_over != "all":
            raise ValueError("prior already names the classes that get the mass; omit smooth_over")
        loss = (1 - smoothing) * F.cross_entropy(logits, labels, reduction="none")
        loss = loss + smoothing * _cross_entropy_to_prior(logits, prior)

    if subtract_entropy:
        loss = loss - _target_entropy(labels, mass, prior, logits)
    if class_weights is not None:
        weights = per_class_tensor("class_weights", class_weights, num_classes, logits)
        if soft:
            loss = loss * (labels.movedim(1, -1) * weights).sum(-1)
        else:
            loss = loss * weights[labels.clamp(min=0)]

    # PyTorch's cross-entropy is 0 for ignored examples, but the prior and entropy summands are not.
    if prior is not None or subtract_entropy:
        loss = mask_ignored(loss, labels)
    return loss


def _cross_entropy_to_prior(logits: Tensor, prior: Sequence[float] | Tensor | str) -> Tensor:
    """Return ``-Σ_k prior_k log p_k``, ``[B, d…]``."""
    log_p = F.log_softmax(logits, 1).movedim(1, -1)
    # Use a product and a sum, because autocast would compute a matrix product in half precision.
    return -(log_p * prior_tensor(prior, logits.shape[1], logits)).sum(-1)


def _target_entropy(
    labels: Tensor, mass: float, prior: Sequence[float] | Tensor | str | None, logits: Tensor
) -> Tensor | float:
    """Return H(q): a number, or ``[B, d…]`` where it depends on the example."""
    num_classes = logits.shape[1]
    if labels.is_floating_point():
        targets = smoothed_targets(labels.movedim(1, -1), num_classes, mass, prior=prior)
        return torch.special.entr(targets).sum(-1)
    if prior is None:
        on_label = 1 - mass + mass / num_classes
        elsewhere = mass / num_classes
        entropy = 0.0
        for count, probability in ((1, on_label), (num_classes - 1, elsewhere)):
            if probability > 0:
                entropy -= count * probability * math.log(probability)
        return entropy
    spread = mass * prior_tensor(prior, num_classes, logits)
    entropies = torch.special.entr(spread)
    entropy_of_class = entropies.sum() - entropies + torch.special.entr(1 - mass + spread)
    return entropy_of_class[labels.clamp(min=0)]


def focal(logits: Tensor, labels: Tensor, *, focus: Annotated[float, Ge(0)] = 2.0) -> Tensor:
    """Compute the focal loss, ``-(1 - p_y)^γ log p_y``.

    This is equation 4 of Lin et al. 2017, with softmax.

    Args:
        logits: ``[B, K]`` or ``[B, K, d…]`` with K ≥ 2.
        labels: Classes ``[B, d…]``.
        focus: γ. A larger γ gives well-classified examples less weight; 0 is cross-entropy.

    Returns:
        One loss per example, ``[B]`` or ``[B, d…]``, in nats.

    Raises:
        ValueError: If focus is negative or the labels are soft.
    """
    if focus < 0:
        raise ValueError(f"focus must be at least 0, got {focus:g}")
    log_p, log_rest, _ = split_class(flatten_logits(logits), flatten_labels(labels))
    return unflatten_loss(-(focus * log_rest).exp() * log_p, labels)


def poly1(
    logits: Tensor,
    labels: Tensor,
    *,
    epsilon: Annotated[float, Ge(-1)] = 2.0,
    smoothing: UnitInterval = 0.0,
) -> Tensor:
    """Compute the Poly-1 loss, ``H(q, p) + ε (1 - Σ_k q_k p_k)`` (Leng et al. 2022, equation 7).

    Args:
        logits: ``[B, K]`` or ``[B, K, d…]``.
        labels: Classes ``[B, d…]``.
        epsilon: ε ≥ -1, the coefficient of the first polynomial term. The default is timm's.
        smoothing: Mass that q gives to all classes, in [0, 1].

    Returns:
        One loss per example, ``[B]`` or ``[B, d…]``, in nats.

    Raises:
        ValueError: If epsilon or smoothing is out of its range, or the labels are soft.
    """
    if epsilon < -1:
        raise ValueError(f"epsilon must be at least -1, got {epsilon:g}")
    num_classes = logits.shape[1]
    mass = uniform_mass(smoothing, num_classes)
    log_p = F.log_softmax(flatten_logits(logits), 1)
    log_p_label = select_class(log_p, flatten_labels(labels))

    loss = -(1 - mass) * log_p_label
    if mass > 0:
        loss = loss - mass * log_p.mean(1)
    # This is 1 - Σ_k q_k p_k, because the p_k add up to 1.
    first_term = 1 - (1 - mass) * log_p_label.exp() - mass / num_classes
    return unflatten_loss(loss + epsilon * first_term, labels)


def sparse_softmax(logits: Tensor, labels: Tensor, *, k: Annotated[int, Ge(1)] = 10) -> Tensor:
    """Compute the sparse softmax loss, ``log Σ_{j ∈ Ω} exp z_j - z_y`` (Sun et al. 2021).

    Ω are the k largest logits. The loss lies between 0 and the cross-entropy, and equals it for
    k ≥ K. A label outside Ω still gets a gradient, but wrong classes outside Ω get none. So use
    this loss for fine-tuning and not for training from scratch. It has no label smoothing, because
    the mass would fall on classes without probability.

    Args:
        logits: ``[B, K]`` or ``[B, K, d…]``.
        labels: Classes ``[B, d…]``.
        k: Number of classes that keep a probability; values above K count as K.

    Returns:
        One loss per example, ``[B]`` or ``[B, d…]``, in nats.

    Raises:
        ValueError: If k < 1 or the labels are soft.
    """
    logits = flatten_logits(logits)
    largest, _ = _top_k(logits, k)
    loss = largest.logsumexp(1) - select_class(logits, flatten_labels(labels))
    return unflatten_loss(loss, labels)


def sparse_probabilities(logits: Tensor, k: int) -> Tensor:
    """Return the sparse softmax ``[N, K]``: probabilities that are 0 except for the k largest.

    Args:
        logits: ``[N, K]``.
        k: Number of classes that keep a probability, at least 1.
    """
    largest, indices = _top_k(to_float32(logits), k)
    return torch.zeros_like(logits, dtype=largest.dtype).scatter(1, indices, largest.softmax(1))


def _top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the min(k, K) largest logits of each row and their indices, in any order."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return logits.topk(min(k, logits.shape[1]), dim=1, sorted=False)
