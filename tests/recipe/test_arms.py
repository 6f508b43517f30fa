"""Arms: names, teachers and ensembles, losses with their defaults, and settings of their own."""

import pytest
from helpers.recipes import REMOVE, TINY, make_recipe, merge, problems_of

from distill.recipe.problems import Problems
from distill.recipe.yaml_reader import read_yaml

STUDY = {
    "data": {"source": "digits"},
    "train": {"epochs": 2, "lr": 0.1},
    "teachers": {
        "hard": {"model": "mlp_16", "loss": {"cross_entropy": {}}},
        "smoothed": {"model": "mlp_16", "loss": {"cross_entropy": {"smoothing": [0.1, 0.3]}}},
    },
    "students": {
        "alone": {"model": "mlp_16", "loss": {"cross_entropy": {}}},
        "distilled": {
            "model": "mlp_16",
            "teacher": ["hard", "smoothed"],
            "loss": {"kd": {"temperature": [1, 4.5]}},
        },
    },
    "seeds": 2,
}


def changed(changes):
    return make_recipe(merge(STUDY, changes))


def test_sweeps_multiply_arms_and_a_teacher_with_sweeps_multiplies_its_students():
    recipe = make_recipe(STUDY)
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
    assert last.teachers == ("smoothed/smoothing=0.3",)
    assert recipe.seeds == [0, 1]
    assert recipe.arms == recipe.teachers + recipe.students
    assert {arm.role for arm in recipe.teachers} == {"teacher"}
    assert {arm.role for arm in recipe.students} == {"student"}


def test_two_sweeps_of_one_key_have_longer_names():
    loss = {
        "kd": {"weight": [0.5, 1.0], "temperature": 1},
        "cross_entropy": {"weight": [0.1, 0.2]},
    }
    arm = changed({"students": {"distilled": {"loss": loss}}}).students[-1]
    assert arm.axes["kd.weight"] == 1.0 and arm.axes["cross_entropy.weight"] == 0.2


def test_near_values_make_arms_with_different_names():
    loss = {"cross_entropy": {"smoothing": [0.1234561, 0.1234562]}}
    recipe = changed({"teachers": {"smoothed": {"loss": loss}}})
    names = {arm.name for arm in recipe.arms}
    assert len(names) == len(recipe.arms)


def test_lists_and_mappings_are_text_in_axes():
    models = ["mlp_16", {"name": "mlp_16", "drop_rate": 0.5}]
    recipe = changed({"students": {"alone": {"model": models}}})
    arm = recipe.arm("alone/model=mlp_16(drop_rate=0.5)")
    assert arm.axes == {"model": "mlp_16(drop_rate=0.5)"}
    assert (arm.model, arm.model_args) == ("mlp_16", {"drop_rate": 0.5})


def test_a_loss_has_all_settings_so_that_a_written_default_changes_nothing():
    plain = make_recipe(STUDY).arm("hard")
    written = changed({"teachers": {"hard": {"loss": {"cross_entropy": {"smoothing": 0.0}}}}})
    assert plain == written.arm("hard")
    assert plain.loss["cross_entropy"]["weight"] == 1.0
    assert plain.loss["cross_entropy"]["smoothing"] == 0.0


def test_an_arm_has_settings_of_its_own_for_train_and_augment():
    own = {"train": {"epochs": 9}, "augment": {"shift": 2}}
    recipe = changed({"students": {"alone": own}})
    alone, hard = recipe.arm("alone"), recipe.arm("hard")
    assert (alone.train.epochs, alone.augment.shift, alone.train.lr) == (9, 2, 0.1)
    assert (hard.train.epochs, hard.augment.shift) == (2, 0)


def test_a_teacher_without_a_loss_is_frozen():
    hard = {"model": "resnet18", "pretrained": True, "loss": REMOVE}
    recipe = changed({"teachers": {"hard": hard}})
    assert recipe.arm("hard").frozen and not recipe.arm("alone").frozen
    loaded = changed({"teachers": {"hard": {"checkpoint": "x", "loss": None}}})
    assert loaded.arm("hard").frozen


def test_an_unknown_arm_is_a_key_error():
    with pytest.raises(KeyError):
        make_recipe(STUDY).arm("smoothed")


def test_an_ensemble_has_the_sweeps_of_each_teacher():
    student = {"teacher": [["hard", "smoothed"]]}
    arm = changed({"students": {"distilled": student}}).students[-1]
    assert arm.teachers == ("hard", "smoothed/smoothing=0.3")
    assert arm.axes == {"teacher": "hard+smoothed", "temperature": 4.5, "teacher2.smoothing": 0.3}


def test_a_teacher_can_be_named_with_its_swept_value_and_teachers_can_have_teachers():
    second = {"model": "mlp_16", "teacher": "smoothed/smoothing=0.1", "loss": {"kd": {}}}
    student = {"teacher": "second"}
    recipe = changed({"teachers": {"second": second}, "students": {"distilled": student}})
    second = recipe.arm("second/teacher.smoothing=0.1")
    assert second.teachers == ("smoothed/smoothing=0.1",)
    assert recipe.students[-1].teachers == (second.name,)
    assert recipe.students[-1].axes["teacher.teacher.smoothing"] == 0.1


DISTILLED = "students.distilled"


@pytest.mark.parametrize(
    ("changes", "key", "code", "word"),
    [
        ({"teacher": "smothed"}, f"{DISTILLED}.teacher", "unknown_teacher", "'smoothed'"),
        ({"teacher": REMOVE}, f"{DISTILLED}.loss.kd", "needs_teacher", "teacher"),
        ({"loss": {"kd": REMOVE, "focal": {}}}, f"{DISTILLED}.teacher", "unused_teacher", "kd"),
        ({"loss": {"kdd": {}}}, f"{DISTILLED}.loss.kdd", "unknown_term", "'kd'"),
        ({"loss": {"kd": None}}, f"{DISTILLED}.loss.kd", "dict_type", "{}"),
        ({"teacher": [["hard"]]}, f"{DISTILLED}.teacher", "invalid_ensemble", "two"),
        ({"teacher": [["hard", "hard"]]}, f"{DISTILLED}.teacher", "invalid_ensemble", "two"),
        (
            {"teacher": [["smoothed", "smoothed/smoothing=0.1"]]},
            f"{DISTILLED}.teacher", "repeated_teacher", "different",
        ),
        ({"model": {"drop_rate": 0.1}}, f"{DISTILLED}.model", "invalid_model", "name"),
        (
            {"model": {"name": "mlp_16", "checkpoint_path": "x.pt"}},
            f"{DISTILLED}.model.checkpoint_path", "reserved", "checkpoint",
        ),
    ],
)  # fmt: skip
def test_a_wrong_arm_is_reported(changes, key, code, word):
    (problem,) = problems_of(merge(STUDY, {"students": {"distilled": changes}}))
    assert (problem.key, problem.code) == (key, code)
    assert word in problem.message


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"students": {"alone": {"loss": REMOVE}}}, "students.alone.loss"),
        ({"students": {"alone": {"loss": {"cross_entropy": REMOVE}}}}, "students.alone.loss"),
        ({"teachers": {"hard": {"loss": REMOVE}}}, "teachers.hard.loss"),
    ],
)
def test_an_arm_that_can_be_neither_trained_nor_used_needs_a_loss(changes, key):
    (problem,) = problems_of(merge(STUDY, changes))
    assert (problem.key, problem.code) == (key, "needs_loss")


def test_a_student_needs_a_name_that_no_teacher_has():
    student = {"model": "mlp_16", "loss": {"focal": {}}}
    (problem,) = problems_of(merge(STUDY, {"students": {"hard": student}}))
    assert (problem.key, problem.code) == ("students.hard", "duplicate_name")


def test_students_of_a_teacher_with_problems_are_not_reported():
    (problem,) = problems_of(merge(STUDY, {"teachers": {"hard": {"modl": "x"}}}))
    assert problem.key == "teachers.hard.modl"


def test_the_tiny_recipe_has_no_problems():
    assert problems_of(TINY) == []


def test_arms_may_be_named_by_numbers_and_by_words_that_were_booleans():
    text = """
    data: {source: digits}
    train: {epochs: 1}
    teachers:
      1: {model: mlp_16, loss: {cross_entropy: {}}}
      no: {model: mlp_16, loss: {cross_entropy: {smoothing: 0.1}}}
    students:
      s: {model: mlp_16, teacher: [1, no], loss: {kd: {}}}
    """
    recipe = make_recipe(read_yaml(text, Problems("r.yaml")))
    assert [arm.teachers for arm in recipe.students] == [("1",), ("no",)]


def test_a_student_cannot_be_a_teacher():
    (problem,) = problems_of(merge(STUDY, {"students": {"distilled": {"teacher": "alone"}}}))
    assert "'alone' is a student" in problem.message
