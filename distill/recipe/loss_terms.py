"""The recipe: the types of what a YAML file may state, the terms of a loss, and the JSON Schema.

Nothing here imports torch: the terms are handed in as a table of functions, and their keys are their
signatures.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, get_type_hints

import pydantic
from pydantic import BaseModel, Field

from distill.recipe.schema import Strict

Terms = Mapping[str, Callable[..., Any]]


RUNTIME_ARGS = frozenset(
    {"part", "progress"}
)  # arguments of terms that come from the loop, not from a recipe


class Weighted(Strict):
    """What every term of a loss has, beside the keyword arguments of its function."""

    weight: float = Field(1.0, ge=0, description="what the term is multiplied by")
    warmup: float = Field(
        0.0, ge=0, le=1, description="share of training over which the weight grows from 0"
    )


@cache
def loss_settings_model(function: Callable[..., Any], weighted: bool = True) -> type[BaseModel]:
    """The keys of a loss term: the keyword-only arguments of its function, and those of every term."""
    hints = get_type_hints(function, include_extras=True)
    keywords = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in RUNTIME_ARGS
    ]
    fields: dict[str, Any] = {
        p.name: (hints[p.name], ... if p.default is p.empty else p.default) for p in keywords
    }
    return pydantic.create_model(
        function.__name__, __base__=Weighted if weighted else Strict, **fields
    )


def needs_teacher(function: Callable[..., Any]) -> bool:
    """Whether a term has no meaning without a teacher: its `teacher` has no default."""
    return inspect.signature(function).parameters["teacher"].default is inspect.Parameter.empty
