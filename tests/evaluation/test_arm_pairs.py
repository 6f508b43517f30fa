"""Which arms of a study answer which question."""

from typing import Any

import pytest
from helpers.recipes import ROOT, make_recipe

from distill import load_recipe
from distill.evaluation.arm_pairs import find_pairs
from distill.storage.study_results import QuestionCode

Code = QuestionCode
HARD = {"cross_entropy": {}}
SMOOTHED = {"cross_entropy": {"smoothing": 0.1}}


def recipe_of(students: dict[str, Any], teachers: dict[str, Any]):
    return make_recipe(
        {
            "data": {"source": "digits"},
            "train": {"epochs": 1},
            "teachers": teachers,
            "students": students,
        }
    )


def pairs_of(recipe) -> dict[tuple[str, str], QuestionCode]:
    return {(pair.a.name, pair.b.name): pair.question.code for pair in find_pairs(recipe)}


def test_the_mnist_recipe_has_ten_comparisons():
    student = "distilled/teacher={}/temperature={}".format
    expected = {
        ("hard", "smoothed"): Code.TEACHER_SMOOTHING,
        ("alone/smoothing=0", "alone/smoothing=0.1"): Code.STUDENT_SMOOTHING,
    }
    for t in (1, 4):
        pair = (student("hard", t), student("smoothed", t))
        expected[pair] = Code.TEACHER_SMOOTHING_ON_STUDENT
    for teacher in ("hard", "smoothed"):
        expected[student(teacher, 1), student(teacher, 4)] = Code.TEMPERATURE
        for t in (1, 4):
            expected["alone/smoothing=0", student(teacher, t)] = Code.DISTILLATION
    assert pairs_of(load_recipe(ROOT / "recipes" / "mnist.yaml")) == expected


def test_students_of_two_kinds_of_teachers_compare_within_each_kind():
    """Without and with dropout: four pairs for each student, of which none changes two things."""
    teacher = {
        "model": {"name": "mlp_16", "drop_rate": [0.0, 0.5]},
        "loss": {"cross_entropy": {"smoothing": [0.0, 0.1]}},
    }
    student = {"model": "mlp_16", "teacher": "t", "loss": {"kd": {"temperature": [1, 4]}}}
    pairs = pairs_of(recipe_of({"s": student}, {"t": teacher}))
    name = "s/temperature=4/teacher.drop_rate={}/teacher.smoothing={}".format
    found = {pair: code for pair, code in pairs.items() if "=4/" in pair[0]}
    assert found == {
        (name(0, 0), name(0, 0.1)): Code.TEACHER_SMOOTHING_ON_STUDENT,
        (name(0.5, 0), name(0.5, 0.1)): Code.TEACHER_SMOOTHING_ON_STUDENT,
        (name(0, 0), name(0.5, 0)): Code.TEACHER,
        (name(0, 0.1), name(0.5, 0.1)): Code.TEACHER,
    }


def test_the_smaller_number_and_the_less_smoothed_teacher_come_first():
    teachers = {
        "smoothed": {"model": "mlp_16", "loss": SMOOTHED},
        "hard": {"model": "mlp_16", "loss": HARD},
    }
    students = {
        "alone": {"model": "mlp_16", "loss": {"cross_entropy": {"smoothing": [0.1, 0.0]}}},
        "taught": {
            "model": "mlp_32",
            "teacher": ["smoothed", "hard"],
            "loss": {"kd": {"temperature": 4}},
        },
    }
    assert set(pairs_of(recipe_of(students, teachers))) == {
        ("hard", "smoothed"),
        ("alone/smoothing=0", "alone/smoothing=0.1"),
        ("taught/teacher=hard", "taught/teacher=smoothed"),
    }


def test_other_losses_compare_with_plain_cross_entropy_or_kd():
    def student(loss, model="mlp_16", **changes):
        return {"model": model, "loss": loss, **changes}

    wrong = {"cross_entropy": {"smoothing": 0.1, "smooth_over": "wrong"}}
    students = {
        "hard": student(HARD),
        "smoothed": student(SMOOTHED),
        "wrong": student(wrong),
        "focal": student({"focal": {}}),
        "larger": student({"focal": {}}, "mlp_32"),
        "margin": student({"arcface": {}}, {"name": "cosine_head", "base": "mlp_16"}),
        "kd": student({"cross_entropy": {"weight": 0.1}, "kd": {}}, teacher="t"),
        "dkd": student({"dkd": {}}, teacher="t"),
        "hint": student({"kd": {}, "hint": {}}, teacher="t"),
        "mixed": student({"kd": {}, "max_sup": {}}, teacher="t", train={"epochs": 2}),
    }
    recipe = recipe_of(students, {"t": {"model": "mlp_32", "loss": HARD}})
    pairs = pairs_of(recipe)

    def with_code(code):
        return {pair for pair, own in pairs.items() if own == code}

    # a cosine head is part of its loss
    assert with_code(Code.LOSS_VS_CROSS_ENTROPY) == {
        ("hard", "wrong"),
        ("hard", "focal"),
        ("hard", "margin"),
    }
    assert with_code(Code.LOSS_VS_KD) == {("kd", "dkd"), ("kd", "hint")}
    assert with_code(Code.DISTILLATION) == {("hard", "kd"), ("hard", "dkd"), ("hard", "hint")}
    assert pairs["hard", "smoothed"] == Code.STUDENT_SMOOTHING
    questions = {(pair.a.name, pair.b.name): pair.question for pair in find_pairs(recipe)}
    assert questions["smoothed", "wrong"].code == Code.SETTING
    assert questions["smoothed", "wrong"].setting == "loss.cross_entropy.smooth_over"
    assert questions["smoothed", "wrong"].role == "student"


@pytest.mark.parametrize("term", ["kd", "dkd", "nkd", "dist"])
def test_the_temperature_of_any_term_asks_about_temperature(term):
    student = {"model": "mlp_16", "teacher": "t", "loss": {term: {"temperature": [2, 1]}}}
    recipe = recipe_of({"s": student}, {"t": {"model": "mlp_16", "loss": HARD}})
    (pair,) = find_pairs(recipe)
    assert pair.question == (Code.TEMPERATURE, "student", f"loss.{term}.temperature")
    assert (pair.a.name, pair.b.name) == ("s/temperature=1", "s/temperature=2")


@pytest.mark.parametrize("term", ["cross_entropy", "poly1", "sm_softmax"])
def test_the_smoothing_of_any_term_asks_about_smoothing(term):
    def arm(*values):
        return {"model": "mlp_16", "loss": {term: {"smoothing": list(values)}}}

    taught = {"model": "mlp_16", "teacher": "t", "loss": {"kd": {}}}
    recipe = recipe_of({"s": arm(0.1, 0.2), "taught": taught}, {"t": arm(0.0, 0.1)})
    assert pairs_of(recipe) == {
        # both arms are smoothed
        ("s/smoothing=0.1", "s/smoothing=0.2"): Code.MORE_STUDENT_SMOOTHING,
        ("t/smoothing=0", "t/smoothing=0.1"): Code.TEACHER_SMOOTHING,
        ("taught/teacher.smoothing=0", "taught/teacher.smoothing=0.1"): (
            Code.TEACHER_SMOOTHING_ON_STUDENT
        ),
    }
