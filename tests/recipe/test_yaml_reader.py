"""YAML with line numbers, and overrides."""

import pytest
from helpers.recipes import TINY, make_recipe, problems_of

from distill.errors import RecipeError, UserError
from distill.recipe.problems import Problems, dotted
from distill.recipe.yaml_reader import MAX_VALUES, override, read_yaml

TEXT = """\
data: {source: digits}
train:
  epochs: 2
  lr: 0.1
seeds:
  - 1
  - 2
"""


def read(text):
    problems = Problems("r.yaml")
    return read_yaml(text, problems), problems


def test_every_key_and_list_item_has_its_line():
    document, problems = read(TEXT)
    assert document == {
        "data": {"source": "digits"},
        "train": {"epochs": 2, "lr": 0.1},
        "seeds": [1, 2],
    }
    assert problems.lines == {
        (): 1,
        ("data",): 1,
        ("data", "source"): 1,
        ("train",): 2,
        ("train", "epochs"): 3,
        ("train", "lr"): 4,
        ("seeds",): 5,
        ("seeds", 0): 6,
        ("seeds", 1): 7,
    }


def test_a_problem_of_a_missing_key_is_at_the_nearest_key_above():
    _, problems = read(TEXT)
    problems.add(("train", "schedule", "name"), "missing", "this key is missing")
    assert problems.found == ["r.yaml:2: train.schedule.name: this key is missing"]


def test_a_problem_is_listed_once():
    _, problems = read(TEXT)
    for _ in range(2):
        problems.add(("seeds", 1), "code", "wrong")
    assert problems.found == ["r.yaml:7: seeds[1]: wrong"]


def test_key_paths_are_written_with_dots_and_indices():
    assert dotted(("students", "alone", 0, "x")) == "students.alone[0].x"
    assert dotted(()) == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ("a: 2020-01-01", {"a": "2020-01-01"}),
        ("1: x", {"1": "x"}),
        ("a: 5e-4", {"a": "5e-4"}),
        ("a: 5.0e-4", {"a": 0.0005}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("a: null", {"a": None}),
        ("a: [yes, no, on, Off, true, FALSE]", {"a": ["yes", "no", "on", "Off", True, False]}),
        ("a: [01, 0, 10, 1:30, 1:30.5]", {"a": ["01", 0, 10, "1:30", "1:30.5"]}),
        ("yes: 1\nno: 2", {"yes": 1, "no": 2}),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        (
            "a: [&x {b: 1}, &y {b: 2, c: 2}, {<<: [*x, *y]}]",
            {"a": [{"b": 1}, {"b": 2, "c": 2}, {"b": 1, "c": 2}]},
        ),
    ],
)
def test_plain_values_are_read_and_dates_stay_text(text, value):
    assert read(text)[0] == value


def test_a_duplicate_key_is_reported_with_both_lines():
    _, problems = read("a: 1\nseeds: 2\nseeds: 3")
    (problem,) = problems.entries
    assert (problem.key, problem.code, problem.line) == ("seeds", "duplicate_key", 2)
    assert "line 3" in problem.message


def test_a_key_that_is_no_word_is_reported():
    _, problems = read("a:\n  ? [1, 2]\n  : 3")
    (problem,) = problems.entries
    assert (problem.key, problem.code) == ("a", "invalid_key") and "line 2" in problem.message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: {", 2),
        ("a: 1\nb: !!python/object/apply:os.system [ls]", 2),
        ("a: 1\n\nb: !mine 3", 3),
        ("a: !!int x", None),
        ("a: !!timestamp x", None),
    ],
)
def test_what_is_not_plain_yaml_is_refused(text, line):
    with pytest.raises(RecipeError) as failure:
        read(text)
    (problem,) = failure.value.problems
    assert (problem.source, problem.code) == ("r.yaml", "invalid_yaml")
    assert problem.line == line


def test_nested_aliases_that_grow_without_limit_are_refused():
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for above, name in zip("abcdefg", "bcdefgh", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{above}'] * 9)}]")
    with pytest.raises(RecipeError, match=str(MAX_VALUES)):
        read("\n".join(lines))


def test_deep_nesting_is_refused():
    with pytest.raises(RecipeError):
        read("[" * 5000 + "]" * 5000)


def test_an_override_creates_mappings_and_becomes_the_location_of_its_keys():
    document, problems = read(TEXT)
    override(document, ["train.epochs=5", "data.augment.shift=2", "data.root="], problems)
    assert document["train"]["epochs"] == 5
    assert document["data"] == {"source": "digits", "augment": {"shift": 2}, "root": None}
    problems.add(("train", "epochs"), "code", "wrong")
    problems.add(("data", "augment", "shift"), "code", "wrong")
    assert problems.found == [
        "override 'train.epochs=5': train.epochs: wrong",
        "override 'data.augment.shift=2': data.augment.shift: wrong",
    ]


def test_an_override_of_a_mapping_forgets_the_lines_below_it():
    document, problems = read(TEXT)
    override(document, ["train={epochs: 1}"], problems)
    problems.add(("train", "epochs"), "code", "wrong")
    assert problems.entries[0].source == "override 'train={epochs: 1}'"


@pytest.mark.parametrize("assignment", ["train.epochs", "=3", "train..x=3", "train.epochs.x=3"])
def test_what_is_no_override_is_refused_by_its_text(assignment):
    with pytest.raises(UserError) as failure:
        make_recipe(TINY, assignment)
    assert assignment in str(failure.value)


@pytest.mark.parametrize(
    ("assignment", "key", "code"),
    [
        ("train.epohcs=3", "train.epohcs", "unknown_key"),
        ("train.lr=5e-4", "train.lr", "float_type"),
        ("seeds=[1", "", "invalid_yaml"),
        ("train={epochs: 1, epochs: 2}", "epochs", "duplicate_key"),
    ],
)
def test_a_wrong_override_is_reported_by_its_text(assignment, key, code):
    (problem,) = problems_of(TINY, assignment)
    assert problem.source == f"override '{assignment}'"
    assert (problem.key, problem.code) == (key, code)


def test_an_override_that_misspells_an_arm_names_the_nearest_one():
    (problem,) = problems_of(TINY, "students.alnoe.train.epochs=1")
    assert (problem.key, problem.code) == ("students.alnoe.model", "missing")
    assert "'alone'" in problem.source


def test_a_merge_of_something_else_is_reported():
    _, problems = read("a: {<<: 3}")
    (problem,) = problems.entries
    assert problem.code == "invalid_key"


def test_null_removes_an_arm_but_not_a_key():
    document = {"students": {"a": {}, "b": {"teacher": "x"}}, "teachers": {"x": {}}}
    override(document, ["students.a=null", "students.b.teacher=null", "teachers.x="], Problems("r"))
    assert document == {"students": {"b": {"teacher": None}}, "teachers": {}}
