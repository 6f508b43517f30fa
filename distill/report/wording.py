"""The English of comparisons: questions and verdicts as sentences, made from codes and numbers."""

from distill.evaluation.comparisons import SIGNIFICANCE, excludes_zero
from distill.evaluation.statistics import Paired, seeds_for_power, spread_of_interval
from distill.storage.study_results import (
    Comparison,
    Interval,
    QuestionCode,
    StudyResults,
    Verdict,
)

FEW_SEEDS = 3  # with fewer, a comparison is weak evidence
MOST_SEEDS = 100  # that a person could be asked to run

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


def question_sentence(comparison: Comparison) -> str:
    """Return the question of a comparison as a sentence."""
    sentence = QUESTIONS[comparison.question_code]
    return sentence.format(setting=comparison.setting, role=comparison.role)


def signed(value: float, decimals: int = 2) -> str:
    """Return a number with its sign, and a minus sign that is as wide as the plus sign.

    A number that rounds to zero has no sign.
    """
    text = f"{value:+.{decimals}f}".replace("-", "−")
    return text if float(text[1:]) else text[1:]


def points(fraction: float, decimals: int = 2) -> str:
    """Return a difference of fractions in percentage points, with its sign."""
    return signed(100 * fraction, decimals)


def interval_points(interval: Interval, decimals: int = 2) -> str:
    """Return an interval of differences of fractions, in percentage points."""
    low, high = interval
    return f"{points(low, decimals)} to {points(high, decimals)}"


def verdict_sentence(comparison: Comparison, results: StudyResults) -> str:
    """Return what a comparison of accuracies shows: the verdict, its size, and how sure it is."""
    images = results.data.test
    if comparison.ci95 is None:
        return _untested_sentence(comparison, images)
    sentence = (
        f"{_verdict_words(comparison)}: {points(comparison.difference)} points "
        f"(95% interval {interval_points(comparison.ci95)} over {comparison.seeds} seeds; "
        f"{_p_values(comparison)})."
    )
    if comparison.seeds < FEW_SEEDS:
        sentence += " Two seeds are weak evidence."
    if depends_on_images(comparison):
        sentence += (
            f" Over the {images} test images the interval includes 0 "
            f"({interval_points(comparison.ci95_images)})."
        )
    return f"{sentence} {_enough_seeds(comparison, num_tests(results))}".rstrip()


def _untested_sentence(comparison: Comparison, images: int) -> str:
    """Return the sentence of a comparison without a test over seeds: one seed, or no spread."""
    sentence = f"{points(comparison.difference)} points"
    over_images = comparison.ci95_images
    if over_images:
        sentence += (
            f" on {images} test images (95% interval over images {interval_points(over_images)})"
        )
    if comparison.verdict == Verdict.NO_SPREAD:
        return (
            f"{sentence}, the same in each of {comparison.seeds} seeds, so there is no test over "
            "seeds."
        )
    if over_images:
        known = f"For these two networks {_answer_for_images(comparison)}"
        sentence = f"{known}: {sentence}"
    return f"{sentence}. One seed, so another training run may differ."


def _answer_for_images(comparison: Comparison) -> str:
    """Return what the interval over images says of two networks."""
    if not excludes_zero(comparison.ci95_images):
        return "there is no significant difference"
    is_better = comparison.difference > 0
    if comparison.question_code in WHICH_QUESTIONS:
        return "b is better" if is_better else "b is worse"
    return "yes" if is_better else "no, accuracy is lower"


def _p_values(comparison: Comparison) -> str:
    """Return the p-value of a comparison, and its value after Holm's correction."""
    alone = p_text(comparison.p_value)
    adjusted = p_text(comparison.p_holm)
    if comparison.verdict in (Verdict.MAYBE_BETTER, Verdict.MAYBE_WORSE):
        return f"significant on its own, {alone}, but not after Holm's correction, {adjusted}"
    if comparison.verdict == Verdict.NO_DIFFERENCE or alone == adjusted:
        return alone
    return f"{alone}, after Holm's correction {adjusted}"


def p_value_text(p_value: float) -> str:
    """Return a p-value with about two digits, as in ``0.021``; the smallest as ``<0.0001``."""
    if p_value < 1e-4:
        return "<0.0001"
    digits = 4 if p_value < 1e-3 else 3 if p_value < 0.1 else 2
    text = f"{p_value:.{digits}f}"
    # A significant value must not be rounded to the threshold.
    return text if p_value >= SIGNIFICANCE or float(text) < SIGNIFICANCE else f"{p_value:.4f}"


def p_text(p_value: float) -> str:
    """Return a p-value as it stands in a sentence: ``p = 0.021`` or ``p < 0.0001``."""
    text = p_value_text(p_value)
    return f"p < {text[1:]}" if text.startswith("<") else f"p = {text}"


def _enough_seeds(comparison: Comparison, tests: int) -> str:
    """Return how many seeds would settle a comparison that is not settled."""
    needed = seeds_to_settle(comparison, tests)
    if needed is None:
        return ""
    if needed > MOST_SEEDS:
        return f"If the true difference is this small, {MOST_SEEDS} seeds do not settle it."
    return f"If the true difference is this large, about {needed} seeds settle it."


def seeds_to_settle(comparison: Comparison, tests: int) -> int | None:
    """Return how many seeds would show a difference of the observed size, with 80% power.

    Args:
        comparison: of accuracies.
        tests: number of comparisons that are tested; the level is divided by it (Bonferroni), so
            that the seeds are enough after Holm's correction.

    Returns:
        None if the comparison is settled or cannot be tested, or the difference rounds to zero; one
        more than `MOST_SEEDS` if even so many are too few.
    """
    settled = (Verdict.BETTER, Verdict.WORSE)
    if comparison.ci95 is None or comparison.verdict in settled:
        return None
    if not float(points(comparison.difference).lstrip("+−")):
        return None
    effect = abs(comparison.difference) / spread_of_differences(comparison)
    return seeds_for_power(effect, SIGNIFICANCE / tests, most=MOST_SEEDS)


def spread_of_differences(comparison: Comparison) -> float:
    """Return the standard deviation over seeds of a tested comparison's differences."""
    low, high = comparison.ci95
    return spread_of_interval((high - low) / 2, comparison.seeds)


def num_tests(results: StudyResults) -> int:
    """Return how many comparisons of accuracy are tested over seeds."""
    return sum(one.metric == "top1" and one.p_value is not None for one in results.comparisons)


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
    low, high = (signed(factor * bound, decimals) for bound in test.ci95)
    difference = signed(factor * test.difference, decimals)
    details = f"{difference}, 95% interval {low} to {high}, {seeds} seeds"
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
            Verdict.MAYBE_BETTER: "Perhaps b is better",
            Verdict.MAYBE_WORSE: "Perhaps b is worse",
        }
    else:
        words = {
            Verdict.BETTER: "Yes",
            Verdict.WORSE: "No, accuracy falls",
            Verdict.MAYBE_BETTER: "Perhaps yes",
            Verdict.MAYBE_WORSE: "Perhaps accuracy falls",
        }
    return words[comparison.verdict]


def depends_on_images(comparison: Comparison) -> bool:
    """Return whether a difference is significant over seeds, but not over test images."""
    if comparison.ci95_images is None:
        return False
    return excludes_zero(comparison.ci95) and not excludes_zero(comparison.ci95_images)
