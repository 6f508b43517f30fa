"""Write recipes/README.md: a glossary, every included recipe, and every key that a recipe can have.

The tables are made from the types that check recipes, so they cannot be out of date:

    python tools/recipe_keys.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

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

A recipe is a YAML file that describes one study: images, teachers, students and seeds.

- `distill run NAME KEY=VALUE…` runs one of the recipes below.
- `distill recipes NAME > my.yaml` copies it.
- `distill run my.yaml --dry-run` prints the plan of a study and its cost.

A list where one value is expected is a **sweep**. Sweeps are possible in arms:
`temperature: [1, 4]` makes two arms, and several sweeps make all combinations. A value that is
itself a list is written `[[…]]`. On the command line a key is written with dots: `train.epochs=3`,
`students.distilled.loss.kd.temperature=[1,4]`.

This page is written by `python tools/recipe_keys.py` from the types that check recipes.
"""

GLOSSARY = {
    "study": "Everything that one recipe describes; its results and report are in one folder.",
    "arm": "One setting of a teacher or a student: a network, its loss and how it is trained.",
    "run": "One arm trained with one seed; stored once, and used by every study that needs it.",
    "sweep": "A list in an arm where one value is expected: each value gives an arm of its own.",
    "cohort": "Runs that are trained side by side on the same batches, so that images are "
    "augmented once and teachers are evaluated once for all of them.",
    "view": "An augmented training image; it depends on seed, epoch and image alone, so that "
    "teacher and student can see the same one.",
    "template": "The row of the last layer's weight matrix that belongs to a class (a word of "
    "Müller et al. 2019).",
    "snapshot": "Weights that are kept from the middle of training, to analyse how a network "
    "develops.",
    "γ (effective smoothing)": "How much label smoothing a teacher's outputs amount to: "
    "K / (K − 1) times the mean probability that they give to wrong classes, for K classes.",
    "teacher logit cache": "Files with the logits of teachers for training views, so that later "
    "runs need not compute them again.",
    "frozen teacher": "A teacher without a loss: a pretrained network that is used as it is.",
}


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
    lines = [INTRODUCTION, *recipe_table()]
    lines += ["", "## Glossary", "", "| word | meaning |", "|---|---|"]
    lines += [f"| **{word}** | {meaning} |" for word, meaning in GLOSSARY.items()]
    for block in BLOCKS:
        lines += ["", f"## {block.title}", ""]
        if block.note:
            lines += [block.note, ""]
        lines += key_table(block.model)
    lines += [
        "",
        "## Terms of a loss",
        "",
        "The loss of an arm is the weighted sum of its terms. Every term also has `weight` (≥ 0,",
        "default 1) and `warmup` (the fraction of training during which the weight grows from 0 to",
        "its value, default 0). Formulas and sources: [the losses](../distill/losses/README.md).",
        "",
    ]
    return "\n".join([*lines, *term_table(), ""])


if __name__ == "__main__":
    (RECIPES / "README.md").write_text(page(), "utf-8")
