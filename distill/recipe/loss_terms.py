"""The terms of a recipe's loss, read from the signatures of the loss functions.

The positional parameters of a loss function are the tensors that the training loop passes by name.
Its keyword-only parameters are the keys of the term in a recipe, except for `RUNTIME_ARGS`, which
the loop supplies.

This module does not import torch, so that recipes can be checked without it. Callers pass the loss
functions.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, get_type_hints

import pydantic
from pydantic import BaseModel, Field

from distill.recipe.schema import Strict

LossFunction = Callable[..., Any]

Terms = Mapping[str, LossFunction]
"""The known loss functions by name."""

INPUTS = frozenset({"logits", "labels", "features", "feature_maps", "weights", "templates"})
"""Names of positional parameters that the loop can supply; all but labels exist for teachers."""

TEACHER_PREFIX = "teacher_"
"""Prefix of positional parameters that are outputs of the teacher."""

RUNTIME_ARGS = frozenset({"progress", "projector", "targets", "logit_scale"})
"""Keyword-only parameters that the training loop supplies and a recipe does not contain."""


class Weighted(Strict):
    """The keys that every term of a loss has, besides the settings of its function."""

    weight: float = Field(1.0, ge=0, description="Factor of the term in the loss.")
    warmup: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Fraction of training during which the weight grows linearly from 0 to its "
        "value.",
    )


@cache
def loss_settings_model(function: LossFunction, *, weighted: bool = True) -> type[BaseModel]:
    """Make the pydantic model of a term's keys in a recipe.

    Args:
        function: A loss function; its annotations give the types and ranges of the keys.
        weighted: Whether to include the keys of `Weighted`.
    """
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.name in RUNTIME_ARGS:
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints[parameter.name], default)
    base = Weighted if weighted else Strict
    return pydantic.create_model(function.__name__, __base__=base, **fields)


@cache
def input_names(function: LossFunction) -> tuple[str, ...]:
    """Return the names of a loss function's positional parameters."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


@cache
def runtime_args(function: LossFunction) -> frozenset[str]:
    """Return the names of a loss function's parameters that the training loop supplies."""
    return RUNTIME_ARGS & inspect.signature(function).parameters.keys()


def needs_teacher(function: LossFunction) -> bool:
    """Return whether a loss function takes an output of the teacher."""
    return any(name.startswith(TEACHER_PREFIX) for name in input_names(function))
