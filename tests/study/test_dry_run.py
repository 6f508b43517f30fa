"""The plan of a study: its runs, its cohorts, what is cached, and what it will cost."""

import pytest
from helpers import stored
from helpers.finished_study import STUDY
from helpers.recipes import make_recipe, merge

from distill.errors import UserError
from distill.evaluation.analysis_budget import TRAINING_PASSES
from distill.study import dry_run as module
from distill.study.dry_run import dry_run

SECONDS_PER_PASS = 0.5  # of `TIMED_IMAGES` images


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch):
    """Give every network the same speed, instead of measuring it."""
    monkeypatch.setattr(module, "_fastest_pass", lambda *_: SECONDS_PER_PASS)


def test_stored_runs_are_not_planned_again(out):
    plan = dry_run(make_recipe(STUDY), out)
    assert {run["id"] for run in plan["runs"]} == stored.finished_runs(out)
    assert all(run["stored"] for run in plan["runs"])
    assert plan["cohorts"] == [] and plan["seconds"] == 0
    assert plan["analysis_seconds"] == 0


def test_runs_are_planned_with_the_ids_under_which_they_are_stored(out, tmp_path):
    plan = dry_run(make_recipe(STUDY), tmp_path / "empty")
    assert {run["id"] for run in plan["runs"]} == stored.finished_runs(out)
    assert not any(run["stored"] for run in plan["runs"])
    assert not list(tmp_path.glob("empty/models/*"))


def test_new_seeds_are_cohorts_by_generation_with_their_cost(out):
    plan = dry_run(make_recipe(merge(STUDY, {"seeds": 5})), out)
    assert sum(run["stored"] for run in plan["runs"]) == 12 and len(plan["runs"]) == 20
    cohorts = plan["cohorts"]
    assert [len(cohort["runs"]) for cohort in cohorts] == [3, 3, 1, 1]
    assert cohorts[0]["runs"][0] == "hard, seed 3" and cohorts[3]["runs"] == ["distilled, seed 4"]

    # 1797 digits: 599 are held out as test images, then 10% of the others for validation.
    images = 1797 - 599 - 120
    passes = SECONDS_PER_PASS / module.TIMED_IMAGES * images * 2
    assert cohorts[0]["seconds"] == pytest.approx(3 * TRAINING_PASSES * passes)
    with_teacher = TRAINING_PASSES + 1
    assert cohorts[3]["seconds"] == pytest.approx(with_teacher * passes)
    assert plan["seconds"] == pytest.approx(sum(cohort["seconds"] for cohort in cohorts))
    # Ten images of each of ten classes in three splits; three views of the two largest classes,
    # 60% of 183 and of 182; 20 attacked images with 2 steps of two passes in 3 attacks and 10 more.
    of_a_run = 3 * 10 * 10 + 3 * (110 + 109) + 20 * (3 * 2 * 2 + 10)
    # Eight new runs, and four of the last old seed, which the next seed attacks from now on.
    seconds = 12 * of_a_run * SECONDS_PER_PASS / module.TIMED_IMAGES
    assert plan["analysis_seconds"] == pytest.approx(seconds)
    (cached,) = cohorts[3]["teacher_logits"]
    # Two epochs of ten logits of four bytes.
    assert (cached["stored"], cached["bytes"]) == (0, 2 * images * 10 * 4)


def test_cached_logits_of_a_stored_teacher_save_its_passes(out):
    students = {"new": {"model": "mlp_16", "teacher": "hard", "loss": {"kd": {}}}}
    recipe = merge(STUDY, {"students": students, "seeds": 1})
    (cohort,) = dry_run(make_recipe(recipe), out)["cohorts"]
    (cached,) = cohort["teacher_logits"]
    assert (cached["teacher"], cached["stored"], cached["bytes"]) == ("hard, seed 0", 2, 0)
    assert cohort["saved"] == pytest.approx(cohort["seconds"] / TRAINING_PASSES)


def test_mistakes_are_found_without_training(tmp_path):
    recipe = merge(STUDY, {"students": {"alone": {"model": "mlp_9999"}}})
    with pytest.raises(UserError, match="mlp_9999"):
        dry_run(make_recipe(recipe), tmp_path)
    assert not list(tmp_path.glob("models/*"))
