"""Create the accelerate `Accelerator` of this process, and check the launcher's CPU threads."""

import os
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, SharedDict
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from distill.errors import UserError, suggest

# Whole runs are trained between two barriers, so a process may wait for others for days.
BARRIER_TIMEOUT = timedelta(days=7)


def make_accelerator(
    precision: str | None, trackers: Iterable[str] = (), out: Path | None = None
) -> Accelerator:
    """Create the accelerator of this process: device, precision and other processes.

    Args:
        precision: "no", "bf16" or "fp16"; None uses the launcher's setting.
        trackers: names of accelerate's trackers, which log the metrics of every epoch.
        out: folder for trackers that write files.

    Raises:
        UserError: if a tracker is unknown or its package is not installed.
    """
    trackers = list(trackers)
    _check_trackers(trackers)
    _forget_another_precision(precision)
    return Accelerator(
        cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        mixed_precision=precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=BARRIER_TIMEOUT)],
        log_with=trackers or None,
        project_dir=out,
    )


def _check_trackers(trackers: list[str]) -> None:
    installed = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(
                f"--track {name}: unknown tracker; {suggest(name, LOGGER_TYPE_TO_CLASS)}"
            )
        if name not in installed:
            package = name.replace("_", "-")
            raise UserError(
                f"--track {name}: its package is not installed; run `pip install {package}`"
            )


def _forget_another_precision(precision: str | None) -> None:
    """Clear accelerate's shared state if it holds another precision.

    accelerate allows one precision per process. It refuses a second one, or silently keeps the
    first. Existing accelerators keep their own reference to the old state.
    """
    launcher_precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    wanted = precision or launcher_precision
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision.lower() != wanted:
        AcceleratorState._shared_state = SharedDict()


def idle_core_warnings(accelerator: Accelerator) -> list[str]:
    """Return a warning if the launcher leaves CPU cores idle, else an empty list.

    accelerate's launcher gives each process one thread unless OMP_NUM_THREADS is set.
    """
    launched = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & os.environ.keys()
    if accelerator.device.type != "cpu" or not launched or torch.get_num_threads() > 1:
        return []
    share = available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if share < 2:
        return []
    return [
        f"the launcher gave this process 1 CPU thread, but its share of this machine is {share} "
        f"cores: write OMP_NUM_THREADS={share} before the command to use all of them"
    ]


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
