"""The sentence below each figure, computed from a study's numbers and their uncertainty."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distill.evaluation.comparisons import excludes_zero, smoothing_pair, split_ranking
from distill.evaluation.statistics import Paired, compare, mean_interval
from distill.report.tables import Value, last_information, metric, spread_text
from distill.report.wording import change, points
from distill.storage.study_results import RunResult, StudyResults

MIN_EPOCHS = 10  # of a learning curve whose end is examined
WITHIN_BETWEEN = "within_between_templates"  # in the space in which the planes of the figures lie


@dataclass(frozen=True)
class Subject:
    """A number that a figure's sentence is about.

    Attributes:
        name: in a sentence.
        value: the number of a run.
        factor: multiplies it, as in 100 for percentages.
        decimals: shown.
        unit: follows the number.
        remark: ends the sentence about a pair of arms.
    """

    name: str
    value: Value
    factor: float = 1
    decimals: int = 3
    unit: str = ""
    remark: str = ""


SUBJECTS: dict[str, Subject] = {
    "reliability": Subject("the ECE", metric("test", "ece"), 100, 2, "%"),
    "features_plane": Subject(
        "the within/between-class variance ratio of training features",
        metric("train", WITHIN_BETWEEN),
    ),
    "features_plane_2": Subject(
        "the relative spread of distances to wrong templates, on training images,",
        metric("train", "wrong_template_spread"),
    ),
    "features_pca": Subject(
        "the class separation R² of training features", metric("train", "class_separation")
    ),
    "features_tsne": Subject(
        "NC1 of training features (0 at full collapse)", metric("train", "nc1")
    ),
    "information": Subject(
        "the information about single images at the end of training",
        last_information,
        decimals=2,
        unit=" nats",
        remark=f"; log 2 is {math.log(2):.2f} nats",
    ),
}
ECE_SCALED = Subject("the ECE after temperature scaling", metric("test", "ece_scaled"), 100, 2, "%")


def figure_captions(results: StudyResults, curves: dict[str, list[list[float]]]) -> dict[str, str]:
    """Return the sentence of each figure by its name; figures without a finding are left out.

    Where two arms differ in label smoothing alone, the sentences compare them. Otherwise they give
    the range over all arms.

    Args:
        results: of the study.
        curves: validation accuracy by arm, seed and epoch.
    """
    pair = smoothing_pair(results)
    captions = {
        "accuracy": _accuracy(results),
        "learning_curves": _still_learning(curves),
        "robustness": _robustness(results, pair),
        "fidelity": _fidelity(results),
    }
    for figure, subject in SUBJECTS.items():
        if pair is None:
            captions[figure] = _range_over_arms(results, subject)
        elif figure == "reliability":
            captions[figure] = _calibration(results, *pair)
        elif figure == "features_plane":
            captions[figure] = _tightness(results, *pair)
        else:
            captions[figure] = _change_of(results, *pair, subject)
    return {figure: sentence for figure, sentence in captions.items() if sentence}


def paired(results: StudyResults, a: str, b: str, value: Value) -> Paired | None:
    """Compare any number of the runs of two arms by seed; None if a run lacks the number."""
    runs_a, runs_b = _runs_by_seed(results, a, b)
    values_a = [value(run) for run in runs_a]
    values_b = [value(run) for run in runs_b]
    if not runs_a or None in values_a or None in values_b:
        return None
    return compare(values_a, values_b)


def temperature_map_caption(group: Mapping[tuple[float, float], Sequence[RunResult]]) -> str:
    """Return whether temperature has the same effect with a hard and with a smoothed teacher.

    Args:
        group: runs by (smoothing of the teacher, temperature); the corners of this map are
            compared.
    """
    smoothings = sorted({smoothing for smoothing, _ in group})
    temperatures = sorted({temperature for _, temperature in group})
    cold = temperatures[0]
    hot = temperatures[-1]
    effects = []
    for smoothing in (smoothings[0], smoothings[-1]):
        if (smoothing, cold) not in group or (smoothing, hot) not in group:
            return ""
        effects.append(_accuracy_gain(group[smoothing, cold], group[smoothing, hot]))
    seeds = sorted(effects[0].keys() & effects[1].keys())
    test = compare([effects[0][seed] for seed in seeds], [effects[1][seed] for seed in seeds])
    return (
        f"Raising the temperature from {cold:g} to {hot:g} changes the student's accuracy by "
        f"{points(test.mean_a)} points with teacher smoothing {smoothings[0]:g} and by "
        f"{points(test.mean_b)} points with teacher smoothing {smoothings[-1]:g}. The effect "
        f"goes {change(test, len(seeds), 100, 2)}."
    )


def equivalent_smoothing_caption(curves: dict[str, dict[int, list[float]]]) -> str:
    """Return whether distilled students beat the student alone, each curve by its mean.

    Args:
        curves: accuracies by the curve's name and by seed.
    """
    base: dict[int, list[float]] = {}
    for name, seeds in curves.items():
        if name.startswith("student alone"):
            base = seeds
    changes = []
    for name, seeds in curves.items():
        common = sorted(base.keys() & seeds.keys())
        if common and name.startswith("student of"):
            before = [float(np.mean(base[seed])) for seed in common]
            after = [float(np.mean(seeds[seed])) for seed in common]
            test = compare(before, after)
            changes.append(f"to the {name}, {change(test, len(common), 100, 2, '%')}")
    if not changes:
        return ""
    return (
        "Mean accuracy over each curve, from the student alone (averaged over its smoothing): "
        f"{'; '.join(changes)}."
    )


# ------------------------------------------------------------------------------- of a pair of arms


def _change_of(results: StudyResults, a: str, b: str, subject: Subject) -> str:
    """Return how a number changes from one arm to another."""
    test = paired(results, a, b, subject.value)
    if test is None:
        return ""
    return f"From {a} to {b}, {_goes(results, subject, test)}{subject.remark}."


def _goes(results: StudyResults, subject: Subject, test: Paired) -> str:
    seeds = len(results.seeds)
    text = change(test, seeds, subject.factor, subject.decimals, subject.unit)
    return f"{subject.name} goes {text}"


def _calibration(results: StudyResults, a: str, b: str) -> str:
    ece = SUBJECTS["reliability"]
    before_scaling = paired(results, a, b, ece.value)
    after_scaling = paired(results, a, b, ECE_SCALED.value)
    if before_scaling is None or after_scaling is None:
        return ""
    return (
        f"From {a} to {b}, {_goes(results, ece, before_scaling)}; "
        f"{_goes(results, ECE_SCALED, after_scaling)}."
    )


def _tightness(results: StudyResults, a: str, b: str) -> str:
    """Return by what factor the clusters become tighter; the ratio is compared on a log scale."""
    value = metric("train", WITHIN_BETWEEN)
    runs_a, runs_b = _runs_by_seed(results, a, b)
    values_a = [value(run) for run in runs_a]
    values_b = [value(run) for run in runs_b]
    # None and 0 have no logarithm
    if not values_a or not all(values_a) or not all(values_b):
        return ""
    lower = sum(after < before for before, after in zip(values_a, values_b, strict=True))
    logs = compare([math.log(v) for v in values_a], [math.log(v) for v in values_b])
    text = (
        f"From {a} to {b}, the within/between-class variance ratio of training features changes "
        f"to {math.exp(logs.difference):.2f}× its value"
    )
    if logs.ci95:
        low, high = (math.exp(bound) for bound in logs.ci95)
        unsure = "" if excludes_zero(logs.ci95) else ", not significant"
        text += f" (95% interval {low:.2f}× to {high:.2f}×{unsure})"
    text += f" and falls in {lower} of {len(values_a)} seeds"
    validation = paired(results, a, b, metric("validation", WITHIN_BETWEEN))
    if validation:
        text += f"; on validation images it goes {change(validation, len(results.seeds), 1, 3)}"
    return f"{text}."


def _runs_by_seed(results: StudyResults, a: str, b: str) -> tuple[list[RunResult], list[RunResult]]:
    """Return the runs of two arms, of the seeds that both have."""
    runs = {(run.arm, run.seed): run for run in results.runs}
    seeds = [seed for seed in results.seeds if (a, seed) in runs and (b, seed) in runs]
    return [runs[a, seed] for seed in seeds], [runs[b, seed] for seed in seeds]


# ------------------------------------------------------------------------------------- of all arms


def _range_over_arms(results: StudyResults, subject: Subject) -> str:
    """Return the arms with the lowest and the highest mean of a number."""
    values: dict[str, list[float]] = {}
    for run in results.runs:
        value = subject.value(run)
        if value is not None:
            values.setdefault(run.arm, []).append(subject.factor * value)
    if len(values) < 2:
        return ""
    ordered = sorted(values, key=lambda arm: np.mean(values[arm]))
    lowest = _mean_of_arm(ordered[0], values[ordered[0]], subject)
    highest = _mean_of_arm(ordered[-1], values[ordered[-1]], subject)
    return f"Over the arms, {subject.name} ranges from {lowest} to {highest}."


def _mean_of_arm(arm: str, values: list[float], subject: Subject) -> str:
    mean, sd, _ = mean_interval(values)
    source = "one run" if len(values) == 1 else f"{len(values)} seeds"
    spread = spread_text(sd, subject.decimals)
    return f"{mean:.{subject.decimals}f}{spread}{subject.unit} ({arm}, {source})"


def _accuracy(results: StudyResults) -> str:
    """Return the best student, and how many are significantly worse."""
    if len(results.ranking) < 2:
        return ""
    best = results.ranking[0]
    worse, not_worse, _ = split_ranking(results.ranking)
    accuracy = f"{100 * best.mean:.2f}%"
    text = f"The student with the highest mean accuracy is {best.arm} ({accuracy})"
    tested = len(worse) + len(not_worse)
    if not tested:
        return f"{text}; there is no test of its lead."
    verb = "is" if len(worse) == 1 else "are"
    return (
        f"{text}; {len(worse)} of {tested} others {verb} significantly worse, adjusted for all "
        "pairs."
    )


def _still_learning(curves: dict[str, list[list[float]]]) -> str:
    """Return how many arms were still gaining at the end of training."""
    gaining = 0
    tested = 0
    for seeds in curves.values():
        table = np.asarray(seeds)
        if len(table) < 2 or table.shape[1] < MIN_EPOCHS:
            continue
        tested += 1
        gain = table[:, -1] - table[:, -1 - table.shape[1] // 10]
        interval = mean_interval(list(gain))[2]
        if interval and interval[0] > 0:
            gaining += 1
    if not tested:
        return ""
    return (
        "In the last tenth of the epochs, validation accuracy still rose significantly for "
        f"{gaining} of {tested} arms (95% intervals, not adjusted for their number)."
    )


def _robustness(results: StudyResults, pair: tuple[str, str] | None) -> str:
    """Return the effect of smoothing under attack, and where PGD alone would mislead."""
    attacked = [run for run in results.runs if run.test.num_attacked]
    if not attacked:
        return ""
    sentences = []
    if pair and _same_attacks(attacked, pair):
        worst = Subject("accuracy under all L∞ attacks", metric("test", "worst_linf"), 100, 1, "%")
        sentences.append(_change_of(results, *pair, worst))
    missed: dict[str, list[float]] = {}
    for run in attacked:
        points = 100 * (run.test.pgd_linf - run.test.worst_linf)
        missed.setdefault(run.arm, []).append(points)
    arm = max(missed, key=lambda name: np.mean(missed[name]))
    mean, _, interval = mean_interval(missed[arm])
    uncertainty = "no interval"
    if interval:
        uncertainty = f"95% interval {interval[0]:.1f} to {interval[1]:.1f}"
    seeds = f"{len(missed[arm])} seed{'' if len(missed[arm]) == 1 else 's'}"
    if mean < 0.05:
        sentences.append("The other L∞ attacks find nothing that cross-entropy PGD misses.")
    else:
        sentences.append(
            f"Cross-entropy PGD overestimates robustness most for {arm}: the other L∞ attacks "
            f"lower its accuracy by another {mean:.1f} points ({uncertainty}, {seeds})."
        )
    zero = max(run.test.zero_gradient for run in attacked)
    if zero:
        sentences.append(f"At most {100 * zero:.1f}% of a network's images have a zero gradient.")
    else:
        sentences.append("No image has a zero gradient.")
    return " ".join(sentence for sentence in sentences if sentence)


def _same_attacks(attacked: list[RunResult], pair: tuple[str, str]) -> bool:
    """Return whether the runs of both arms were attacked in the same ways."""
    has_transfer = {run.test.transfer is not None for run in attacked if run.arm in pair}
    return len(has_transfer) == 1


def _fidelity(results: StudyResults) -> str:
    """Return how much more students agree with their own teacher than with one of another seed."""
    runs = [run for run in results.runs if run.test.agreement_control is not None]
    if not runs:
        return ""
    seeds = sorted({run.seed for run in runs})
    own = []
    control = []
    for seed in seeds:
        tests = [run.test for run in runs if run.seed == seed]
        own.append(float(np.mean([test.agreement for test in tests])))
        control.append(float(np.mean([test.agreement_control for test in tests])))
    test = compare(control, own)
    return (
        "From a teacher of another seed to their own teacher, the students' agreement goes "
        f"{change(test, len(seeds), 100, 2, '%')}."
    )


def _accuracy_gain(before: Sequence[RunResult], after: Sequence[RunResult]) -> dict[int, float]:
    """Return the gain in test accuracy by seed, of the seeds that both lists of runs have."""
    first = {run.seed: run.test.top1 for run in before}
    last = {run.seed: run.test.top1 for run in after}
    return {seed: last[seed] - first[seed] for seed in first.keys() & last.keys()}
