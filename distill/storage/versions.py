"""A run: one network trained at one seed, its fingerprint, and its folder.

`runs/models/<id>/` is a timm folder (`config.json`, `model.safetensors`) with `run.json`, `history.jsonl`
and `predictions.safetensors`; states on the way are `epoch-N.safetensors`. It is written aside and renamed, so it is
complete or absent. While a run trains, `runs/models/<id>.partial` is its last checkpoint, one safetensors file that is
replaced whole, and `<id>.epochs` has its states so far.
"""

import os
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch


@cache
def versions() -> dict[str, str]:
    """Of the libraries that decide a result, and the hardware at hand."""
    libraries = {
        name: version(name) for name in ("distill", "torch", "timm", "accelerate", "numpy")
    }
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        **libraries,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hardware": ", ".join(gpus) or f"{_cpu_name()}, {len(os.sched_getaffinity(0))} cores"
        if hasattr(os, "sched_getaffinity")
        else _cpu_name(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
