"""The first lines of a report: the question, the answer, how sure it is, which student to take."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from distill.errors import pluralize
from distill.evaluation.comparisons import excludes_zero
from distill.report.arm_names import SEPARATOR, short_names
from distill.report.tables import accuracy_comparisons
from distill.report.wording import (
    FEW_SEEDS,
    MOST_SEEDS,
    WHICH_QUESTIONS,
    depends_on_images,
    interval_points,
    points,
    seeds_to_settle,
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

# The subject of the sentence about each question, and the object of its verb.
SUBJECTS: dict[QuestionCode, tuple[str, str]] = {
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


UNSURE = (Verdict.MAYBE_BETTER, Verdict.MAYBE_WORSE)


@dataclass(frozen=True)
class Summary:
    """What a reader of a report wants to know first, in whole sentences.

    Attributes:
        asked: the questions.
        answers: a sentence for each question, the most important first.
        sureness: what the findings rest on.
        choice: which student to take; empty without students.
    """

    asked: str
    findings: list[str]
    sureness: str
    choice: str


def summarise(results: StudyResults) -> Summary:
    """Return the first lines of a report, made from verdict codes and numbers."""
    groups = _by_question(accuracy_comparisons(results))
    names = short_names(results)
    findings = [answer_sentence(group, names) for group in groups.values()]
    left_out = len(findings) - MOST_ANSWERS
    if left_out > 0:
        findings = findings[:MOST_ANSWERS]
        findings.append(f"The plot of comparisons answers {pluralize(left_out, 'more question')}.")
    if not findings:
        findings = ["No two arms differ in exactly one respect, so nothing is compared."]
    asked = list(dict.fromkeys(group[0].question for group in groups.values()))
    return Summary(
        asked=" ".join(asked[:MOST_ANSWERS]) or "Which accuracy do these networks reach?",
        findings=findings,
        sureness=_sureness(results),
        choice=choice_sentence(results),
    )


def answer_sentence(comparisons: list[Comparison], names: Mapping[str, str]) -> str:
    """Return the answer to one question from all of its comparisons.

    Args:
        comparisons: at least one.
        names: short names of the arms.
    """
    first = comparisons[0]
    subject, object_ = _subject(first)
    if len(comparisons) == 1:
        return _single_answer(first, subject, object_)
    total = len(comparisons)
    if all(one.ci95 is None for one in comparisons):
        differences = [one.difference for one in comparisons]
        span = f"{points(min(differences))} to {points(max(differences))} points"
        return f"{subject} changes the accuracy of {object_} by {span} in {total} comparisons."
    parts = []
    for verdict, verb in ((Verdict.BETTER, "helps"), (Verdict.WORSE, "hurts")):
        those = [one for one in comparisons if one.verdict == verdict]
        if those:
            where = _where(those, comparisons, names)
            parts.append(f"{verb} {'it' if parts else object_} {where}")
    if parts:
        rest = sum(one.verdict not in (Verdict.BETTER, Verdict.WORSE) for one in comparisons)
        others = f"; in the other {rest} its effect is not significant" if rest else ""
        return f"{subject} {' and '.join(parts)}{others}."
    unsure = sum(one.verdict in UNSURE for one in comparisons)
    remark = ""
    if unsure:
        remark = f", {unsure} of them significant before Holm's correction"
    return f"{subject} has no significant effect on {object_} ({total} comparisons{remark})."


def choice_sentence(results: StudyResults) -> str:
    """Return which student to take, and how it compares with the others and with the teacher."""
    if not results.ranking:
        return ""
    best, *others = results.ranking
    names = short_names(results)
    runs = results.arms()[best.arm]
    accuracy = (
        f"{names[best.arm]}: {100 * best.mean:.2f}% accuracy{_against_teacher(results, runs)}."
    )
    if not others:
        return accuracy
    tested = [row for row in others if row.difference_ci]
    if not tested:
        return f"{accuracy} It is the best of {len(others) + 1} students; its lead is not tested."
    equal = [row.arm for row in others if not excludes_zero(row.difference_ci)]
    if not equal:
        return f"{accuracy} All other students are significantly worse."
    worse = len(others) - len(equal)
    lead = f"{worse or 'None'} of {pluralize(len(others), 'other student')}"
    verb = "is" if worse < 2 else "are"
    smaller = _smaller_student(results, best.arm, equal, names)
    return f"{accuracy} {lead} {verb} significantly worse.{smaller}"


def _by_question(comparisons: Iterable[Comparison]) -> dict[str, list[Comparison]]:
    """Group comparisons by their question, in the report's order."""
    groups: dict[str, list[Comparison]] = {}
    for one in comparisons:
        groups.setdefault(one.question, []).append(one)
    return groups


def _subject(comparison: Comparison) -> tuple[str, str]:
    """Return the subject and the object of the sentence that answers a comparison's question."""
    if comparison.question_code == QuestionCode.SETTING:
        return f"Another value of {comparison.setting}", f"the {comparison.role}"
    return SUBJECTS[comparison.question_code]


def _where(those: list[Comparison], comparisons: list[Comparison], names: Mapping[str, str]) -> str:
    """Return in which comparisons an effect was found: by name if they are few, else counted.

    Args:
        those: with the effect.
        comparisons: all that answer the question.
        names: short names of the arms.
    """
    if len(comparisons) <= MOST_NAMED:
        named = [f"{_name(one, comparisons, names)} ({_size(one)})" for one in those]
        return f"with {' and '.join(named)}"
    most = max(those, key=lambda one: abs(one.difference))
    name = f"{'most with' if len(those) > 1 else 'with'} {_name(most, comparisons, names)}"
    return f"in {len(those)} of {len(comparisons)} comparisons ({name}: {_size(most)})"


def _name(
    comparison: Comparison, comparisons: Iterable[Comparison], names: Mapping[str, str]
) -> str:
    """Return what distinguishes arm b of a comparison from that of the others."""
    parts = [names.get(one.b, one.b).split(SEPARATOR) for one in comparisons]
    common = set.intersection(*map(set, parts))
    whole = names.get(comparison.b, comparison.b)
    own = [part for part in whole.split(SEPARATOR) if part not in common]
    return SEPARATOR.join(own) or whole


def _size(comparison: Comparison) -> str:
    return f"{points(comparison.difference)} points"


def _single_answer(comparison: Comparison, subject: str, object_: str) -> str:
    """Return the answer to a question that has one comparison."""
    difference = _size(comparison)
    if comparison.ci95 is None:
        interval = comparison.ci95_images
        over = f", 95% interval over test images {interval_points(interval)}" if interval else ""
        return f"{subject} changes the accuracy of {object_}: {difference}{over}."
    verbs = {
        Verdict.BETTER: "helps",
        Verdict.WORSE: "hurts",
        Verdict.MAYBE_BETTER: "may help",
        Verdict.MAYBE_WORSE: "may hurt",
        Verdict.NO_DIFFERENCE: "has no significant effect on",
    }
    details = f"{difference}, 95% interval {interval_points(comparison.ci95)}"
    if comparison.question_code in WHICH_QUESTIONS:
        details += f", {comparison.b} against {comparison.a}"
    if depends_on_images(comparison):
        details += "; but over test images the interval includes 0"
    return f"{subject} {verbs[comparison.verdict]} {object_}: {details}."


def _sureness(results: StudyResults) -> str:
    """Return what the findings rest on: seeds, test images, tests, and what would settle more."""
    comparisons = accuracy_comparisons(results)
    seeds = len(results.seeds)
    base = f"{pluralize(seeds, 'seed')} and {results.data.test} test images."
    if seeds == 1:
        return (
            f"{base} The intervals are over test images, for these networks: another training run "
            "may differ. More seeds (`seeds: 5`) tell by how much."
        )
    tested = [one for one in comparisons if one.p_value is not None]
    sentences = [base]
    if tested:
        sure = sum(one.verdict in (Verdict.BETTER, Verdict.WORSE) for one in tested)
        sentences.append(
            f"{sure} of {pluralize(len(tested), 'comparison')} "
            f"{'is' if sure == 1 else 'are'} significant after Holm's correction."
        )
    if seeds < FEW_SEEDS:
        sentences.append("Two seeds are weak evidence.")
    needed = [seeds_to_settle(one) for one in tested]
    needed = [count for count in needed if count is not None and count <= MOST_SEEDS]
    if needed:
        sentences.append(f"About {min(needed)} seeds would settle one more.")
    return " ".join(sentences)


def _against_teacher(results: StudyResults, runs: list[RunResult]) -> str:
    """Return how a student compares with its teacher in accuracy and size, if it has one."""
    by_id = {run.id: run for run in results.runs}
    teachers = [by_id.get(run.teacher) for run in runs if isinstance(run.teacher, str)]
    if not teachers or None in teachers:
        return ""
    pairs = zip(runs, teachers, strict=True)
    gap = 100 * sum(run.test.top1 - teacher.test.top1 for run, teacher in pairs) / len(runs)
    side = "above" if gap > 0 else "below"
    share = runs[0].parameters / teachers[0].parameters
    return f", {abs(gap):.2f} points {side} its teacher, with {100 * share:.2g}% of its weights"


def _smaller_student(
    results: StudyResults, best: str, equal: list[str], names: Mapping[str, str]
) -> str:
    """Return the smallest student that cannot be told from the best, if it is smaller."""
    arms = results.arms()
    smallest = min([best, *equal], key=lambda arm: arms[arm][0].parameters)
    if arms[smallest][0].parameters == arms[best][0].parameters:
        return ""
    weights = arms[smallest][0].parameters
    return f" The smallest one that is not worse is {names[smallest]}, with {weights:,} weights."
