"""Mistakes are reported with their key, a code, their line and the nearest known name."""

import pytest
from helpers.recipes import REMOVE, TINY, merge, problems_of, write_recipe

from distill.errors import RecipeError
from distill.losses import LOSSES
from distill.recipe import Data, Train
from distill.recipe.load import load
from distill.recipe.problems import Problems
from distill.recipe.validation import check


def train(**settings):
    return {"train": settings}


def data(**settings):
    return {"data": settings}


def distilled(**settings):
    return {"students": {"distilled": settings}}


def kd(**settings):
    return distilled(loss={"kd": settings})


# Name of the case: changes of the recipe, key path, code, and what the message must contain.
WRONG = {
    "an unknown key": (train(epohcs=2), "train.epohcs", "unknown_key", "'epochs'"),
    "an unknown key of an arm": (
        {"students": {"alone": {"modle": "x"}}}, "students.alone.modle", "unknown_key", "'model'",
    ),
    "an unknown key of a term": (
        kd(temprature=1), "students.distilled.loss.kd.temprature", "unknown_key", "'temperature'",
    ),
    "an unknown key of an arm's train": (
        distilled(train={"epohcs": 2}),
        "students.distilled.train.epohcs", "unknown_key", "'epochs'",
    ),
    "an unknown key inside a mapping": (
        data(augment={"shfit": 1}), "data.augment.shfit", "unknown_key", "'shift'",
    ),
    "an unknown top-level key": ({"seed": 2}, "seed", "unknown_key", "'seeds'"),
    "an unknown key that is like no other": (train(zzz=2), "train.zzz", "unknown_key", "ema"),
    "text for a count": (train(epochs="many"), "train.epochs", "int_type", "'many'"),
    "a fraction for a count": (train(epochs=2.5), "train.epochs", "int_type", "2.5"),
    "text for a mapping": (data(augment="flip"), "data.augment", "model_type", "'flip'"),
    "a key of train at the top": ({"epochs": 4}, "epochs", "unknown_key", "train.epochs"),
    "a whole number as text": (train(epochs="1e2"), "train.epochs", "int_type", "write 100)"),
    "a whole number as a fraction": (train(epochs=100.0), "train.epochs", "int_type", "write 100)"),
    "a number that YAML reads as text": (train(lr="5e-4"), "train.lr", "float_type", "5.0e-4"),
    "yes for a number": (train(lr=True), "train.lr", "float_type", "true"),
    "nothing for a number": (train(lr=None), "train.lr", "float_type", "nothing"),
    "not a finite number": (train(lr=float("inf")), "train.lr", "finite_number", "inf"),
    "a number out of range": (train(lr=-1.0), "train.lr", "greater_than", "-1.0"),
    "a term's value out of range": (
        kd(temperature=0), "students.distilled.loss.kd.temperature", "greater_than", "0",
    ),
    "one wrong value of a sweep": (
        kd(temperature=[1, -2]), "students.distilled.loss.kd.temperature", "greater_than", "-2",
    ),
    "an unknown word": (data(on_error="skp"), "data.on_error", "literal_error", "'skip'"),
    "no type of a union": (data(logit_cache="half"), "data.logit_cache", "literal_error", "'half'"),
    "a union's number out of range": (
        data(logit_cache=0), "data.logit_cache", "literal_error", "1",
    ),
    "a fraction out of range": (data(validation=1.5), "data.validation", "string_type", "1.5"),
    "a wrong item of a list": ({"seeds": [1, "a"]}, "seeds[1]", "int_type", "'a'"),
    "a list that is too short": (
        {"analysis": {"classes": ["1", "2"]}}, "analysis.classes", "too_short", "3",
    ),
    "a missing key": (train(epochs=REMOVE), "train.epochs", "missing", ""),
    "a missing block": ({"train": REMOVE}, "train", "missing", ""),
    "a sweep outside of an arm": (train(epochs=[1, 2]), "train.epochs", "int_type", "sweep"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_recipe_is_reported_with_its_key(name):
    changes, key, code, word = WRONG[name]
    (problem,) = problems_of(merge(TINY, changes))
    assert (problem.key, problem.code) == (key, code)
    assert word in problem.message


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_recipe_is_reported_with_its_line(tmp_path, name):
    changes, key, code, _ = WRONG[name]
    path = write_recipe(tmp_path / "wrong.yaml", merge(TINY, changes))
    with pytest.raises(RecipeError) as failure:
        load(path, LOSSES)
    (problem,) = failure.value.problems
    line = path.read_text().splitlines()[problem.line - 1].strip()
    if code == "missing":
        above = key.rpartition(".")[0]
        assert problem.line == 1 if not above else line.startswith(f"{above}:")
    elif key == "seeds[1]":
        assert line == "- a"
    else:
        assert line.startswith(f"{key.rpartition('.')[2]}:")


@pytest.mark.parametrize(
    ("changes", "key", "code"),
    [
        (data(source="digit"), "data.source", "unknown_source"),
        (data(source="folder"), "data.root", "missing"),
        (data(source="tar"), "data.root", "missing"),
        (data(image_size=32), "data.image_size", "conflict"),
        (data(channels=3), "data.channels", "conflict"),
        (data(crop_pct=0.5), "data.crop_pct", "conflict"),
        (data(validation="val"), "data.validation", "conflict"),
        (data(test="holdout"), "data.test", "conflict"),
        (data(synthetic={"train": 5}), "data.synthetic", "conflict"),
        (data(mean=[0.5]), "data.std", "missing"),
        (data(std=[0.5]), "data.mean", "missing"),
        (data(mean=[0.5], std=[0.0]), "data.std[0]", "greater_than"),
        ({"seeds": 0}, "seeds", "invalid_seeds"),
        ({"seeds": []}, "seeds", "invalid_seeds"),
        ({"seeds": [1, 1]}, "seeds", "invalid_seeds"),
        ({"seeds": [-1]}, "seeds", "invalid_seeds"),
        ({"seeds": [2**31]}, "seeds", "invalid_seeds"),
        ({"seeds": 10**12}, "seeds", "invalid_seeds"),
        ({"teachers": REMOVE, "students": REMOVE}, "students", "no_arms"),
    ],
)
def test_keys_that_do_not_fit_together_are_reported_at_the_key_to_change(changes, key, code):
    (problem,) = problems_of(merge(TINY, changes))
    assert (problem.key, problem.code) == (key, code)


def test_several_conflicts_are_reported_together():
    wrong = merge(TINY, data(image_size=3, validation="val", mean=[0.5]))
    keys = {problem.key for problem in problems_of(wrong)}
    assert keys == {"data.image_size", "data.validation", "data.std"}


def test_conflicts_are_checked_when_a_type_is_made_from_python():
    assert Data(source="folder", root="photos").root == "photos"
    with pytest.raises(ValueError, match=r"data\.root"):
        Data(source="folder")


def test_a_valid_value_becomes_an_instance_of_its_model():
    problems = Problems("x")
    assert check(Train, {"epochs": 3}, (), problems) == Train(epochs=3)
    assert not problems.entries


def test_problems_of_other_keys_can_be_left_out():
    problems = Problems("x")
    value = {"epochs": 0, "lr": -1.0}
    assert check(Train, value, ("a",), problems, only={"lr"}) is None
    assert [problem.key for problem in problems.entries] == ["a.lr"]


def test_a_common_setting_is_reported_once_even_if_an_arm_has_its_own():
    wrong = merge(TINY, {"train": {"lr": -1.0}, "students": {"alone": {"train": {"epochs": 1}}}})
    assert [problem.key for problem in problems_of(wrong)] == ["train.lr"]
