"""Write recipes/README.md: the included recipes, and every key that a recipe can have.

    python tools/recipe_keys.py

`recipe_keys.md.jinja` has the text. The tables are made from the types that check recipes, so they
cannot be out of date.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from distill.losses import LOSSES
from distill.recipe.loss_terms import Weighted, loss_settings_model, needs_teacher
from distill.recipe.schema import (
    NOT_IN_FINGERPRINT,
    Analysis,
    ArmSettings,
    Augment,
    Data,
    Document,
    Synthetic,
    Train,
)

RECIPES = Path(__file__).parent.parent / "recipes"


class Block(NamedTuple):
    """One table of keys: its heading, the type that checks the keys, and a note above it."""

    title: str
    model: type[BaseModel]
    note: str = ""


BLOCKS = [
    Block("The top level", Document),
    Block("data", Data),
    Block(
        "data.augment",
        Augment,
        "The randomness of a view is a function of (seed, epoch, image) alone. The order is shift, "
        "scale, crop, flip, then mixing.",
    ),
    Block("data.synthetic", Synthetic),
    Block(
        "train",
        Train,
        "An arm can have its own values. Changing one of "
        f"{', '.join(f'`{name}`' for name in sorted(NOT_IN_FINGERPRINT))} does not retrain a run.",
    ),
    Block("analysis", Analysis),
    Block("An arm of teachers or students", ArmSettings),
]

TYPE_NAMES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true, false",
}
BOUNDS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
}


def describe_type(schema: dict[str, Any]) -> str:
    """Return the values that a JSON Schema allows, in words: ``whole number ≥ 1``."""
    if "anyOf" in schema:
        options = [option for option in schema["anyOf"] if option.get("type") != "null"]
        return " or ".join(describe_type(option) for option in options)
    if "enum" in schema:
        return ", ".join(json.dumps(value) for value in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "$ref" in schema or schema.get("type") == "object":
        return "mapping"
    if schema.get("type") == "array":
        return _describe_list(schema)
    if "type" not in schema:
        return "any"
    bounds = [f"{sign} {schema[name]:g}" for name, sign in BOUNDS.items() if name in schema]
    return f"{TYPE_NAMES[schema['type']]} {', '.join(bounds)}".strip()


def _describe_list(schema: dict[str, Any]) -> str:
    if schema.get("prefixItems"):
        items = schema["prefixItems"]
        return f"list of {len(items)} {_plural(describe_type(items[0]))}"
    if schema.get("items"):
        return f"list of {_plural(describe_type(schema['items']))}"
    return "list"


def _plural(words: str) -> str:
    return words.replace("number", "numbers").replace("text", "texts")


def describe_default(model: type[BaseModel], name: str) -> str:
    """Return a field's default as it is written in YAML; empty if nothing is the default."""
    value = model.model_fields[name].default
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return ""
    if isinstance(value, BaseModel):
        value = {}
    if isinstance(value, float):
        value = round(value, 4)
    return f"`{json.dumps(value)}`"


def key_table(model: type[BaseModel]) -> Iterator[str]:
    """Yield the lines of the table of a model's keys."""
    properties = model.model_json_schema()["properties"]
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for name, field in model.model_fields.items():
        kind = describe_type(properties[name])
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        yield f"| `{name}` | {kind} | {describe_default(model, name)} | {meaning} |"


def term_table() -> Iterator[str]:
    """Yield the lines of the table of loss terms."""
    yield "| term | teacher | keys |"
    yield "|---|---|---|"
    for name, function in LOSSES.items():
        teacher = "required" if needs_teacher(function) else ""
        yield f"| `{name}` | {teacher} | {' · '.join(_term_keys(name)) or 'none'} |"


def _term_keys(name: str) -> Iterator[str]:
    """Yield a description of each key of a loss term, without the keys that all terms have."""
    model = loss_settings_model(LOSSES[name])
    properties = model.model_json_schema()["properties"]
    for key in model.model_fields:
        if key in Weighted.model_fields:
            continue
        description = f"`{key}`: {describe_type(properties[key])}"
        default = describe_default(model, key)
        yield f"{description}, {default}" if default else description


def recipe_table() -> Iterator[str]:
    """Yield the lines of the table of the included recipes, with the first line of each."""
    yield "| recipe | study |"
    yield "|---|---|"
    for path in sorted(RECIPES.rglob("*.yaml")):
        first_line = path.read_text("utf-8").splitlines()[0]
        name = path.relative_to(RECIPES).with_suffix("").as_posix()
        yield f"| [`{name}`]({name}.yaml) | {first_line.lstrip('# ')} |"


def page() -> str:
    """Return the whole of recipes/README.md."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    blocks = []
    for block in BLOCKS:
        table = "\n".join(key_table(block.model))
        blocks.append({"title": block.title, "note": block.note, "table": table})
    return environment.get_template("recipe_keys.md.jinja").render(
        example=(RECIPES / "mnist.yaml").read_text("utf-8").rstrip("\n"),
        recipes="\n".join(recipe_table()),
        blocks=blocks,
        terms="\n".join(term_table()),
    )


if __name__ == "__main__":
    (RECIPES / "README.md").write_text(page(), "utf-8")
