"""The recipe of the finished study that the tests of commands and files share."""

from helpers.recipes import TINY, merge

STUDY = merge(
    TINY,
    {
        "train": {"epochs": 2},
        "analysis": {"examples": 10, "num_attacked": 20, "num_views": 2, "steps": 2},
        "seeds": 3,
    },
)
"""Twelve runs: three teachers, nine students."""
