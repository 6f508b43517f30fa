"""Losses on labels: what a network learns from the data alone. The form of a term is told in `common`.

In reading order: smoothed targets; cross-entropy; its neighbours; penalties on the output that are added to it.
"""

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor

from distill.losses.common import (
    Outputs,
    exclude_class,
    mask_ignored,
    rows,
    select_class,
    split_class,
    to_float32,
)

SmoothOver = Literal["all", "wrong"]
Mass = Annotated[float, Ge(0), Le(1)]


# ---------------------------------------------------------------------------------------- smoothed targets


def uniform_mass(smoothing: float, classes: int, smooth_over: SmoothOver = "all") -> float:
    """Mass spread over all K classes that gives the same target as `smoothing` does over `smooth_over`.

    Raises:
        ValueError: if smoothing is out of its range: [0, 1] over all, where 1 is uniform; [0, (K - 1) / K]
            over the others, where the target is uniform at the end and beyond it would teach the wrong
            classes. (torch takes a negative one in silence.)
    """
    highest = 1.0 if smooth_over == "all" else (classes - 1) / classes
    if not 0 <= smoothing <= highest:
        raise ValueError(
            f"smoothing over {smooth_over} of {classes} classes must be in [0, {highest:g}], got {smoothing:g}"
            + (": beyond it the wrong classes are taught" if smoothing > highest else "")
        )
    return (
        smoothing if smooth_over == "all" else min(1.0, smoothing * classes / max(classes - 1, 1))
    )


def convert_smoothing(smoothing: float, classes: int, to: SmoothOver) -> float:
    """The same target in the other form: ``a' = a (K - 1) / K`` over the others, ``a = a' K / (K - 1)`` over all."""
    if to == "all":
        return uniform_mass(smoothing, classes, "wrong")
    return uniform_mass(smoothing, classes) * (classes - 1) / classes


def smoothed_targets(
    labels: Tensor,
    classes: int,
    smoothing: float,
    smooth_over: SmoothOver = "all",
    prior: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Target distributions ``[B, K]`` (class last), at least in float32.

    Args:
        labels: classes ``[B…]``, or distributions ``[B…, K]``.
        classes: K.
        smoothing: mass that leaves the label.
        smooth_over: where to: see `cross_entropy`.
        prior: where to instead, a distribution ``[K]``.
    """
    target = (
        to_float32(labels) if labels.is_floating_point() else F.one_hot(labels, classes).float()
    )
    if prior is not None:
        return (1 - smoothing) * target + smoothing * _distribution(prior, classes, target)
    mass = uniform_mass(smoothing, classes, smooth_over)
    return (1 - mass) * target + mass / classes


def optimal_logit_gap(classes: int, smoothing: float, smooth_over: SmoothOver = "all") -> float:
    """What the label's logit exceeds each other one by, where smoothed cross-entropy is at its minimum.

    ``log((K - (K - 1) a) / a)`` over all and ``log((1 - a) (K - 1) / a)`` over the others; infinite for a = 0.
    """
    mass = uniform_mass(smoothing, classes, smooth_over)
    return math.log((classes - (classes - 1) * mass) / mass) if mass else math.inf


@lru_cache(maxsize=64)
def _constants(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """On the device once: a copy from the host in every step would stop it."""
    with torch.inference_mode(
        False
    ):  # or a first call during evaluation would leave what no gradient may pass
        return torch.tensor(values, device=device, dtype=dtype)


def _per_class(name: str, values: Sequence[float] | Tensor, classes: int, like: Tensor) -> Tensor:
    if isinstance(values, str):
        raise ValueError(
            f"{name}: {values} is known in a recipe only; give one value for each class"
        )
    if len(values) != classes:
        raise ValueError(
            f"{name} must have one value for each of the {classes} classes, got {len(values)}"
        )
    if isinstance(values, Tensor):
        return values.to(like)
    if not all(0 <= v < math.inf for v in values):
        raise ValueError(f"{name} must be finite and not negative")
    return _constants(tuple(values), like.device, like.dtype)


def _distribution(prior: Sequence[float] | Tensor, classes: int, like: Tensor) -> Tensor:
    if not isinstance(prior, Tensor | str) and abs(sum(prior) - 1) > 1e-4:
        raise ValueError(f"prior must be a distribution, but its values add up to {sum(prior):g}")
    return _per_class("prior", prior, classes, like)


def warn_if_smoothed(labels: Tensor, smoothing: float) -> None:
    """Warn where soft labels that leave no class out would be smoothed again (K = 2 cannot be told apart)."""
    if (
        smoothing
        and labels.is_floating_point()
        and labels.shape[1] > 2
        and len(labels)
        and bool((labels > 0).all())
    ):
        warnings.warn(
            "these soft labels leave no class out, so they seem to be smoothed already (timm's Mixup does "
            f"that by default); smoothing={smoothing:g} smooths them again",
            stacklevel=3,
        )


# ------------------------------------------------------------------------------------------ cross-entropy


def cross_entropy(
    student: Outputs,
    labels: Tensor,
    teacher: Outputs | None = None,
    *,
    smoothing: Mass = 0.0,
    smooth_over: SmoothOver = "all",
    prior: list[float] | Literal["data"] | None = None,
    class_weights: list[float] | Literal["balanced"] | None = None,
    subtract_entropy: bool = False,
) -> Tensor:
    """Cross-entropy with label smoothing, ``H(q, p)``.

    ``smooth_over: all`` gives the mass to all K classes, ``q = (1 - smoothing) y + smoothing / K`` (Szegedy et al.
    2016; Müller et al. 2019, section 1.1; torch and timm). ``smooth_over: wrong`` gives it to the K - 1 wrong
    ones, ``q_j = smoothing / (K - 1)`` (Shen et al. 2021; the "confidence" form), which is the first form with
    ``smoothing K / (K - 1)``. The minimum is H(q), which is not 0, unless `subtract_entropy`.

    Args:
        student: logits ``[B, K]`` or ``[B, K, d…]``.
        labels: classes, or distributions in the shape of the logits as mixup makes them, smoothed here once.
        teacher: not used.
        smoothing: mass in [0, 1]; over the others at most (K - 1) / K, where the target is uniform.
        smooth_over: which classes share the mass.
        prior: a distribution over the K classes that gets the mass instead (unigram smoothing, Pereyra et
            al. 2017); "data", in a recipe, are the classes' shares of the training split.
        class_weights: K factors of the examples, by their label; "balanced", in a recipe, are 1 / (K share). The
            optimum stays q, unlike with torch's `weight`, which multiplies the terms of the sum over classes;
            and the mean is over examples, not over weights, so weights of mean 1 keep the loss's size.
        subtract_entropy: H(q, p) - H(q) = KL(q ‖ p) instead, with the same gradient and the minimum 0.

    Returns:
        ``[B]`` or ``[B, d…]``, in nats.

    Raises:
        ValueError: if smoothing is out of its range or a list is not one value a class.
    """
    logits, classes = to_float32(student.logits), student.logits.shape[1]
    mass = uniform_mass(smoothing, classes, smooth_over)
    soft = labels.is_floating_point()
    labels = labels.to(logits.dtype) if soft else labels
    if labels.device.type == "cpu":  # elsewhere looking would wait for the device
        warn_if_smoothed(labels, smoothing)
    if prior is None:
        loss = F.cross_entropy(logits, labels, label_smoothing=mass, reduction="none")
    else:
        if smooth_over != "all":
            raise ValueError("prior says where the mass goes, so smooth_over must be left out")
        u = _distribution(prior, classes, logits)
        to_prior = -(F.log_softmax(logits, 1).movedim(1, -1) * u).sum(
            -1
        )  # autocast halves a product of matrices
        loss = (1 - smoothing) * F.cross_entropy(
            logits, labels, reduction="none"
        ) + smoothing * to_prior
    if subtract_entropy:
        loss = loss - _target_entropy(labels, classes, mass, prior, logits)
    if class_weights is not None:
        w = _per_class("class_weights", class_weights, classes, logits)
        loss = loss * ((labels.movedim(1, -1) * w).sum(-1) if soft else w[labels.clamp(min=0)])
    return (
        loss if prior is None and not subtract_entropy else mask_ignored(loss, labels)
    )  # torch's own counts itself


def _target_entropy(
    labels: Tensor, classes: int, mass: float, prior: Any, like: Tensor
) -> Tensor | float:
    """H(q): one number for hard labels, but for a prior one for each class, and for soft labels one an example."""
    if labels.is_floating_point():
        q = smoothed_targets(labels.movedim(1, -1), classes, mass, prior=prior)
        return torch.special.entr(q).sum(-1)
    if prior is None:
        own, other = 1 - mass + mass / classes, mass / classes
        return -sum(n * q * math.log(q) for n, q in ((1, own), (classes - 1, other)) if q > 0)
    u = mass * _distribution(prior, classes, like)
    by_class = (
        torch.special.entr(u).sum() - torch.special.entr(u) + torch.special.entr(1 - mass + u)
    )
    return by_class[labels.clamp(min=0)]


# ------------------------------------------------------------------------------------------ its neighbours


def focal(
    student: Outputs,
    labels: Tensor,
    teacher: Outputs | None = None,
    *,
    focus: Annotated[float, Ge(0)] = 2.0,
) -> Tensor:
    """Focal loss, ``-(1 - p_y)^focus log p_y`` (Lin et al. 2017, equation 4, with softmax; their γ).

    Args:
        student: logits ``[B, K]`` or ``[B, K, d…]``.
        labels: classes.
        teacher: not used.
        focus: how little an example counts that is right already; 0 is cross-entropy.

    Returns:
        ``[B]`` or ``[B, d…]``, in nats.

    Raises:
        ValueError: if focus is negative or the labels are soft.
    """
    if focus < 0:
        raise ValueError(f"focus must be at least 0, got {focus:g}")
    logits, classes, finish = rows(student.logits, labels)
    log_p, log_rest, _ = split_class(logits, classes)
    return finish(-(focus * log_rest).exp() * log_p)


def poly1(
    student: Outputs,
    labels: Tensor,
    teacher: Outputs | None = None,
    *,
    epsilon: Annotated[float, Ge(-1)] = 2.0,
    smoothing: Mass = 0.0,
) -> Tensor:
    """Poly-1, cross-entropy + ``epsilon (1 - Σ_k q_k p_k)`` (Leng et al. 2022, equation 7; timm's default).

    Args:
        student: logits ``[B, K]`` or ``[B, K, d…]``.
        labels: classes.
        teacher: not used.
        epsilon: of the first polynomial term, at least -1.
        smoothing: over all classes, in both parts.

    Returns:
        ``[B]`` or ``[B, d…]``, in nats.

    Raises:
        ValueError: if epsilon or smoothing is out of its range, or the labels are soft.
    """
    if epsilon < -1:
        raise ValueError(f"epsilon must be at least -1, got {epsilon:g}")
    logits, classes, finish = rows(student.logits, labels)
    mass = uniform_mass(smoothing, logits.shape[1])
    log_p = F.log_softmax(logits, 1)
    own = select_class(log_p, classes)
    loss = -(1 - mass) * own - (mass * log_p.mean(1) if mass else 0)
    return finish(loss + epsilon * (1 - (1 - mass) * own.exp() - mass / logits.shape[1]))


def sparse_softmax(
    student: Outputs,
    labels: Tensor,
    teacher: Outputs | None = None,
    *,
    k: Annotated[int, Ge(1)] = 10,
) -> Tensor:
    """Sparse softmax, ``log Σ_Ω exp z_j - z_y`` over the k largest logits Ω (Sun et al. 2021; J. Su's form).

    At least 0, at most cross-entropy, and cross-entropy for k ≥ K. A label outside of Ω is learned all the
    same, by its logit; wrong classes outside of Ω get no gradient, so it is for fine-tuning. Smoothing has no
    place here: its mass would lie on classes without probability.

    Args:
        student: logits ``[B, K]`` or ``[B, K, d…]``.
        labels: classes; `IGNORED` masks positions.
        teacher: not used.
        k: how many classes keep a probability; more than K count as K.

    Returns:
        ``[B]`` or ``[B, d…]``, in nats.

    Raises:
        ValueError: if k < 1 or the labels are soft.
    """
    logits, classes, finish = rows(student.logits, labels)
    return finish(_largest(logits, k)[0].logsumexp(1) - select_class(logits, classes))


def sparse_probabilities(logits: Tensor, k: int) -> Tensor:
    """What sparse softmax predicts: probabilities ``[N, K]`` of the k largest logits, 0 elsewhere."""
    values, places = _largest(to_float32(logits), k)
    return torch.zeros_like(logits, dtype=values.dtype).scatter(1, places, values.softmax(1))


def _largest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return logits.topk(min(k, logits.shape[1]), dim=1, sorted=False)


# ------------------------------------------------------------------- penalties on the output, added to the above


def confidence_penalty(student: Outputs, labels: Tensor, teacher: Outputs | None = None) -> Tensor:
    """``log K - H(p) = KL(p ‖ uniform)`` (Pereyra et al. 2017; smoothing is the same KL in the other order).

    Args:
        student: logits ``[B, K]`` or ``[B, K, d…]``.
        labels: only `IGNORED` matters.
        teacher: not used.

    Returns:
        ``[B]`` or ``[B, d…]``, in nats, in [0, log K].
    """
    log_p = F.log_softmax(to_float32(student.logits), 1)
    return mask_ignored(math.log(log_p.shape[1]) + (log_p.exp() * log_p).sum(1), labels)


def max_sup(student: Outputs, labels: Tensor, teacher: Outputs | None = None) -> Tensor:
    """``max_k z_k - mean_k z_k`` (Zhou et al. 2025, MaxSup): what smoothing penalises, without its pull on
    examples that are wrong.

    Smoothing a is cross-entropy + a (z_y - mean z); where the answer is right the two are the same.

    Args:
        student: logits ``[B, K]`` or ``[B, K, d…]``.
        labels: only `IGNORED` matters.
        teacher: not used.

    Returns:
        ``[B]`` or ``[B, d…]``, in logits.
    """
    logits = to_float32(student.logits)
    return mask_ignored(logits.max(1).values - logits.mean(1), labels)


def mbls(
    student: Outputs,
    labels: Tensor,
    teacher: Outputs | None = None,
    *,
    margin: Annotated[float, Ge(0)] = 10.0,
    over_classes: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Margin-based smoothing, ``mean_k relu(max_j z_j - z_k - margin)`` (Liu et al. 2022, equation 9).

    The authors' code takes the mean over classes and a weight of 0.1; the paper sums.

    Args:
        student: logits ``[B, K]`` or ``[B, K, d…]``.
        labels: only `IGNORED` matters.
        teacher: not used.
        margin: gap of the logits that is free.
        over_classes: mean, or sum (K times it).

    Returns:
        ``[B]`` or ``[B, d…]``, in logits.

    Raises:
        ValueError: if margin is negative.
    """
    if margin < 0:
        raise ValueError(f"margin must be at least 0, got {margin:g}")
    logits = to_float32(student.logits)
    excess = F.relu(logits.max(1, keepdim=True).values - margin - logits)
    return mask_ignored(excess.mean(1) if over_classes == "mean" else excess.sum(1), labels)


def zipf(
    student: Outputs,
    labels: Tensor,
    teacher: Outputs | None = None,
    *,
    power: Annotated[float, Gt(0)] = 1.0,
    only_correct: bool = False,
) -> Tensor:
    """Zipf smoothing: KL of the wrong classes' distribution from one by rank, ``q_r ∝ r^-power`` (Liang et al.
    2022, equation 5, ranks by the network's own logits; their dense form, votes over feature maps, is not here).

    Args:
        student: logits ``[B, K]`` or ``[B, K, d…]``, K ≥ 2.
        labels: classes.
        teacher: not used.
        power: how fast the shares fall with the rank.
        only_correct: leave out examples whose answer is wrong, as the authors do.

    Returns:
        ``[B]`` or ``[B, d…]``, in nats.

    Raises:
        ValueError: if power is not positive, K < 2, or the labels are soft.
    """
    if power <= 0:
        raise ValueError(f"power must be positive, got {power:g}")
    logits, classes, finish = rows(student.logits, labels)
    others = logits.shape[1] - 1
    if others < 1:
        raise ValueError("Zipf smoothing needs at least 2 classes")
    share = _zipf(others, power, logits.device, logits.dtype)
    ranked = (
        exclude_class(logits, classes).sort(1, descending=True).values[:, :others]
    )  # the own class came last
    loss = ranked.logsumexp(1) - (ranked * share).sum(1) - torch.special.entr(share).sum()
    return finish(torch.where(logits.argmax(1) == classes, loss, 0) if only_correct else loss)


@lru_cache(maxsize=64)
def _zipf(count: int, power: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        share = torch.arange(1, count + 1, device=device).to(dtype) ** -power
        return share / share.sum()
