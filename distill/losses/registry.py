"""The table of all terms, what each needs, and the one place where they are summed.

A new term is one function in one of the files beside this one and its name in `LOSSES`; in `REQUIRED_OUTPUTS`, too, if it
looks at more than logits, and in `LOSS_MODULES` if it has weights or a state of its own. README.md lists them all.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from distill.losses.common import Outputs
from distill.losses.distillation import dist, dkd, hard_label, kd, logit_mse, nkd
from distill.losses.features import attention_transfer, hint, rkd
from distill.losses.labels import (
    confidence_penalty,
    cross_entropy,
    focal,
    max_sup,
    mbls,
    poly1,
    sparse_softmax,
    zipf,
)
from distill.losses.margins import a_softmax, am_softmax, arcface, l_softmax, sm_softmax
from distill.losses.online import OnlineTargets, online_smoothing
from distill.losses.penalties import l1_penalty, l2_penalty
from distill.recipe.loss_terms import RUNTIME_ARGS, needs_teacher

Term = Callable[..., Tensor]

LOSSES: Mapping[str, Term] = MappingProxyType(
    {
        term.__name__: term
        for term in (
            cross_entropy,
            focal,
            poly1,
            sparse_softmax,
            confidence_penalty,
            max_sup,
            mbls,
            zipf,
            online_smoothing,
            sm_softmax,
            am_softmax,
            arcface,
            l_softmax,
            a_softmax,
            kd,
            logit_mse,
            hard_label,
            dkd,
            nkd,
            dist,
            hint,
            attention_transfer,
            rkd,
            l1_penalty,
            l2_penalty,
        )
    }
)

REQUIRED_OUTPUTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {  # fields of Outputs beside logits and scale
        "l_softmax": frozenset({"features", "templates"}),
        "a_softmax": frozenset({"features"}),
        "hint": frozenset({"features"}),
        "rkd": frozenset({"features"}),
        "attention_transfer": frozenset({"feature_maps"}),
        "l1_penalty": frozenset({"weights"}),
        "l2_penalty": frozenset({"weights"}),
    }
)


def _projector(student: Outputs, teacher: Outputs | None) -> nn.Module:
    if student.features is None or teacher is None or teacher.features is None:
        raise ValueError("hint needs features, of the student and of one teacher")
    return nn.Linear(student.features.shape[1], teacher.features.shape[1])


LOSS_MODULES: Mapping[str, Callable[[Outputs, Outputs | None], nn.Module]] = MappingProxyType(
    {
        "online_smoothing": lambda student, teacher: OnlineTargets(student.logits.shape[1]),
        "hint": _projector,
    }
)

_SUPPLIED = {
    name: RUNTIME_ARGS & set(inspect.signature(term).parameters) for name, term in LOSSES.items()
}


def required_outputs(loss: Iterable[str], of_teacher: bool = False) -> frozenset[str]:
    """Fields of Outputs, beside logits and scale, that a loss looks at: the student's, or the teacher's."""
    names = [name for name in loss if needs_teacher(LOSSES[name])] if of_teacher else loss
    return frozenset().union(*(REQUIRED_OUTPUTS.get(name, ()) for name in names))


def resolve_priors(
    loss: Mapping[str, Mapping[str, Any]], shares: list[float]
) -> dict[str, dict[str, Any]]:
    """A loss in which ``prior: data`` and ``class_weights: balanced`` are numbers, by the classes' shares ``[K]``."""
    balanced = [1 / (len(shares) * share) if share else 0.0 for share in shares]
    known = {"data": shares, "balanced": balanced}
    return {
        name: {
            key: known[value]
            if key in ("prior", "class_weights") and isinstance(value, str)
            else value
            for key, value in settings.items()
        }
        for name, settings in loss.items()
    }


def make_loss_modules(
    loss: Mapping[str, Any], student: Outputs, teacher: Outputs | None, seed: int
) -> nn.ModuleDict:
    """The modules that terms of a loss own, by term, for outputs of these shapes; the generator stays as it is.

    Raises:
        ValueError: if a term cannot have its part, as a hint between a student and an ensemble.
    """
    parts = nn.ModuleDict()
    for name in sorted(LOSS_MODULES.keys() & loss.keys()):
        with torch.random.fork_rng(devices=[]):
            digest = hashlib.blake2b(f"part {name} {seed}".encode(), digest_size=4).digest()
            torch.manual_seed(
                int.from_bytes(digest, "little")
            )  # not the seed itself, which the network starts from
            parts[name] = LOSS_MODULES[name](student, teacher)
    return parts


def compute_loss(
    loss: Mapping[str, Mapping[str, Any]],
    student: Outputs,
    labels: Tensor,
    teacher: Outputs | None,
    count: int,
    parts: Mapping[str, nn.Module] | None = None,
    progress: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, or of its part: ``Σ_terms weight Σ_examples term / count``.

    Args:
        loss: hyperparameters, with `weight` and `warmup`, by the term's name.
        student: of this part of the batch.
        labels: ``[B]`` or ``[B, K]``.
        teacher: of the same views, or None.
        count: examples of the whole batch, so that the losses of its parts add up to its mean.
        parts: of the terms that have one, as `make_loss_modules` makes them.
        progress: share of training that is done, in [0, 1].

    Raises:
        ValueError: as its terms do, with the term's name.

    Returns:
        the loss, a scalar, and each term's sum over the examples, detached and before its weight.
    """
    total: Tensor | None = None
    sums: dict[str, Tensor] = {}
    for name, settings in loss.items():
        keywords = {
            key: value for key, value in settings.items() if key not in ("weight", "warmup")
        }
        if "part" in _SUPPLIED[name]:
            keywords["part"] = parts[name]
        if "progress" in _SUPPLIED[name]:
            keywords["progress"] = progress
        try:
            term_sum = LOSSES[name](student, labels, teacher, **keywords).sum()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        grown = min(1.0, progress / settings["warmup"]) if settings.get("warmup") else 1.0
        weighted = term_sum * (grown * settings.get("weight", 1.0) / count)
        total = weighted if total is None else total + weighted
        sums[name] = term_sum.detach()
    return student.logits.new_zeros(()) if total is None else total, sums
