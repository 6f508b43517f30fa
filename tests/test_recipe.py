"""Recipes: axes, overrides, schema, and twenty wrong ones, each with its place and the suggest known key."""

import json
import re
import textwrap

import pytest
from helpers.recipes import ROOT, TINY_YAML
from hypothesis import given
from hypothesis import strategies as st

from distill import load_recipe
from distill.cli import main
from distill.errors import RecipeError, UserError
from distill.losses import LOSSES
from distill.recipe.json_schema import json_schema
from distill.recipe.load import load

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))

GOOD = """\
data: {source: digits}
train: {epochs: 2, lr: 0.1}
teachers:
  hard: {model: mlp_16, loss: {cross_entropy: {}}}
  smoothed: {model: mlp_16, loss: {cross_entropy: {smoothing: [0.1, 0.3]}}}
students:
  alone: {model: mlp_16, loss: {cross_entropy: {}}}
  distilled:
    model: mlp_16
    teacher: [hard, smoothed]
    loss:
      kd: {temperature: [1, 4.5]}
seeds: 2
"""


def read(tmp_path, text, *overrides):
    path = tmp_path / "r.yaml"
    path.write_text(textwrap.dedent(text))
    return load(path, LOSSES, overrides)


def test_axes_make_the_product_of_arms_and_a_teacher_with_axes_is_one(tmp_path):
    recipe = read(tmp_path, GOOD)
    assert [arm.name for arm in recipe.teachers] == [
        "hard",
        "smoothed/smoothing=0.1",
        "smoothed/smoothing=0.3",
    ]
    assert [arm.name for arm in recipe.students] == [
        "alone",
        "distilled/teacher=hard/temperature=1",
        "distilled/teacher=hard/temperature=4.5",
        "distilled/teacher=smoothed/temperature=1/teacher.smoothing=0.1",
        "distilled/teacher=smoothed/temperature=1/teacher.smoothing=0.3",
        "distilled/teacher=smoothed/temperature=4.5/teacher.smoothing=0.1",
        "distilled/teacher=smoothed/temperature=4.5/teacher.smoothing=0.3",
    ]
    last = recipe.students[-1]
    assert last.axes == {"teacher": "smoothed", "temperature": 4.5, "teacher.smoothing": 0.3}
    assert (last.teachers, last.loss) == (("smoothed/smoothing=0.3",), {"kd": {"temperature": 4.5}})
    assert recipe.seeds == [0, 1]


def test_two_axes_of_one_name_are_told_apart(tmp_path):
    text = GOOD.replace(
        "kd: {temperature: [1, 4.5]}",
        "kd: {weight: [0.5, 1.0]}\n      cross_entropy: {weight: [0.1, 0.2]}",
    )
    arm = read(tmp_path, text).students[-1]
    assert arm.axes["kd.weight"] == 1.0 and arm.axes["cross_entropy.weight"] == 0.2


def test_a_list_that_is_one_value_is_no_axis(tmp_path):
    schedule = "schedule: {name: multistep, decay_milestones: [[1, 2]]}"
    text = GOOD.replace("alone: {model: mlp_16,", f"alone: {{model: mlp_16, train: {{{schedule}}},")
    arm = read(tmp_path, text).students[0]
    assert (arm.name, arm.axes) == ("alone", {})
    assert arm.train.schedule["decay_milestones"] == [1, 2]
    two = read(tmp_path, text.replace("[[1, 2]]", "[[1, 2], [1]]")).students[:2]
    assert [arm.name for arm in two] == ["alone/decay_milestones=1+2", "alone/decay_milestones=1"]


def test_a_default_written_out_is_the_same_arm(tmp_path):
    plain = read(tmp_path, GOOD).teachers[0]
    written = read(
        tmp_path,
        GOOD.replace("loss: {cross_entropy: {}}", "loss: {cross_entropy: {smoothing: 0.0}}"),
    ).teachers[0]
    assert plain.loss == written.loss == {"cross_entropy": {}}


def test_an_arm_overrides_train_and_augment_for_itself_alone(tmp_path):
    text = GOOD.replace(
        "alone: {model: mlp_16,", "alone: {model: mlp_16, train: {epochs: 9}, augment: {shift: 2},"
    )
    recipe = read(tmp_path, text)
    assert (recipe.arm("alone").train.epochs, recipe.arm("alone").augment.shift) == (9, 2)
    assert recipe.arm("alone").train.lr == 0.1
    assert (recipe.arm("hard").train.epochs, recipe.arm("hard").augment.shift) == (2, 0)


def test_overrides_replace_values_and_may_make_axes(tmp_path):
    recipe = read(
        tmp_path,
        GOOD,
        "train.epochs=7",
        "seeds=[3]",
        "data.root=/x",
        "students.alone.model=[mlp_16, mlp_32]",
    )
    assert recipe.seeds == [3] and recipe.data.root == "/x"
    assert [a.model for a in recipe.students[:2]] == ["mlp_16", "mlp_32"] and recipe.students[
        0
    ].train.epochs == 7


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_load_are_short_and_say_how_to_run_them(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 25
    assert text.startswith("# ") and path.relative_to(ROOT).as_posix() in text.split("data:")[0]
    recipe = load_recipe(path)
    assert len(recipe.seeds) >= 3 and recipe.students


def test_there_are_recipes():
    assert {p.stem for p in RECIPES} >= {"digits", "mnist", "cifar10", "cifar100", "folder"}


# Each: the recipe, changed; the line where it is wrong; what the message must hold.
WRONG = {
    "unknown key": ("epochs: 2", "epohcs: 2", 2, ["train.epohcs", "did you mean 'epochs'"]),
    "unknown key in an arm": (
        "alone: {model",
        "alone: {modle: x, model",
        7,
        ["students.alone.modle", "'model'"],
    ),
    "unknown key of a term": (
        "{temperature: [1",
        "{temprature: [1",
        12,
        ["kd.temprature", "'temperature'"],
    ),
    "unknown term": (
        "cross_entropy: {smoothing",
        "cross_entrpy: {smoothing",
        5,
        ["cross_entrpy", "'cross_entropy'"],
    ),
    "unknown top level": ("seeds: 2", "seed: 2", 13, ["seed", "'seeds'"]),
    "wrong type": ("epochs: 2", "epochs: many", 2, ["train.epochs", "whole number", "'many'"]),
    "a fraction for a count": ("epochs: 2", "epochs: 2.5", 2, ["train.epochs", "whole number"]),
    "5e-4 is text in YAML": ("lr: 0.1", "lr: 5e-4", 2, ["train.lr", "'5e-4'", "write 5.0e-4"]),
    "yes for a number": ("lr: 0.1", "lr: yes", 2, ["train.lr", "number"]),
    "negative smoothing": (
        "[0.1, 0.3]",
        "-0.1",
        5,
        ["smoothing", "greater than or equal to 0", "-0.1"],
    ),
    "one wrong value of an axis": (
        "[0.1, 0.3]",
        "[0.1, 1.5]",
        5,
        ["smoothing", "less than or equal to 1", "1.5"],
    ),
    "temperature of 0": ("[1, 4.5]", "0", 12, ["temperature", "greater than 0"]),
    "unknown teacher": (
        "[hard, smoothed]",
        "[hard, smothed]",
        10,
        ["teacher", "'smothed'", "'smoothed'"],
    ),
    "kd without a teacher": ("    teacher: [hard, smoothed]\n", "", 11, ["kd", "needs a teacher"]),
    "a teacher nobody learns from": (
        "kd: {temperature: [1, 4.5]}",
        "cross_entropy: {}",
        10,
        ["no term of the loss"],
    ),
    "duplicate key": ("seeds: 2", "seeds: 2\nseeds: 3", 13, ["seeds", "twice", "line 14"]),
    "an axis where none may be": (
        "epochs: 2",
        "epochs: [1, 2]",
        2,
        ["train.epochs", "axis", "arm"],
    ),
    "an axis of mappings": ("[1, 4.5]", "[{a: 1}]", 12, ["plain values"]),
    "a list for a mapping": (
        "loss: {cross_entropy: {}}}\n  sm",
        "loss: [cross_entropy]}\n  sm",
        4,
        ["loss", "mapping"],
    ),
    "an empty axis": ("[1, 4.5]", "[]", 12, ["at least one value"]),
    "a value twice": ("[1, 4.5]", "[1, 1]", 12, ["twice"]),
    "no loss": (
        "hard: {model: mlp_16, loss: {cross_entropy: {}}}",
        "hard: {model: mlp_16}",
        4,
        ["needs a loss"],
    ),
    "missing key": ("epochs: 2, ", "", 2, ["train.epochs", "missing"]),
    "no seeds": ("seeds: 2", "seeds: []", 13, ["seeds"]),
    "not YAML": ("seeds: 2", "seeds: {", 14, ["not valid YAML"]),
    "a Python object": (
        "seeds: 2",
        "seeds: !!python/object/apply:os.system [ls]",
        13,
        ["not valid YAML"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_recipe_is_told_with_its_line(tmp_path, capsys, monkeypatch, name):
    old, new, line, words = WRONG[name]
    assert GOOD.count(old) >= 1
    path = tmp_path / "wrong.yaml"
    path.write_text(GOOD.replace(old, new, 1))
    monkeypatch.setattr("sys.argv", ["distill", "run", str(path), "--out", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as stop:
        main()
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert f"wrong.yaml:{line}:" in message and "Traceback" not in message
    assert all(word in message for word in words), message


def test_all_problems_are_told_at_once(tmp_path):
    text = (
        GOOD.replace("epochs: 2", "epohcs: 2")
        .replace("[1, 4.5]", "-1")
        .replace("seeds: 2", "seeds: 0")
    )
    with pytest.raises(RecipeError) as failure:
        read(tmp_path, text)
    places = re.findall(r":(\d+): ", str(failure.value))
    assert {"2", "12", "13"} <= set(places)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.epohcs=3", "train.epohcs: unknown key; did you mean 'epochs'"),
        ("train.epochs", "write KEY=VALUE"),
        ("train.lr=5e-4", "write 5.0e-4"),
        ("train.epochs.x=3", "train.epochs is 2, which has no keys"),
        ("seeds=[1", "not valid YAML"),
        (
            "students.alnoe.train.epochs=1",
            "('alnoe' is new there; did you mean 'alone'?): students.alnoe.model",
        ),
        ("=3", "write KEY=VALUE"),
    ],
)
def test_a_wrong_override_is_told_by_its_text(tmp_path, assignment, words):
    with pytest.raises(UserError) as failure:
        read(tmp_path, GOOD, assignment)
    assert words in str(failure.value) and assignment in str(failure.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load(tmp_path / "none.yaml", LOSSES)


def test_a_bomb_of_aliases_is_refused(tmp_path):
    levels = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    levels += [
        f"{b}: &{b} [{', '.join(['*' + a] * 9)}]" for a, b in zip("abcdefg", "bcdefgh", strict=True)
    ]
    with pytest.raises(RecipeError, match="more than"):
        read(tmp_path, "\n".join(levels))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    where=st.sampled_from(
        [
            "data",
            "train",
            "teachers",
            "students",
            "seeds",
            "train.lr",
            "train.optimizer",
            "data.augment",
            "students.alone",
            "students.alone.loss",
            "students.alone.model",
            "students.distilled.teacher",
            "students.distilled.loss.kd",
            "teachers.hard.train",
        ]
    ),
    value=values,
)
def test_no_value_in_any_place_breaks_the_reader(tmp_path_factory, where, value):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(TINY_YAML)
    try:
        load(path, LOSSES, [f"{where}={json.dumps(value)}"])
    except UserError as error:
        assert str(error)


def test_the_schema_knows_every_term_and_allows_axes_in_arms_only():
    schema = json_schema(LOSSES)
    arm = schema["properties"]["students"]["additionalProperties"]["properties"]
    assert set(arm["loss"]["properties"]) == set(LOSSES)
    temperature = arm["loss"]["properties"]["kd"]["properties"]["temperature"]["anyOf"]
    assert temperature[0]["exclusiveMinimum"] == 0 and temperature[1]["type"] == "array"
    assert schema["properties"]["train"]["properties"]["epochs"]["type"] == "integer"
    assert "$ref" not in json.dumps(schema)


def test_arms_of_near_values_have_names_of_their_own(tmp_path):
    recipe = read(tmp_path, GOOD.replace("[0.1, 0.3]", "[0.1234561, 0.1234562]"))
    assert len({arm.name for arm in recipe.teachers + recipe.students}) == len(
        recipe.teachers + recipe.students
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("alone:", "hard:", "a teacher has this name already"),
        ("source: digits", "source: digits, test: other", "has no named splits"),
        ("source: digits", "source: digit", "did you mean 'digits'"),
        (
            "alone: {model: mlp_16",
            "alone: {model: {name: mlp_16, checkpoint_path: x.pt}",
            "weights come by",
        ),
    ],
)
def test_what_cannot_be_told_apart_or_found_is_refused(tmp_path, old, new, words):
    with pytest.raises(RecipeError, match=words):
        read(tmp_path, GOOD.replace(old, new, 1))


def test_dates_are_text(tmp_path):
    text = GOOD.replace("alone: {model: mlp_16", "alone: {model: {name: mlp_16, tag: 2020-01-01}")
    assert read(tmp_path, text).arm("alone").model_args == {"tag": "2020-01-01"}
