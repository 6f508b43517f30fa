"""Results of studies, made of numbers that a test chooses."""

from typing import Any

from distill.storage.study_results import (
    Comparison,
    DataSummary,
    Metrics,
    QuestionCode,
    RunResult,
    StudyResults,
    Verdict,
)


def make_run(arm: str = "a", seed: int | None = 0, **changes: Any) -> RunResult:
    """Return a student's result; `test`, `train` and `validation` are dictionaries of metrics."""
    metrics = {}
    for split in ("test", "validation", "train"):
        metrics[split] = Metrics(**changes.pop(split, {}))
    values: dict[str, Any] = {
        "id": f"{arm}-{seed}",
        "role": "student",
        "arm": arm,
        "axes": {},
        "seed": seed,
        "model": "mlp_16",
        "parameters": 1000,
        "teacher": None,
        "epochs": 3,
        "seconds": 1.0,
        "hardware": "a computer",
        "metrics": metrics,
    }
    return RunResult(**values | changes)


def runs_of(arm: str, accuracies: list[float], **changes: Any) -> list[RunResult]:
    """Return a run for each test accuracy, at seeds 0, 1, …; NLL and ECE have the same value."""
    return [
        make_run(arm, seed, test={"top1": value, "nll": value, "ece": value}, **changes)
        for seed, value in enumerate(accuracies)
    ]


def make_results(runs: list[RunResult], **changes: Any) -> StudyResults:
    """Return the results of a study with these runs."""
    values: dict[str, Any] = {
        "study": "tiny",
        "versions": {"torch": "2"},
        "data": DataSummary("digits", 1000, 100, 500),
        "precision": "no",
        "device": "cpu",
        "seeds": sorted({run.seed for run in runs if run.seed is not None}),
        "runs": runs,
        "comparisons": [],
        "classes": ["0", "1", "2"],
    }
    return StudyResults(**values | changes)


def make_comparison(**changes: Any) -> Comparison:
    """Return a comparison of accuracy: significantly better, also after adjustment."""
    values: dict[str, Any] = {
        "question_code": QuestionCode.DISTILLATION,
        "question": "?",
        "role": "student",
        "setting": None,
        "a": "alone",
        "b": "distilled",
        "metric": "top1",
        "mean_a": 0.9,
        "mean_b": 0.91,
        "difference": 0.01,
        "ci95": (0.005, 0.015),
        "ci95_images": None,
        "p_value": 0.001,
        "p_holm": 0.01,
        "seeds": 5,
        "verdict": Verdict.BETTER,
    }
    return Comparison(**values | changes)
