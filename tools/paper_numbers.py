"""Load stored results for the README, compare their arms, and write numbers as text."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distill.evaluation.comparisons import excludes_zero
from distill.evaluation.statistics import Paired, compare, mean_interval
from distill.report.wording import signed
from distill.storage.study_results import Comparison, RunResult, StudyResults

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "tools" / "results"
PRECISIONS = {"no": "float32", "bf16": "bf16"}

Runs = list[RunResult]  # of one arm, by seed
Values = Callable[[Runs], list[float]]


class Pair(NamedTuple):
    """The runs of two arms that differ in label smoothing."""

    hard: Runs
    smoothed: Runs


# ------------------------------------------------------------------------------------------ results


def load(name: str, folder: Path = KEPT) -> StudyResults:
    """Return the stored results of a study."""
    return StudyResults.from_dict(json.loads((folder / f"{name}.json").read_text("utf-8")))


def arm(results: StudyResults, group: str, **axes: Any) -> Runs:
    """Return the runs of an arm by seed.

    Args:
        results: the results of a study.
        group: first part of the arm's name.
        axes: values of its sweeps; `teacher_smoothing` stands for `teacher.smoothing`.
    """
    wanted = {key.replace("teacher_", "teacher."): value for key, value in axes.items()}
    found = []
    for run in results.runs:
        has_axes = all(run.axes.get(key) == value for key, value in wanted.items())
        if run.arm.split("/")[0] == group and has_axes:
            found.append(run)
    if len(found) != len(results.seeds):
        raise ValueError(
            f"{results.study} has {len(found)} runs of {group} {wanted}; expected one for each of "
            f"{len(results.seeds)} seeds"
        )
    return sorted(found, key=lambda run: run.seed)


def metric(split: str, name: str, factor: float = 1.0) -> Values:
    """Return the function that reads a metric of several runs, in their order."""
    return lambda runs: [factor * getattr(run.metrics[split], name) for run in runs]


errors = metric("test", "errors")
accuracy = metric("test", "top1", 100)


def compare_runs(a: Runs, b: Runs, values: Values) -> Paired:
    """Compare two arms seed by seed, in the number that `values` reads."""
    return compare(values(a), values(b))


def study_comparison(results: StudyResults, a: Runs, b: Runs) -> Comparison:
    """Return the study's own comparison of the accuracies of two arms."""
    for comparison in results.comparisons:
        if (comparison.a, comparison.b) == (a[0].arm, b[0].arm) and comparison.metric == "top1":
            return comparison
    raise ValueError(f"{results.study} does not compare {a[0].arm} with {b[0].arm}")


def is_significant(test: Paired) -> bool:
    """Return whether the 95% interval excludes zero."""
    return excludes_zero(test.ci95)


def is_gain(test: Paired) -> bool:
    """Return whether a difference is positive, and significant."""
    return is_significant(test) and test.difference > 0


def is_loss(test: Paired) -> bool:
    """Return whether a difference is negative, and significant."""
    return is_significant(test) and test.difference < 0


# --------------------------------------------------------------------------------------------- text


def spread(values: Iterable[float], decimals: int = 1) -> str:
    """Return mean ± standard deviation as text."""
    mean, sd, _ = mean_interval(list(values))
    return f"{mean:.{decimals}f} ± {sd:.{decimals}f}"


def interval(test: Paired, decimals: int = 1) -> str:
    """Return the 95% interval of a difference as text."""
    if test.ci95 is None:
        return "no spread"
    low, high = test.ci95
    return f"{signed(low, decimals)} to {signed(high, decimals)}"


def difference(test: Paired, decimals: int = 1, images: tuple[float, float] | None = None) -> str:
    """Return a difference with its interval as text, in bold if the interval excludes zero.

    Args:
        test: the paired comparison.
        decimals: number of decimals.
        images: 95% interval over test images; a † marks that it does not exclude zero.
    """
    text = f"{signed(test.difference, decimals)} ({interval(test, decimals)})"
    if not is_significant(test):
        return text
    dagger = " †" if images and not excludes_zero(images) else ""
    return f"**{text}**{dagger}"


def table(headings: list[str], rows: Iterable[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace(" --- ", "---")


def cost(results: StudyResults) -> str:
    """Return the seeds, runs, time, hardware and precision of a study as text."""
    seconds = sum(run.seconds for run in results.runs)
    if seconds >= 3600:
        time = f"{seconds / 3600:.1f} hours"
    elif seconds >= 120:
        time = f"{seconds / 60:.0f} minutes"
    else:
        time = f"{seconds:.0f} seconds"
    machine = " and ".join(sorted({run.hardware for run in results.runs}))
    return (
        f"{len(results.seeds)} seeds, {len(results.runs)} runs, {time} of training on {machine}, "
        f"{PRECISIONS[results.precision]}"
    )


def plain(sentence: str) -> str:
    """Return a report's sentence in the README's words, with typographic minus signs."""
    sentence = sentence.replace("plain/smoothing=0.1", "the smoothed teacher")
    sentence = sentence.replace("plain/smoothing=0", "the hard teacher")
    return re.sub(r"(?<![\w.])-(?=\d)", "−", sentence)


def mean_of(values: Values, runs: Runs) -> float:
    """Return the mean of a number over the runs of an arm."""
    return float(np.mean(values(runs)))
