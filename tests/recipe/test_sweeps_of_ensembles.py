"""Ensembles of arms of one sweep: each teacher has its own axis."""

from helpers.loss_studies import ALL_TERMS
from helpers.recipes import make_recipe, problems_of

SWEEP = "teachers.soft.loss.cross_entropy.smoothing=[0.1, 0.2]"


def test_two_arms_of_a_sweep_are_an_ensemble_with_an_axis_for_each():
    teachers = "students.both.teacher=[[soft/smoothing=0.1, soft/smoothing=0.2]]"
    [arm] = [arm for arm in make_recipe(ALL_TERMS, SWEEP, teachers).students if "both" in arm.name]
    assert arm.teachers == ("soft/smoothing=0.1", "soft/smoothing=0.2")
    assert arm.axes["teacher1.smoothing"] == 0.1
    assert arm.axes["teacher2.smoothing"] == 0.2


def test_a_sweep_and_one_of_its_arms_are_no_ensemble():
    teachers = "students.both.teacher=[[soft, soft/smoothing=0.1]]"
    [problem] = problems_of(ALL_TERMS, SWEEP, teachers)
    assert (problem.key, problem.code) == ("students.both.teacher", "repeated_teacher")


def test_students_of_a_swept_ensemble_have_names_of_their_own():
    names = [arm.name for arm in make_recipe(ALL_TERMS, SWEEP).students]
    assert len(set(names)) == len(names)
    assert sum(name.startswith("both") for name in names) == 2
