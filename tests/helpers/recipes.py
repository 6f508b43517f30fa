"""Small recipes that tests share, and helpers to change and load them."""

import copy
from pathlib import Path
from typing import Any

import yaml

from distill.errors import Problem, RecipeError
from distill.losses import LOSSES
from distill.recipe import Recipe, recipe_from_dict

ROOT = Path(__file__).parent.parent.parent

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
"""Four small runs on the embedded digits: a teacher, two students alone, one distilled."""

TINY: dict[str, Any] = yaml.safe_load(TINY_YAML)
"""The same recipe as a dictionary."""

REMOVE = object()
"""A value that `merge` takes as the order to remove the key."""


def merge(document: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a recipe with changes merged in, mapping by mapping."""
    merged = copy.deepcopy(document)
    for key, value in changes.items():
        if value is REMOVE:
            del merged[key]
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def make_recipe(document: dict[str, Any], *overrides: str, name: str = "tiny") -> Recipe:
    """Return the checked recipe of a dictionary, after `KEY=VALUE` overrides."""
    return recipe_from_dict(document, LOSSES, overrides, name)


def problems_of(document: dict[str, Any], *overrides: str) -> list[Problem]:
    """Return all problems of a recipe; none if it can be loaded."""
    try:
        make_recipe(document, *overrides)
    except RecipeError as error:
        return list(error.problems)
    return []


def write_recipe(path: Path, document: dict[str, Any]) -> Path:
    """Write a recipe as a YAML file, one key a line, and return its path."""
    path.write_text(yaml.safe_dump(document, sort_keys=False, default_flow_style=False))
    return path
