"""The first lines of a report: the question, the answer, how sure it is, which student to take."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from distill.errors import pluralize
from distill.evaluation.comparisons import SIGNIFICANCE, excludes_zero, split_ranking
from distill.evaluation.statistics import effect_for_power
from distill.report.arm_names import SEPARATOR, pair_label, short_names
from distill.report.tables import accuracy_comparisons
from distill.report.wording import (
    FEW_SEEDS,
    WHICH_QUESTIONS,
    depends_on_images,
    interval_points,
    num_tests,
    points,
    spread_of_differences,
)
from distill.storage.study_results import (
    Comparison,
    QuestionCode,
    RunResult,
    StudyResults,
    Verdict,
)

MOST_NAMED = 4  # comparisons of a question whose arms are named in its sentence
MOST_ANSWERS = 4  # questions that are answered in the summary; the plot has all

# What the sentence about each question speaks of, and whom it affects.
TOPICS: dict[QuestionCode, tuple[str, str]] = {
    QuestionCode.DISTILLATION: ("Distillation", "the student"),
    QuestionCode.STUDENT_SMOOTHING: ("Label smoothing", "the student"),
    QuestionCode.MORE_STUDENT_SMOOTHING: ("More label smoothing", "the student"),
    QuestionCode.TEACHER_SMOOTHING_ON_STUDENT: ("Smoothing the teacher", "its student"),
    QuestionCode.TEACHER_SMOOTHING: ("Label smoothing", "the teacher itself"),
    QuestionCode.MORE_TEACHER_SMOOTHING: ("More label smoothing", "the teacher itself"),
    QuestionCode.TEMPERATURE: ("A higher temperature", "the student"),
    QuestionCode.LOSS_VS_CROSS_ENTROPY: ("Another loss than cross-entropy", "the student"),
    QuestionCode.LOSS_VS_KD: ("Another loss than kd", "the student"),
    QuestionCode.STUDENT_MODEL: ("Another network", "the student"),
    QuestionCode.TEACHER_MODEL: ("Another network", "the teacher"),
    QuestionCode.TEACHER: ("Another teacher", "its student"),
}
VERBS = {
    Verdict.BETTER: "helps",
    Verdict.WORSE: "hurts",
    Verdict.MAYBE_BETTER: "may help",
    Verdict.MAYBE_WORSE: "may hurt",
}
UNSURE = (Verdict.MAYBE_BETTER, Verdict.MAYBE_WORSE)
# How comparisons are counted that show neither help nor harm.
OTHER_VERDICTS = {
    "not significant": (Verdict.NO_DIFFERENCE,),
    "not tested": (Verdict.NO_SPREAD, Verdict.ONE_SEED),
}


@dataclass(frozen=True)
class Summary:
    """What a reader of a report wants to know first, in whole sentences.

    Attributes:
        asked: the questions.
        findings: a sentence for each question, the most important first.
        sureness: what the findings rest on.
        choice: which student to take; empty without students.
    """

    asked: str
    findings: list[str]
    sureness: str
    choice: str


def summarise(results: StudyResults) -> Summary:
    """Return the first lines of a report, made from verdict codes and numbers."""
    groups: dict[str, list[Comparison]] = {}
    for one in accuracy_comparisons(results):
        groups.setdefault(one.question, []).append(one)
    names = short_names(results)
    findings = [answer_sentence(group, names) for group in groups.values()]
    left_out = len(findings) - MOST_ANSWERS
    if left_out > 0:
        findings = findings[:MOST_ANSWERS]
        findings.append(f"The report answers {pluralize(left_out, 'more question')}.")
    if not findings:
        findings = ["No two arms differ in exactly one respect, so nothing is compared."]
    return Summary(
        asked=" ".join(list(groups)[:MOST_ANSWERS]) or "Which accuracy do these networks reach?",
        findings=findings,
        sureness=_sureness(results),
        choice=choice_sentence(results),
    )


# ----------------------------------------------------------------------------------------- answers


def answer_sentence(comparisons: list[Comparison], names: Mapping[str, str]) -> str:
    """Return the answer to one question from all of its comparisons.

    Args:
        comparisons: at least one.
        names: short names of the arms.
    """
    topic, affected = _topic(comparisons[0])
    if len(comparisons) == 1:
        return _single_answer(comparisons[0], topic, affected)
    if all(one.ci95 is None for one in comparisons):
        return _untested_answers(comparisons, names)
    parts = []
    for verdict, verb in VERBS.items():
        those = [one for one in comparisons if one.verdict == verdict]
        if those:
            where = _where(those, comparisons, names)
            parts.append(f"{verb} {'it' if parts else affected} {where}")
    others = _count_others(comparisons)
    if not parts:
        return f"{topic} has no significant effect on {affected} ({others})."
    sentence = f"{topic} {_listed(parts)}"
    if others:
        sentence += f"; {others}"
    num_unsure = sum(depends_on_images(one) for one in comparisons)
    if num_unsure:
        sentence += f"; in {num_unsure} of these the interval over test images includes 0"
    return f"{sentence}."


def _topic(comparison: Comparison) -> tuple[str, str]:
    """Return what the answer to a comparison's question speaks of, and whom it affects."""
    if comparison.question_code == QuestionCode.SETTING:
        return f"Another value of {comparison.setting}", f"the {comparison.role}"
    return TOPICS[comparison.question_code]


def _single_answer(comparison: Comparison, topic: str, affected: str) -> str:
    """Return the answer to a question that has one comparison."""
    if comparison.ci95 is None:
        return _untested_answer(comparison, topic, affected)
    verb = VERBS.get(comparison.verdict, "has no significant effect on")
    details = (
        f"{points(comparison.difference)} points, 95% interval {interval_points(comparison.ci95)}"
    )
    if comparison.question_code in WHICH_QUESTIONS:
        details += f", {comparison.b} against {comparison.a}"
    if depends_on_images(comparison):
        details += "; but over test images the interval includes 0"
    return f"{topic} {verb} {affected}: {details}."


def _untested_answer(comparison: Comparison, topic: str, affected: str) -> str:
    """Return the answer of one comparison without a test over seeds."""
    seeds = "with one seed" if comparison.seeds == 1 else f"in each of {comparison.seeds} seeds"
    interval = comparison.ci95_images
    over = f", 95% interval over test images {interval_points(interval)}" if interval else ""
    details = f"{points(comparison.difference)} points {seeds}{over}"
    if comparison.question_code in WHICH_QUESTIONS:
        details += f", {comparison.b} against {comparison.a}"
    if interval and not excludes_zero(interval):
        return f"{topic} has no clear effect on {affected}: {details}."
    if not float(points(comparison.difference).lstrip("+−")):
        return f"{topic} does not change the accuracy of {affected}: {details}."
    verb = "raises" if comparison.difference > 0 else "lowers"
    return f"{topic} {verb} the accuracy of {affected}: {details}."


def _untested_answers(comparisons: list[Comparison], names: Mapping[str, str]) -> str:
    """Return the answer of several comparisons without a test over seeds.

    An effect counts if the interval over test images excludes zero.
    """
    topic, affected = _topic(comparisons[0])
    clear = [one for one in comparisons if excludes_zero(one.ci95_images)]
    parts = []
    for verb, sign in (("raises", 1), ("lowers", -1)):
        those = [one for one in clear if sign * one.difference > 0]
        if those:
            where = _where(those, comparisons, names)
            parts.append(f"{verb} {'it' if parts else f'the accuracy of {affected}'} {where}")
    unclear = len(comparisons) - len(clear)
    seeds = "With one seed" if comparisons[0].seeds == 1 else "Without a test over seeds"
    start = f"{seeds}: {topic[0].lower()}{topic[1:]}"
    if not parts:
        return f"{start} has no clear effect on {affected} ({unclear} comparisons)."
    others = f"; {unclear} not clear" if unclear else ""
    return f"{start} {_listed(parts)}{others}."


def _where(those: list[Comparison], comparisons: list[Comparison], names: Mapping[str, str]) -> str:
    """Return in which comparisons an effect was found: by name if they are few, else counted.

    Args:
        those: with the effect.
        comparisons: all that answer the question.
        names: short names of the arms.
    """
    if len(comparisons) <= MOST_NAMED:
        named = [
            f"{_name(one, comparisons, names)} ({points(one.difference)} points)" for one in those
        ]
        return f"with {_listed(named)}"
    most = max(those, key=lambda one: abs(one.difference))
    name = f"{'most with' if len(those) > 1 else 'with'} {_name(most, comparisons, names)}"
    count = f"{len(those)} of {len(comparisons)} comparisons"
    return f"in {count} ({name}: {points(most.difference)} points)"


def _name(
    comparison: Comparison, comparisons: Iterable[Comparison], names: Mapping[str, str]
) -> str:
    """Return what distinguishes arm b of a comparison from that of the others."""
    whole = names.get(comparison.b, comparison.b)
    if sum(one.b == comparison.b for one in comparisons) > 1:
        label = pair_label(names.get(comparison.a, comparison.a), whole)
        return f"{label.b} against {label.a}"
    parts = [names.get(one.b, one.b).split(SEPARATOR) for one in comparisons]
    common = set.intersection(*map(set, parts))
    own = [part for part in whole.split(SEPARATOR) if part not in common]
    return SEPARATOR.join(own) or whole


def _listed(words: list[str]) -> str:
    """Return words as a list in a sentence: ``a, b and c``."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _count_others(comparisons: list[Comparison]) -> str:
    """Count the comparisons that show neither help nor harm, by why they do not."""
    counts = {
        words: sum(one.verdict in verdicts for one in comparisons)
        for words, verdicts in OTHER_VERDICTS.items()
    }
    return ", ".join(f"{count} {words}" for words, count in counts.items() if count)


# --------------------------------------------------------------------------------- how sure, which


def _sureness(results: StudyResults) -> str:
    """Return what the findings rest on: seeds, test images, tests, and what they can show."""
    comparisons = accuracy_comparisons(results)
    seeds = len(results.seeds)
    sentences = [f"{pluralize(seeds, 'seed')} and {results.data.test:,} test images."]
    if seeds == 1 and comparisons:
        sentences.append(
            "The intervals are over test images, for these networks. Another training run may "
            "differ; `seeds: 5` shows by how much."
        )
    tests = num_tests(results)
    if tests == 1:
        (only,) = (one for one in comparisons if one.p_value is not None)
        verb = "is not" if only.verdict == Verdict.NO_DIFFERENCE else "is"
        sentences.append(f"The one tested comparison {verb} significant.")
    elif tests:
        sure = sum(one.verdict in (Verdict.BETTER, Verdict.WORSE) for one in comparisons)
        verb = "is" if sure == 1 else "are"
        sentences.append(
            f"{sure} of {pluralize(tests, 'comparison')} {verb} significant over seeds, "
            "after Holm's correction."
        )
        if any(one.verdict in UNSURE for one in comparisons):
            sentences.append("“May” means significant only before it.")
    if tests and seeds < FEW_SEEDS:
        sentences.append("Two seeds are weak evidence.")
    if tests:
        sentences.append(_detectable(results))
    return " ".join(sentence for sentence in sentences if sentence)


def _detectable(results: StudyResults) -> str:
    """Return how large the unsettled differences must be for these seeds to show them."""
    tested = [one for one in accuracy_comparisons(results) if one.ci95]
    unsettled = [one for one in tested if one.verdict not in (Verdict.BETTER, Verdict.WORSE)]
    if not unsettled:
        return ""
    spread = median(spread_of_differences(one) for one in unsettled)
    effect = effect_for_power(len(results.seeds), SIGNIFICANCE / len(tested))
    size = 100 * effect * spread
    seeds = pluralize(len(results.seeds), "seed")
    if size >= 100:
        return f"{seeds} can hardly show any other among so many comparisons."
    those = "The two arms" if len(tested) == 1 else "The others"
    return (
        f"{those} would have to differ by about {size:.1f} points for {seeds} to show it "
        "(80% power)."
    )


def choice_sentence(results: StudyResults) -> str:
    """Return which student to take, and how it compares with the others and with the teacher."""
    if not results.ranking:
        return ""
    names = short_names(results)
    best = results.ranking[0].arm
    mean = results.ranking[0].mean
    if best in results.untrained:
        return "None: no student is reliably better than chance, so training failed."
    beside_teacher = _against_teacher(results, results.arms()[best])
    sentences = [f"{names[best]}: {100 * mean:.2f}% accuracy{beside_teacher}."]
    equals = [names[row.arm] for row in results.ranking[1:] if row.mean == mean]
    if equals:
        sentences.append(f"{_listed(equals)} reached the same accuracy.")
    worse, not_worse, untested = split_ranking(results.ranking)
    tested = len(worse) + len(not_worse)
    if worse and len(worse) == len(results.ranking) - 1:
        sentences.append("All other students are significantly worse.")
    elif not_worse and len(not_worse) == len(results.ranking) - 1 == 1:
        sentences.append("The other student is not significantly worse.")
    elif tested:
        verb = "is" if len(worse) < 2 else "are"
        count = f"{len(worse) or 'None'} of {pluralize(tested, 'other student')}"
        sentences.append(f"{count} {verb} significantly worse.")
    if untested:
        others = pluralize(len(untested), "other student")
        sentences.append(f"Its lead over {others} is not tested.")
    smaller = _smaller_student(results, best, [row.arm for row in not_worse])
    if smaller:
        weights = results.arms()[smaller][0].parameters
        sentences.append(
            f"The smallest one that is not significantly worse is {names[smaller]}, with "
            f"{weights:,} weights."
        )
    return " ".join(sentences)


def _against_teacher(results: StudyResults, runs: list[RunResult]) -> str:
    """Return how a student compares with its teacher in accuracy and size, if it has one."""
    by_id = {run.id: run for run in results.runs}
    teachers = [by_id.get(run.teacher) for run in runs if isinstance(run.teacher, str)]
    if not teachers or None in teachers:
        return ""
    pairs = zip(runs, teachers, strict=True)
    gap = 100 * sum(run.test.top1 - teacher.test.top1 for run, teacher in pairs) / len(runs)
    if abs(gap) < 0.005:
        accuracy = "as accurate as its teacher"
    else:
        accuracy = f"{abs(gap):.2f} points {'above' if gap > 0 else 'below'} its teacher"
    share = runs[0].parameters / teachers[0].parameters
    if share == 1:
        size = "as many weights"
    elif share < 1:
        size = f"{100 * share:.2g}% of its weights"
    else:
        size = f"{share:.3g} times its weights"
    return f", {accuracy}, with {size}"


def _smaller_student(results: StudyResults, best: str, not_worse: list[str]) -> str | None:
    """Return the smallest student that is not significantly worse, if it is smaller than the best.

    Args:
        results: of the study.
        best: the best student's arm.
        not_worse: arms of the students that are not significantly worse.
    """
    sizes = {arm: results.arms()[arm][0].parameters for arm in [best, *not_worse]}
    smallest = min(sizes, key=lambda arm: sizes[arm])
    return smallest if sizes[smallest] < sizes[best] else None
