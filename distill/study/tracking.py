"""Report every epoch of every run to accelerate's trackers, such as TensorBoard, W&B or MLflow."""

import re
from typing import Any

import yaml

from distill.storage.run_fingerprint import Run
from distill.study.context import StudyContext
from distill.training.state import TrainState

# In these trackers, steps must never decrease. Each run counts its own epochs, so these trackers
# get no step.
TRACKERS_WITH_ONE_CLOCK = ("wandb", "trackio", "swanlab")


def start_tracking(ctx: StudyContext) -> None:
    """Start the trackers, if there are any, with the study's name and its recipe."""
    trackers = ctx.accelerator.log_with
    if not trackers:
        return
    recipe = yaml.safe_dump(ctx.recipe.source, sort_keys=False, allow_unicode=True)
    names = [str(getattr(name, "value", name)) for name in trackers]
    # TensorBoard would show the settings as a run of their own.
    settings = None if names == ["tensorboard"] else {"recipe": recipe}
    ctx.accelerator.init_trackers(ctx.recipe.name, settings)


def track_epoch(ctx: StudyContext, students: list[TrainState]) -> None:
    """Report the last epoch of the runs that this process trains."""
    if not ctx.accelerator.log_with:
        return
    for student in students:
        ctx.tracked.add(student.run.id)
        _report(ctx, student.run, student.history[-1])


def track_other_processes(ctx: StudyContext, runs: list[Run]) -> None:
    """Report the runs that other processes of this job have trained.

    Only the main process has trackers.
    """
    if not ctx.accelerator.log_with or ctx.processes.is_single:
        return
    tracked_anywhere = set().union(*ctx.processes.gather_objects(ctx.tracked))
    runs_by_id = {run.id: run for run in runs}
    for run_id in tracked_anywhere - ctx.tracked:
        ctx.tracked.add(run_id)
        if run_id in runs_by_id and ctx.store.is_complete(run_id):
            for entry in ctx.store.history(run_id):
                _report(ctx, runs_by_id[run_id], entry)


def _report(ctx: StudyContext, run: Run, entry: dict[str, Any]) -> None:
    """Send one entry of a run's history to every tracker."""
    values = {
        "epoch": entry["epoch"],
        "loss": entry["loss"],
        "lr": entry["lr"],
        "train top1": entry["train"]["top1"],
    }
    values |= {f"validation {name}": value for name, value in entry["validation"].items()}
    values |= {f"term {name}": value for name, value in entry["terms"].items()}
    group = _group_name(run)
    for tracker in ctx.accelerator.trackers:
        step = None if tracker.name in TRACKERS_WITH_ONE_CLOCK else entry["epoch"]
        tracker.log({f"{group}/{name}": value for name, value in values.items()}, step=step)


def _group_name(run: Run) -> str:
    """Return the run's name in characters that all trackers accept."""
    name = re.sub(r"[^\w\-. :/]", "_", run.arm.name.replace("=", ":"))
    return name if run.seed is None else f"{name}/seed {run.seed}"
