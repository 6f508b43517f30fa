"""Paired comparisons and their verdicts against scipy, and the ranking of students."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.recipes import ROOT
from helpers.results import make_comparison, make_results, runs_of
from scipy import stats

from distill import load_recipe
from distill.evaluation.comparisons import (
    compare_arms,
    find_pairs,
    rank_students,
    smoothing_pair,
    verdict_of,
)
from distill.storage.study_results import QuestionCode, Verdict

LOSSES_RECIPE = ROOT / "recipes" / "losses_digits.yaml"


def accuracy_comparison(comparisons, a, b):
    for one in comparisons:
        if (one.metric, one.a, one.b) == ("top1", a, b):
            return one
    raise AssertionError(f"{a} and {b} are not compared")


def test_differences_and_intervals_are_those_of_a_paired_t_test():
    recipe = load_recipe(LOSSES_RECIPE, ["seeds=4"])
    hard = [0.93, 0.95, 0.94, 0.96]
    focal = [0.90, 0.91, 0.92, 0.95]
    found = compare_arms(recipe, runs_of("focal", focal) + runs_of("hard", hard))
    assert [one.metric for one in found] == ["top1", "nll", "ece"]
    test = stats.ttest_rel(focal, hard)
    for one in found:
        assert one.question_code == QuestionCode.LOSS_VS_CROSS_ENTROPY
        assert (one.a, one.b, one.seeds) == ("hard", "focal", 4)
        assert one.difference == pytest.approx(np.mean(focal) - np.mean(hard))
        assert one.ci95 == pytest.approx(tuple(test.confidence_interval(0.95)))
        # one comparison of each metric, so there is nothing to adjust
        assert one.p_holm == one.p_value == pytest.approx(test.pvalue)
    assert [one.verdict for one in found] == [Verdict.WORSE, Verdict.BETTER, Verdict.BETTER]


def test_p_values_are_adjusted_within_each_metric():
    recipe = load_recipe(LOSSES_RECIPE, ["seeds=4"])
    rng = np.random.default_rng(0)
    runs = []
    for arm in ("hard", "focal", "poly1", "sparse"):
        runs += runs_of(arm, list(0.9 + 0.02 * rng.random(4)))
    found = compare_arms(recipe, runs)
    for metric in ("top1", "nll", "ece"):
        own = [one for one in found if one.metric == metric]
        assert len(own) == 3
        # Holm: the k-th smallest of n p-values times n - k + 1, not falling, at most 1
        highest = 0.0
        for k, one in enumerate(sorted(own, key=lambda one: one.p_value)):
            highest = max(highest, min(1.0, (3 - k) * one.p_value))
            assert one.p_holm == pytest.approx(highest)


def test_an_interval_over_images_averages_each_image_over_seeds():
    """Three seeds, their rows in another order than the recipe's: the runs of one arm, by image."""
    recipe = load_recipe(LOSSES_RECIPE, ["seeds=3"])
    runs = runs_of("focal", [0.8] * 3) + runs_of("hard", [0.9] * 3)
    rng = np.random.default_rng(0)
    correct = {run.id: rng.random(400) < 0.85 for run in runs}
    found = compare_arms(recipe, runs[::-1], correct)
    gains = []
    for i in range(400):
        by_seed = [int(correct[f"focal-{s}"][i]) - int(correct[f"hard-{s}"][i]) for s in range(3)]
        gains.append(sum(by_seed) / 3)
    expected = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert accuracy_comparison(found, "hard", "focal").ci95_images == pytest.approx(tuple(expected))


def test_an_interval_over_images_of_one_seed_is_that_of_paired_proportions():
    """Of n images, `gained` only b's network gets right and `lost` only a's: Wald's interval."""
    recipe = load_recipe(LOSSES_RECIPE, ["seeds=1"])
    n = 800
    gained = 40
    lost = 15
    a = np.array([1] * 700 + [0] * gained + [1] * lost + [0] * 45) == 1
    b = np.array([1] * 700 + [1] * gained + [0] * lost + [0] * 45) == 1
    runs = runs_of("hard", [0.9]) + runs_of("focal", [0.8])
    found = compare_arms(recipe, runs, {"hard-0": a, "focal-0": b})
    difference = (gained - lost) / n
    error = np.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    top1 = accuracy_comparison(found, "hard", "focal")
    expected = (difference - 1.963 * error, difference + 1.963 * error)
    assert top1.ci95_images == pytest.approx(expected, rel=2e-3)
    assert top1.ci95 is None
    assert top1.verdict == Verdict.ONE_SEED
    assert all(one.ci95_images is None for one in found if one.metric != "top1")


@pytest.mark.parametrize(
    ("difference", "ci95", "p_holm", "seeds", "verdict"),
    [
        (0.01, None, None, 1, Verdict.ONE_SEED),
        (0.01, None, None, 4, Verdict.NO_SPREAD),
        (0.01, (-0.01, 0.03), 0.3, 5, Verdict.NO_DIFFERENCE),
        (0.01, (0.005, 0.015), 0.01, 5, Verdict.BETTER),
        (-0.01, (-0.015, -0.005), 0.01, 5, Verdict.WORSE),
        (0.01, (0.001, 0.019), 0.2, 5, Verdict.MAYBE_BETTER),
        (-0.01, (-0.019, -0.001), 0.2, 2, Verdict.MAYBE_WORSE),
    ],
)
def test_a_verdict_follows_from_seeds_interval_and_adjusted_p(
    difference, ci95, p_holm, seeds, verdict
):
    comparison = make_comparison(difference=difference, ci95=ci95, p_holm=p_holm, seeds=seeds)
    assert verdict_of(comparison) == verdict
    opposite = {
        Verdict.BETTER: Verdict.WORSE,
        Verdict.WORSE: Verdict.BETTER,
        Verdict.MAYBE_BETTER: Verdict.MAYBE_WORSE,
        Verdict.MAYBE_WORSE: Verdict.MAYBE_BETTER,
    }
    # a lower loss or calibration error is better
    for metric in ("nll", "ece"):
        assert verdict_of(replace(comparison, metric=metric)) == opposite.get(verdict, verdict)


def test_students_are_ranked_with_their_paired_distance_to_the_best():
    recipe = load_recipe(LOSSES_RECIPE, ["seeds=4"])
    values = {
        "focal": [0.90, 0.91, 0.92, 0.95],
        "hard": [0.93, 0.95, 0.94, 0.96],
        "zipf": [0.5, 0.7, 0.6, 0.4],
    }
    runs = runs_of("large", [1.0] * 4, role="teacher")
    for arm, accuracies in values.items():
        runs += runs_of(arm, accuracies)
    ranking = rank_students(recipe, runs)
    assert [(row.rank, row.arm) for row in ranking] == [(1, "hard"), (2, "focal"), (3, "zipf")]
    assert ranking[0].difference == 0
    assert ranking[0].p_adjusted is None
    for row in ranking[1:]:
        test = stats.ttest_rel(values[row.arm], values["hard"])
        assert row.difference == pytest.approx(np.mean(values[row.arm]) - 0.945)
        # three pairs: the best is picked by these same numbers
        assert row.difference_ci == pytest.approx(tuple(test.confidence_interval(1 - 0.05 / 3)))
        assert row.p_adjusted == pytest.approx(min(1, 3 * test.pvalue))
    mean = np.mean(values["hard"])
    expected = stats.t.interval(0.95, 3, mean, stats.sem(values["hard"]))
    assert ranking[0].ci95 == pytest.approx(expected)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        # of section 4's teachers those without dropout
        ("section4", ("plain/smoothing=0", "plain/smoothing=0.1")),
        # of the map's eight teachers the hard one and the most smoothed one
        ("map", ("teacher/smoothing=0", "teacher/smoothing=0.75")),
    ],
)
def test_the_smoothing_pair_differs_in_smoothing_alone(recipe, expected):
    comparisons = []
    for question, a, b in find_pairs(load_recipe(ROOT / "recipes" / "paper" / f"{recipe}.yaml")):
        comparisons.append(make_comparison(question_code=question.code, a=a.name, b=b.name))
    assert smoothing_pair(make_results([], comparisons=comparisons)) == expected


def test_without_a_comparison_of_smoothing_there_is_no_pair():
    assert smoothing_pair(make_results([], comparisons=[make_comparison()])) is None
