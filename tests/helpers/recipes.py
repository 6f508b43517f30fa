"""Small recipes that tests share, as dictionaries."""

import copy
from pathlib import Path
from typing import Any

import yaml

from distill.losses import LOSSES
from distill.recipe.load import build
from distill.recipe.schema import Recipe
from distill.recipe.yaml_reader import Problems, override

ROOT = Path(__file__).parent.parent.parent

TINY: dict[str, Any] = {
    "data": {"source": "digits", "augment": {"shift": 1}},
    "train": {"epochs": 3, "batch_size": 128, "lr": 0.1, "checkpoint_minutes": 0},
    "teachers": {
        "hard": {"model": {"name": "mlp_32", "drop_rate": 0.2}, "loss": {"cross_entropy": {}}},
    },
    "students": {
        "alone": {"model": "mlp_16", "loss": {"cross_entropy": {"smoothing": [0.0, 0.1]}}},
        "distilled": {
            "model": {"name": "mlp_16", "drop_rate": 0.2},
            "teacher": "hard",
            "loss": {"cross_entropy": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 2}},
        },
    },
    "seeds": [0],
    "check_teachers": False,
}
"""Four small runs on the embedded digits: a teacher, two students alone, one distilled."""

TINY_YAML = """\
data: {source: digits, augment: {shift: 1}}
train: {epochs: 3, batch_size: 128, lr: 0.1, checkpoint_minutes: 0}
teachers:
  hard: {model: {name: mlp_32, drop_rate: 0.2}, loss: {cross_entropy: {}}}
students:
  alone: {model: mlp_16, loss: {cross_entropy: {smoothing: [0.0, 0.1]}}}
  distilled:
    model: {name: mlp_16, drop_rate: 0.2}
    teacher: hard
    loss: {cross_entropy: {weight: 0.1}, kd: {weight: 0.9, temperature: 2}}
seeds: [0]
check_teachers: false
"""


def merge(document: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a recipe with changes merged in, mapping by mapping."""
    merged = copy.deepcopy(document)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def make_recipe(document: dict[str, Any], *overrides: str, name: str = "tiny") -> Recipe:
    """Return the checked recipe that a dictionary states, after `KEY=VALUE` overrides."""
    document = copy.deepcopy(document)
    problems = Problems(name)
    override(document, overrides, problems)
    recipe = build(name, document, LOSSES, problems)
    problems.stop()
    return recipe


def write_recipe(path: Path, document: dict[str, Any]) -> Path:
    """Write a recipe as a YAML file and return its path."""
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path
