"""A cohort that is too large for the device is halved; a run that is too large stops no other."""

import pytest
import torch
from helpers.recipes import TINY, make_recipe, merge
from helpers.training import plan, same, train_generation

from distill import run_study
from distill.errors import UserError
from distill.study import train_cohort

FIRST = merge(TINY, {"train": {"epochs": 2}})


def first_generation(ctx):
    return [run for run in plan(ctx) if run.generation == 0]


def test_a_cohort_that_does_not_fit_is_halved_to_the_same_weights(study_context, monkeypatch):
    whole = study_context(make_recipe(FIRST), out="whole")
    expected = train_generation(whole, first_generation(whole))
    ctx = study_context(make_recipe(FIRST))
    fit = train_cohort.fit
    tried = []

    def fit_one(states, *arguments, **options):
        tried.append(len(states))
        if len(states) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return fit(states, *arguments, **options)

    monkeypatch.setattr(train_cohort, "fit", fit_one)
    found = train_generation(ctx, first_generation(ctx))
    assert tried == [3, 2, 1, 1, 1]
    assert all(same(found[name], expected[name]) for name in expected)


def test_a_run_that_does_not_fit_alone_stops_no_other(tmp_path, monkeypatch):
    fit = train_cohort.fit

    def fit_all_but_one(states, *arguments, **options):
        if any(state.run.arm.name.startswith("alone") for state in states):
            raise MemoryError
        return fit(states, *arguments, **options)

    monkeypatch.setattr(train_cohort, "fit", fit_all_but_one)
    with pytest.raises(UserError, match=r"alone.*, seed 0: .*train\.batch_size"):
        run_study(make_recipe(FIRST), tmp_path / "runs")
    assert len(list((tmp_path / "runs" / "models").glob("*/run.json"))) == 2
