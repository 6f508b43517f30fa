"""Write recipes/README.md: every recipe and every key, from the recipes and the types that check them.

python tools/keys.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
INTRODUCTION = """\
# Recipes

A recipe is a YAML file that states one study: images, teachers, students, seeds. `distill run NAME KEY=VALUE…` runs
one of these, `distill recipes NAME > my.yaml` copies it, `distill run my.yaml --dry-run` prints its plan and cost.

A list where one value is expected, in an arm, is an axis: arms are the product of the axes. A value that is itself a
list is written `[[…]]`. On the command line a key is written with dots: `train.epochs=3`,
`students.distilled.loss.kd.temperature=[1,4]`. This page is written by `python tools/keys.py` from the types that check
recipes.
"""
BLOCKS: list[tuple[str, type[BaseModel], str]] = [
    ("The top level", Document, ""),
    ("data", Data, ""),
    ("data.augment", Augment, "Every draw is a function of (seed, epoch, image) alone. In turn: shift, scale, crop, "
     "flip, then mixing."),
    ("data.synthetic", Synthetic, ""),
    ("train", Train, "An arm may have its own. Changing one of "
     f"{', '.join(f'`{name}`' for name in sorted(NOT_IN_FINGERPRINT))} does not train a run anew."),
    ("analysis", Analysis, ""),
    ("An arm of teachers or students", ArmSettings, ""),
]  # fmt: skip


def kind(schema: dict[str, Any]) -> str:
    """What a JSON Schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(
            kind(option) for option in schema["anyOf"] if option.get("type") != "null"
        )
    if "enum" in schema or "const" in schema:
        return ", ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    if "$ref" in schema or schema.get("type") == "object":
        return "mapping"
    if schema.get("type") == "array":
        return f"list of {kind(schema['items'])}" if schema.get("items") else "list"
    words = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true, false",
    }
    bounds = [f"{sign} {schema[name]:g}" for name, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"),
              ("maximum", "≤"), ("exclusiveMaximum", "<")) if name in schema]  # fmt: skip
    return (
        " ".join([words[schema["type"]], ", ".join(bounds)]).strip() if "type" in schema else "any"
    )


def default(model: type[BaseModel], name: str) -> str:
    """A field's default as YAML has it; empty if there is none."""
    value = model.model_fields[name].default
    if value is PydanticUndefined:
        return "needed"
    if isinstance(value, BaseModel):
        value = {}
    return (
        ""
        if value is None
        else f"`{json.dumps(round(value, 4) if isinstance(value, float) else value)}`"
    )


def rows(model: type[BaseModel]) -> Iterator[str]:
    """The lines of a block's table."""
    properties = model.model_json_schema()["properties"]
    yield "| key | is | default | |"
    yield "|---|---|---|---|"
    for name, field in model.model_fields.items():
        words = " ".join((field.description or "").split()).replace("|", "\\|")
        yield f"| `{name}` | {kind(properties[name])} | {default(model, name)} | {words} |"


def terms() -> Iterator[str]:
    """The lines of the table of loss terms."""
    yield "| term | teacher | keys |"
    yield "|---|---|---|"
    for name, function in LOSSES.items():
        model = loss_settings_model(function, weighted=False)
        properties = model.model_json_schema().get("properties", {})
        keys = [f"`{key}`: {kind(properties[key])}{', ' + value if (value := default(model, key)) else ''}"
                for key in model.model_fields if key not in Weighted.model_fields]  # fmt: skip
        yield f"| `{name}` | {'needed' if needs_teacher(function) else ''} | {' · '.join(keys) or 'none'} |"


def page() -> str:
    """The whole of recipes/README.md."""
    lines = [INTRODUCTION, "| recipe | study |", "|---|---|"]
    for path in sorted(RECIPES.rglob("*.yaml")):
        first = path.read_text("utf-8").splitlines()[0].lstrip("# ")
        name = path.relative_to(RECIPES).with_suffix("").as_posix()
        lines.append(f"| [`{name}`]({name}.yaml) | {first} |")
    for title, model, note in BLOCKS:
        lines += ["", f"## {title}", "", *([note, ""] if note else []), *rows(model)]
    lines += ["", "## Terms of a loss", "", "Every term also has `weight` (≥ 0, 1) and `warmup` (the share of training",
              "over which the weight grows from 0). Formulas and sources: [the losses](../distill/losses/README.md).",
              ""]  # fmt: skip
    return "\n".join([*lines, *terms(), ""])


if __name__ == "__main__":
    (RECIPES / "README.md").write_text(page(), "utf-8")
