"""The JSON Schema of recipes, which lets editors complete keys and show their descriptions."""

from typing import Any

from distill.recipe.loss_terms import Terms, loss_settings_model
from distill.recipe.schema import ArmSettings, Document

Schema = dict[str, Any]


def json_schema(terms: Terms) -> Schema:
    """Return the JSON Schema of recipes.

    Args:
        terms: the known loss terms, as functions by name.
    """
    schema = Document.model_json_schema()
    definitions = schema["$defs"]
    definitions["Arm"] = _arm_schema(definitions, terms)
    arms = {"type": "object", "additionalProperties": {"$ref": "#/$defs/Arm"}}
    for section in ("teachers", "students"):
        schema["properties"][section] |= arms
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "distill recipe",
    }


def _arm_schema(definitions: dict[str, Schema], terms: Terms) -> Schema:
    """Return the schema of an arm, in which every value can be a sweep."""
    arm = _with_sweeps(ArmSettings.model_json_schema())
    term_schemas = {}
    for name, function in terms.items():
        term_schemas[name] = _with_sweeps(loss_settings_model(function).model_json_schema())
    arm["properties"] |= {
        "loss": {"type": "object", "properties": term_schemas, "additionalProperties": False},
        "train": _with_sweeps(definitions["Train"]),
        "augment": _with_sweeps(definitions["Augment"]),
    }
    return arm | {"required": ["model"]}


def _with_sweeps(schema: Schema) -> Schema:
    """Return a schema whose properties may also be lists of values, and are not required."""
    properties = {}
    for key, value in schema.get("properties", {}).items():
        sweep = {"type": "array", "items": value, "minItems": 1}
        properties[key] = {"anyOf": [value, sweep]}
    return schema | {"properties": properties, "required": []}
