"""Distil image classifiers and study label smoothing, from a short recipe to an honest comparison.

Used from Python as ``from distill import load_recipe, run_study``; both are imported on first use, so
that ``distill --help`` answers without importing torch.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["load_recipe", "run_study"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from distill.study import run

        return getattr(run, name)
    raise AttributeError(f"module 'distill' has no attribute {name!r}")
