"""Write the runs of a study as CSV."""

import csv
import io
from dataclasses import asdict
from typing import Any

from distill.storage.study_results import RunResult, StudyResults

SPLITS = ("test", "validation", "train")
CSV_COLUMNS = (
    "id",
    "role",
    "arm",
    "seed",
    "model",
    "parameters",
    "teacher",
    "epochs",
    "seconds",
    "smoothing",
    "temperature",
    "optimal_gap",
    "template_spread",
    "diffusion",
)
ATTACK_METRICS = frozenset(
    {
        "num_attacked",
        "unattacked",
        "fgsm",
        "pgd_linf",
        "margin_linf",
        "pgd_l2",
        "transfer",
        "worst_linf",
        "zero_gradient",
    }
)


def results_csv(results: StudyResults) -> str:
    """Return a study's runs as CSV: one row per run, metrics in columns such as ``test.top1``."""
    all_axes = [axis for run in results.runs for axis in run.axes]
    axes = list(dict.fromkeys(all_axes))
    rows = [_csv_row(run, axes) for run in results.runs]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _csv_row(run: RunResult, axes: list[str]) -> dict[str, Any]:
    row = {name: getattr(run, name) for name in CSV_COLUMNS}
    for axis in axes:
        row[f"axis.{axis}"] = run.axes.get(axis)
    for split in SPLITS:
        for name, value in asdict(run.metrics[split]).items():
            # only test images are attacked
            if split == "test" or name not in ATTACK_METRICS:
                row[f"{split}.{name}"] = value
    return row
