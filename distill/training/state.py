"""A member of a cohort: one run while it trains, how it starts, and how it goes on from a checkpoint."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from distill.errors import UserError
from distill.losses import (
    Outputs,
    ensemble,
    make_loss_modules,
    required_outputs,
    resolve_priors,
    terms_with_modules,
)
from distill.models.factory import blank_images
from distill.models.hooks import capture_outputs, weight_decay_params
from distill.recipe.schema import Train
from distill.storage.run import Run
from distill.training.optim import make_optimizer
from distill.training.teacher import Teacher


@dataclass
class TrainState:
    """One run while it trains."""

    run: Run
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    steps_per_epoch: int
    wrapped: nn.Module  # the model; compiled, and with its gradients shared, where that is wanted
    loss: dict[str, dict[str, Any]]  # the arm's, with the data's numbers
    parts: nn.ModuleDict  # of the loss, by term: a projector, online targets
    initial: dict[str, Tensor] | None  # weights at the start, where their drift is logged
    epoch: int = 0
    step: int = 0  # of this epoch
    lr: float = 0.0  # at the epoch's beginning
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, Tensor] = field(
        default_factory=dict
    )  # over the epoch's images so far: the loss (""), its terms
    recent: list[tuple[int, dict[str, Tensor]]] = field(
        default_factory=list
    )  # of single steps, since the last look
    failure: str | None = None  # why it has left its cohort

    @property
    def result(self) -> nn.Module:
        """The network that is evaluated and stored: the average of the weights where there is one."""
        return self.ema.module if self.ema else self.model

    @cached_property
    def teachers(self) -> tuple[str, ...]:
        """Ids of the runs it learns from."""
        return tuple(teacher.id for teacher in self.run.teachers)

    @cached_property
    def needs(self) -> frozenset[str]:
        """What its loss looks at in it, beside logits."""
        return required_outputs(self.loss)

    @cached_property
    def weights(self) -> list[nn.Parameter]:
        """All that is trained: the network's, and its loss's own."""
        return [*self.model.parameters(), *self.parts.parameters()]

    @property
    def train(self) -> Train:
        """The run's training settings."""
        return self.run.arm.train


def start(
    run: Run,
    model: nn.Module,
    teachers: dict[str, Teacher],
    shares: list[float],
    steps_per_epoch: int,
    accelerator: Accelerator,
    sharing: bool,
) -> TrainState:
    """A member at its first step, on the device; `shares` are the classes'."""
    train = run.arm.train
    model = model.to(accelerator.device, memory_format=memory_format_of(train))
    parts = loss_modules_for(run, model, teachers).to(accelerator.device)
    optimizer, scheduler = make_optimizer(model, train, steps_per_epoch, run.display_name, parts)
    fp16 = accelerator.mixed_precision == "fp16"
    called = torch.compile(model) if train.compile else model
    return TrainState(
        run,
        model,
        optimizer,
        scheduler,
        torch.amp.GradScaler(accelerator.device.type, enabled=fp16),
        ModelEmaV3(model, decay=train.ema) if train.ema else None,
        steps_per_epoch,
        _shared(called, accelerator.device) if sharing else called,
        resolve_priors(run.arm.loss, shares),
        parts,
        {name: w.detach().clone() for name, w in weight_decay_params(model).items()}
        if train.weight_norms
        else None,
    )


def memory_format_of(train: Train) -> torch.memory_format:
    """Of images and weights in memory."""
    return torch.channels_last if train.channels_last else torch.contiguous_format


@torch.no_grad()
def loss_modules_for(run: Run, model: nn.Module, teachers: dict[str, Teacher]) -> nn.ModuleDict:
    """The modules that the run's loss owns, made for what the networks say about one blank image.

    Raises:
        UserError: if the networks have not what a term needs.
    """
    if not terms_with_modules(run.arm.loss):
        return nn.ModuleDict()
    layed = memory_format_of(run.arm.train)
    needs, was_training = required_outputs(run.arm.loss), model.training
    with capture_outputs(model.eval(), needs) as seen:
        student = Outputs(model(blank_images(model).to(memory_format=layed)), **seen)
    model.train(was_training)
    asked = [teachers[teacher.id] for teacher in run.teachers]
    answers = [teacher(blank_images(teacher.model).to(memory_format=layed)) for teacher in asked]
    try:
        return make_loss_modules(
            run.arm.loss, student, ensemble(answers) if answers else None, run.seed
        )
    except ValueError as error:
        raise UserError(f"{run.arm.name}: loss: {error}") from None


def _shared(model: nn.Module, device: torch.device) -> nn.Module:
    """The network with its gradients averaged over the processes; its own forward stays in full precision."""
    return nn.parallel.DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None
    )
