"""The base class of all parts of a recipe, and the errors that their validators raise."""

import os
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

Fraction = Annotated[float, Field(gt=0, lt=1)]


def _text_from_number(value: Any) -> Any:
    """Return the text of a whole number, because YAML reads the name 7 as a number."""
    # Use `type` and not `isinstance`: True is an int, but it is not a name.
    return str(value) if type(value) is int else value


Name = Annotated[str, BeforeValidator(_text_from_number)]
"""The name of a class or of an arm, which may be a number."""

FilePath = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path, in which ``~`` is the home folder."""


class Strict(BaseModel):
    """A part of a recipe: unknown keys are errors, and no value is converted to another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def recipe_error(code: str, message: str) -> PydanticCustomError:
    """Return an error for a validator to raise, with a message that users see unchanged.

    Args:
        code: kind of mistake, see `distill.errors.Problem.code`.
        message: what is wrong and how to fix it.
    """
    # The message is a parameter, because pydantic would fill in the braces of a template.
    return PydanticCustomError(code, "{message}", {"message": message})


def is_recipe_error(error: Any) -> bool:
    """Return whether `recipe_error` made an error that pydantic lists."""
    return "message" in error.get("ctx", {})


def raise_for_keys(problems: Iterable[tuple[str, str, str]]) -> None:
    """Raise one validation error with all of these problems, if there are any.

    A validator of a whole model calls this to name the key of each problem.

    Args:
        problems: ``(key, code, message)`` of each.
    """
    details = [
        InitErrorDetails(type=recipe_error(code, message), loc=(key,), input=None)
        for key, code, message in problems
    ]
    if details:
        raise ValidationError.from_exception_data("recipe", details)
