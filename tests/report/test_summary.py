"""The first lines of a report follow from verdict codes and numbers."""

import re

import pytest
from helpers.results import make_comparison, make_results, runs_of

from distill.report.summary import MOST_ANSWERS, SUBJECTS, answer_sentence, summarise
from distill.storage.study_results import QuestionCode, RankedStudent, Verdict

TESTED = [one for one in Verdict if one not in (Verdict.ONE_SEED, Verdict.NO_SPREAD)]
UNTESTED = {"ci95": None, "p_value": None, "p_holm": None}


def counts(sentence):
    """Return the whole numbers of a sentence."""
    return [int(number) for number in re.findall(r"(?<![.\d])\d+(?![.\d])", sentence)]


def ranked(rank, arm, mean, difference_ci=None):
    return RankedStudent(rank, arm, mean, 0.01, None, mean - 0.9, difference_ci, None)


def test_every_question_has_a_subject():
    assert SUBJECTS.keys() == set(QuestionCode) - {QuestionCode.SETTING}


@pytest.mark.parametrize("code", list(QuestionCode))
def test_every_question_and_verdict_has_an_answer_of_its_own(code):
    one_each = {
        answer_sentence([make_comparison(question_code=code, setting="x.y", verdict=verdict)], {})
        for verdict in TESTED
    }
    assert len(one_each) == len(TESTED)
    untested = make_comparison(
        question_code=code, setting="x.y", verdict=Verdict.ONE_SEED, **UNTESTED
    )
    assert answer_sentence([untested], {}) not in one_each


def test_few_comparisons_are_named_by_what_distinguishes_them():
    comparisons = [
        make_comparison(verdict=Verdict.BETTER, difference=0.01, b="kd/teacher=hard/temperature=4"),
        make_comparison(verdict=Verdict.WORSE, difference=-0.02, b="kd/teacher=soft/temperature=4"),
    ]
    names = {one.b: one.b.replace("/", " · ") for one in comparisons}
    sentence = answer_sentence(comparisons, names)
    assert "teacher=hard (+1.00 points)" in sentence
    assert "teacher=soft (−2.00 points)" in sentence
    assert "kd" not in sentence and "temperature" not in sentence


def test_an_effect_that_depends_on_the_test_images_is_said():
    sure = answer_sentence([make_comparison(ci95_images=(0.001, 0.019))], {})
    unsure = answer_sentence([make_comparison(ci95_images=(-0.001, 0.021))], {})
    assert sure != unsure
    assert "test images" in unsure


def test_many_comparisons_are_counted_by_verdict():
    verdicts = [Verdict.BETTER] * 3 + [Verdict.WORSE] + [Verdict.NO_DIFFERENCE] * 2
    comparisons = [
        make_comparison(verdict=verdict, difference=sign * (i + 1) / 100, b="uvwxyz"[i])
        for i, (verdict, sign) in enumerate(zip(verdicts, [1, 1, 1, -1, 1, 1], strict=True))
    ]
    sentence = answer_sentence(comparisons, {"w": "short"})
    assert counts(sentence) == [3, 6, 1, 6, 2]
    # the largest of the three, and the one that is worse
    assert "short: +3.00 points" in sentence
    assert "x: −4.00 points" in sentence


def test_without_a_significant_one_those_before_holms_correction_are_counted():
    verdicts = [Verdict.MAYBE_BETTER, Verdict.MAYBE_WORSE, Verdict.NO_DIFFERENCE]
    sentence = answer_sentence([make_comparison(verdict=verdict) for verdict in verdicts], {})
    assert counts(sentence) == [3, 2]


def test_one_seed_has_the_range_of_differences():
    comparisons = [
        make_comparison(verdict=Verdict.ONE_SEED, difference=value, **UNTESTED)
        for value in (-0.01, 0.03, 0.02)
    ]
    sentence = answer_sentence(comparisons, {})
    assert "−1.00 to +3.00" in sentence


def test_most_questions_are_answered_and_the_rest_counted():
    comparisons = [make_comparison(question=f"question {i}?") for i in range(MOST_ANSWERS + 3)]
    runs = runs_of("alone", [0.9, 0.91]) + runs_of("distilled", [0.92, 0.93])
    summary = summarise(make_results(runs, comparisons=comparisons))
    assert len(summary.findings) == MOST_ANSWERS + 1
    assert counts(summary.findings[-1]) == [3]


def test_nothing_to_compare_is_said():
    summary = summarise(make_results(runs_of("only", [0.9, 0.8])))
    assert len(summary.findings) == 1
    assert summary.choice == ""


def test_seeds_images_and_tests_are_counted():
    comparisons = [make_comparison(), make_comparison(verdict=Verdict.NO_DIFFERENCE, b="other")]
    runs = runs_of("alone", [0.9, 0.91, 0.92])
    sureness = summarise(make_results(runs, comparisons=comparisons)).sureness
    assert counts(sureness)[:4] == [3, 500, 1, 2]
    of_one_seed = summarise(make_results(runs_of("alone", [0.9]), comparisons=comparisons[:1]))
    assert counts(of_one_seed.sureness)[:2] == [1, 500]


def test_the_best_student_is_set_beside_its_teacher_and_the_others():
    teacher = runs_of("teacher", [0.95, 0.97], role="teacher", parameters=4000)
    students = [
        run
        for seed, accuracy in enumerate([0.90, 0.92])
        for run in [runs_of("best", [accuracy] * (seed + 1), teacher=f"teacher-{seed}")[seed]]
    ]
    runs = teacher + students + runs_of("small", [0.9, 0.9], parameters=100)
    runs += runs_of("bad", [0.1, 0.1], parameters=50)
    ranking = [
        ranked(1, "best", 0.91),
        ranked(2, "small", 0.90, (-0.03, 0.01)),
        ranked(3, "bad", 0.10, (-0.9, -0.7)),
    ]
    choice = summarise(make_results(runs, ranking=ranking)).choice
    # 0.95 - 0.90 and 0.97 - 0.92; 1000 of 4000 weights
    assert "best: 91.00%" in choice
    assert "5.00 points below" in choice
    assert "25% of its weights" in choice
    # one of two others is worse; the smallest of those that are not
    assert "1 of 2" in choice
    assert "small, with 100 weights" in choice
    assert "bad" not in choice
