"""Measure the time and memory of each loss, forward and backward, against plain PyTorch code.

    python tools/bench_losses.py [--rounds 7] [--json FILE]

Losses on labels are compared with `F.cross_entropy`, losses with a teacher with a hand-written kd
of two log-softmaxes, and dkd with kd. Each round times every loss and every reference once, in
turn. The ratio is the median over the rounds of the ratio within a round, with its range. Memory is
the peak during a step, without the inputs; on the CPU it is the largest sum of live tensors in
PyTorch's profile.

glibc returns memory to the system after each step and must then request it again, which doubles
some of the times at random. So the tool restarts itself with thresholds that make glibc keep the
memory (MALLOC_TRIM_THRESHOLD_), unless these are set already.
"""

import argparse
import inspect
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

# Set this before torch is imported, or its profiler prints messages.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from distill.losses import LOSSES, OnlineTargets
from distill.recipe.loss_terms import input_names, needs_teacher

Loss = Callable[[], Tensor]

SHAPES = ((4096, 10), (256, 1000), (32, 21843))
"""Numbers of examples and classes."""

NUM_FEATURES = 64
AVAILABLE_INPUTS = {"logits", "labels", "features", "templates", "teacher_logits"}
"""Inputs that this tool can make; losses that need other inputs are not measured."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "cross_entropy": ("cross_entropy", {"smoothing": 0.1}),
    "cross_entropy over wrong": ("cross_entropy", {"smoothing": 0.1, "smooth_over": "wrong"}),
}
"""Losses with settings, as row: (loss, settings). All other losses have their defaults."""

LIMITS = {"cross_entropy": 1.1, "cross_entropy over wrong": 1.1, "kd": 1.2, "dkd": 2.0}
"""Largest accepted ratios; 2 for other losses without a teacher, no limit for others with one."""

LOGIT_SCALE = 16.0
"""s of the logits s·cos θ, on which AM-Softmax and ArcFace are defined."""

LOGIT_SCALES = {"am_softmax": LOGIT_SCALE, "arcface": LOGIT_SCALE, "a_softmax": 0.0}

MALLOC_SETTINGS = {
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
}


@dataclass
class Row:
    """The cost of one loss at one shape.

    Attributes:
        term: name of the loss.
        examples: size of the batch.
        classes: number of classes.
        milliseconds: median of a step, forward and backward.
        against: name of the reference.
        ratio: median of the loss's time over the reference's.
        lowest: smallest ratio of a round.
        highest: largest ratio of a round.
        limit: largest accepted ratio, or None.
        misses: whether the ratio is above the limit.
        peak_megabytes: memory during a step, without the inputs.
    """

    term: str
    examples: int
    classes: int
    milliseconds: float
    against: str
    ratio: float
    lowest: float
    highest: float
    limit: float | None
    misses: bool
    peak_megabytes: float


def make_inputs(size: int, num_classes: int, device: torch.device) -> dict[str, Any]:
    """Return arguments for the losses, by the names of their parameters, on a device."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(size, NUM_FEATURES, generator=generator)
    templates = torch.randn(num_classes, NUM_FEATURES, generator=generator)
    logits = LOGIT_SCALE * F.normalize(features) @ F.normalize(templates).T
    labels = torch.randint(num_classes, (size,), generator=generator)
    teacher_logits = 3 * torch.randn(size, num_classes, generator=generator)
    inputs = {
        "logits": logits.to(device).requires_grad_(),
        "labels": labels.to(device),
        "features": features.to(device).requires_grad_(),
        "templates": templates.to(device).requires_grad_(),
        "teacher_logits": teacher_logits.to(device),
    }
    # With more classes, its matrix of class by class would take gigabytes.
    if num_classes <= 1000:
        inputs["targets"] = OnlineTargets(num_classes).to(device)
    return inputs


def plain_kd(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return kd at temperature 4 in plain PyTorch: two log-softmaxes and a divergence."""
    log_p = F.log_softmax(logits / 4, 1)
    teacher_log_p = F.log_softmax(teacher_logits / 4, 1)
    return 16 * F.kl_div(log_p, teacher_log_p, log_target=True, reduction="batchmean")


def losses_to_measure(inputs: dict[str, Any]) -> dict[str, Loss]:
    """Return the references and all losses that can be computed from these inputs, by row."""
    logits = inputs["logits"]
    labels = inputs["labels"]
    teacher_logits = inputs["teacher_logits"]
    measured: dict[str, Loss] = {
        "torch": partial(F.cross_entropy, logits, labels, label_smoothing=0.1),
        "by hand": partial(plain_kd, logits, teacher_logits),
    }
    rows = VARIANTS | {name: (name, {}) for name in LOSSES if name not in VARIANTS}
    for row, (name, settings) in rows.items():
        function = LOSSES[name]
        if not set(input_names(function)) <= AVAILABLE_INPUTS:
            continue
        available = inputs | {"logit_scale": LOGIT_SCALES.get(name)}
        parameters = inspect.signature(function).parameters
        if "targets" in parameters and "targets" not in inputs:
            continue
        arguments = {key: value for key, value in available.items() if key in parameters}
        measured[row] = partial(function, **arguments, **settings)
    return measured


def reference_of(row: str) -> str:
    """Return the name of the row that a loss is compared with."""
    if row == "dkd":
        return "kd"
    name = VARIANTS[row][0] if row in VARIANTS else row
    return "by hand" if needs_teacher(LOSSES[name]) else "torch"


def step(loss: Loss, leaves: list[Tensor]) -> None:
    """Compute the mean of a loss over the batch, and its gradients."""
    for leaf in leaves:
        leaf.grad = None
    loss().mean().backward()


def seconds_per_step(loss: Loss, leaves: list[Tensor], repeats: int) -> float:
    """Return the seconds of one step: the median of `repeats` on the CPU, the mean on a GPU."""
    if leaves[0].device.type == "cpu":
        taken = []
        for _ in range(repeats):
            began = time.perf_counter()
            step(loss, leaves)
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)
    # A GPU runs asynchronously, so single steps cannot be timed without slowing them down.
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        step(loss, leaves)
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


def peak_bytes(loss: Loss, leaves: list[Tensor]) -> int:
    """Return the peak memory of a step, without the memory that was in use before."""
    if leaves[0].device.type == "cuda":
        step(loss, leaves)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(loss, leaves)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step(loss, leaves)
    events = recorded.profiler.kineto_results.events()
    alive = 0
    peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            # Negative where memory is freed.
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def measure(size: int, num_classes: int, device: torch.device, rounds: int) -> list[Row]:
    """Return a row for every loss at one shape."""
    inputs = make_inputs(size, num_classes, device)
    leaves = [inputs[name] for name in ("logits", "features", "templates")]
    losses = losses_to_measure(inputs)
    seconds = time_losses(losses, leaves, rounds)
    rows = []
    for name, loss in losses.items():
        if name in ("torch", "by hand"):
            continue
        against = reference_of(name)
        ratios = [a / b for a, b in zip(seconds[name], seconds[against], strict=True)]
        ratio = statistics.median(ratios)
        limit = LIMITS.get(name, None if against == "by hand" else 2.0)
        # Some of the profiles are empty, so use the largest of three.
        peak = max(peak_bytes(loss, leaves) for _ in range(3))
        row = Row(
            term=name,
            examples=size,
            classes=num_classes,
            milliseconds=1e3 * statistics.median(seconds[name]),
            against=against,
            ratio=ratio,
            lowest=min(ratios),
            highest=max(ratios),
            limit=limit,
            misses=limit is not None and ratio > limit,
            peak_megabytes=peak / 1e6,
        )
        rows.append(row)
    return rows


def time_losses(
    losses: dict[str, Loss], leaves: list[Tensor], rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of a step of every loss, one number for each round."""
    # Run each loss for about 0.05 seconds per round.
    repeats = int(0.05 / seconds_per_step(losses["torch"], leaves, 3))
    repeats = max(3, min(200, repeats))
    # Warm up.
    for loss in losses.values():
        seconds_per_step(loss, leaves, 2)
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(rounds):
        for name, loss in losses.items():
            seconds[name].append(seconds_per_step(loss, leaves, repeats))
    return seconds


def print_rows(rows: list[Row]) -> None:
    """Print the table of one shape."""
    print(f"\n{rows[0].examples} × {rows[0].classes}")
    print(f"{'loss':28}{'ms':>9}{'ratio':>8}  {'range':13}{'limit':>6}{'peak MB':>9}  against")
    for row in rows:
        limit = f"{row.limit:.1f}" if row.limit else ""
        print(
            f"{row.term:28}{row.milliseconds:9.3f}{row.ratio:8.2f}  "
            f"{row.lowest:.2f} to {row.highest:<5.2f}{limit:>6}{row.peak_megabytes:9.2f}  "
            f"{row.against}{'   MISSES' if row.misses else ''}"
        )


def main() -> None:
    """Measure every shape and print a table for each; with --json, write a file as well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | MALLOC_SETTINGS)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(
        f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{arguments.rounds} rounds"
    )
    rows: list[Row] = []
    for size, num_classes in SHAPES:
        rows_of_shape = measure(size, num_classes, device, arguments.rounds)
        print_rows(rows_of_shape)
        rows += rows_of_shape
    if arguments.json:
        document = {
            "device": str(device),
            "torch": torch.__version__,
            "rows": [asdict(row) for row in rows],
        }
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)


if __name__ == "__main__":
    main()
