"""Collect what a study found, from what is stored alone, and write its folder."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import Tensor

from distill.errors import UserError
from distill.evaluation.analyse import no_findings
from distill.evaluation.analysis_budget import AnalysisPlan
from distill.evaluation.comparisons import compare_arms, rank_students
from distill.evaluation.feature_plot import load_feature_plot
from distill.evaluation.fidelity import diffusion
from distill.evaluation.geometry import near_classes, shared_probability
from distill.evaluation.metrics import metrics
from distill.losses import Outputs, ensemble, optimal_logit_gap
from distill.recipe.schema import Recipe
from distill.report.wording import question_sentence
from distill.storage.files import write_text_atomically
from distill.storage.results_csv import results_csv
from distill.storage.run_fingerprint import Run, teacher_field
from distill.storage.study_results import (
    DataSummary,
    InformationEstimate,
    Metrics,
    RunResult,
    StudyResults,
    read_results,
)
from distill.storage.versions import versions
from distill.study.context import StudyContext
from distill.study.result_notes import (
    analysis_notes,
    calibration_notes,
    likelihood_notes,
    study_notes,
    untrained_notes,
    version_notes,
    weight_notes,
)
from distill.training.teacher import at_chance

Predictions = dict[str, Tensor]  # ``SPLIT.logits [N, K]`` and ``SPLIT.labels [N]``


@dataclass(frozen=True)
class _Stored:
    """The runs of a study with what is stored of them, by the run's id."""

    runs: list[Run]
    predictions: dict[str, Predictions]
    found: dict[str, dict[str, Any]]


def collect(
    ctx: StudyContext, runs: list[Run], found: dict[str, dict[str, Any]], plan: AnalysisPlan
) -> StudyResults:
    """Collect the results of a study whose runs are all stored.

    Args:
        ctx: of the study.
        runs: all runs of the study.
        found: analyses by run id, as `distill.evaluation.analyse.analyse_runs` returns them; runs
            may be missing.
        plan: of the analysis.

    Returns:
        the content of `results.json`.
    """
    analyses = {run.id: found.get(run.id) or no_findings() for run in runs}
    has_analysis = any(plan.passes.values())
    stored = _Stored(runs, _all_predictions(ctx, runs), analyses)
    untrained = _untrained(stored)
    run_results = _run_results(ctx, stored)
    comparisons = compare_arms(ctx.recipe, run_results, _correct(stored))
    splits = ctx.splits
    return StudyResults(
        study=ctx.recipe.name,
        versions=versions(),
        data=DataSummary(
            source=ctx.recipe.data.source,
            train=len(splits.train),
            validation=len(splits.validation),
            test=len(splits.test),
        ),
        precision=ctx.accelerator.mixed_precision,
        device=ctx.accelerator.device.type,
        seeds=ctx.recipe.seeds,
        runs=run_results,
        comparisons=[replace(one, question=question_sentence(one)) for one in comparisons],
        ranking=rank_students(ctx.recipe, run_results),
        classes=splits.class_names,
        analysis=plan.settings.model_dump(),
        unanalysed=len(analyses.keys() - found.keys()) if has_analysis else 0,
        notes=[
            *study_notes(ctx),
            *weight_notes(ctx, runs),
            *version_notes(ctx, runs),
            *untrained_notes(ctx, untrained),
            *likelihood_notes(runs, stored.predictions),
            *calibration_notes(run_results),
            *analysis_notes(ctx, plan),
        ],
        untrained=list(untrained),
    )


def write_tables(folder: Path, recipe: Recipe, results: StudyResults) -> None:
    """Write `recipe.yaml` and `results.csv`, each whole or not at all."""
    text = yaml.safe_dump(recipe.source, sort_keys=False, allow_unicode=True)
    write_text_atomically(folder / "recipe.yaml", text)
    write_text_atomically(folder / "results.csv", results_csv(results))


def is_written(folder: Path, recipe: Recipe, results: StudyResults) -> bool:
    """Return whether a study's folder holds exactly these results, with a report.

    Drawing is the slow part of a study whose runs are all stored; this saves it.
    """
    try:
        written = read_results(folder)
        # raises ValueError if the file is damaged
        load_feature_plot(folder / "features.safetensors")
        source = yaml.safe_load((folder / "recipe.yaml").read_text("utf-8"))
    except (UserError, OSError, ValueError, yaml.YAMLError):
        return False
    same_results = _as_json(written) == _as_json(results)
    return same_results and source == recipe.source and (folder / "report.html").is_file()


def _as_json(results: StudyResults) -> Any:
    """Return the results as JSON reads them, with lists for tuples."""
    return json.loads(json.dumps(results.to_dict()))


# -------------------------------------------------------------------------------------------- loss


def loss_temperature(loss: dict[str, dict[str, Any]] | None) -> float | None:
    """Return the temperature under which a run with this loss is filed.

    It is that of `kd`, else the one that all terms with a temperature have in common. A temperature
    that changes during training counts with its last value.
    """
    values = []
    for settings in _terms_with(loss, "temperature", main_term="kd"):
        values.append(settings.get("final_temperature") or settings["temperature"])
    return _common(values)


def loss_smoothing(loss: dict[str, dict[str, Any]] | None) -> float | None:
    """Return the label smoothing under which a run with this loss is filed.

    It is that of `cross_entropy`, else the one that all terms with smoothing have in common.
    """
    terms = _terms_with(loss, "smoothing", main_term="cross_entropy")
    return _common([settings["smoothing"] for settings in terms])


def _terms_with(
    loss: dict[str, dict[str, Any]] | None, key: str, main_term: str
) -> list[dict[str, Any]]:
    """Return the settings of the main term if the loss has it, else of all terms with the key."""
    loss = loss or {}
    if main_term in loss:
        return [loss[main_term]]
    return [settings for settings in loss.values() if key in settings]


def _common(values: list[float]) -> float | None:
    """Return the one value of a list; None if there are several, or none."""
    return values[0] if len(set(values)) == 1 else None


def _optimal_gap(loss: dict[str, dict[str, Any]] | None, classes: int) -> float | None:
    """Return the logit gap at which the loss is smallest, for smoothed cross-entropy alone."""
    if not loss or set(loss) != {"cross_entropy"}:
        return None
    settings = loss["cross_entropy"]
    if not settings["smoothing"]:
        return None
    return optimal_logit_gap(classes, settings["smoothing"], settings["smooth_over"])


# -------------------------------------------------------------------------------------------- runs


def _all_predictions(ctx: StudyContext, runs: list[Run]) -> dict[str, Predictions]:
    """Read the stored predictions of each run, once where two arms state the same run."""
    predictions: dict[str, Predictions] = {}
    for run in runs:
        if run.id not in predictions:
            predictions[run.id] = ctx.store.predictions(run.id)
    return predictions


def _run_results(ctx: StudyContext, stored: _Stored) -> list[RunResult]:
    """Return the result of every run, in the order of the runs."""
    results = [_run_result(ctx, run, stored) for run in stored.runs]
    complete = []
    for run, result in zip(stored.runs, results, strict=True):
        value = _diffusion(run, result, results, stored)
        complete.append(replace(result, diffusion=value))
    return complete


def _run_result(ctx: StudyContext, run: Run, stored: _Stored) -> RunResult:
    """Return the result of one run, all but its diffusion, which needs another run's result."""
    found = stored.found[run.id]
    record = ctx.store.record(run.id)
    information = []
    for estimate in found["information"]:
        nats = _finite(estimate["nats"])
        information.append(
            InformationEstimate(estimate["epoch"], nats, examples=estimate["examples"])
        )
    return RunResult(
        id=run.id,
        role=run.arm.role,
        arm=run.arm.name,
        axes=run.arm.axes,
        seed=run.seed,
        model=record["model"],
        parameters=record["parameters"],
        teacher=teacher_field([teacher.id for teacher in run.teachers]),
        epochs=record["epochs"],
        seconds=record["seconds"],
        hardware=record["versions"]["hardware"],
        metrics=_metrics(ctx, run, stored),
        loss=run.arm.loss,
        smoothing=loss_smoothing(run.arm.loss),
        temperature=loss_temperature(run.arm.loss),
        template_spread=found["template_spread"],
        optimal_gap=_optimal_gap(run.arm.loss, len(ctx.splits.class_names)),
        information=information,
    )


def _metrics(ctx: StudyContext, run: Run, stored: _Stored) -> dict[str, Metrics]:
    """Return the metrics of a run by split: from its predictions, and from its analysis."""
    control = _control_teacher(ctx, run, stored.runs)
    from_predictions = metrics(
        stored.predictions[run.id],
        _teacher_predictions(run, stored),
        loss_temperature(run.arm.loss),
        stored.predictions[control.id] if control else None,
    )
    found = stored.found[run.id]
    result = {}
    for split, values in from_predictions.items():
        geometry = found["geometry"].get(split, {})
        values = values | {name: _finite(value) for name, value in geometry.items()}
        if split == "test":
            values = values | found["robustness"]
        result[split] = Metrics(**values)
    return result


def _finite(value: float) -> float | None:
    """Return None for infinity and NaN, which JSON lacks: some ratios have a zero below."""
    return value if math.isfinite(value) else None


def _teacher_predictions(run: Run, stored: _Stored) -> Predictions | None:
    """Return the predictions of a run's teacher: of an ensemble, the mean of its probabilities."""
    teachers = [stored.predictions[teacher.id] for teacher in run.teachers]
    if not teachers:
        return None
    together = {}
    for name, value in teachers[0].items():
        if name.endswith(".logits"):
            value = ensemble([Outputs(teacher[name]) for teacher in teachers]).logits
        together[name] = value
    return together


def _control_teacher(ctx: StudyContext, run: Run, runs: list[Run]) -> Run | None:
    """Return a teacher that a student never saw, trained like its own: that of the next seed."""
    seeds = ctx.recipe.seeds
    if len(run.teachers) != 1 or len(seeds) < 2:
        return None
    own = run.teachers[0]
    if own.seed not in seeds:
        return None
    next_seed = seeds[(seeds.index(own.seed) + 1) % len(seeds)]
    for other in runs:
        if other.arm.name == own.arm.name and other.seed == next_seed:
            return other
    return None


def _diffusion(
    run: Run, result: RunResult, results: list[RunResult], stored: _Stored
) -> float | None:
    """Return the diffusion of a student's features, against the same student at T = 1.

    Classes count as similar if the student's teacher confuses them on training images.
    """
    if result.temperature in (None, 1) or len(run.teachers) != 1:
        return None
    base = None
    for other in results:
        if other.temperature == 1 and _all_but_temperature(other) == _all_but_temperature(result):
            base = other
            break
    if base is None:
        return None
    means_before = stored.found[base.id]["class_means"]
    means_after = stored.found[run.id]["class_means"]
    if means_before is None or means_after is None:
        return None
    teacher = stored.predictions[run.teachers[0].id]
    shared = shared_probability(teacher["train.logits"].numpy(), teacher["train.labels"].numpy())
    similar = near_classes(shared, max(1, (len(shared) - 1) // 10))
    return _finite(diffusion(np.asarray(means_before), np.asarray(means_after), similar))


def _all_but_temperature(result: RunResult) -> tuple[Any, ...]:
    """Return what two students share that differ in their temperature alone."""
    axes = {}
    for axis, value in result.axes.items():
        if axis.split(".")[-1] != "temperature":
            axes[axis] = value
    return result.seed, result.model, result.teacher, result.arm.split("/")[0], axes


def _correct(stored: _Stored) -> dict[str, np.ndarray]:
    """Return whether each test image is classified correctly, by run."""
    correct = {}
    for run_id, predictions in stored.predictions.items():
        predicted = predictions["test.logits"].argmax(1)
        correct[run_id] = (predicted == predictions["test.labels"]).numpy()
    return correct


def _untrained(stored: _Stored) -> dict[str, int]:
    """Count the runs at chance of each arm that has some: they say nothing about the arm's loss."""
    counts: dict[str, int] = {}
    for run in stored.runs:
        predictions = stored.predictions[run.id]
        if run.arm.frozen:
            continue
        if at_chance(predictions["validation.logits"], predictions["validation.labels"]):
            counts[run.arm.name] = counts.get(run.arm.name, 0) + 1
    return counts
