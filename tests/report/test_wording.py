"""Questions and verdicts as sentences: every code has one, with the numbers that belong to it."""

import re

import pytest
from helpers.results import make_comparison

from distill.evaluation.statistics import compare
from distill.report.wording import QUESTIONS, change, question_sentence, verdict_sentence
from distill.storage.study_results import QuestionCode, Verdict


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[+-]\d+\.\d+", text)]


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


@pytest.mark.parametrize("code", [QuestionCode.DISTILLATION, QuestionCode.STUDENT_MODEL])
def test_every_verdict_has_a_sentence_of_its_own(code):
    sentences = {
        verdict_sentence(make_comparison(question_code=code, verdict=verdict))
        for verdict in Verdict
    }
    assert len(sentences) == len(Verdict)
    assert all(numbers(sentence)[0] == 1.0 for sentence in sentences)


@pytest.mark.parametrize(
    "verdict", [Verdict.BETTER, Verdict.MAYBE_BETTER, Verdict.NO_DIFFERENCE, Verdict.WORSE]
)
def test_a_tested_verdict_has_its_interval_in_points(verdict):
    sentence = verdict_sentence(make_comparison(verdict=verdict))
    assert numbers(sentence) == [1.0, 0.5, 1.5]
    assert "5 seeds" in sentence


def test_two_seeds_and_an_interval_over_images_that_holds_zero_are_remarked():
    plain = verdict_sentence(make_comparison(ci95_images=(0.002, 0.018)))
    depends_on_images = verdict_sentence(make_comparison(ci95_images=(-0.002, 0.022)))
    two_seeds = verdict_sentence(make_comparison(seeds=2))
    assert plain == verdict_sentence(make_comparison())
    assert depends_on_images.startswith(plain)
    assert len(depends_on_images) > len(plain)
    assert "3 seeds" in two_seeds
    # without a significant difference there is nothing to restrict
    unclear = make_comparison(
        verdict=Verdict.NO_DIFFERENCE, ci95=(-0.01, 0.03), ci95_images=(-0.02, 0.04)
    )
    assert "images" not in verdict_sentence(unclear)


def test_a_change_has_both_means_its_interval_and_its_doubt():
    before = [0.50, 0.52, 0.54, 0.52]
    test = compare(before, [0.60, 0.65, 0.63, 0.64])
    low, high = test.ci95
    assert change(test, 4, 100, 1, "%") == (
        f"from 52.0% to 63.0% (+11.0, 95% interval {100 * low:+.1f} to {100 * high:+.1f}, 4 seeds)"
    )
    assert "not significant" in change(compare(before, before[::-1]), 4)
    assert numbers(change(compare([0.5], [0.6]), 1)) == []
