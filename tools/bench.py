"""How fast `distill` trains: beside the loop one would write with torchvision, and beside the bare limit.

    python tools/bench.py [--rounds 5] [--only mnist-no million …] [--json FILE]

Three loops, on noise of the data sets' shapes, teach a student by 0.1 cross-entropy + 0.9 kd at T = 4, batch 128:

* plain: torchvision's transforms, a DataLoader with 0 or 2 workers, the teacher in the loop, float32;
* distill: `distill.training.fit`, on resident images, its teacher live or stored;
* bare: the same step on tensors that are ready, normalised, on the device: the limit.

T is the teacher's bare pass and S the student's bare step alone. All are timed in turn in each of the rounds, after one
that does not count; a ratio is the median over the rounds of the ratio within a round. Each pair of networks and
precision has a process of its own, whose peak memory is given. On a GPU the loops are the same and longer.

Then: time from the command to the first step (on noise in MNIST's files), every metric of a million predictions, and a
study of eight cohorts on two processes of one thread each, against one.
"""

import argparse
import json
import os
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from distill import load_recipe
from distill.data.image_dataset import ImageDataset
from distill.data.splits import Split, Splits
from distill.evaluation.metrics import metrics
from distill.evaluation.predict import predict
from distill.storage.run import plan_runs
from distill.storage.run_store import RunStore
from distill.storage.versions import versions
from distill.study.context import StudyContext, make_accelerator
from distill.study.progress import Progress
from distill.training.cached_teacher import CachedTeacher
from distill.training.logit_cache import LogitCache
from distill.training.logit_codec import choose_codec
from distill.training.optim import make_optimizer
from distill.training.state import memory_format_of, start
from distill.training.teacher import Teacher
from distill.training.trainer import fit

ROOT = Path(__file__).parent.parent
BATCH = 128
COHORTS = (1, 2, 4, 6, 8)
CLASSES = 10
MEAN, STD = 0.5, 0.25


@dataclass(frozen=True)
class Pair:
    """A teacher and a student, on images of one shape."""

    teacher: str
    student: str
    shape: tuple[int, int, int]
    shift: int
    flip: bool
    steps: int  # timed in a round, on a CPU
    channels_last: bool  # in half precision


PAIRS = {
    "mnist": Pair("mlp_1200", "mlp_800", (1, 28, 28), 2, False, 80, False),
    "r56_r20": Pair("cifar_resnet56", "cifar_resnet20", (3, 32, 32), 4, True, 3, True),
    "r32x4_r8x4": Pair("cifar_resnet32x4", "cifar_resnet8x4", (3, 32, 32), 4, True, 2, True),
}
RECIPE = """\
data: {{source: synthetic, augment: {{shift: {shift}, flip: {flip}}}, mean: {mean}, std: {std}}}
train: {{epochs: 1, batch_size: {batch}, lr: 0.001, optimizer: sgd, channels_last: {channels_last}}}
teachers: {{teacher: {{model: {teacher}, loss: {{cross_entropy: {{}}}}}}}}
students:
  alone: {{model: {student}, loss: {{cross_entropy: {{}}}}}}
  distilled:
    model: {student}
    teacher: teacher
    loss: {{cross_entropy: {{weight: 0.1}}, kd: {{weight: 0.9, temperature: [4, 1, 2, 3, 5, 6, 7, 8]}}}}
"""


# ---------------------------------------------------------------------------------------------- the three loops


def torchvision_data(pixels: Tensor, labels: Tensor, pair: Pair) -> datasets.VisionDataset:
    """torchvision's MNIST or CIFAR10 itself, holding these images, with the transforms that one would choose."""
    channels, height, _ = pair.shape
    kind = datasets.MNIST if channels == 1 else datasets.CIFAR10
    made = kind.__new__(kind)  # without its files
    made.data = pixels[:, 0] if channels == 1 else pixels.permute(0, 2, 3, 1).numpy()
    made.targets = labels if channels == 1 else labels.tolist()
    made.target_transform, made.transform = None, transforms.Compose([
        transforms.RandomCrop(height, padding=pair.shift),
        *([transforms.RandomHorizontalFlip()] if pair.flip else []),
        transforms.ToTensor(), transforms.Normalize([MEAN] * channels, [STD] * channels)])  # fmt: skip
    return made


def step(
    logits: Tensor, labels: Tensor, answers: Tensor | None, optimizer: torch.optim.Optimizer
) -> Tensor:
    """Loss, backward and update as one writes them; without answers, of cross-entropy alone."""
    loss = F.cross_entropy(logits, labels)
    if answers is not None:
        log_p, log_q = F.log_softmax(logits / 4, 1), F.log_softmax(answers / 4, 1)
        loss = 0.1 * loss + 0.9 * 16 * F.kl_div(
            log_p, log_q, reduction="batchmean", log_target=True
        )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


class Bench:
    """One pair in one precision: what the loops need, made once."""

    def __init__(self, pair: Pair, precision: str, folder: Path) -> None:
        self.pair, self.accelerator, self.folder = pair, make_accelerator(precision), folder
        self.device = self.accelerator.device
        channels, *_ = pair.shape
        self.steps = pair.steps * (20 if self.device.type == "cuda" else 1)
        last = pair.channels_last and precision != "no"
        path = folder / "bench.yaml"
        path.write_text(RECIPE.format(
            shift=pair.shift, flip=str(pair.flip).lower(), mean=[MEAN] * channels, std=[STD] * channels, batch=BATCH,
            teacher=pair.teacher, student=pair.student, channels_last=str(last).lower()))  # fmt: skip
        recipe, count = load_recipe(path), self.steps * BATCH
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(
            0, 256, (count + BATCH, *pair.shape), generator=generator, dtype=torch.uint8
        )
        labels = torch.randint(CLASSES, (len(pixels),), generator=generator)
        images = ImageDataset.from_pixels(pixels, labels, "noise")
        train, rest = (
            Split(images, torch.arange(count)),
            Split(images, torch.arange(count, len(pixels))),
        )
        splits = Splits(recipe.data, train, rest, rest, [str(i) for i in range(CLASSES)], "noise")
        self.ctx = StudyContext(recipe, splits, RunStore(folder), self.accelerator, Progress(False))
        self.runs = {run.arm.name: run for run in plan_runs(recipe, {}, precision)}
        self.students = [run for name, run in self.runs.items() if name.startswith("distilled")]
        self.memory_format_of = memory_format_of(self.students[0].arm.train)
        self.teacher = Teacher(self.network("teacher"), half=self.ctx.half)
        self.plain_teacher = (
            self.network("teacher").eval().to(memory_format=torch.contiguous_format)
        )
        ready = (
            ((pixels[:count].float() / 255 - MEAN) / STD)
            .to(self.device)
            .contiguous(memory_format=self.memory_format_of)
        )
        self.ready, self.labels = ready.split(BATCH), labels[:count].to(self.device).split(BATCH)
        self.answers = [self.teacher(x).logits.float() for x in self.ready]
        self.plain_data = torchvision_data(pixels[:count], labels[:count], pair)

    def network(self, arm: str) -> nn.Module:
        """A new network of an arm, on the device."""
        return self.ctx.build(self.runs[arm].arm, 0).to(
            self.device, memory_format=self.memory_format_of
        )

    def seconds(self, work: Callable[[], Any]) -> float:
        """Of some work on the device, to its end."""
        wait = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        wait()
        began = time.perf_counter()
        work()
        wait()
        return time.perf_counter() - began

    @property
    def count(self) -> int:
        """ImageDataset of a timed piece of work."""
        return self.steps * BATCH

    # Each of these gives images a second.

    def teacher_pass(self) -> float:
        """T: the teacher on ready tensors."""
        return self.count / self.seconds(lambda: [self.teacher(x) for x in self.ready])

    def evaluating(self) -> float:
        """`predict`, the student on the training images."""
        model, splits = self.network("alone"), self.ctx.splits
        augment = self.runs["alone"].arm.augment
        return self.count / self.seconds(
            lambda: predict(model, splits, splits.train, augment, self.device)
        )

    def bare(self, live: bool = False, stored: bool = False) -> float:
        """The step on ready tensors: a student of the live teacher, of ready answers, or alone (S)."""
        model = self.network("alone").train()
        optimizer, _ = make_optimizer(model, self.runs["alone"].arm.train, self.steps, "bench")

        def work() -> None:
            for images, labels, ready in zip(self.ready, self.labels, self.answers, strict=True):
                answers = self.teacher(images).logits.float() if live else ready
                with self.accelerator.autocast():
                    logits = model(images)
                step(logits.float(), labels, answers if live or stored else None, optimizer)

        return self.count / self.seconds(work)

    def plain(self, workers: int) -> float:
        """The loop that one would write, in float32."""
        model = self.network("alone").train().to(memory_format=torch.contiguous_format)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, nesterov=True)
        loader = DataLoader(self.plain_data, BATCH, shuffle=True, num_workers=workers,
                            pin_memory=self.device.type == "cuda",
                            multiprocessing_context="fork" if workers else None)  # fmt: skip
        batches = iter(loader)
        first = next(batches)  # what starting the workers takes is not pluralize

        def work() -> float:
            total = 0.0
            for images, labels in chain([first], batches):
                images, labels = images.to(self.device), labels.to(self.device)
                with torch.no_grad():
                    answers = self.plain_teacher(images)
                total += step(model(images), labels, answers, optimizer).item()
            return total

        return self.count / self.seconds(work)

    def distill(self, students: int, live: bool = False) -> float:
        """`fit` of a cohort on a live or a stored teacher; of no students, of one that is alone."""
        runs, rates, ctx = self.students[:students] or [self.runs["alone"]], [], self.ctx
        teacher = self.runs["teacher"].id
        answers: dict[str, CachedTeacher] = {}
        with ExitStack() as stack:
            if students:
                codec, path = (
                    choose_codec(self.teacher, self.ready[0][:1], "exact"),
                    self.folder / "logits" / "bench",
                )
                store = None if live else LogitCache(path, {}, self.count, codec)
                if store:
                    stack.enter_context(store.writing(1, 1e10))
                answers[teacher] = CachedTeacher(self.teacher, store=store, size=BATCH)
            members = [start(run, self.network(run.arm.name), {teacher: self.teacher}, ctx.splits.class_frequencies,
                             self.steps, self.accelerator, False) for run in runs]  # fmt: skip
            fit(members, answers, ctx.splits, ctx.store, self.accelerator, False,
                lambda epoch, epochs, rate, line: rates.append(rate))  # fmt: skip
        return rates[0]

    def rounds(self, count: int) -> dict[str, list[float]]:
        """ImageDataset a second of everything, in turn, `count` times after once."""
        work = {
            "T": self.teacher_pass, "S": self.bare, "bare live": partial(self.bare, live=True),
            "bare stored": partial(self.bare, stored=True), "plain 0 workers": partial(self.plain, 0),
            "plain 2 workers": partial(self.plain, 2), "distill alone": partial(self.distill, 0),
            "distill stored": partial(self.distill, 1), "evaluation": self.evaluating,
            **{f"distill live {n}": partial(self.distill, n, live=True) for n in COHORTS},
        }  # fmt: skip
        rates: dict[str, list[float]] = {name: [] for name in work}
        for number in range(count + 1):
            for name, function in work.items():
                rate = function()
                if number:
                    rates[name].append(rate)
        return rates


def ratios(rates: dict[str, list[float]]) -> dict[str, list[float]]:
    """What the bars are about, of each round."""
    each = {name: torch.tensor(values, dtype=torch.float64) for name, values in rates.items()}
    plain = torch.maximum(each["plain 0 workers"], each["plain 2 workers"])
    teacher, student = 1 / each["T"], 1 / each["S"]  # seconds an image
    found = {
        "live / bare": each["distill live 1"] / each["bare live"],
        "stored / bare": each["distill stored"] / each["bare stored"],
        "live / plain": each["distill live 1"] / plain,
        "stored / plain": each["distill stored"] / plain,
        "cost of stored / alone": each["distill alone"] / each["distill stored"],
        "gain of stored / ideal": each["distill stored"]
        / each["distill live 1"]
        / ((teacher + student) / student),
        "cost of six / (T + 6 S)": 1 / each["distill live 6"] / (teacher + 6 * student),
        "cost of six / six alone": each["distill live 1"] / each["distill live 6"] / 6,
    }
    return {name: values.tolist() for name, values in found.items()}


BARS = {  # (pair, precision): the ratio, at least or at most
    ("mnist", "no"): {
        "live / bare": (">=", 0.95),
        "live / plain": (">=", 2.3),
        "stored / plain": (">=", 4.0),
    },
    ("mnist", "bf16"): {"live / plain": (">=", 3.2), "stored / plain": (">=", 5.5)},
    ("r56_r20", "bf16"): {"live / plain": (">=", 1.8), "stored / plain": (">=", 3.0)},
    ("r32x4_r8x4", "bf16"): {"live / plain": (">=", 1.9), "stored / plain": (">=", 4.5)},
}
COMMON = {"cost of stored / alone": ("<=", 1.05), "gain of stored / ideal": (">=", 0.93),
          "cost of six / (T + 6 S)": ("<=", 1.05)}  # fmt: skip


# ------------------------------------------------------------------------------------------------ whole commands

LIBRARIES = (
    "accelerate, matplotlib, pydantic, rich.console, rich.progress, safetensors, scipy.optimize, scipy.stats, "
    "timm.data, timm.optim, timm.scheduler, torch, torchvision, typer, yaml"
)
TO_FIRST_STEP = f"""\
import os, sys, time
began = float(sys.argv.pop())
import {LIBRARIES}
libraries = time.time()
from distill import cli, training
step = training._step
def stop(*arguments):
    step(*arguments)
    print(libraries - began, time.time() - began, flush=True)
    os._exit(0)
training._step = stop
cli.main()
"""


def starting(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds from the command to the end of the first step of the MNIST study, and to its libraries' import."""
    raw, generator = folder / "MNIST" / "raw", torch.Generator().manual_seed(0)
    raw.mkdir(parents=True)
    for name, count in (("train", 60_000), ("t10k", 10_000)):
        pixels = torch.randint(
            0, 256, (count * 784,), generator=generator, dtype=torch.uint8
        ).numpy()
        labels = torch.randint(CLASSES, (count,), generator=generator).to(torch.uint8).numpy()
        (raw / f"{name}-images-idx3-ubyte").write_bytes(
            struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes()
        )
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2i", 2049, count) + labels.tobytes()
        )
    found: dict[str, list[float]] = {"libraries": [], "first step": [], "own": []}
    for number in range(rounds + 1):
        command = [sys.executable, "-c", TO_FIRST_STEP, "run", str(ROOT / "recipes" / "mnist.yaml"),
                   f"data.root={folder}", "--out", str(folder / "runs"), str(time.time())]  # fmt: skip
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        libraries, first = map(float, answer.stdout.split())
        for name, value in (
            ("libraries", libraries),
            ("first step", first),
            ("own", first - libraries),
        ):
            found[name] += [value] if number else []
    return found


def million(count: int = 1_000_000) -> dict[str, list[float]]:
    """Seconds that every metric of so many predictions takes, and megabytes above what the predictions take."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    logits, theirs = (torch.randn(count, CLASSES, generator=generator) for _ in range(2))
    logits[torch.arange(count), labels] += 2
    ours, teacher = ({f"{split}.{name}": value for split in ("test", "validation", "train")
                      for name, value in (("logits", z), ("labels", labels))} for z in (logits, theirs))  # fmt: skip
    metrics({k: v[:100] for k, v in ours.items()}, {k: v[:100] for k, v in teacher.items()}, 2.0)
    before, began = peak_megabytes(), time.perf_counter()
    metrics(ours, teacher, 2.0)
    return {"seconds": [time.perf_counter() - began], "megabytes": [peak_megabytes() - before]}


def spreading(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of a study of eight cohorts, on one process and on two, of one thread each."""
    recipe = folder / "spread.yaml"
    recipe.write_text("data: {source: digits}\ntrain: {epochs: 300, batch_size: 128, lr: 0.05}\n"
                      "students: {alone: {model: mlp_800, loss: {cross_entropy: {}}}}\nseeds: 8\n")  # fmt: skip
    found: dict[str, list[float]] = {"one process": [], "two processes": []}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
    for number in range(rounds):
        for processes, name in enumerate(found, 1):
            command = [*launch, str(processes), "-m", "distill", "run", str(recipe), "train.parallelism=runs",
                       "--out", str(folder / f"{name} {number}")]  # fmt: skip
            began = time.perf_counter()
            subprocess.run(
                command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
            found[name].append(time.perf_counter() - began)
    return found


def peak_megabytes() -> float:
    """Most memory that this process has held; the device's on a GPU."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


# ---------------------------------------------------------------------------------------------------- the report

JOBS = [
    *(f"{pair}-{precision}" for precision in ("no", "bf16") for pair in PAIRS),
    "start",
    "million",
    "spread",
]


def measure(job: str, rounds: int) -> dict[str, Any]:
    """One job, in this process: what it measured, and the ratios that bars are about, each round by round."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if job == "start":
            found = starting(folder, rounds)
            return {
                "measured": found,
                "ratios": {},
                "bars": {"first step": ("<=", 8.0), "own": ("<=", 2.0)},
            }
        if job == "million":
            return {
                "measured": million(),
                "ratios": {},
                "bars": {"seconds": ("<=", 20.0), "megabytes": ("<=", 200.0)},
            }
        if job == "spread":
            found = spreading(folder, 2)
            parts = zip(found["two processes"], found["one process"], strict=True)
            return {"measured": found, "ratios": {"two / one": [two / one for two, one in parts]},
                    "bars": {"two / one": ("<=", 0.6)}}  # fmt: skip
        pair, precision = job.split("-")
        found = Bench(PAIRS[pair], precision, folder).rounds(rounds)
        return {"measured": found, "ratios": ratios(found), "peak_megabytes": peak_megabytes(),
                "bars": COMMON | BARS.get((pair, precision), {})}  # fmt: skip


def show(job: str, result: dict[str, Any]) -> None:
    """A table of one job: medians, with their range."""
    peak = f", peak memory {result['peak_megabytes']:,.0f} MB" if "peak_megabytes" in result else ""
    print(f"\n{job}{' (images/s)' if peak else ''}{peak}")
    for name, values in {**result["measured"], **result["ratios"]}.items():
        ratio = name in result["ratios"] or not peak
        line = f"  {name:26}" + "".join(f"{v:12,.3f}" if ratio else f"{v:12,.0f}" for v in (
            statistics.median(values), min(values), max(values)))  # fmt: skip
        if name in result["bars"]:
            sign, bar = result["bars"][name]
            holds = (
                statistics.median(values) >= bar
                if sign == ">="
                else statistics.median(values) <= bar
            )
            line += f"   {sign} {bar:g}{'' if holds else '   MISSES'}"
        print(line, flush=True)


def main() -> None:
    """Run every job in a process of its own, print its table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument("--json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments.rounds)))
        return
    results = {
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "rounds": arguments.rounds,
        "jobs": {},
    }
    print(f"{results['versions']['hardware']}, torch {torch.__version__}: median, lowest, highest")
    for job in arguments.only:
        command = [sys.executable, __file__, "--child", job, "--rounds", str(arguments.rounds)]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results["jobs"][job] = json.loads(answer.stdout.splitlines()[-1])
        show(job, results["jobs"][job])
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
