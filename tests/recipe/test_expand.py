"""Sweeps are multiplied out, and lists that are no sweeps are reported."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.recipe.expand import MAX_ARMS, expand, short_names, sweep_value_text
from distill.recipe.problems import Problems


def points(arm):
    problems = Problems("x")
    found = expand(arm, ("students", "a"), problems)
    assert not problems.entries
    return found


def problem(arm):
    problems = Problems("x")
    assert expand(arm, ("students", "a"), problems) == []
    (only,) = problems.entries
    return only.key, only.code


def test_an_arm_without_lists_is_one_combination():
    arm = {"model": "mlp_16", "loss": {"kd": {}}}
    (point,) = points(arm)
    assert (point.values, point.settings) == ({}, arm)


def test_sweeps_make_all_combinations_the_last_one_changing_fastest():
    arm = {"teacher": ["x", "y"], "loss": {"kd": {"temperature": [1, 4.5]}}}
    found = [tuple(point.values.values()) for point in points(arm)]
    assert found == [("x", 1), ("x", 4.5), ("y", 1), ("y", 4.5)]
    assert points(arm)[1].settings == {"teacher": "x", "loss": {"kd": {"temperature": 4.5}}}


def test_a_nested_list_is_one_value_and_several_are_a_sweep_of_lists():
    arm = {"train": {"schedule": {"milestones": [[1, 2]]}}}
    (point,) = points(arm)
    assert point.values == {} and point.settings["train"]["schedule"]["milestones"] == [1, 2]
    two = points({"train": {"schedule": {"milestones": [[1, 2], [1]]}}})
    assert [list(point.values.values()) for point in two] == [[[1, 2]], [[1]]]


def test_an_ensemble_of_teachers_is_a_sweep_so_that_it_names_its_arm():
    (point,) = points({"teacher": [["x", "y"]]})
    assert point.values == {("teacher",): ["x", "y"]}


def test_models_with_arguments_can_be_swept():
    models = [{"name": "mlp_16"}, {"name": "mlp_16", "drop_rate": 0.5}]
    assert [point.settings["model"] for point in points({"model": models})] == models


@pytest.mark.parametrize(
    ("arm", "key", "code"),
    [
        ({"loss": ["kd"]}, "students.a.loss", "sweep_of_mapping"),
        ({"loss": {"kd": [1]}}, "students.a.loss.kd", "sweep_of_mapping"),
        ({"train": [1]}, "students.a.train", "sweep_of_mapping"),
        ({"augment": [1]}, "students.a.augment", "sweep_of_mapping"),
        ({"model": []}, "students.a.model", "empty_sweep"),
        ({"loss": {"kd": {"temperature": [{}]}}}, "students.a.loss.kd.temperature",
         "sweep_of_mappings"),
        ({"input_size": [1, 1]}, "students.a.input_size", "repeated_value"),
        ({"input_size": [1, 1.0]}, "students.a.input_size", "repeated_value"),
        ({"a": list(range(101)), "b": list(range(100))}, "students.a", "too_many_arms"),
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_a_sweep_is_reported(arm, key, code):
    assert problem(arm) == (key, code)


def test_the_largest_number_of_arms_is_allowed():
    side = math.isqrt(MAX_ARMS)
    assert len(points({"a": list(range(side)), "b": list(range(side))})) == MAX_ARMS


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (4.5, "4.5"),
        (0.1, "0.1"),
        (0.1234561, "0.1234561"),
        (1e-5, "1e-05"),
        ("x", "x"),
        (["a", "b"], "a+b"),
        ({"name": "mlp"}, "mlp"),
        ({"name": "mlp", "drop": 0.5, "sizes": [1, 2]}, "mlp(drop=0.5,sizes=1+2)"),
        (None, "None"),
    ],
)
def test_swept_values_are_written_briefly(value, text):
    assert sweep_value_text(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_text_of_a_number_is_exact(value):
    assert float(sweep_value_text(value)) == value


def test_sweeps_are_named_by_the_shortest_unique_end_of_their_path():
    temperature = ("loss", "kd", "temperature")
    weights = [("loss", "kd", "weight"), ("loss", "cross_entropy", "weight")]
    assert short_names({temperature, *weights}) == {
        temperature: "temperature",
        weights[0]: "kd.weight",
        weights[1]: "cross_entropy.weight",
    }


@given(st.sets(st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(tuple), max_size=8))
def test_short_names_are_ends_of_their_paths(paths):
    for path, name in short_names(paths).items():
        assert ".".join(path).endswith(name)
