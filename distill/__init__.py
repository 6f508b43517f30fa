"""Distil image classifiers and study label smoothing: from a short recipe to a fair comparison.

Use it from Python as ``from distill import load_recipe, run_study``. Both are imported when they
are first used, so that ``distill --help`` need not import torch.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["load_recipe", "run_study"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from distill.study import run_study as module

        return getattr(module, name)
    raise AttributeError(f"module 'distill' has no attribute {name!r}")
