"""A YAML document that knows where each of its keys stands, so that every problem can name its place.

In reading order: the errors; YAML with line numbers; overrides from the command line; checking a part of
the document by a pydantic model, with problems as sentences and the suggest known key.
"""

from typing import Any, get_args

import pydantic
from pydantic import BaseModel

from distill.errors import suggest
from distill.recipe.yaml_reader import Key, Problems

# -------------------------------------------------------------------------------------------------- checking

WORDS = {
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "string_type": "expected text",
    "dict_type": "expected a mapping (KEY: VALUE)",
    "list_type": "expected a list (as one value of an arm it is written [[…]])",
    "model_type": "expected a mapping (KEY: VALUE)",
    "tuple_type": "expected a list",
    "none_required": "expected nothing",
}


def explain(error: Any) -> str:
    """A pydantic error as a sentence: what was expected, and what was found."""
    value = error["input"]
    wanted = WORDS.get(error["type"]) or error["msg"][0].lower() + error["msg"][1:].replace(
        "input ", "it "
    )
    wanted = wanted.replace("it should", "it must") if wanted.startswith("it ") else wanted
    if error["type"] == "missing":
        return "this key is missing"
    if isinstance(value, list) and error["type"] not in ("too_long", "too_short"):
        return f"{wanted}, got a list: an axis may stand only in an arm of teachers or students"
    if isinstance(value, str) and error["type"] in ("float_type", "int_type", "int_from_float"):
        try:
            number = float(value)
        except ValueError:
            return f"{wanted}, got the text '{value}'"
        mantissa, _, exponent = value.lower().partition("e")
        fix = f"{float(mantissa)}e{int(exponent):+d}" if exponent else f"{number:g}"
        return f"{wanted}, got the text '{value}' (YAML reads it as text; write {fix})"
    return f"{wanted}, got { {'True': 'true', 'False': 'false', 'None': 'nothing'}.get(repr(value), repr(value)) }"


def check(model: type[BaseModel], value: Any, key: Key, problems: Problems) -> Any:
    """`value` as an instance of `model`, or None with its problems noted."""
    try:
        return model.model_validate(value)
    except pydantic.ValidationError as failure:
        errors = failure.errors()
    for error in errors:
        *above, last = error["loc"] or ("",)
        place = tuple(part for part in above if not _union_tag(part))
        if error["type"] == "extra_forbidden":
            problems.add(
                (*key, *place, last), f"unknown key; {suggest(last, _fields_at(model, place))}"
            )
        else:
            place = (*place, last) if error["loc"] and not _union_tag(last) else place
            problems.add((*key, *place), explain(error))
    return None


def _union_tag(part: str | int) -> bool:
    """pydantic names the branch of a union in an error's place: not a key of the user's."""
    return isinstance(part, str) and (part in ("str", "int", "float", "bool") or "[" in part)


def _fields_at(model: type[BaseModel], place: Key) -> list[str]:
    for part in place:
        annotation = model.model_fields[str(part)].annotation
        options = get_args(annotation) or (annotation,)
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(model.model_fields)
