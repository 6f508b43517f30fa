"""The English of comparisons: questions and verdicts as sentences, made from codes and numbers."""

from distill.evaluation.comparisons import excludes_zero
from distill.evaluation.statistics import Paired
from distill.storage.study_results import Comparison, QuestionCode, Verdict

FEW_SEEDS = 3  # with fewer, a comparison is weak evidence

QUESTIONS: dict[QuestionCode, str] = {
    QuestionCode.DISTILLATION: "Does distillation help the student?",
    QuestionCode.STUDENT_SMOOTHING: "Does label smoothing help the student?",
    QuestionCode.MORE_STUDENT_SMOOTHING: "Does more label smoothing help the student?",
    QuestionCode.TEACHER_SMOOTHING_ON_STUDENT: (
        "Does label smoothing in the teacher help its student?"
    ),
    QuestionCode.TEACHER_SMOOTHING: "Does label smoothing help the teacher itself?",
    QuestionCode.MORE_TEACHER_SMOOTHING: "Does more label smoothing help the teacher itself?",
    QuestionCode.TEMPERATURE: "Does a higher temperature help the student?",
    QuestionCode.LOSS_VS_CROSS_ENTROPY: "Is the loss better than plain cross-entropy?",
    QuestionCode.LOSS_VS_KD: "Is the loss better than kd?",
    QuestionCode.STUDENT_MODEL: "Which student network is better?",
    QuestionCode.TEACHER_MODEL: "Which teacher network is better?",
    QuestionCode.TEACHER: "Which teacher has the better student?",
    QuestionCode.SETTING: "What does {setting} change for the {role}?",
}
# Questions that ask which of two arms is better; the others are answered by yes or no.
WHICH_QUESTIONS = frozenset(
    {
        QuestionCode.STUDENT_MODEL,
        QuestionCode.TEACHER_MODEL,
        QuestionCode.TEACHER,
        QuestionCode.SETTING,
    }
)
NOT_ADJUSTED = "(significant alone, not after Holm's correction)"


def question_sentence(comparison: Comparison) -> str:
    """Return the question of a comparison as a sentence."""
    sentence = QUESTIONS[comparison.question_code]
    return sentence.format(setting=comparison.setting, role=comparison.role)


def verdict_sentence(comparison: Comparison) -> str:
    """Return what a comparison of accuracies shows: the verdict, its size, and how sure it is."""
    points = f"{100 * comparison.difference:+.2f} points"
    if comparison.verdict == Verdict.ONE_SEED:
        return f"No conclusion from one seed: {points}."
    if comparison.verdict == Verdict.NO_SPREAD:
        return (
            f"No test is possible: {points} in each of {comparison.seeds} seeds, without any "
            "spread between seeds."
        )
    low, high = comparison.ci95
    sentence = (
        f"{_verdict_words(comparison)}: {points} (95% interval {100 * low:+.2f} to "
        f"{100 * high:+.2f}, {comparison.seeds} seeds)."
    )
    if comparison.seeds < FEW_SEEDS:
        sentence += " Fewer than 3 seeds are weak evidence."
    if _depends_on_images(comparison):
        sentence += " The 95% interval over test images includes 0."
    return sentence


def change(test: Paired, seeds: int, factor: float = 1.0, decimals: int = 2, unit: str = "") -> str:
    """Return a paired change in words: from where to where, by how much, and how sure that is.

    Args:
        test: the paired comparison.
        seeds: number of seeds.
        factor: multiplies all numbers, as in 100 for percentages.
        decimals: of the numbers.
        unit: follows both values.
    """
    first = f"{factor * test.mean_a:.{decimals}f}{unit}"
    last = f"{factor * test.mean_b:.{decimals}f}{unit}"
    text = f"from {first} to {last}"
    if test.ci95 is None:
        reason = "one seed" if seeds == 1 else f"{seeds} seeds without spread"
        return f"{text} ({reason}, so there is no interval)"
    low, high = test.ci95
    details = (
        f"{factor * test.difference:+.{decimals}f}, 95% interval {factor * low:+.{decimals}f} to "
        f"{factor * high:+.{decimals}f}, {seeds} seeds"
    )
    if not excludes_zero(test.ci95):
        details += ", not significant"
    return f"{text} ({details})"


def _verdict_words(comparison: Comparison) -> str:
    """Return the beginning of a verdict's sentence."""
    if comparison.verdict == Verdict.NO_DIFFERENCE:
        return "No significant difference"
    if comparison.question_code in WHICH_QUESTIONS:
        words = {
            Verdict.BETTER: "B is better",
            Verdict.WORSE: "B is worse",
            Verdict.MAYBE_BETTER: f"Perhaps b is better {NOT_ADJUSTED}",
            Verdict.MAYBE_WORSE: f"Perhaps b is worse {NOT_ADJUSTED}",
        }
    else:
        words = {
            Verdict.BETTER: "Yes",
            Verdict.WORSE: "No, accuracy falls",
            Verdict.MAYBE_BETTER: f"Perhaps yes {NOT_ADJUSTED}",
            Verdict.MAYBE_WORSE: f"Perhaps accuracy falls {NOT_ADJUSTED}",
        }
    return words[comparison.verdict]


def _depends_on_images(comparison: Comparison) -> bool:
    """Return whether a difference is significant over seeds, but not over test images."""
    if comparison.ci95_images is None:
        return False
    return excludes_zero(comparison.ci95) and not excludes_zero(comparison.ci95_images)
