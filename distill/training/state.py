"""The state of one run while it trains: network, optimizer, schedule, loss modules and meters."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from distill.data.splits import Splits
from distill.devices.distributed import Distributed
from distill.errors import UserError
from distill.losses import (
    Outputs,
    compute_loss,
    ensemble,
    make_loss_modules,
    required_outputs,
    resolve_priors,
)
from distill.losses.registry import terms_with_modules
from distill.models.factory import blank_images
from distill.models.hooks import capture_outputs, weight_decay_params
from distill.recipe.schema import Train
from distill.storage.run_fingerprint import Run
from distill.storage.run_store import RunStore
from distill.training.meters import Meters
from distill.training.optim import make_optimizer, make_scheduler
from distill.training.teacher import Teacher


@dataclass(frozen=True)
class TrainContext:
    """What the training loop needs besides students and teachers.

    Attributes:
        splits: the study's data; only the training and validation splits are used.
        store: where checkpoints and snapshots go.
        accelerator: device and mixed precision.
        dist: the processes that share each batch: all of them, or this one alone.
    """

    splits: Splits
    store: RunStore
    accelerator: Accelerator
    dist: Distributed

    @property
    def device(self) -> torch.device:
        """Return the device of this process."""
        return self.accelerator.device

    def global_batch_size(self, train: Train) -> int:
        """Return the number of images in a batch, over all processes."""
        return min(train.batch_size, len(self.splits.train))


@dataclass
class TrainState:
    """One run while it trains.

    Attributes:
        run: the run.
        model: its network.
        forward_model: the network that the forward pass calls: `model`, compiled and wrapped in
            DistributedDataParallel where needed.
        loss_terms: settings of each loss term, with class priors resolved to numbers.
        loss_modules: modules that loss terms own, by term, such as a projector or online targets.
        optimizer: updates the network and the loss modules.
        scheduler: learning-rate schedule; None for a constant rate.
        scaler: gradient scaler; disabled unless training in fp16.
        ema: moving average of the weights, if the run keeps one.
        initial_weights: weights before training, if the run logs weight norms; else None.
        steps_per_epoch: number of updates in an epoch.
        epoch: number of finished epochs.
        step: number of finished steps of the current epoch.
        lr: learning rate at the start of the epoch.
        seconds: training time so far: the run's share of its cohort's time.
        history: one entry for each epoch.
        meters: sums of the current epoch.
        failure: why the run was stopped, or None.
    """

    run: Run
    model: nn.Module
    forward_model: nn.Module
    loss_terms: dict[str, dict[str, Any]]
    loss_modules: nn.ModuleDict
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler | None
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    initial_weights: dict[str, Tensor] | None
    steps_per_epoch: int
    epoch: int = 0
    step: int = 0
    lr: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    meters: Meters = field(default_factory=Meters)
    failure: str | None = None

    @property
    def train(self) -> Train:
        """Return the run's training settings."""
        return self.run.arm.train

    @property
    def eval_model(self) -> nn.Module:
        """Return the network that is evaluated and stored: the averaged one, if there is one."""
        return self.ema.module if self.ema else self.model

    @cached_property
    def teacher_ids(self) -> tuple[str, ...]:
        """Return the ids of the runs that this one learns from."""
        return tuple(teacher.id for teacher in self.run.teachers)

    @cached_property
    def required_outputs(self) -> frozenset[str]:
        """Return the fields of `Outputs`, besides logits, that the loss needs of the student."""
        return required_outputs(self.loss_terms)

    @cached_property
    def trained_weights(self) -> list[nn.Parameter]:
        """Return all weights that are trained: the network's and the loss modules'."""
        return [*self.model.parameters(), *self.loss_modules.parameters()]

    @property
    def has_process_state(self) -> bool:
        """Return whether a loss module accumulates statistics on each process in an epoch."""
        return any(hasattr(module, "end_epoch") for module in self.loss_modules.values())

    # ------------------------------------------------------------------------------------- one step

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for weight in self.trained_weights:
            weight.grad = None

    @contextmanager
    def sync_gradients(self, accelerator: Accelerator, *, only_if: bool) -> Iterator[None]:
        """Average gradients over the processes only in the last micro-batch of a step."""
        if only_if:
            yield
            return
        with accelerator.no_sync(self.forward_model):
            yield

    def forward(self, inputs: Tensor) -> Outputs:
        """Run the network on normalised images `[B, C, H, W]`; capture what the loss needs."""
        with capture_outputs(self.model, self.required_outputs) as captured:
            logits = self.forward_model(inputs)
        return Outputs(logits, **captured)

    def loss(
        self,
        outputs: Outputs,
        labels: Tensor,
        teacher_outputs: Outputs | None,
        *,
        batch_size: int,
        progress: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a micro-batch and the sum of each of its terms; see `compute_loss`."""
        return compute_loss(
            self.loss_terms,
            outputs,
            labels,
            teacher_outputs,
            batch_size=batch_size,
            modules=self.loss_modules,
            progress=progress,
        )

    def backward(self, loss: Tensor, dist: Distributed) -> None:
        """Backpropagate a micro-batch's loss; its gradients are added to those of earlier ones."""
        # DistributedDataParallel averages gradients over the processes. The loss of each process is
        # already divided by the size of the whole batch, so gradients must be summed instead.
        # Multiplying by the number of processes turns the average into a sum.
        self.scaler.scale(loss * dist.world_size).backward()

    def optimizer_step(self, global_step: int, dist: Distributed) -> None:
        """Update the weights with the gradients of a whole batch.

        Args:
            global_step: number of the step over all epochs, from 0.
            dist: the processes that share the batch.
        """
        dist.average_gradients(self.loss_modules)  # DDP averages those of the network
        if self.train.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.trained_weights, self.train.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            self.ema.update(self.model)
        if self.scheduler:
            self.scheduler.step_update(global_step + 1)

    # ------------------------------------------------------------------------------------ one epoch

    def begin_epoch(self) -> None:
        """Prepare for an epoch, or for the rest of one after an interruption."""
        self.model.train()
        self.loss_modules.train()
        if self.step == 0:
            self.meters.reset()
            self.lr = self.optimizer.param_groups[0]["lr"]

    def end_epoch(self, dist: Distributed) -> None:
        """Move to the next epoch.

        Update the loss modules, and copy process 0's buffers (batch-norm statistics) to all
        processes.
        """
        self.epoch += 1
        self.step = 0
        for module in self.loss_modules.values():
            if hasattr(module, "end_epoch"):
                module.end_epoch(dist.sum)
        # Use a dict, not a set: all processes must broadcast in the same order.
        models = dict.fromkeys([self.model, self.eval_model])
        for model in models:
            for buffer in model.buffers():
                dist.broadcast(buffer)


def create_train_state(
    run: Run, model: nn.Module, teachers: dict[str, Teacher], ctx: TrainContext
) -> TrainState:
    """Return the state of a run at its first step, on the device.

    Args:
        run: the run.
        model: its network with initial weights, on the CPU.
        teachers: the networks that it learns from, by run id.
        ctx: data, device and processes.

    Raises:
        UserError: if the optimizer, the schedule or a loss module cannot be made.
    """
    train = run.arm.train
    model = model.to(ctx.device, memory_format=memory_format_of(train))
    loss_modules = loss_modules_for(run, model, teachers).to(ctx.device)
    optimizer = make_optimizer(model, train, run.display_name, loss_modules)
    steps = steps_per_epoch(ctx.splits, train)
    scheduler = make_scheduler(optimizer, train, steps, run.display_name)
    uses_fp16 = ctx.accelerator.mixed_precision == "fp16"
    return TrainState(
        run=run,
        model=model,
        forward_model=_forward_model(model, train, ctx),
        loss_terms=resolve_priors(run.arm.loss, ctx.splits.class_frequencies),
        loss_modules=loss_modules,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=torch.amp.GradScaler(ctx.device.type, enabled=uses_fp16),
        ema=ModelEmaV3(model, decay=train.ema) if train.ema else None,
        initial_weights=_initial_weights(model) if train.weight_norms else None,
        steps_per_epoch=steps,
    )


def steps_per_epoch(splits: Splits, train: Train) -> int:
    """Return the number of updates in an epoch; an incomplete last batch is dropped."""
    return max(1, len(splits.train) // train.batch_size)


def memory_format_of(train: Train) -> torch.memory_format:
    """Return how images and weights are laid out in memory."""
    return torch.channels_last if train.channels_last else torch.contiguous_format


@torch.no_grad()
def loss_modules_for(run: Run, model: nn.Module, teachers: dict[str, Teacher]) -> nn.ModuleDict:
    """Make the modules that the run's loss owns.

    Pass one blank image through the networks to find the shapes of these modules.

    Raises:
        UserError: if a network lacks an output that a term needs.
    """
    if not terms_with_modules(run.arm.loss):
        return nn.ModuleDict()
    memory_format = memory_format_of(run.arm.train)
    was_training = model.training
    model.eval()
    with capture_outputs(model, required_outputs(run.arm.loss)) as captured:
        logits = model(blank_images(model).to(memory_format=memory_format))
    model.train(was_training)
    teacher_outputs = [
        teacher(blank_images(teacher.model).to(memory_format=memory_format))
        for teacher in (teachers[teacher_run.id] for teacher_run in run.teachers)
    ]
    try:
        return make_loss_modules(
            run.arm.loss,
            Outputs(logits, **captured),
            ensemble(teacher_outputs) if teacher_outputs else None,
            run.seed,
        )
    except ValueError as error:
        raise UserError(f"{run.arm.name}: loss: {error}") from None


def _forward_model(model: nn.Module, train: Train, ctx: TrainContext) -> nn.Module:
    """Return the network for the forward pass: compiled and data-parallel where needed."""
    if train.compile:
        model = torch.compile(model)
    if ctx.dist.is_single:
        return model
    device_ids = [ctx.device.index] if ctx.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=device_ids)


def _initial_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in weight_decay_params(model).items()}
