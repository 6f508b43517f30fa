"""Recipes: YAML files that describe a study, and their checked form in Python.

In reading order:

- `schema` has the types of a recipe; `data_schema`, `train_schema` and `analysis_schema` have the
  keys of `data`, `train` and `analysis`, and `loss_terms` those of loss terms.
- `yaml_reader` reads YAML with line numbers, and `problems` collects the mistakes in it.
- `validation` checks a part of a recipe by its type.
- `expand` multiplies out sweeps, and `arms` builds the arms.
- `load` does all of this for a file.
- `json_schema` describes recipes for editors.

Nothing here imports torch: callers pass the loss terms as a table of functions.
"""

from distill.recipe.load import data_settings, recipe_from_dict
from distill.recipe.schema import (
    NOT_IN_FINGERPRINT,
    Analysis,
    Arm,
    ArmSettings,
    Augment,
    Data,
    Document,
    Recipe,
    Synthetic,
    Train,
)

__all__ = [
    "NOT_IN_FINGERPRINT",
    "Analysis",
    "Arm",
    "ArmSettings",
    "Augment",
    "Data",
    "Document",
    "Recipe",
    "Synthetic",
    "Train",
    "data_settings",
    "recipe_from_dict",
]
