"""How fast `distill` trains: beside the loop one would write with torchvision, and beside the bare limit.

    python tools/bench.py [--rounds 5] [--only mnist start …] [--json FILE]

Three loops, on noise of the data sets' shapes, teach a student by 0.1 cross-entropy + 0.9 kd at T = 4, batch 128:

* plain: torchvision's transforms, a DataLoader with 0 or 2 workers, the teacher in the loop, float32;
* distill: `distill.training.fit`, on resident images, its teacher live or stored;
* bare: the same step on tensors that are ready, normalised, on the device: the limit.

T is the teacher's bare pass and S the student's bare step alone. All are timed in turn in each of the rounds, after one
that does not count; a ratio is the median over the rounds of the ratio within a round. Each pair of networks and
precision has a process of its own, whose peak memory is given. On a GPU the loops are the same and longer.

Then: time from the command to the first step, every metric of a million predictions, and a study of eight cohorts on
two processes against one.
"""

import argparse
import json
import os
import resource
import statistics
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
from distill.data.readers import Images
from distill.data.sources import Split, Splits
from distill.evaluation import metrics, predict
from distill.progress import Progress
from distill.runs import Store, plan_runs, versions
from distill.teachers import Answers, LogitStore, Teacher
from distill.training import fit, layout, make_optimizer, start
from distill.workplace import Workplace, make_accelerator

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
    "r56_r20": Pair("cifar_resnet56", "cifar_resnet20", (3, 32, 32), 4, True, 5, True),
    "r32x4_r8x4": Pair("cifar_resnet32x4", "cifar_resnet8x4", (3, 32, 32), 4, True, 4, True),
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


def step(logits: Tensor, labels: Tensor, answers: Tensor | None, optimizer: torch.optim.Optimizer) -> Tensor:
    """Loss, backward and update as one writes them; without answers, of cross-entropy alone."""
    loss = F.cross_entropy(logits, labels)
    if answers is not None:
        log_p, log_q = F.log_softmax(logits / 4, 1), F.log_softmax(answers / 4, 1)
        loss = 0.1 * loss + 0.9 * 16 * F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
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
        pixels = torch.randint(0, 256, (count + BATCH, *pair.shape), generator=generator, dtype=torch.uint8)
        labels = torch.randint(CLASSES, (len(pixels),), generator=generator)
        images = Images(labels, None, str, channels, pair.shape[1:], pixels)
        train, rest = Split(images, torch.arange(count)), Split(images, torch.arange(count, len(pixels)))
        splits = Splits(recipe.data, train, rest, rest, [str(i) for i in range(CLASSES)], "noise")
        self.place = Workplace(recipe, splits, Store(folder), self.accelerator, Progress(False))
        self.runs = {run.arm.name: run for run in plan_runs(recipe, {}, precision)}
        self.students = [run for name, run in self.runs.items() if name.startswith("distilled")]
        self.layout = layout(self.students[0].arm.train)
        self.half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self.teacher = Teacher(self.network("teacher"), half=self.half)
        self.plain_teacher = self.network("teacher").eval().to(memory_format=torch.contiguous_format)
        ready = ((pixels[:count].float() / 255 - MEAN) / STD).to(self.device).contiguous(memory_format=self.layout)
        self.ready, self.labels = ready.split(BATCH), labels[:count].to(self.device).split(BATCH)
        self.answers = [self.teacher(x).logits.float() for x in self.ready]
        self.plain_data = torchvision_data(pixels[:count], labels[:count], pair)

    def network(self, arm: str) -> nn.Module:
        """A new network of an arm, on the device."""
        return self.place.build(self.runs[arm].arm, 0).to(self.device, memory_format=self.layout)

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
        """Images of a timed piece of work."""
        return self.steps * BATCH

    # Each of these gives images a second.

    def teacher_pass(self) -> float:
        """T: the teacher on ready tensors."""
        return self.count / self.seconds(lambda: [self.teacher(x) for x in self.ready])

    def evaluating(self) -> float:
        """`predict`, the student on the training images."""
        model, splits = self.network("alone"), self.place.splits
        augment = self.runs["alone"].arm.augment
        return self.count / self.seconds(lambda: predict(model, splits, splits.train, augment, self.device))

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
        first = next(batches)  # what starting the workers takes is not counted

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
        runs, rates, place = self.students[:students] or [self.runs["alone"]], [], self.place
        teacher = self.runs["teacher"].id
        answers: dict[str, Answers] = {}
        with ExitStack() as stack:
            if students:
                codec, path = self.teacher.codec(self.ready[0][:1], "exact"), self.folder / "logits" / "bench"
                store = None if live else LogitStore(path, {}, self.count, codec)
                if store:
                    stack.enter_context(store.writing(1, 1e10))
                answers[teacher] = Answers(self.teacher, store=store, size=BATCH)
            members = [start(run, self.network(run.arm.name), {teacher: self.teacher}, self.pair.shape,
                             place.splits.shares, self.steps, self.accelerator, False) for run in runs]  # fmt: skip
            fit(members, answers, place.splits, place.store, self.accelerator, False,
                lambda epoch, epochs, rate, line: rates.append(rate))  # fmt: skip
        return rates[0]

    def rounds(self, count: int) -> dict[str, list[float]]:
        """Images a second of everything, in turn, `count` times after once."""
        work = {
            "T": self.teacher_pass, "S": self.bare, "bare live": partial(self.bare, live=True),
            "bare stored": partial(self.bare, stored=True), "plain 0 workers": partial(self.plain, 0),
            "plain 2 workers": partial(self.plain, 2), "distill alone": partial(self.distill, 0),
            "distill stored": partial(self.distill, 1), "evaluation": self.evaluating,
            **{f"distill live {n}": partial(self.distill, n, live=True) for n in COHORTS},
            **{f"distill stored {n}": partial(self.distill, n) for n in COHORTS[1:]},
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
        "gain of stored / ideal": each["distill stored"] / each["distill live 1"] / ((teacher + student) / student),
        "cost of six / (T + 6 S)": 1 / each["distill live 6"] / (teacher + 6 * student),
        "cost of six / six alone": each["distill live 1"] / each["distill live 6"] / 6,
    }
    return {name: values.tolist() for name, values in found.items()}


BARS = {  # (pair, precision): the ratio, at least or at most
    ("mnist", "no"): {"live / bare": (">=", 0.95), "live / plain": (">=", 2.3), "stored / plain": (">=", 4.0)},
    ("mnist", "bf16"): {"live / plain": (">=", 3.2), "stored / plain": (">=", 5.5)},
    ("r56_r20", "bf16"): {"live / plain": (">=", 1.8), "stored / plain": (">=", 3.0)},
    ("r32x4_r8x4", "bf16"): {"live / plain": (">=", 1.9), "stored / plain": (">=", 4.5)},
}
COMMON = {"cost of stored / alone": ("<=", 1.05), "gain of stored / ideal": (">=", 0.93),
          "cost of six / (T + 6 S)": ("<=", 1.05)}  # fmt: skip
