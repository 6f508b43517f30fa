"""Every epoch of every run, told to the trackers that accelerate knows (TensorBoard, W&B, MLflow, Trackio …)."""

from typing import Any

import yaml

from distill.members import Member
from distill.runs import Run
from distill.workplace import Workplace


def start_tracking(place: Workplace) -> None:
    """Name the study and its recipe to the trackers, if there are any."""
    if place.accelerator.log_with:
        text = yaml.safe_dump(place.recipe.source, sort_keys=False, allow_unicode=True)
        names = [str(getattr(name, "value", name)) for name in place.accelerator.log_with]
        settings = None if names == ["tensorboard"] else {"recipe": text}  # which would file them as a run of their own
        place.accelerator.init_trackers(place.recipe.name, settings)


def tracked(place: Workplace, members: list[Member], log: Any) -> Any:
    """`log`, as `distill.training.fit` calls it after each epoch, that also tells the trackers."""
    if not place.accelerator.log_with:
        return log

    def both(epoch: int, epochs: int, rate: float, line: str) -> None:
        log(epoch, epochs, rate, line)
        for member in members:
            if not member.failure:
                place.told.add(member.run.id)
                _tell(place, member.run, member.history[-1], {"seconds": member.seconds})

    return both


def track_others(place: Workplace, runs: list[Run]) -> None:
    """Tell what other processes have trained, which have no trackers of their own, once it is stored."""
    if place.accelerator.log_with and place.accelerator.num_processes > 1 and not place.claims:
        for run in runs:
            if run.id not in place.told and place.store.complete(run.id):
                for line in place.store.history(run.id):
                    _tell(place, run, line, {})


def _tell(place: Workplace, run: Run, line: dict[str, Any], more: dict[str, float]) -> None:
    values = {"loss": line["loss"], "lr": line["lr"], "train top1": line["train"]["top1"],
              **{f"validation {name}": value for name, value in line["validation"].items()},
              **{f"term {name}": value for name, value in line["terms"].items()}, **more}
    place.accelerator.log({f"{run.title}/{name}": value for name, value in values.items()}, step=line["epoch"])
