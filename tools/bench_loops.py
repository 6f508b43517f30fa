"""Three loops that train the same student: distill's, a plain one, and the bare limit.

They run on noise of the shapes of MNIST and CIFAR, with 0.1 cross-entropy + 0.9 KD at T = 4 and a
batch size of 128:

* plain: torchvision's transforms, a DataLoader with 0 or 2 workers, the teacher live, float32;
* distill: `distill.training.trainer.fit` on images in memory, its teacher live or from the cache;
* bare: the same step on normalised tensors that are on the device already, which is the limit.
"""

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
from distill.devices.accelerator import make_accelerator
from distill.devices.distributed import ONE_PROCESS
from distill.evaluation.predict import predict
from distill.storage.run_fingerprint import plan_runs
from distill.storage.run_store import RunStore
from distill.study.context import StudyContext
from distill.study.progress import Progress
from distill.training.cached_teacher import CachedTeacher
from distill.training.logit_cache import LogitCache
from distill.training.logit_codec import choose_codec
from distill.training.optim import make_optimizer
from distill.training.state import TrainContext, create_train_state, memory_format_of
from distill.training.teacher import Teacher
from distill.training.trainer import fit

BATCH = 128
COHORTS = (1, 2, 4, 6, 8)
CLASSES = 10
MEAN = 0.5
STD = 0.25
TEMPERATURE = 4
GPU_STEPS_FACTOR = 20  # a GPU takes more steps, so that a timed piece of work is long enough


@dataclass(frozen=True)
class Pair:
    """A teacher and a student, on images of one shape.

    Attributes:
        teacher: model name.
        student: model name.
        shape: shape of an image: channels, height, width.
        shift: pixels of random translation.
        flip: whether images are mirrored at random.
        steps: number of steps that a round times on a CPU.
        channels_last: whether half precision uses this memory format.
    """

    teacher: str
    student: str
    shape: tuple[int, int, int]
    shift: int
    flip: bool
    steps: int
    channels_last: bool


PAIRS = {
    "mnist": Pair(
        "mlp_1200", "mlp_800", (1, 28, 28), shift=2, flip=False, steps=80, channels_last=False
    ),
    "r56_r20": Pair(
        "cifar_resnet56",
        "cifar_resnet20",
        (3, 32, 32),
        shift=4,
        flip=True,
        steps=3,
        channels_last=True,
    ),
    "r32x4_r8x4": Pair(
        "cifar_resnet32x4",
        "cifar_resnet8x4",
        (3, 32, 32),
        shift=4,
        flip=True,
        steps=2,
        channels_last=True,
    ),
}
RECIPE = """\
data: {{source: synthetic, augment: {{shift: {shift}, flip: {flip}}}, mean: {mean}, std: {std}}}
train:
  {{epochs: 1, batch_size: {batch}, lr: 0.001, optimizer: sgd, channels_last: {channels_last}}}
teachers: {{teacher: {{model: {teacher}, loss: {{cross_entropy: {{}}}}}}}}
students:
  alone: {{model: {student}, loss: {{cross_entropy: {{}}}}}}
  distilled:
    model: {student}
    teacher: teacher
    loss:
      cross_entropy: {{weight: 0.1}}
      kd: {{weight: 0.9, temperature: [4, 1, 2, 3, 5, 6, 7, 8]}}
"""


def torchvision_data(pixels: Tensor, labels: Tensor, pair: Pair) -> datasets.VisionDataset:
    """Return torchvision's MNIST or CIFAR10 with these images and the usual transforms."""
    channels, height, _ = pair.shape
    is_grey = channels == 1
    dataset_class = datasets.MNIST if is_grey else datasets.CIFAR10
    dataset = dataset_class.__new__(dataset_class)  # its constructor would look for files
    dataset.data = pixels[:, 0] if is_grey else pixels.permute(0, 2, 3, 1).numpy()
    dataset.targets = labels if is_grey else labels.tolist()
    dataset.target_transform = None
    steps = [transforms.RandomCrop(height, padding=pair.shift)]
    if pair.flip:
        steps.append(transforms.RandomHorizontalFlip())
    steps += [transforms.ToTensor(), transforms.Normalize([MEAN] * channels, [STD] * channels)]
    dataset.transform = transforms.Compose(steps)
    return dataset


def plain_step(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None,
    optimizer: torch.optim.Optimizer,
) -> Tensor:
    """Take a training step in plain PyTorch; without a teacher, its loss is cross-entropy."""
    loss = F.cross_entropy(logits, labels)
    if teacher_logits is not None:
        log_p = F.log_softmax(logits / TEMPERATURE, 1)
        log_q = F.log_softmax(teacher_logits / TEMPERATURE, 1)
        kl = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
        loss = 0.1 * loss + 0.9 * TEMPERATURE**2 * kl
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


class LoopBench:
    """One pair of networks in one precision. Methods that time a loop return images per second."""

    def __init__(self, pair: Pair, precision: str, folder: Path) -> None:
        self.pair = pair
        self.folder = folder
        self.accelerator = make_accelerator(precision)
        self.device = self.accelerator.device
        self.steps = pair.steps * (GPU_STEPS_FACTOR if self.device.type == "cuda" else 1)
        self.images = self.steps * BATCH
        pixels, labels = self._noise()
        self.ctx = self._study_context(pixels, labels, precision)
        runs = plan_runs(self.ctx.recipe, {}, precision)
        self.runs = {run.arm.name: run for run in runs}
        self.students = [run for name, run in self.runs.items() if name.startswith("distilled")]
        self.memory_format = memory_format_of(self.students[0].arm.train)
        self.teacher = Teacher(self.network("teacher"), half_precision=self.ctx.half_precision)
        plain_teacher = self.network("teacher").eval()
        self.plain_teacher = plain_teacher.to(memory_format=torch.contiguous_format)
        self.plain_data = torchvision_data(pixels[: self.images], labels[: self.images], pair)
        self._prepare_ready_tensors(pixels, labels)

    def _noise(self) -> tuple[Tensor, Tensor]:
        """Return random images and labels: those to train on, and one batch more."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.images + BATCH, *self.pair.shape)
        pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return pixels, torch.randint(CLASSES, (len(pixels),), generator=generator)

    def _study_context(self, pixels: Tensor, labels: Tensor, precision: str) -> StudyContext:
        channels = self.pair.shape[0]
        channels_last = self.pair.channels_last and precision != "no"
        path = self.folder / "bench.yaml"
        path.write_text(
            RECIPE.format(
                shift=self.pair.shift,
                flip=str(self.pair.flip).lower(),
                mean=[MEAN] * channels,
                std=[STD] * channels,
                batch=BATCH,
                teacher=self.pair.teacher,
                student=self.pair.student,
                channels_last=str(channels_last).lower(),
            )
        )
        recipe = load_recipe(path)
        images = ImageDataset.from_pixels(pixels, labels, "noise")
        train = Split(images, torch.arange(self.images))
        rest = Split(images, torch.arange(self.images, len(pixels)))
        names = [str(label) for label in range(CLASSES)]
        splits = Splits(recipe.data, train, rest, rest, names, "noise")
        progress = Progress(enabled=False)
        return StudyContext(recipe, splits, RunStore(self.folder), self.accelerator, progress)

    def _prepare_ready_tensors(self, pixels: Tensor, labels: Tensor) -> None:
        """Make batches of normalised images, labels and teacher logits on the device."""
        ready = (pixels[: self.images].float() / 255 - MEAN) / STD
        ready = ready.to(self.device).contiguous(memory_format=self.memory_format)
        self.ready = ready.split(BATCH)
        self.labels = labels[: self.images].to(self.device).split(BATCH)
        self.teacher_logits = [self.teacher(images).logits.float() for images in self.ready]

    def network(self, arm: str) -> nn.Module:
        """Return a new network of an arm, on the device."""
        model = self.ctx.build(self.runs[arm].arm, 0)
        return model.to(self.device, memory_format=self.memory_format)

    def rate(self, work: Callable[[], Any]) -> float:
        """Return the images per second of a function that processes all training images once."""
        wait = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        wait()
        started = time.perf_counter()
        work()
        wait()
        return self.images / (time.perf_counter() - started)

    def teacher_pass(self) -> float:
        """Time the teacher on ready tensors: T."""
        return self.rate(lambda: [self.teacher(images) for images in self.ready])

    def evaluation(self) -> float:
        """Time `predict`: the student on the training images."""
        model = self.network("alone")
        augment = self.runs["alone"].arm.augment
        splits = self.ctx.splits
        return self.rate(lambda: predict(model, splits, splits.train, augment, self.device))

    def bare(self, teacher: str = "none") -> float:
        """Time the step on ready tensors with a teacher that is "live", "stored" or "none" (S)."""
        model = self.network("alone").train()
        optimizer = make_optimizer(model, self.runs["alone"].arm.train, "bench")

        def work() -> None:
            batches = zip(self.ready, self.labels, self.teacher_logits, strict=True)
            for images, labels, stored in batches:
                teacher_logits = None
                if teacher == "live":
                    teacher_logits = self.teacher(images).logits.float()
                elif teacher == "stored":
                    teacher_logits = stored
                with self.accelerator.autocast():
                    logits = model(images)
                plain_step(logits.float(), labels, teacher_logits, optimizer)

        return self.rate(work)

    def plain(self, workers: int) -> float:
        """Time a plain PyTorch loop in float32."""
        model = self.network("alone").train().to(memory_format=torch.contiguous_format)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, nesterov=True)
        loader = DataLoader(
            self.plain_data,
            BATCH,
            shuffle=True,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context="fork" if workers else None,
        )
        batches = iter(loader)
        first = next(batches)  # starting the workers is not timed

        def work() -> float:
            total = 0.0
            for images, labels in chain([first], batches):
                images, labels = images.to(self.device), labels.to(self.device)
                with torch.no_grad():
                    teacher_logits = self.plain_teacher(images)
                total += plain_step(model(images), labels, teacher_logits, optimizer).item()
            return total

        return self.rate(work)

    def distill(self, students: int, *, live: bool = False) -> float:
        """Time `fit` with a live or a cached teacher; for 0 students, one without a teacher."""
        runs = self.students[:students] or [self.runs["alone"]]
        teacher_id = self.runs["teacher"].id
        train_ctx = TrainContext(self.ctx.splits, self.ctx.store, self.accelerator, ONE_PROCESS)
        rates: list[float] = []
        with ExitStack() as stack:
            cached_teachers = {}
            if students:
                cache = None
                if not live:
                    cache = self._logit_cache()
                    stack.enter_context(cache.writing(1, limit=1e10))
                cached_teachers[teacher_id] = CachedTeacher(
                    self.teacher, cache=cache, batch_size=BATCH
                )
            states = [
                create_train_state(
                    run, self.network(run.arm.name), {teacher_id: self.teacher}, train_ctx
                )
                for run in runs
            ]
            fit(states, cached_teachers, train_ctx, lambda _, rate, __: rates.append(rate))
        return rates[0]

    def _logit_cache(self) -> LogitCache:
        """Return the cache of the teacher's logits, which the first round writes."""
        codec = choose_codec(self.teacher, self.ready[0][:1], "exact")
        return LogitCache(self.folder / "logits" / "bench", {}, self.images, codec)

    def rounds(self, count: int) -> dict[str, list[float]]:
        """Time every loop `count` times after a warm-up round; return images per second."""
        work: dict[str, Callable[[], float]] = {
            "T": self.teacher_pass,
            "S": self.bare,
            "bare live": partial(self.bare, "live"),
            "bare stored": partial(self.bare, "stored"),
            "plain 0 workers": partial(self.plain, 0),
            "plain 2 workers": partial(self.plain, 2),
            "distill alone": partial(self.distill, 0),
            "distill stored": partial(self.distill, 1),
            "evaluation": self.evaluation,
        }
        for students in COHORTS:
            work[f"distill live {students}"] = partial(self.distill, students, live=True)
        rates: dict[str, list[float]] = {name: [] for name in work}
        for number in range(count + 1):
            for name, function in work.items():
                rate = function()
                if number > 0:
                    rates[name].append(rate)
        return rates
