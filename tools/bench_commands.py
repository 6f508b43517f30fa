"""Time whole commands: to the first step, all metrics of a million predictions, two processes."""

import os
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import torch

from distill.evaluation.metrics import metrics

ROOT = Path(__file__).parent.parent
CLASSES = 10
MNIST_SIZES = {"train": 60_000, "t10k": 10_000}
LIBRARIES = (
    "accelerate, matplotlib, pydantic, rich.console, rich.progress, safetensors, scipy.optimize, "
    "scipy.stats, timm.data, timm.optim, timm.scheduler, torch, torchvision, typer, yaml"
)
TO_FIRST_STEP = f"""\
import os, sys, time
started = float(sys.argv.pop())
import {LIBRARIES}
libraries = time.time()
from distill import cli
from distill.training import trainer
train_step = trainer.train_step
def stop_after_one_step(*arguments):
    train_step(*arguments)
    print(libraries - started, time.time() - started, flush=True)
    os._exit(0)
trainer.train_step = stop_after_one_step
cli.main()
"""
SPREAD_RECIPE = """\
data: {source: digits}
train: {epochs: 300, batch_size: 128, lr: 0.05}
students: {alone: {model: mlp_800, loss: {cross_entropy: {}}}}
seeds: 8
"""

Seconds = dict[str, list[float]]


def start_up(folder: Path, rounds: int) -> Seconds:
    """Return seconds from the command to the end of the first step of the MNIST study.

    `libraries` is the part that importing libraries takes, `own` the rest.
    """
    _write_noise_as_mnist(folder / "MNIST" / "raw")
    found: Seconds = {"libraries": [], "first step": [], "own": []}
    for number in range(rounds + 1):
        command = [
            *(sys.executable, "-c", TO_FIRST_STEP),
            *("run", str(ROOT / "recipes" / "mnist.yaml")),
            *(f"data.root={folder}", "--out", str(folder / "runs"), str(time.time())),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        libraries, first_step = (float(word) for word in done.stdout.split())
        if number > 0:  # the first round fills the disk's cache
            found["libraries"].append(libraries)
            found["first step"].append(first_step)
            found["own"].append(first_step - libraries)
    return found


def _write_noise_as_mnist(folder: Path) -> None:
    """Write random images in MNIST's file format."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for name, count in MNIST_SIZES.items():
        pixels = torch.randint(0, 256, (count * 784,), generator=generator, dtype=torch.uint8)
        labels = torch.randint(CLASSES, (count,), generator=generator).to(torch.uint8)
        image_header = struct.pack(">4i", 2051, count, 28, 28)
        label_header = struct.pack(">2i", 2049, count)
        image_file = folder / f"{name}-images-idx3-ubyte"
        image_file.write_bytes(image_header + pixels.numpy().tobytes())
        label_file = folder / f"{name}-labels-idx1-ubyte"
        label_file.write_bytes(label_header + labels.numpy().tobytes())


def million_predictions(count: int = 1_000_000) -> Seconds:
    """Return the seconds and the megabytes that all metrics of a million predictions take."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    logits = torch.randn(count, CLASSES, generator=generator)
    teacher_logits = torch.randn(count, CLASSES, generator=generator)
    logits[torch.arange(count), labels] += 2
    student = _predictions(logits, labels)
    teacher = _predictions(teacher_logits, labels)
    few_student = {name: values[:100] for name, values in student.items()}
    few_teacher = {name: values[:100] for name, values in teacher.items()}
    metrics(few_student, few_teacher, 2.0)  # imports are not timed
    megabytes = peak_megabytes()
    started = time.perf_counter()
    metrics(student, teacher, 2.0)
    return {
        "seconds": [time.perf_counter() - started],
        "megabytes": [peak_megabytes() - megabytes],
    }


def _predictions(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {}
    for split in ("test", "validation", "train"):
        found[f"{split}.logits"] = logits
        found[f"{split}.labels"] = labels
    return found


def two_processes(folder: Path, rounds: int) -> Seconds:
    """Time a study of eight cohorts on one and on two processes, with one thread each."""
    recipe = folder / "spread.yaml"
    recipe.write_text(SPREAD_RECIPE)
    found: Seconds = {"one process": [], "two processes": []}
    for number in range(rounds):
        for processes, name in enumerate(found, 1):
            command = [
                *(sys.executable, "-m", "torch.distributed.run"),
                *("--nproc-per-node", str(processes), "-m", "distill", "run", str(recipe)),
                *("train.parallelism=runs", "--out", str(folder / f"{name} {number}")),
            ]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=environment)
            found[name].append(time.perf_counter() - started)
    return found


def peak_megabytes() -> float:
    """Return the peak memory of this process in megabytes; on a GPU, that of the device."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
