"""Captions hold the numbers of the runs that they are about."""

import math
import re

import numpy as np
import pytest
from helpers.results import make_comparison, make_results, make_run, runs_of
from scipy import stats

from distill.report.captions import (
    equivalent_smoothing_caption,
    figure_captions,
    paired,
    temperature_map_caption,
)
from distill.storage.study_results import InformationEstimate, QuestionCode, RankedStudent

SMOOTHING = make_comparison(question_code=QuestionCode.TEACHER_SMOOTHING, a="hard", b="smoothed")
SEEDS = range(4)


def numbers(text: str) -> list[float]:
    plain = text.replace("+", "").replace("−", "-")
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", plain)]


@pytest.fixture
def ratios():
    rng = np.random.default_rng(0)
    return {"hard": 0.2 + 0.05 * rng.random(4), "smoothed": 0.1 + 0.05 * rng.random(4)}


@pytest.fixture
def results(ratios):
    """Two teachers at four seeds that differ in smoothing alone."""
    runs = []
    for arm, values in ratios.items():
        for seed in SEEDS:
            value = float(values[seed])
            run = make_run(
                arm,
                seed,
                role="teacher",
                test={"top1": 0.9, "ece": value, "ece_scaled": value / 10},
                train={"within_between_templates": value, "nc1": value, "class_separation": 0.5},
                validation={"within_between_templates": 2 * value},
                information=[InformationEstimate(3, value, 200)],
            )
            runs.append(run)
    return make_results(runs, comparisons=[SMOOTHING])


def test_runs_are_paired_by_seed_whatever_their_order():
    runs = runs_of("a", [0.5, 0.52, 0.54]) + runs_of("b", [0.6, 0.65, 0.63])[::-1]
    results = make_results(runs)
    test = paired(results, "a", "b", lambda run: run.test.top1)
    assert test.p_value == pytest.approx(
        stats.ttest_rel([0.6, 0.65, 0.63], [0.5, 0.52, 0.54]).pvalue
    )
    assert paired(results, "a", "b", lambda run: run.test.fgsm) is None
    assert paired(results, "a", "unknown", lambda run: run.test.top1) is None


def test_captions_of_a_smoothing_pair_are_about_the_stored_numbers(results, ratios):
    captions = figure_captions(results, {})
    low, high = stats.ttest_rel(ratios["smoothed"], ratios["hard"]).confidence_interval()
    percent = [100 * np.mean(ratios[arm]) for arm in ("hard", "smoothed")]
    expected = [*percent, percent[1] - percent[0], 95, 100 * low, 100 * high, 4]
    assert numbers(captions["reliability"])[:7] == pytest.approx(expected, abs=0.0051)

    log_ratio = np.log(ratios["smoothed"]) - np.log(ratios["hard"])
    lower = int(np.sum(ratios["smoothed"] < ratios["hard"]))
    bounds = [math.exp(b) for b in stats.ttest_1samp(log_ratio, 0).confidence_interval()]
    expected = [math.exp(log_ratio.mean()), 95, *bounds, lower, 4]
    assert numbers(captions["features_plane"])[:6] == pytest.approx(expected, abs=0.0051)

    assert captions.keys() >= {"features_pca", "features_tsne", "information"}
    # no run has these numbers
    assert captions.keys().isdisjoint({"features_plane_2", "robustness", "fidelity", "accuracy"})


def test_without_a_smoothing_pair_captions_give_the_range_of_the_arms(results, ratios):
    captions = figure_captions(make_results(results.runs), {})
    means = {arm: np.mean(values) for arm, values in ratios.items()}
    text = captions["features_tsne"]
    assert text.index("smoothed") < text.index("hard")
    found = numbers(text.split("ranges from")[1])
    assert [found[0], found[3]] == pytest.approx([means["smoothed"], means["hard"]], abs=5e-4)


def test_the_best_student_is_named_with_those_that_are_worse():
    def row(rank, arm, interval):
        return RankedStudent(rank, arm, 0.9, 0.01, None, -0.01 * (rank - 1), interval, None)

    ranking = [row(1, "x", None), row(2, "y", (-0.02, 0.01)), row(3, "z", (-0.04, -0.01))]
    caption = figure_captions(make_results([make_run()], ranking=ranking), {})["accuracy"]
    assert "x" in caption
    assert numbers(caption) == [90.0, 1, 2]


def test_arms_that_were_still_gaining_are_counted():
    flat = [[0.9 + 0.001 * seed] * 20 for seed in SEEDS]
    rising = [[0.5 + 0.01 * epoch + 0.001 * seed * epoch for epoch in range(20)] for seed in SEEDS]
    short = [[0.5, 0.6] for _ in SEEDS]
    curves = {"flat": flat, "rising": rising, "short": short}
    caption = figure_captions(make_results([make_run()]), curves)["learning_curves"]
    assert numbers(caption)[:2] == [1, 2]


def test_robustness_names_the_arm_that_pgd_flatters_most():
    def run(arm, seed, missed):
        attacks = {
            "num_attacked": 60,
            "pgd_linf": 0.5,
            "worst_linf": 0.5 - missed,
            "zero_gradient": 0.25,
        }
        return make_run(arm, seed, test=attacks)

    runs = [run("fair", s, 0.01) for s in SEEDS] + [run("masked", s, 0.2) for s in SEEDS]
    caption = figure_captions(make_results(runs), {})["robustness"]
    assert "masked" in caption
    assert "fair" not in caption
    assert {20.0, 25.0} <= set(numbers(caption))


def test_fidelity_compares_the_own_teacher_with_the_control():
    runs = []
    for seed, (control, own) in enumerate([(0.80, 0.85), (0.82, 0.88), (0.81, 0.85)]):
        runs.append(make_run("s", seed, test={"agreement": own, "agreement_control": control}))
    caption = figure_captions(make_results(runs), {})["fidelity"]
    assert numbers(caption)[:3] == pytest.approx([81.0, 86.0, 5.0], abs=0.01)


def test_the_temperature_map_compares_the_effects_at_its_corners():
    accuracy = {(0.0, 1.0): 0.90, (0.0, 4.0): 0.92, (0.1, 1.0): 0.91, (0.1, 4.0): 0.88}
    group = {}
    for number, (corner, value) in enumerate(accuracy.items()):
        jitter = [0.001 * ((number + seed) % 3) for seed in SEEDS]
        group[corner] = runs_of("s", [value + j for j in jitter])
    hard = [b.test.top1 - a.test.top1 for a, b in zip(group[0.0, 1.0], group[0.0, 4.0])]  # noqa: B905
    smoothed = [b.test.top1 - a.test.top1 for a, b in zip(group[0.1, 1.0], group[0.1, 4.0])]  # noqa: B905
    caption = temperature_map_caption(group)
    found = numbers(caption)
    assert found[:2] == [1, 4]
    assert found[2] == pytest.approx(100 * np.mean(hard), abs=0.0051)
    assert found[4] == pytest.approx(100 * np.mean(smoothed), abs=0.0051)
    low, high = stats.ttest_rel(smoothed, hard).confidence_interval()
    assert found[-3:] == pytest.approx([100 * low, 100 * high, 4], abs=0.0051)
    del group[0.1, 4.0]
    assert temperature_map_caption(group) == ""


def test_figure_five_compares_the_means_of_curves():
    curves = {
        "student alone, by its smoothing": {0: [0.90, 0.92], 1: [0.91, 0.91]},
        "student of the hard teacher, by temperature": {0: [0.95], 1: [0.96]},
        "teacher, by its smoothing": {0: [0.99], 1: [0.99]},
    }
    found = numbers(equivalent_smoothing_caption(curves))
    assert found[:3] == pytest.approx([91.0, 95.5, 4.5])
    assert equivalent_smoothing_caption({}) == ""
