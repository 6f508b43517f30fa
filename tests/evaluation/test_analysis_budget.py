"""The budget of the analysis: its cost model against counted passes, and what it chooses."""

import dataclasses

import pytest
import torch
from helpers.models import count_passes

from distill.evaluation.analyse import AnalysisContext, analyse_runs
from distill.evaluation.analysis_budget import CHOICES, plan_analysis
from distill.recipe.schema import Analysis
from distill.storage.run_store import RunStore

KEYS = tuple(CHOICES)


def planned(trained, runs=None, **settings):
    return plan_analysis(Analysis(**settings), trained.splits, runs or trained.runs)


def counts(plan):
    return tuple(getattr(plan.settings, key) for key in KEYS)


@pytest.mark.parametrize("counted", [*({key: 5} for key in KEYS), dict.fromkeys(KEYS, 7)], ids=str)
def test_planned_passes_are_those_that_the_analysis_makes(trained, tmp_path, counted):
    """Each image that goes through the network counts once, and once more with a gradient."""
    run = trained.runs[0]
    store = RunStore(tmp_path)
    store.models.symlink_to(trained.store.models)
    settings = Analysis(**{**dict.fromkeys(KEYS, 0), **counted}, steps=3)
    plan = plan_analysis(settings, trained.splits, [run])
    ctx = AnalysisContext(trained.splits, store, plan.settings, torch.device("cpu"), [0])
    with count_passes() as made:
        analyse_runs(ctx, [run])
    # The plan takes the two largest classes; the two that were analysed may have fewer images, and
    # FGSM shares a forward pass that the plan counts.
    assert made.total == pytest.approx(plan.passes[run.id], rel=0.05)


def training_passes(trained):
    """A training step costs three passes of the student, and one of each teacher."""
    images = len(trained.splits.train)
    return sum(images * run.arm.train.epochs * (3 + len(run.teachers)) for run in trained.runs)


@pytest.mark.parametrize("budget", [0.0, 0.05, 0.25, 1.0, 5.0])
def test_the_analysis_fits_its_budget(trained, budget):
    plan = planned(trained, budget=budget)
    assert sum(plan.passes.values()) <= budget * training_passes(trained)
    defaults = tuple(choices[0] for choices in CHOICES.values())
    # The largest analysis that is left out would have cost too much.
    if 0 < budget < 1:
        assert sum(plan.passes.values()) > 0.1 * budget * training_passes(trained)
    reduced = [
        key for key, chosen, all_ in zip(KEYS, counts(plan), defaults, strict=True) if chosen < all_
    ]
    assert list(plan.reduced) == reduced
    assert all(chosen in (0, *CHOICES[key]) for key, chosen in zip(KEYS, counts(plan), strict=True))


def test_no_budget_is_no_analysis_and_a_large_one_is_all_of_it(trained):
    assert counts(planned(trained, budget=0.0)) == (0, 0, 0)
    assert counts(planned(trained, budget=1e6)) == (100, 40, 500)


def test_what_the_recipe_states_is_kept(trained):
    plan = planned(trained, budget=0.0, num_attacked=37, num_views=3)
    assert counts(plan) == (0, 3, 37)
    assert plan.reduced == ("examples",)
    # What is stated takes nothing from the budget of the others.
    small = planned(trained, budget=0.3)
    attacked = planned(trained, budget=0.3, num_attacked=10**6)
    assert counts(attacked)[:2] == counts(small)[:2]
    assert attacked.settings.num_attacked == 10**6


def test_more_seeds_do_not_change_the_counts(trained):
    of_first_seed = [run for run in trained.runs if run.seed == 0]
    assert counts(planned(trained, of_first_seed)) == counts(planned(trained))


def test_frozen_networks_alone_are_analysed_in_full(trained):
    """There is no training to take a share of."""
    run = trained.runs[0]
    frozen = dataclasses.replace(run, arm=dataclasses.replace(run.arm, loss=None))
    assert frozen.arm.frozen
    assert counts(planned(trained, [frozen])) == (100, 40, 500)
