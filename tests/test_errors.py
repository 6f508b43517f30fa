"""Messages: plurals, suggestions, and errors of a recipe."""

import pickle

import pytest

from distill.errors import Problem, RecipeError, UserError, closest, pluralize, suggest


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 runs"), (1, "1 run"), (2, "2 runs"), (12_345, "12,345 runs")]
)
def test_nouns_follow_their_count(count, text):
    assert pluralize(count, "run") == text


def test_a_similar_word_is_suggested_and_otherwise_all_are_listed():
    assert closest("temprature", ["temperature", "weight"]) == "temperature"
    assert closest("zzz", ["temperature"]) is None and closest("x", []) is None
    assert "'temperature'" in suggest("temprature", ["weight", "temperature"])
    assert suggest("zzz", ["b", "a"]).endswith(" a, b")
    assert suggest("zzz", [])


def test_a_recipe_error_has_a_line_for_each_problem_and_can_be_pickled():
    error = RecipeError(
        Problem("r.yaml", 3, "train.lr", "float_type", "must be a number"),
        Problem("override 'x=1'", None, "", "unknown_key", "unknown key"),
    )
    assert str(error).splitlines() == [
        "r.yaml:3: train.lr: must be a number",
        "override 'x=1': unknown key",
    ]
    assert isinstance(error, UserError)
    again = pickle.loads(pickle.dumps(error))
    assert again.problems == error.problems and str(again) == str(error)
