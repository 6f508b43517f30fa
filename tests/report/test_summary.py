"""The first lines of a report follow from verdict codes and numbers."""

import re

import pytest
from helpers.results import make_comparison, make_results, runs_of

from distill.report.summary import MOST_ANSWERS, TOPICS, answer_sentence, summarise
from distill.report.terminal import best_student
from distill.storage.study_results import QuestionCode, RankedStudent, Verdict

TESTED = [one for one in Verdict if one not in (Verdict.ONE_SEED, Verdict.NO_SPREAD)]
UNTESTED = {"ci95": None, "p_value": None, "p_holm": None}


def counts(sentence):
    """Return the whole numbers of a sentence."""
    return [int(number) for number in re.findall(r"(?<![.\d])\d+(?![.\d])", sentence)]


def ranked(rank, arm, mean, difference_ci=None):
    return RankedStudent(rank, arm, mean, 0.01, None, mean - 0.9, difference_ci, None)


def test_every_question_has_a_subject():
    assert TOPICS.keys() == set(QuestionCode) - {QuestionCode.SETTING}


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
    sentence = answer_sentence(comparisons, {})
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


def test_those_that_show_neither_are_counted_by_their_reason():
    verdicts = [Verdict.NO_DIFFERENCE, Verdict.NO_DIFFERENCE, Verdict.NO_SPREAD]
    comparisons = [make_comparison(verdict=verdict) for verdict in verdicts]
    # two not significant, one not tested
    assert counts(answer_sentence(comparisons, {})) == [2, 1]
    assert counts(answer_sentence([make_comparison(b="x"), *comparisons], {})) == [2, 1]


def test_effects_before_holms_correction_only_are_named_with_their_direction():
    comparisons = [
        make_comparison(verdict=Verdict.MAYBE_BETTER, difference=0.01, b="x"),
        make_comparison(verdict=Verdict.MAYBE_WORSE, difference=-0.02, b="y"),
        make_comparison(verdict=Verdict.NO_DIFFERENCE, b="z"),
    ]
    sentence = answer_sentence(comparisons, {})
    assert "may help the student with x (+1.00 points)" in sentence
    assert "may hurt it with y (−2.00 points)" in sentence
    assert counts(sentence) == [1]
    runs = runs_of("x", [0.9, 0.91]) + runs_of("y", [0.9, 0.91])
    assert "“May”" in summarise(make_results(runs, comparisons=comparisons)).sureness


def test_effects_that_depend_on_the_test_images_are_counted():
    comparisons = [
        make_comparison(b="x", ci95_images=(-0.001, 0.02)),
        make_comparison(b="y", ci95_images=(0.001, 0.02)),
    ]
    assert counts(answer_sentence(comparisons, {})) == [1]


def test_one_arm_against_two_is_named_with_both():
    comparisons = [
        make_comparison(a="kd/lr=1", b="kd/lr=4"),
        make_comparison(a="kd/lr=2", b="kd/lr=4", verdict=Verdict.WORSE, difference=-0.01),
    ]
    sentence = answer_sentence(comparisons, {})
    assert "lr=4 against lr=1" in sentence
    assert "lr=4 against lr=2" in sentence


def test_the_same_accuracy_in_every_seed_is_no_change():
    same = {"verdict": Verdict.NO_SPREAD, **UNTESTED}
    unchanged = answer_sentence([make_comparison(difference=0.0, **same)], {})
    raised = answer_sentence([make_comparison(difference=0.02, **same)], {})
    assert "does not change" in unchanged
    assert "2.00 points" in raised


def test_several_comparisons_of_one_seed_are_answered_by_their_intervals_over_images():
    intervals = {"x": (0.01, 0.03), "y": (-0.05, -0.01), "z": (-0.01, 0.03)}
    comparisons = []
    for name, interval in intervals.items():
        changes = UNTESTED | {"ci95_images": interval, "difference": sum(interval) / 2}
        comparisons.append(make_comparison(verdict=Verdict.ONE_SEED, seeds=1, b=name, **changes))
    sentence = answer_sentence(comparisons, {})
    assert "raises the accuracy of the student with x (+2.00 points)" in sentence
    assert "lowers it with y (−3.00 points)" in sentence
    # the third is not clear
    assert counts(sentence) == [1]
    assert counts(answer_sentence([comparisons[2]] * 2, {})) == [2]


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
    untested = [make_comparison(verdict=Verdict.ONE_SEED, seeds=1, **UNTESTED)]
    of_one_seed = summarise(make_results(runs_of("alone", [0.9]), comparisons=untested))
    assert counts(of_one_seed.sureness)[:2] == [1, 500]
    two_seeds = summarise(make_results(runs_of("alone", [0.9, 0.91]), comparisons=comparisons))
    assert "weak evidence" in two_seeds.sureness
    assert "weak evidence" not in sureness
    # without a comparison there are no intervals to speak of
    alone = summarise(make_results(runs_of("alone", [0.9])))
    assert counts(alone.sureness) == [1, 500]


def test_the_difference_that_the_seeds_can_show_has_80_percent_power():
    """Five seeds find 1.68 standard deviations at 5% (noncentral t)."""
    # 5 seeds, half width 0.5 points: a standard deviation of 0.5 √5 / 2.776 = 0.403 points
    results = make_results(
        runs_of("alone", [0.9, 0.91, 0.92, 0.9, 0.9]),
        comparisons=[make_comparison(verdict=Verdict.NO_DIFFERENCE)],
    )
    (found,) = re.findall(r"about (\d+\.\d) points", summarise(results).sureness)
    assert float(found) == pytest.approx(1.68 * 0.403, abs=0.06)
    settled = make_results(results.runs, comparisons=[make_comparison()])
    assert "80%" not in summarise(settled).sureness


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


def test_a_student_without_a_test_is_neither_worse_nor_recommended():
    runs = runs_of("best", [0.9, 0.91]) + runs_of("small", [0.8, 0.81], parameters=10)
    runs += runs_of("worse", [0.5, 0.6])
    ranking = [
        ranked(1, "best", 0.905),
        ranked(2, "small", 0.805),
        ranked(3, "worse", 0.55, (-0.5, -0.3)),
    ]
    choice = summarise(make_results(runs, ranking=ranking)).choice
    assert "small" not in choice
    # one worse of one that is tested, one without a test
    assert counts(choice) == [1, 1, 1]


def test_students_that_did_not_learn_are_not_recommended():
    runs = runs_of("best", [0.1, 0.1])
    results = make_results(runs, ranking=[ranked(1, "best", 0.1)], untrained=["best"])
    assert "best" not in summarise(results).choice
    assert best_student(results) is None


def test_students_with_the_same_accuracy_are_named():
    runs = runs_of("a", [0.9, 0.9]) + runs_of("b", [0.9, 0.9])
    ranking = [ranked(1, "a", 0.9), ranked(2, "b", 0.9)]
    assert "b reached the same" in summarise(make_results(runs, ranking=ranking)).choice


@pytest.mark.parametrize(
    ("difference", "interval", "verb"),
    [
        (0.02, (0.01, 0.03), "raises"),
        (-0.02, (-0.03, -0.01), "lowers"),
        (0.02, (-0.01, 0.05), "no clear effect"),
        (0.0, (-0.03, 0.03), "no clear effect"),
    ],
)
def test_one_seed_is_answered_by_the_interval_over_images(difference, interval, verb):
    comparison = make_comparison(
        verdict=Verdict.ONE_SEED,
        difference=difference,
        seeds=1,
        **UNTESTED | {"ci95_images": interval},
    )
    assert verb in answer_sentence([comparison], {})


@pytest.mark.parametrize(
    ("parameters", "accuracies", "text"),
    [
        (1000, [0.9, 0.92], "as accurate as its teacher, with as many weights"),
        (12000, [0.91, 0.93], "1.00 points above its teacher, with 12 times its weights"),
    ],
)
def test_a_student_as_good_or_as_large_as_its_teacher(parameters, accuracies, text):
    teacher = runs_of("teacher", [0.9, 0.92], role="teacher")
    student = [
        runs_of("s", accuracies, teacher=f"teacher-{seed}", parameters=parameters)[seed]
        for seed in (0, 1)
    ]
    ranking = [ranked(1, "s", 0.91)]
    assert text in summarise(make_results(teacher + student, ranking=ranking)).choice
