"""Questions and verdicts as sentences: every code has one, with the numbers that belong to it."""

import math
import re
from dataclasses import replace

import pytest
from helpers.results import make_comparison, make_results

from distill.evaluation.comparisons import verdict_of
from distill.evaluation.statistics import compare, seeds_for_power
from distill.report.wording import (
    MOST_SEEDS,
    QUESTIONS,
    change,
    p_value_text,
    question_sentence,
    seeds_to_settle,
    signed,
    verdict_sentence,
)
from distill.storage.study_results import QuestionCode, Verdict


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[+-]\d+\.\d+", text.replace("−", "-"))]


def test_every_question_has_a_sentence_of_its_own():
    sentences = {
        question_sentence(make_comparison(question_code=code, setting="train.lr"))
        for code in QuestionCode
    }
    assert len(sentences) == len(QuestionCode) == len(QUESTIONS)


def test_the_question_about_a_setting_names_it_and_the_role():
    comparison = make_comparison(
        question_code=QuestionCode.SETTING, setting="loss.kd.weight", role="teacher"
    )
    assert "loss.kd.weight" in question_sentence(comparison)
    assert "teacher" in question_sentence(comparison)


RESULTS = make_results([], seeds=[0], comparisons=[make_comparison()])  # 500 test images, one test
UNTESTED = {"ci95": None, "p_value": None, "p_holm": None}


def comparison_with(verdict: Verdict, **changes):
    """Return a comparison whose numbers lead to a verdict, as `verdict_of` gives it."""
    numbers = {
        Verdict.BETTER: {},
        Verdict.WORSE: {"difference": -0.01, "ci95": (-0.015, -0.005)},
        Verdict.MAYBE_BETTER: {"p_value": 0.02, "p_holm": 0.2},
        Verdict.MAYBE_WORSE: {
            "difference": -0.01,
            "ci95": (-0.015, -0.005),
            "p_value": 0.02,
            "p_holm": 0.2,
        },
        Verdict.NO_DIFFERENCE: {"ci95": (-0.01, 0.03), "p_value": 0.3, "p_holm": 1.0},
        Verdict.ONE_SEED: {"seeds": 1, **UNTESTED},
        Verdict.NO_SPREAD: UNTESTED,
    }[verdict]
    comparison = make_comparison(verdict=verdict, **numbers | changes)
    assert verdict_of(comparison) == verdict
    return comparison


@pytest.mark.parametrize("code", [QuestionCode.DISTILLATION, QuestionCode.STUDENT_MODEL])
def test_every_verdict_has_a_sentence_of_its_own(code):
    sentences = [
        verdict_sentence(comparison_with(verdict, question_code=code), RESULTS)
        for verdict in Verdict
    ]
    assert len(set(sentences)) == len(Verdict)
    assert all(abs(numbers(sentence)[0]) == 1.0 for sentence in sentences)


@pytest.mark.parametrize(
    "verdict", [v for v in Verdict if v not in (Verdict.ONE_SEED, Verdict.NO_SPREAD)]
)
def test_a_tested_verdict_has_its_interval_in_points(verdict):
    comparison = comparison_with(verdict)
    sentence = verdict_sentence(comparison, RESULTS)
    expected = [comparison.difference, *comparison.ci95]
    assert numbers(sentence) == pytest.approx([100 * value for value in expected])
    assert "5 seeds" in sentence


def test_significant_alone_but_not_after_holm_has_both_p_values():
    for verdict in (Verdict.MAYBE_BETTER, Verdict.MAYBE_WORSE):
        sentence = verdict_sentence(comparison_with(verdict), RESULTS)
        assert "p = 0.020" in sentence
        assert "p = 0.20" in sentence


def test_one_seed_has_the_interval_over_images_and_its_limit():
    sentence = verdict_sentence(
        comparison_with(Verdict.ONE_SEED, ci95_images=(0.002, 0.018)), RESULTS
    )
    assert numbers(sentence) == [1.0, 0.2, 1.8]
    assert "500 test images" in sentence
    assert "One seed" in sentence
    unclear = verdict_sentence(
        comparison_with(Verdict.ONE_SEED, ci95_images=(-0.002, 0.022)), RESULTS
    )
    assert unclear.split(":")[0] != sentence.split(":")[0]


def test_two_seeds_and_an_interval_over_images_that_holds_zero_are_remarked():
    plain = verdict_sentence(make_comparison(ci95_images=(0.002, 0.018)), RESULTS)
    depends_on_images = verdict_sentence(make_comparison(ci95_images=(-0.002, 0.022)), RESULTS)
    two_seeds = verdict_sentence(make_comparison(seeds=2), RESULTS)
    assert plain == verdict_sentence(make_comparison(), RESULTS)
    assert depends_on_images.startswith(plain)
    assert numbers(depends_on_images)[-2:] == [-0.2, 2.2]
    assert "weak evidence" in two_seeds
    # without a significant difference there is nothing to restrict
    unclear = comparison_with(Verdict.NO_DIFFERENCE, ci95_images=(-0.02, 0.04))
    assert "images" not in verdict_sentence(unclear, RESULTS)


def test_settled_and_untested_comparisons_need_no_more_seeds():
    for verdict in (Verdict.BETTER, Verdict.WORSE, Verdict.ONE_SEED, Verdict.NO_SPREAD):
        assert seeds_to_settle(comparison_with(verdict), 1) is None
    nothing = comparison_with(Verdict.NO_DIFFERENCE, difference=1e-6, ci95=(-0.01, 0.01))
    assert seeds_to_settle(nothing, 1) is None


def test_seeds_to_settle_are_those_of_the_power_of_a_t_test():
    """An effect of one deviation needs 10 pairs for 80% power (Cohen's tables)."""
    # With 5 seeds the half width of the interval is 2.776 / √5 deviations.
    half = 0.01 * 2.776445 / math.sqrt(5)
    unclear = make_comparison(
        verdict=Verdict.NO_DIFFERENCE, ci95=(0.01 - half, 0.01 + half), p_value=0.09, p_holm=0.9
    )
    assert seeds_to_settle(unclear, 1) == 10
    # With ten comparisons the test is ten times as strict.
    maybe = replace(unclear, verdict=Verdict.MAYBE_BETTER, p_value=0.04, p_holm=0.4)
    assert seeds_to_settle(maybe, 10) == seeds_for_power(1.0, 0.005) > 10
    hopeless = make_comparison(
        verdict=Verdict.NO_DIFFERENCE, difference=1e-4, ci95=(-0.5, 0.5), p_value=0.9, p_holm=1.0
    )
    assert seeds_to_settle(hopeless, 1) == MOST_SEEDS + 1


@pytest.mark.parametrize(
    ("p_value", "text"),
    [
        (1.0, "1.00"),
        (0.05, "0.050"),
        (0.0496, "0.0496"),
        (0.0123, "0.012"),
        (0.00042, "0.0004"),
        (1e-9, "<0.0001"),
    ],
)
def test_a_p_value_has_about_two_digits(p_value, text):
    assert p_value_text(p_value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.234, "+1.23"), (-1.234, "−1.23"), (-0.001, "0.00"), (0.0, "0.00")]
)
def test_a_signed_number_that_is_zero_has_no_sign(value, text):
    assert signed(value) == text


def test_a_change_has_both_means_its_interval_and_its_doubt():
    before = [0.50, 0.52, 0.54, 0.52]
    test = compare(before, [0.60, 0.65, 0.63, 0.64])
    low, high = test.ci95
    assert change(test, 4, 100, 1, "%") == (
        f"from 52.0% to 63.0% (+11.0, 95% interval {100 * low:+.1f} to {100 * high:+.1f}, 4 seeds)"
    )
    assert "not significant" in change(compare(before, before[::-1]), 4)
    assert numbers(change(compare([0.5], [0.6]), 1)) == []
