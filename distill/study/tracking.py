"""Every epoch of every run, told to the trackers that accelerate knows (TensorBoard, W&B, MLflow, Trackio …)."""

import re
from collections.abc import Callable
from typing import Any

import yaml
from accelerate.utils import gather_object

from distill.storage.run import Run
from distill.study.context import StudyContext
from distill.training.state import TrainState

Log = Callable[[int, int, float, str], None]  # as `distill.training.fit` calls it after each epoch
ONE_CLOCK = (
    "wandb",
    "trackio",
    "swanlab",
)  # their steps may only grow, and each run has epochs of its own


def start_tracking(ctx: StudyContext) -> None:
    """Name the study and its recipe to the trackers, if there are any."""
    if ctx.accelerator.log_with:
        text = yaml.safe_dump(ctx.recipe.source, sort_keys=False, allow_unicode=True)
        names = [str(getattr(name, "value", name)) for name in ctx.accelerator.log_with]
        settings = (
            None if names == ["tensorboard"] else {"recipe": text}
        )  # which would file them as a run of their own
        ctx.accelerator.init_trackers(ctx.recipe.name, settings)


def with_tracking(ctx: StudyContext, members: list[TrainState], log: Log) -> Log:
    """`log`, and the trackers are told too."""
    if not ctx.accelerator.log_with:
        return log

    def both(epoch: int, epochs: int, rate: float, line: str) -> None:
        log(epoch, epochs, rate, line)
        for member in members:
            if not member.failure:
                ctx.tracked.add(member.run.id)
                _tell(ctx, member.run, member.history[-1])

    return both


def track_other_processes(ctx: StudyContext, runs: list[Run]) -> None:
    """Tell what other processes of this job have trained, which have no trackers of their own, once it is stored."""
    if not ctx.accelerator.log_with or ctx.accelerator.num_processes == 1:
        return
    for run_id in set(gather_object(list(ctx.tracked))) - ctx.tracked:
        ctx.tracked.add(run_id)
        run = next((run for run in runs if run.id == run_id), None)
        for line in ctx.store.history(run_id) if run and ctx.store.is_complete(run_id) else ():
            _tell(ctx, run, line)


def _tell(ctx: StudyContext, run: Run, line: dict[str, Any]) -> None:
    values = {
        "epoch": line["epoch"],
        "loss": line["loss"],
        "lr": line["lr"],
        "train top1": line["train"]["top1"],
        **{f"validation {name}": value for name, value in line["validation"].items()},
        **{f"term {name}": value for name, value in line["terms"].items()},
    }
    seed = "" if run.seed is None else f"/seed {run.seed}"
    group = (
        re.sub(r"[^\w\-. :/]", "_", run.arm.name.replace("=", ":")) + seed
    )  # what all trackers take as a name
    for tracker in ctx.accelerator.trackers:
        step = None if tracker.name in ONE_CLOCK else line["epoch"]
        tracker.log({f"{group}/{name}": value for name, value in values.items()}, step=step)
