"""Compare the arms of a study, seed by seed."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from distill.evaluation.arm_pairs import ArmPair, find_pairs
from distill.evaluation.statistics import Paired, compare, holm, mean_interval
from distill.recipe.schema import Recipe
from distill.storage.study_results import (
    Comparison,
    QuestionCode,
    RankedStudent,
    RunResult,
    StudyResults,
    Verdict,
)

METRICS = ("top1", "nll", "ece")
LOWER_IS_BETTER = frozenset({"nll", "ece"})
SIGNIFICANCE = 0.05


def compare_arms(
    recipe: Recipe,
    runs: list[RunResult],
    correct: Mapping[str, np.ndarray] | None = None,
) -> list[Comparison]:
    """Compare the arms of a study: paired differences b - a on the test split.

    `p_value` is of one comparison alone; `p_holm` is adjusted for all comparisons of the study in
    the same metric. Both, like `ci95`, are over seeds: they speak of other seeds on the same test
    images. `ci95_images`, of accuracies, is over images: it speaks of the same networks on others.

    Args:
        recipe: of the study.
        runs: of the study.
        correct: by run id, whether each test image is classified correctly: ``[N]`` each, all in
            the same order.

    Returns:
        a comparison for each pair and metric. Its `question` is left empty, for the sentence is
        made where the report's English is.
    """
    by_arm = {(run.arm, run.seed): run for run in runs}
    comparisons = []
    for pair in find_pairs(recipe):
        seeds = []
        for seed in recipe.seeds:
            if (pair.a.name, seed) in by_arm and (pair.b.name, seed) in by_arm:
                seeds.append(seed)
        if not seeds:
            continue
        runs_a = [by_arm[pair.a.name, seed] for seed in seeds]
        runs_b = [by_arm[pair.b.name, seed] for seed in seeds]
        for metric in METRICS:
            comparisons.append(_compare_metric(pair, metric, runs_a, runs_b, correct))
    return _with_verdicts(comparisons)


def rank_students(recipe: Recipe, runs: list[RunResult]) -> list[RankedStudent]:
    """Rank the students by mean test accuracy, each with its paired difference to the best.

    The best is picked by these same numbers, so all S (S - 1) / 2 pairs count as tested:
    `p_adjusted` and `difference_ci` hold for all of them at once (Bonferroni, 95% in all).
    """
    names = list(dict.fromkeys(run.arm for run in runs if run.role == "student"))
    accuracy = {(run.arm, run.seed): run.test.top1 for run in runs}
    values = {name: [accuracy[name, seed] for seed in recipe.seeds] for name in names}
    names.sort(key=lambda name: -sum(values[name]))
    num_pairs = max(1, math.comb(len(names), 2))
    ranking = []
    for rank, name in enumerate(names, start=1):
        mean, sd, interval = mean_interval(values[name])
        test = compare(values[names[0]], values[name], level=1 - 0.05 / num_pairs)
        adjusted = None
        if test.p_value is not None:
            adjusted = min(1.0, num_pairs * test.p_value)
        row = RankedStudent(
            rank=rank,
            arm=name,
            mean=mean,
            sd=sd,
            ci95=interval,
            difference=test.difference,
            difference_ci=test.ci95,
            p_adjusted=adjusted,
        )
        ranking.append(row)
    return ranking


def split_ranking(
    ranking: list[RankedStudent],
) -> tuple[list[RankedStudent], list[RankedStudent], list[RankedStudent]]:
    """Split the students after the best by their test against it.

    Returns:
        those that are significantly worse, those that are not, and those without a test.
    """
    others = ranking[1:]
    tested = [row for row in others if row.difference_ci]
    worse = [row for row in tested if excludes_zero(row.difference_ci)]
    not_worse = [row for row in tested if not excludes_zero(row.difference_ci)]
    return worse, not_worse, [row for row in others if not row.difference_ci]


def verdict_of(comparison: Comparison) -> Verdict:
    """Return what a comparison shows about arm b, from its numbers."""
    if comparison.seeds < 2:
        return Verdict.ONE_SEED
    if comparison.ci95 is None:
        return Verdict.NO_SPREAD
    if not excludes_zero(comparison.ci95):
        return Verdict.NO_DIFFERENCE
    is_higher = comparison.difference > 0
    is_better = is_higher != (comparison.metric in LOWER_IS_BETTER)
    if comparison.p_holm is not None and comparison.p_holm < SIGNIFICANCE:
        return Verdict.BETTER if is_better else Verdict.WORSE
    return Verdict.MAYBE_BETTER if is_better else Verdict.MAYBE_WORSE


def excludes_zero(interval: tuple[float, float] | None) -> bool:
    """Return whether an interval lies on one side of zero; False if there is none."""
    return interval is not None and (interval[0] > 0 or interval[1] < 0)


def smoothing_pair(results: StudyResults) -> tuple[str, str] | None:
    """Return the arms that show what label smoothing does: one with hard labels, one smoothed.

    These are teachers if any differ in smoothing alone, else students that learn from labels, else
    students of such teachers. Of several smoothed arms it is the last, the most smoothed one.
    """
    codes = (
        QuestionCode.TEACHER_SMOOTHING,
        QuestionCode.STUDENT_SMOOTHING,
        QuestionCode.TEACHER_SMOOTHING_ON_STUDENT,
    )
    for code in codes:
        pairs = [(one.a, one.b) for one in results.comparisons if one.question_code == code]
        if pairs:
            hard = pairs[0][0]
            return [pair for pair in pairs if pair[0] == hard][-1]
    return None


def _compare_metric(
    pair: ArmPair,
    metric: str,
    runs_a: list[RunResult],
    runs_b: list[RunResult],
    correct: Mapping[str, np.ndarray] | None,
) -> Comparison:
    """Compare two arms in one metric; the runs of both are in the order of the same seeds."""
    test = compare(
        [getattr(run.test, metric) for run in runs_a],
        [getattr(run.test, metric) for run in runs_b],
    )
    over_images: Paired | None = None
    if correct and metric == "top1":
        # how often each image is classified correctly, over the seeds
        share_a = np.mean([correct[run.id] for run in runs_a], axis=0)
        share_b = np.mean([correct[run.id] for run in runs_b], axis=0)
        over_images = compare(share_a, share_b)
    return Comparison(
        question_code=pair.question.code,
        question="",
        role=pair.question.role,
        setting=pair.question.setting,
        a=pair.a.name,
        b=pair.b.name,
        metric=metric,
        mean_a=test.mean_a,
        mean_b=test.mean_b,
        difference=test.difference,
        ci95=test.ci95,
        ci95_images=over_images.ci95 if over_images else None,
        p_value=test.p_value,
        p_holm=None,
        seeds=len(runs_a),
        verdict=Verdict.ONE_SEED,
    )


def _with_verdicts(comparisons: list[Comparison]) -> list[Comparison]:
    """Return the comparisons with p-values adjusted within each metric, and with verdicts."""
    adjusted: dict[int, float | None] = {}
    for metric in METRICS:
        numbers = [i for i, one in enumerate(comparisons) if one.metric == metric]
        p_values = holm([comparisons[i].p_value for i in numbers])
        adjusted.update(zip(numbers, p_values, strict=True))
    result = []
    for i, comparison in enumerate(comparisons):
        comparison = replace(comparison, p_holm=adjusted[i])
        result.append(replace(comparison, verdict=verdict_of(comparison)))
    return result
