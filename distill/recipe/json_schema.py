"""The recipe: the types of what a YAML file may state, the terms of a loss, and the JSON Schema.

Nothing here imports torch: the terms are handed in as a table of functions, and their keys are their
signatures.
"""

from typing import Any

from pydantic import BaseModel

from distill.recipe.loss_terms import Terms, loss_settings_model
from distill.recipe.schema import Analysis, ArmSettings, Augment, Data, Document, Train

# ---------------------------------------------------------------------------------------------------- schema


def json_schema(terms: Terms) -> dict[str, Any]:
    """JSON Schema of recipes, for completion in editors; in an arm, a list of values is an axis."""

    def inline(model: type[BaseModel]) -> dict[str, Any]:
        schema = model.model_json_schema()
        definitions = schema.pop("$defs", {})

        def resolve(node: Any) -> Any:
            if isinstance(node, dict):
                if "$ref" in node:
                    return resolve(definitions[node["$ref"].rsplit("/", 1)[1]])
                return {k: resolve(v) for k, v in node.items()}
            return [resolve(v) for v in node] if isinstance(node, list) else node

        return resolve(schema)

    def with_axes(schema: dict[str, Any]) -> dict[str, Any]:
        fields = {
            k: {"anyOf": [v, {"type": "array", "items": v, "minItems": 1}]}
            for k, v in schema["properties"].items()
        }
        return schema | {"properties": fields, "required": []}

    arm = with_axes(inline(ArmSettings)) | {"required": ["model"]}
    losses = {
        name: with_axes(inline(loss_settings_model(function))) for name, function in terms.items()
    }
    arm["properties"] |= {
        "loss": {"type": "object", "properties": losses, "additionalProperties": False},
        "train": with_axes(inline(Train)),
        "augment": with_axes(inline(Augment)),
    }
    top = inline(Document)
    arms = {"type": "object", "additionalProperties": arm}
    top["properties"] |= {
        "data": inline(Data),
        "train": inline(Train),
        "analysis": inline(Analysis),
        "teachers": arms,
        "students": arms,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **top,
        "title": "distill recipe",
    }
