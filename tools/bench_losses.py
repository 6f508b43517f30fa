"""What each term costs, forward and backward, against the plainest code that torch has for the like.

    python tools/bench_losses.py [--rounds 7] [--json FILE]

Label and margin terms stand beside `F.cross_entropy`, terms on a teacher beside a hand-written kd of two
log-softmaxes, dkd beside kd. Rounds are interleaved: in each, every term and its yardstick run in turn; the
ratio is the median over the rounds, with its range. Memory is the peak above what the inputs take: on the CPU
the largest sum of live tensors that autograd and the term make, as torch's profiler counts them.

glibc gives memory back to the system after each step and then pays for its pages again, which doubles some of the
times at random; the tool starts itself anew with thresholds that keep it (MALLOC_TRIM_THRESHOLD_, unless it is set).
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch: its profiler talks

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from distill.losses import LOSSES, OnlineTargets, Outputs
from distill.recipe.loss_terms import needs_teacher

SHAPES = ((4096, 10), (256, 1000), (32, 21843))  # examples, classes
DEPTH = 64  # of the penultimate features
LIMITS = {"cross_entropy": 1.1, "cross_entropy over others": 1.1, "kd": 1.2, "dkd": 2.0}
SETTINGS = {
    "cross_entropy": {"smoothing": 0.1},
    "cross_entropy over others": {"smoothing": 0.1, "smooth_over": "wrong"},
}
SCALES = {"am_softmax": 16.0, "arcface": 16.0, "a_softmax": 0.0}
SKIPPED = {"hint", "rkd", "attention_transfer", "l1_penalty", "l2_penalty"}  # not on logits


def inputs(
    size: int, classes: int, device: torch.device
) -> tuple[Outputs, Tensor, Outputs, OnlineTargets]:
    """What terms are called with, and the targets that one of them owns."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(size, DEPTH, generator=generator).to(device)
    templates = torch.randn(classes, DEPTH, generator=generator).to(device)
    logits = (16 * F.normalize(features) @ F.normalize(templates).T).requires_grad_()
    labels = torch.randint(classes, (size,), generator=generator).to(device)
    teacher = (3 * torch.randn(size, classes, generator=generator)).to(device)
    targets = OnlineTargets(classes).to(device) if classes <= 1000 else None  # else 6 GB
    return (Outputs(logits, features.requires_grad_(), templates.requires_grad_()), labels,
            Outputs(teacher), targets)  # fmt: skip


def by_hand(student: Outputs, labels: Tensor, teacher: Outputs) -> Tensor:
    """kd as one writes it: two log-softmaxes and a divergence."""
    log_p = F.log_softmax(student.logits / 4, 1)
    return (
        F.kl_div(
            log_p, F.log_softmax(teacher.logits / 4, 1), log_target=True, reduction="batchmean"
        )
        * 16
    )


def step(loss: Callable[[], Tensor], leaves: list[Tensor]) -> None:
    """Forward and backward of the batch's mean."""
    for leaf in leaves:
        leaf.grad = None
    loss().mean().backward()


def seconds(loss: Callable[[], Tensor], leaves: list[Tensor], repeats: int) -> float:
    """Of one step: the median of `repeats` on the CPU, their mean on a device that works asynchronously."""
    if leaves[0].device.type == "cpu":
        taken = []
        for _ in range(repeats):
            began = time.perf_counter()
            step(loss, leaves)
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        step(loss, leaves)
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


def peak_bytes(loss: Callable[[], Tensor], leaves: list[Tensor]) -> int:
    """Largest sum of tensors alive at once during a step, above what was alive before."""
    if leaves[0].device.type == "cuda":
        step(loss, leaves)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(loss, leaves)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step(loss, leaves)
    alive = peak = 0  # some profiles are empty, so the largest of three counts
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def measure(size: int, classes: int, device: torch.device, rounds: int) -> list[dict]:
    """A row for every term at one shape."""
    student, labels, teacher, targets = inputs(size, classes, device)
    leaves = [student.logits, student.features, student.templates]
    functions: dict[str, Callable[[], Tensor]] = {
        "torch": lambda: F.cross_entropy(student.logits, labels, label_smoothing=0.1),
        "by hand": lambda: by_hand(student, labels, teacher),
    }
    for name in ("cross_entropy over others", *LOSSES):
        term = name.split()[0]
        if term in SKIPPED or (term == "online_smoothing" and targets is None):
            continue
        keywords = SETTINGS.get(name, {}) | (
            {"part": targets} if term == "online_smoothing" else {}
        )
        ours = student._replace(scale=SCALES.get(term))
        functions[name] = lambda term=term, ours=ours, keywords=keywords: LOSSES[term](
            ours, labels, teacher, **keywords
        )
    once = seconds(functions["torch"], leaves, 3)
    repeats = max(3, min(200, int(0.05 / once)))
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        seconds(function, leaves, 2)
    for _ in range(rounds):
        for name, function in functions.items():
            taken[name].append(seconds(function, leaves, repeats))
    rows = []
    for name in functions:
        if name in ("torch", "by hand"):
            continue
        yardstick = (
            "kd"
            if name == "dkd"
            else "by hand"
            if needs_teacher(LOSSES[name.split()[0]])
            else "torch"
        )
        ratios = [a / b for a, b in zip(taken[name], taken[yardstick], strict=True)]
        limit = LIMITS.get(name, None if yardstick == "by hand" else 2.0)
        ratio = statistics.median(ratios)
        rows.append({"term": name, "examples": size, "classes": classes, "milliseconds": 1e3 * statistics.median(
            taken[name]), "against": yardstick, "ratio": ratio, "lowest": min(ratios), "highest": max(ratios),
            "limit": limit, "misses": limit is not None and ratio > limit,
            "peak_megabytes": max(peak_bytes(functions[name], leaves) for _ in range(3)) / 1e6})  # fmt: skip
    return rows


def main() -> None:
    """Measure every shape, print a table a shape, and write JSON if asked to."""
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        kept = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | kept)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(
        f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.rounds} rounds"
    )
    rows = []
    for size, classes in SHAPES:
        found = measure(size, classes, device, arguments.rounds)
        rows += found
        print(f"\n{size} × {classes}")
        print(f"{'term':28}{'ms':>9}{'ratio':>8}  {'range':13}{'limit':>6}{'peak MB':>9}  against")
        for row in found:
            limit = f"{row['limit']:.1f}" if row["limit"] else ""
            print(f"{row['term']:28}{row['milliseconds']:9.3f}{row['ratio']:8.2f}  {row['lowest']:.2f} to "
                  f"{row['highest']:<5.2f}{limit:>6}{row['peak_megabytes']:9.2f}  {row['against']}"
                  f"{'   MISSES' if row['misses'] else ''}")  # fmt: skip
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(
                {"device": str(device), "torch": torch.__version__, "rows": rows}, file, indent=1
            )


if __name__ == "__main__":
    main()
