"""The JSON Schema has every key with a description, and sweeps in arms only."""

import json

import pytest
from helpers.recipes import TINY

from distill.losses import LOSSES
from distill.recipe.json_schema import json_schema
from distill.recipe.schema import Analysis, ArmSettings, Augment, Data, Document, Synthetic, Train


@pytest.fixture(scope="module")
def schema():
    return json.loads(json.dumps(json_schema(LOSSES)))


def resolve(schema, node):
    return schema["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node


def test_the_schema_has_every_loss_term_and_sweeps_in_arms_only(schema):
    arms = schema["properties"]["students"]["additionalProperties"]
    assert arms == schema["properties"]["teachers"]["additionalProperties"]
    arm = resolve(schema, arms)
    losses = arm["properties"]["loss"]["properties"]
    assert set(losses) == set(LOSSES)
    value, sweep = losses["kd"]["properties"]["temperature"]["anyOf"]
    assert value["exclusiveMinimum"] == 0
    assert (sweep["type"], sweep["items"]) == ("array", value)
    train = resolve(schema, schema["properties"]["train"])
    assert train["properties"]["epochs"]["type"] == "integer" and train["required"] == ["epochs"]
    own_train = arm["properties"]["train"]
    assert own_train["properties"]["epochs"]["anyOf"][0]["type"] == "integer"
    assert own_train["required"] == [] and arm["required"] == ["model"]


def test_every_reference_is_defined(schema):
    def references(node):
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            for child in node.values():
                yield from references(child)
        elif isinstance(node, list):
            for child in node:
                yield from references(child)

    found = {reference.removeprefix("#/$defs/") for reference in references(schema)}
    assert found and found <= set(schema["$defs"])


def test_the_keys_of_a_recipe_are_those_of_the_schema(schema):
    assert set(TINY) <= set(schema["properties"])
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    "model", [Document, Data, Augment, Synthetic, Train, Analysis, ArmSettings]
)
def test_every_key_has_a_description_that_is_a_sentence(model):
    for name, field in model.model_fields.items():
        description = field.description or ""
        assert description[:1].isupper() or description[:1].isdigit(), name
        assert description.endswith("."), name
