"""What a study found: `results.json`, from what is stored alone, and the files beside it."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import Tensor

from distill.errors import UserError
from distill.evaluation.comparisons import compare_arms, rank_students
from distill.evaluation.feature_plot import load_feature_plot
from distill.evaluation.fidelity import diffusion
from distill.evaluation.geometry import near_classes, shared_probability
from distill.evaluation.metrics import metrics
from distill.losses import LOSSES, Outputs, ensemble, optimal_logit_gap
from distill.models.factory import replaced_head_note
from distill.recipe.loss_terms import loss_settings_model
from distill.recipe.schema import Recipe
from distill.storage.files import with_checksum, write_text_atomically
from distill.storage.run import Run, teacher_field
from distill.storage.run_store import read_results
from distill.storage.versions import versions
from distill.study.context import StudyContext
from distill.study.lint import describe_data, lint_recipe
from distill.training.teacher import at_chance

GEOMETRY = (
    "examples",
    "within_between",
    "within_between_templates",
    "class_separation",
    "nc1",
    "wrong_template_spread",
)
ATTACKS = (
    "num_attacked",
    "unattacked",
    "fgsm",
    "pgd_linf",
    "margin_linf",
    "pgd_l2",
    "transfer",
    "worst_linf",
    "zero_gradient",
)
Predictions = dict[str, dict[str, Tensor]]


def collect(ctx: StudyContext, runs: list[Run], found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The content of `results.json`.

    Args:
        ctx: of the study.
        runs: all of it, stored.
        found: within each run by its id, as `distill.explain.inside.analyse_runs` returns it.
    """
    predictions: Predictions = {}
    for run in runs:
        if run.id not in predictions:
            predictions[run.id] = ctx.store.predictions(run.id)
    rows = [_row(ctx, run, runs, predictions, found[run.id]) for run in runs]
    classes = len(ctx.splits.class_names)
    for run, row in zip(runs, rows, strict=True):
        row["diffusion"] = _diffusion(run, row, rows, predictions, found, classes)
    return {
        "study": ctx.recipe.name,
        "versions": versions(),
        "classes": ctx.splits.class_names,
        "data": {
            "source": ctx.recipe.data.source,
            "train": len(ctx.splits.train),
            "validation": len(ctx.splits.validation),
            "test": len(ctx.splits.test),
        },
        "precision": ctx.accelerator.mixed_precision,
        "device": ctx.accelerator.device.type,
        "seeds": ctx.recipe.seeds,
        "analysis": ctx.recipe.analysis.model_dump(),
        "notes": study_notes(ctx) + _untrained(runs, predictions),
        "runs": rows,
        "comparisons": compare_arms(ctx.recipe, rows, _right(runs, predictions)),
        "ranking": rank_students(ctx.recipe, rows),
    }


def _row(
    ctx: StudyContext, run: Run, runs: list[Run], predictions: Predictions, found: dict[str, Any]
) -> dict[str, Any]:
    """A run's part of `results.json`."""
    loss = run.arm.loss or {}
    full = {name: loss_settings_model(LOSSES[name])(**settings) for name, settings in loss.items()}
    hard, kd = full.get("cross_entropy"), full.get("kd")
    temperature = (kd.final_temperature or kd.temperature) if kd else None
    smoothing = hard.smoothing if hard else None
    optimum = None
    if smoothing and len(loss) == 1:  # with other terms it is another
        optimum = optimal_logit_gap(len(ctx.splits.class_names), smoothing, hard.smooth_over)
    own = _together([predictions[teacher.id] for teacher in run.teachers])
    other = _control(ctx, run, runs)
    judged = metrics(
        predictions[run.id], own, temperature, predictions[other.id] if other else None
    )
    for split, values in judged.items():
        values |= dict.fromkeys(GEOMETRY) | _finite(found["geometry"].get(split, {}))
    judged["test"] |= dict.fromkeys(ATTACKS) | found["robustness"]
    record = ctx.store.record(run.id)
    return {
        "id": run.id,
        "role": run.arm.role,
        "arm": run.arm.name,
        "axes": run.arm.axes,
        "seed": run.seed,
        "model": record["model"],
        "parameters": record["parameters"],
        "teacher": teacher_field([teacher.id for teacher in run.teachers]),
        "epochs": record["epochs"],
        "seconds": record["seconds"],
        "hardware": record["versions"]["hardware"],
        "smoothing": smoothing,
        "temperature": temperature,
        "template_spread": found["template_spread"],
        "optimal_gap": optimum,
        "information": [state | _finite({"nats": state["nats"]}) for state in found["information"]],
        "metrics": judged,
    }


def _right(runs: list[Run], predictions: Predictions) -> dict[str, np.ndarray]:
    """Whether each test image was classified rightly, by run."""
    return {
        run.id: (stored["test.logits"].argmax(1) == stored["test.labels"]).numpy()
        for run in runs
        for stored in [predictions[run.id]]
    }


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    """JSON has no infinity: classes whose means coincide have no ratio."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _together(teachers: list[dict[str, Tensor]]) -> dict[str, Tensor] | None:
    """The predictions of the teacher that a student has, an ensemble's as it learns from them."""
    if not teachers:
        return None
    return {
        name: ensemble([Outputs(t[name]) for t in teachers]).logits
        if name.endswith(".logits")
        else value
        for name, value in teachers[0].items()
    }


def _control(ctx: StudyContext, run: Run, runs: list[Run]) -> Run | None:
    """A teacher that the run never saw, made like its own: the next seed's; None where there is none."""
    seeds = ctx.recipe.seeds
    if len(run.teachers) != 1 or len(seeds) < 2 or run.teachers[0].seed not in seeds:
        return None
    seed = seeds[(seeds.index(run.teachers[0].seed) + 1) % len(seeds)]
    return next(r for r in runs if r.arm.name == run.teachers[0].arm.name and r.seed == seed)


def _diffusion(
    run: Run,
    row: dict[str, Any],
    rows: list[dict[str, Any]],
    predictions: Predictions,
    found: dict[str, dict[str, Any]],
    classes: int,
) -> float | None:
    """Of a student's features, against the same student at T = 1; similar are the classes that its teacher confuses."""
    if row["temperature"] in (None, 1) or len(run.teachers) != 1:
        return None

    def rest(r: dict[str, Any]) -> tuple[Any, ...]:
        axes = {key: value for key, value in r["axes"].items() if key != "temperature"}
        return r["seed"], r["model"], r["teacher"], r["arm"].split("/")[0], axes

    base = next((r for r in rows if r["temperature"] == 1 and rest(r) == rest(row)), None)
    means = [found[r["id"]]["class_means"] for r in (base, row)] if base else [None]
    if any(m is None for m in means):
        return None
    stored = predictions[run.teachers[0].id]
    shared = shared_probability(stored["train.logits"].numpy(), stored["train.labels"].numpy())
    value = diffusion(
        *(np.asarray(m) for m in means), near_classes(shared, max(1, (classes - 1) // 10))
    )
    return value if math.isfinite(value) else None


def study_notes(ctx: StudyContext) -> list[str]:
    """What a reader of the study should know of its data and its recipe."""
    return [
        *describe_data(ctx.splits),
        *_new_heads(ctx),
        *lint_recipe(ctx.recipe, len(ctx.splits.class_names)),
    ]


def _new_heads(ctx: StudyContext) -> list[str]:
    arms, classes = ctx.recipe.arms, len(ctx.splits.class_names)
    return list(dict.fromkeys(told for arm in arms if (told := replaced_head_note(arm, classes))))


def _untrained(runs: list[Run], predictions: dict[str, dict[str, Tensor]]) -> list[str]:
    """Arms that learned nothing: what is said of them is about their training, not about their loss."""
    failed: dict[str, int] = {}
    for run in [run for run in runs if not run.arm.frozen]:
        stored = predictions[run.id]
        if at_chance(stored["validation.logits"], stored["validation.labels"]):
            failed[run.arm.name] = failed.get(run.arm.name, 0) + 1
    return [
        f"{name}: {count} of its runs are no better than chance on the validation split, so they did not train; "
        "lower train.lr or the weight of the loss, or clip with train.clip_grad"
        for name, count in failed.items()
    ]


def write_study(folder: Path, recipe: Recipe, results: dict[str, Any]) -> None:
    """`recipe.yaml`, `results.json` and `results.csv`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.html").unlink(
        missing_ok=True
    )  # a report of older results must not outlive them
    write_text_atomically(
        folder / "recipe.yaml", yaml.safe_dump(recipe.source, sort_keys=False, allow_unicode=True)
    )
    write_text_atomically(
        folder / "results.json",
        json.dumps(with_checksum(results), indent=1, allow_nan=False) + "\n",
    )
    axes = list(dict.fromkeys(axis for run in results["runs"] for axis in run["axes"]))
    columns = [
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
    ]
    rows = []
    for run in results["runs"]:
        row = {name: run[name] for name in columns} | {
            f"axis.{axis}": run["axes"].get(axis) for axis in axes
        }
        rows.append(
            row
            | {
                f"{split}.{metric}": value
                for split, values in run["metrics"].items()
                for metric, value in values.items()
            }
        )
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomically(folder / "results.csv", text.getvalue())


def is_written(folder: Path, recipe: Recipe, results: dict[str, Any]) -> bool:
    """Whether the study's folder says just this already; drawing is the slow part of a study that is done."""
    try:
        same = read_results(folder) == json.loads(json.dumps(results))
        load_feature_plot(folder / "features.safetensors")  # raises if it is damaged
        return (
            same
            and yaml.safe_load((folder / "recipe.yaml").read_text("utf-8")) == recipe.source
            and (folder / "report.html").is_file()
        )
    except (UserError, OSError, ValueError, yaml.YAMLError):
        return False
