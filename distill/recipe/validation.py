"""Check a part of a recipe with its pydantic model, and write readable error messages.

pydantic lists errors as ``(location, type, value)``. This module turns each of them into a sentence
about the key that the user wrote: what was expected, what was found, and the nearest known key.
"""

import re
from collections.abc import Container
from typing import Any, TypeVar, get_args

import pydantic
from pydantic import BaseModel
from pydantic_core import ErrorDetails

from distill.errors import suggest
from distill.recipe.problems import Key, Problems
from distill.recipe.renamed import RENAMED_KEYS, renamed_key_message, renamed_value
from distill.recipe.strict import is_recipe_error

Model = TypeVar("Model", bound=BaseModel)

EXPECTATIONS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "dict_type": "must be a mapping (KEY: VALUE)",
    "model_type": "must be a mapping (KEY: VALUE)",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "none_required": "must be empty",
}
"""What was expected, by pydantic's error type; other types keep pydantic's own words."""

WHOLE_NUMBER_ERRORS = ("int_type", "int_from_float")
NUMBER_ERRORS = ("float_type", *WHOLE_NUMBER_ERRORS)


def check(
    model: type[Model],
    value: Any,
    key: Key,
    problems: Problems,
    *,
    only: Container[str] | None = None,
) -> Model | None:
    """Return a value as an instance of a model, or None after adding its problems.

    Args:
        model: the type of this part of the recipe.
        value: the part as written, usually a dictionary.
        key: path of the part in the document.
        problems: collects one problem for each wrong key.
        only: report only problems of these keys of the part; by default, of all keys.
    """
    try:
        return model.model_validate(value)
    except pydantic.ValidationError as failure:
        errors = failure.errors(include_url=False)
    for path, alternatives in _group_by_path(errors, value).items():
        if only is not None and path[:1] and path[0] not in only:
            continue
        code, message = _describe(model, (*key, *path), path, alternatives)
        problems.add((*key, *path), code, message)
    return None


def _group_by_path(errors: list[ErrorDetails], value: Any) -> dict[Key, list[ErrorDetails]]:
    """Return the errors by key path.

    A value of a union type (``int | list[int]``) has an error for each type that it might have. The
    errors at one path belong together. An error at a deeper path is more exact and replaces them.
    """
    groups: dict[Key, list[ErrorDetails]] = {}
    for error in errors:
        groups.setdefault(_path(error, value), []).append(error)
    return {
        path: group
        for path, group in groups.items()
        if len(path) == len(group[0]["loc"]) or not _has_deeper(path, groups)
    }


def _has_deeper(path: Key, groups: dict[Key, list[ErrorDetails]]) -> bool:
    return any(len(other) > len(path) and other[: len(path)] == path for other in groups)


def _path(error: ErrorDetails, value: Any) -> Key:
    """Return the path of an error within a value.

    pydantic's location also contains names of the types of a union, such as ``list[int]``. They are
    not keys that the user wrote and do not exist in the value, so the path omits them.
    """
    path: list[str | int] = []
    for part in error["loc"]:
        exists = _contains(value, part)
        if exists:
            value = value[part]
        # These two kinds of errors may be about a key that does not exist.
        if exists or error["type"] == "missing" or is_recipe_error(error):
            path.append(part)
    return tuple(path)


def _contains(value: Any, part: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _describe(
    model: type[BaseModel], key: Key, path: Key, alternatives: list[ErrorDetails]
) -> tuple[str, str]:
    """Return the code and the message for the errors at one path of a model's value."""
    error = alternatives[0]
    name = str(key[-1]) if key else ""
    if error["type"] == "extra_forbidden":
        owner = _model_at(model, path[:-1])
        new = RENAMED_KEYS.get((owner.__name__, name)) if owner else None
        if new is not None:
            return "renamed_key", renamed_key_message(name, new, error["input"])
        known = owner.model_fields if owner else ()
        for section, field in getattr(owner, "model_fields", {}).items():
            inner = field.annotation
            is_section = isinstance(inner, type) and issubclass(inner, BaseModel)
            if is_section and name in inner.model_fields:
                return "unknown_key", f"unknown key; did you mean {section}.{name}?"
        return "unknown_key", f"unknown key; {suggest(name, known)}"
    if is_recipe_error(error):
        return error["type"], error["msg"]
    if error["type"] == "missing":
        return "missing", "this key is missing"
    message = _expected_and_found(alternatives, key)
    new_value = renamed_value(name, error["input"])
    if new_value is not None:
        return "renamed_value", f"{message}; '{error['input']}' is now named '{new_value}'"
    return error["type"], message


def _model_at(model: type[BaseModel], path: Key) -> type[BaseModel] | None:
    """Return the model that checks the mapping at a path; None if no model does."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None:
            return None
        options = get_args(field.annotation) or (field.annotation,)
        models = [
            option
            for option in options
            if isinstance(option, type) and issubclass(option, BaseModel)
        ]
        if not models:
            return None
        model = models[0]
    return model


def _expected_and_found(alternatives: list[ErrorDetails], key: Key) -> str:
    """Return a sentence such as ``must be a whole number, got 'many'``.

    Args:
        alternatives: the errors of one value, one for each type that it may have.
        key: path of the value in the document.
    """
    expected = _join_expectations([_expectation(error) for error in alternatives])
    value = alternatives[0]["input"]
    in_arm = key[:1] in (("teachers",), ("students",))
    if isinstance(value, list) and not in_arm and not _is_about_length(alternatives[0]):
        hint = "a sweep is allowed only in an arm of teachers or students"
        return f"{expected}, got a list ({hint})"
    if isinstance(value, str) and any(error["type"] in NUMBER_ERRORS for error in alternatives):
        is_whole = all(error["type"] in WHOLE_NUMBER_ERRORS for error in alternatives)
        return f"{expected}, got the text '{value}'{_number_hint(value, is_whole=is_whole)}"
    if isinstance(value, float) and value.is_integer():
        return f"{expected}, got {value} (write {value:.0f})"
    return f"{expected}, got {_as_yaml(value)}"


def _expectation(error: ErrorDetails) -> str:
    """Return what a value must be, as in ``must be greater than 0``."""
    own_words = EXPECTATIONS.get(error["type"])
    if own_words is not None:
        return own_words
    message = error["msg"].replace(" after validation", "")
    return re.sub(r"^\w+ should ", "must ", message)


def _join_expectations(expectations: list[str]) -> str:
    """Return ``must be a whole number, or a list`` from the expectations of a union's types."""
    first, *others = dict.fromkeys(expectations)
    joined = first
    for other in others:
        joined += f", or {other.removeprefix('must be ')}"
    return joined


def _is_about_length(error: ErrorDetails) -> bool:
    return error["type"] in ("too_long", "too_short")


def _number_hint(text: str, *, is_whole: bool) -> str:
    """Return how to write a number that YAML reads as text (``5e-4``), or an empty hint.

    Args:
        text: the value as written.
        is_whole: whether a whole number is expected.
    """
    try:
        number = float(text)
    except ValueError:
        return ""
    mantissa, has_exponent, exponent = text.lower().partition("e")
    fixed = f"{float(mantissa)}e{int(exponent):+d}" if has_exponent else f"{number:g}"
    if is_whole and number.is_integer():
        fixed = f"{number:.0f}"
    return f" (YAML reads it as text; write {fixed})"


def _as_yaml(value: Any) -> str:
    """Return a value almost as YAML writes it."""
    if value is True:
        return "true"
    if value is False:
        return "false"
    if value is None:
        return "nothing"
    return repr(value)
