"""The versions of software and hardware that a result depends on."""

import os
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

LIBRARIES = ("distill", "torch", "timm", "accelerate", "numpy")


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and the libraries that affect results, and the hardware."""
    return {
        **{name: version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hardware": _hardware(),
    }


def _hardware() -> str:
    """Return the names of the GPUs; without any, the name of the CPU and its cores."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if gpus:
        return ", ".join(gpus)
    # Count the cores that this process may use; not every system can tell.
    if hasattr(os, "sched_getaffinity"):
        return f"{_cpu_name()}, {len(os.sched_getaffinity(0))} cores"
    return _cpu_name()


def _cpu_name() -> str:
    """Return the CPU's model name on Linux, elsewhere what Python calls the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
