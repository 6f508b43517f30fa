"""A cohort that is too large for the device is halved; a run that is too large stops no other."""

import pytest
import torch
from helpers.recipes import TINY, make_recipe, merge
from helpers.training import plan, same, train_generation

from distill import run_study
from distill.errors import UserError
from distill.study import scheduler
from distill.study.cohorts import make_cohorts

FIRST = merge(TINY, {"train": {"epochs": 2}})


def first_generation(ctx):
    return [run for run in plan(ctx) if run.generation == 0]


def test_cohorts_are_split_by_memory(study_context):
    smoothing = "students.alone.loss.cross_entropy.smoothing=[0, 0.1, 0.2, 0.3]"
    runs = first_generation(study_context(make_recipe(FIRST, smoothing)))
    sizes = {run.arm.name: 10 for run in runs}

    def cohort_sizes(*memory):
        cohorts = make_cohorts(runs, *memory)
        assert [run for cohort in cohorts for run in cohort] == runs
        return [len(cohort) for cohort in cohorts]

    assert cohort_sizes() == [5]
    assert cohort_sizes(sizes, 20) == [2, 2, 1]
    # A run that is too large alone is tried.
    assert cohort_sizes(sizes, 5) == [1] * 5


def test_a_cohort_that_does_not_fit_is_halved_to_the_same_weights(study_context, monkeypatch):
    whole = study_context(make_recipe(FIRST), out="whole")
    expected = train_generation(whole, first_generation(whole))
    ctx = study_context(make_recipe(FIRST))
    fit = scheduler.fit
    tried = []

    def fit_one(states, *arguments, **options):
        tried.append(len(states))
        if len(states) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return fit(states, *arguments, **options)

    monkeypatch.setattr(scheduler, "fit", fit_one)
    found = train_generation(ctx, first_generation(ctx))
    assert tried == [3, 2, 1, 1, 1]
    assert all(same(found[name], expected[name]) for name in expected)


def test_a_run_that_does_not_fit_alone_stops_no_other(tmp_path, monkeypatch):
    fit = scheduler.fit

    def fit_all_but_one(states, *arguments, **options):
        if any(state.run.arm.name.startswith("alone") for state in states):
            raise MemoryError
        return fit(states, *arguments, **options)

    monkeypatch.setattr(scheduler, "fit", fit_all_but_one)
    with pytest.raises(UserError, match=r"alone.*, seed 0: .*train\.batch_size"):
        run_study(make_recipe(FIRST), tmp_path / "runs")
    assert len(list((tmp_path / "runs" / "models").glob("*/run.json"))) == 2
