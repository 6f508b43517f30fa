"""Captions of figures are about the stored numbers."""

import math

import numpy as np
import pytest
from helpers.recipes import ROOT
from scipy import stats

from distill import load_recipe
from distill.evaluation.comparisons import find_pairs
from distill.report.captions import change, figure_captions, paired, smoothing_pair


def test_sentences_tell_direction_size_and_doubt():
    def runs(arm, values):
        return [{"arm": arm, "seed": s, "value": v} for s, v in enumerate(values)]

    a, b = [0.50, 0.52, 0.54, 0.52], [0.60, 0.65, 0.63, 0.64]
    results = {"seeds": [0, 1, 2, 3], "runs": runs("a", a) + runs("b", b)[::-1]}
    test = paired(results, "a", "b", lambda run: run["value"])
    low, high = stats.ttest_rel(b, a).confidence_interval()
    assert change(test, 4, 100, 1, "%") == (
        f"from 52.0% to 63.0% (+11.0, 95% interval {100 * low:+.1f} to {100 * high:+.1f}, 4 seeds)"
    )
    unsure = paired(
        {**results, "runs": runs("a", a) + runs("b", a[::-1])}, "a", "b", lambda run: run["value"]
    )
    assert "cannot tell it from no change" in change(unsure, 4)
    one = paired(
        {"seeds": [0], "runs": runs("a", a[:1]) + runs("b", b[:1])},
        "a",
        "b",
        lambda run: run["value"],
    )
    assert "no uncertainty can be given" in change(one, 1)
    assert paired(results, "a", "b", lambda run: None) is None


def test_the_pair_that_is_told_and_drawn_differs_in_smoothing_alone():
    """Section 4: the teachers without dropout; the map: the hard and the most smoothed of eight."""
    for name, expected in {
        "section4": ("plain/smoothing=0", "plain/smoothing=0.1"),
        "map": ("teacher/smoothing=0", "teacher/smoothing=0.75"),
    }.items():
        pairs = find_pairs(load_recipe(ROOT / "recipes" / "paper" / f"{name}.yaml"))
        comparisons = [{"question": question, "a": a.name, "b": b.name} for question, a, b in pairs]
        assert smoothing_pair({"comparisons": comparisons}) == expected
    assert smoothing_pair({"comparisons": []}) is None


@pytest.mark.slow
def test_captions_are_of_the_stored_numbers(analysed_study):
    results = analysed_study.results()
    told = figure_captions(results, {})
    values = [
        [analysed_study.result(arm, s)["metrics"]["test"]["ece"] for s in (0, 1)]
        for arm in ("hard", "smoothed")
    ]
    low, high = stats.ttest_rel(values[1], values[0]).confidence_interval()
    assert f"95% interval {100 * low:+.2f} to {100 * high:+.2f}, 2 seeds" in told["reliability"]
    tight = [
        [
            analysed_study.result(arm, s)["metrics"]["train"]["within_between_templates"]
            for s in (0, 1)
        ]
        for arm in ("hard", "smoothed")
    ]
    lower = sum(b < a for a, b in zip(*tight, strict=True))
    ratio = math.exp(np.mean(np.log(tight[1]) - np.log(tight[0])))
    assert f"lower in {lower} of 2 seeds: {ratio:.2f} times" in told["features_plane"]
