"""The losses that recipes can name, and the outputs and modules that each of them needs.

To add a loss, write a function in the module where it belongs, add a line to `LOSSES` here, and a
row to the README. The parameters of the function are its contract:

- Positional parameters are inputs: `logits`, `labels`, `features`, `feature_maps`, `weights`,
  `templates`, and the same with the prefix `teacher_` (not of labels).
- Keyword-only parameters are the keys of the term in a recipe, with their ranges as annotations,
  except for those that the training loop supplies (`RUNTIME_ARGS`): `progress`, `logit_scale`, and
  a module that the loss owns (`LOSS_MODULES`).
- The result has one value per example, in the shape of the labels, or is a scalar that counts for
  every example.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from distill.losses import (
    classification,
    feature_distillation,
    logit_distillation,
    margins,
    online_targets,
    regularizers,
)
from distill.losses.outputs import Outputs
from distill.recipe.loss_terms import TEACHER_PREFIX, LossFunction, input_names, runtime_args

LOSSES: Mapping[str, LossFunction] = MappingProxyType(
    {
        "cross_entropy": classification.cross_entropy,
        "focal": classification.focal,
        "poly1": classification.poly1,
        "sparse_softmax": classification.sparse_softmax,
        "confidence_penalty": regularizers.confidence_penalty,
        "max_sup": regularizers.max_sup,
        "mbls": regularizers.mbls,
        "zipf": regularizers.zipf,
        "online_smoothing": online_targets.online_smoothing,
        "sm_softmax": margins.sm_softmax,
        "am_softmax": margins.am_softmax,
        "arcface": margins.arcface,
        "l_softmax": margins.l_softmax,
        "a_softmax": margins.a_softmax,
        "kd": logit_distillation.kd,
        "logit_mse": logit_distillation.logit_mse,
        "hard_label": logit_distillation.hard_label,
        "dkd": logit_distillation.dkd,
        "nkd": logit_distillation.nkd,
        "dist": logit_distillation.dist,
        "hint": feature_distillation.hint,
        "attention_transfer": feature_distillation.attention_transfer,
        "rkd": feature_distillation.rkd,
        "l1_penalty": regularizers.l1_penalty,
        "l2_penalty": regularizers.l2_penalty,
    }
)
"""Every loss function by the name that a recipe uses."""


def _make_projector(student: Outputs, teacher: Outputs | None) -> nn.Module:
    if student.features is None or teacher is None or teacher.features is None:
        raise ValueError(
            "needs features of the student and of a single teacher; an ensemble has no features"
        )
    return nn.Linear(student.features.shape[1], teacher.features.shape[1])


def _make_targets(student: Outputs, teacher: Outputs | None) -> nn.Module:
    return online_targets.OnlineTargets(student.logits.shape[1])


LOSS_MODULES: Mapping[str, Callable[[Outputs, Outputs | None], nn.Module]] = MappingProxyType(
    {"projector": _make_projector, "targets": _make_targets}
)
"""Functions that make a loss function's module from example outputs, by parameter name."""


def module_parameter(function: LossFunction) -> str | None:
    """Return the name of the parameter that takes a loss function's module, or None."""
    for name in runtime_args(function):
        if name in LOSS_MODULES:
            return name
    return None


def terms_with_modules(terms: Iterable[str]) -> list[str]:
    """Return the names of the terms that own a module, sorted."""
    return sorted(name for name in terms if module_parameter(LOSSES[name]))


def make_loss_modules(
    terms: Iterable[str], student: Outputs, teacher: Outputs | None, seed: int
) -> nn.ModuleDict:
    """Make the modules that the terms of a loss own, such as the projector of a hint.

    The state of PyTorch's random generators does not change.

    Args:
        terms: Names of the terms.
        student: Example outputs of the student, for their shapes.
        teacher: Example outputs of the teacher, if there is one.
        seed: Seed of the modules' initial weights.

    Returns:
        The modules, by the name of their term.

    Raises:
        ValueError: If a module cannot be made, for example a projector to an ensemble.
    """
    modules = nn.ModuleDict()
    for name in terms_with_modules(terms):
        make = LOSS_MODULES[module_parameter(LOSSES[name])]

        # Derive another seed, because the network's initial weights use the seed itself. Do not
        # change this text: another text gives other weights, and so other results.
        digest = hashlib.blake2b(f"part {name} {seed}".encode(), digest_size=4).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest, "little"))
            try:
                modules[name] = make(student, teacher)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    return modules


def required_outputs(terms: Iterable[str], *, of_teacher: bool = False) -> frozenset[str]:
    """Return the fields of `Outputs`, besides logits, that the terms of a loss need.

    Args:
        terms: Names of the terms.
        of_teacher: Return the fields of the teacher's outputs instead of the student's.
    """
    needed: set[str] = set()
    for name in terms:
        for parameter in input_names(LOSSES[name]):
            if parameter.startswith(TEACHER_PREFIX) == of_teacher:
                needed.add(parameter.removeprefix(TEACHER_PREFIX))
    return frozenset(needed - {"logits", "labels"})


def resolve_priors(
    terms: Mapping[str, Mapping[str, Any]], class_frequencies: list[float]
) -> dict[str, dict[str, Any]]:
    """Replace ``prior: data`` and ``class_weights: balanced`` by numbers.

    Args:
        terms: Settings of each term, by its name.
        class_frequencies: Share of each class among the training examples, ``[K]``.

    Returns:
        The settings, with the class frequencies f in place of "data", and 1 / (K f) in place of
        "balanced" (0 for classes without examples).
    """
    num_classes = len(class_frequencies)
    balanced = [1 / (num_classes * share) if share else 0.0 for share in class_frequencies]
    numbers = {("prior", "data"): class_frequencies, ("class_weights", "balanced"): balanced}

    resolved: dict[str, dict[str, Any]] = {}
    for name, settings in terms.items():
        resolved[name] = dict(settings)
        for (key, word), values in numbers.items():
            if settings.get(key) == word:
                resolved[name][key] = values
    return resolved
