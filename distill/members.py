"""A member of a cohort: one run while it trains, how it starts, and how it goes on from a checkpoint."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from distill.document import UserError, nearest
from distill.losses import PARTS, Outputs, ensemble, make_parts, needs_of, with_shares
from distill.models.build import blank_input
from distill.models.inside import decayed, observe
from distill.recipe import Train
from distill.runs import Run, Store
from distill.teachers import Teacher


@dataclass
class Member:
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
    sums: dict[str, Tensor] = field(default_factory=dict)  # over the epoch's images so far: the loss (""), its terms
    recent: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list)  # of single steps, since the last look
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
        return needs_of(self.loss)

    @cached_property
    def weights(self) -> list[nn.Parameter]:
        """All that is trained: the network's, and its loss's own."""
        return [*self.model.parameters(), *self.parts.parameters()]

    @property
    def train(self) -> Train:
        """The run's training settings."""
        return self.run.arm.train


def make_optimizer(model: nn.Module, train: Train, steps_per_epoch: int, place: str,
                   parts: nn.Module | None = None) -> tuple[Any, Any]:
    """timm's optimizer, of the model and of what its loss learns beside it, and its scheduler (None for
    'none'), which steps on every update.

    Raises:
        UserError: if timm knows no such name or argument.
    """
    optimizer, schedule = ({"name": v} if isinstance(v, str) else dict(v) for v in (train.optimizer, train.schedule))
    name, shape = optimizer.pop("name", "sgd"), schedule.pop("name", "cosine")
    try:
        own_name = name.lower().rsplit("_", 1)[-1]  # timm's lookahead_adamw is adamw with something around it
        known = inspect.signature(get_optimizer_class(own_name, bind_defaults=False)).parameters
        if "fused" in known and not {"foreach", "differentiable"} & optimizer.keys():
            # one pass over the weights: twice as fast for sgd, ten times for adamw, on a CPU
            optimizer = {"fused": True} | optimizer
        made = create_optimizer_v2(model, opt=name, lr=train.lr, weight_decay=train.weight_decay, **optimizer)
        for decayed_too in (True, False):  # biases are not, as in the network
            own = [p for p in parts.parameters() if (p.ndim > 1) == decayed_too] if parts else []
            if own:
                made.add_param_group({"params": own, "weight_decay": train.weight_decay if decayed_too else 0.0})
    except Exception as error:
        known = f"; {nearest(name, list_optimizers())}" if "not found" in str(error) else ""
        raise UserError(f"{place}: train.optimizer '{name}': {error}{known}") from None
    if shape == "plateau":
        raise UserError(f"{place}: train.schedule 'plateau' depends on a metric; use one that is a function of time")
    try:
        scheduler, _ = create_scheduler_v2(made, sched=shape, num_epochs=train.epochs, step_on_epochs=False,
                                           updates_per_epoch=steps_per_epoch, **schedule)
    except Exception as error:
        raise UserError(f"{place}: train.schedule '{shape}': {error}") from None
    return made, scheduler


def start(run: Run, model: nn.Module, teachers: dict[str, Teacher], shares: list[float], steps_per_epoch: int,
          accelerator: Accelerator, sharing: bool) -> Member:
    """A member at its first step, on the device; `shares` are the classes'."""
    train = run.arm.train
    model = model.to(accelerator.device, memory_format=layout(train))
    parts = parts_of(run, model, teachers).to(accelerator.device)
    optimizer, scheduler = make_optimizer(model, train, steps_per_epoch, run.title, parts)
    fp16 = accelerator.mixed_precision == "fp16"
    called = torch.compile(model) if train.compile else model
    return Member(run, model, optimizer, scheduler, torch.amp.GradScaler(accelerator.device.type, enabled=fp16),
                  ModelEmaV3(model, decay=train.ema) if train.ema else None, steps_per_epoch,
                  _shared(called, accelerator.device) if sharing else called, with_shares(run.arm.loss, shares), parts,
                  {name: w.detach().clone() for name, w in decayed(model).items()} if train.weight_norms else None)


def layout(train: Train) -> torch.memory_format:
    """Of images and weights in memory."""
    return torch.channels_last if train.channels_last else torch.contiguous_format


@torch.no_grad()
def parts_of(run: Run, model: nn.Module, teachers: dict[str, Teacher]) -> nn.ModuleDict:
    """The modules that the run's loss owns, made for what the networks say about one blank image.

    Raises:
        UserError: if the networks have not what a term needs.
    """
    if not PARTS.keys() & run.arm.loss.keys():
        return nn.ModuleDict()
    layed = layout(run.arm.train)
    needs, was_training = needs_of(run.arm.loss), model.training
    with observe(model.eval(), needs) as seen:
        student = Outputs(model(blank_input(model).to(memory_format=layed)), **seen)
    model.train(was_training)
    asked = [teachers[teacher.id] for teacher in run.teachers]
    answers = [teacher(blank_input(teacher.model).to(memory_format=layed)) for teacher in asked]
    try:
        return make_parts(run.arm.loss, student, ensemble(answers) if answers else None, run.seed)
    except ValueError as error:
        raise UserError(f"{run.arm.name}: loss: {error}") from None


def _shared(model: nn.Module, device: torch.device) -> nn.Module:
    """The network with its gradients averaged over the processes; its own forward stays in full precision."""
    return nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


# ---------------------------------------------------------------------------------------------- checkpoints


def save_checkpoint(member: Member, store: Store) -> None:
    """All that the next step depends on."""
    store.save_checkpoint(member.run.id, {
        "epoch": member.epoch, "step": member.step, "lr": member.lr, "sums": member.sums,
        "seconds": member.seconds, "history": member.history,
        "model": member.model.state_dict(), "ema": member.ema.module.state_dict() if member.ema else {},
        "optimizer": member.optimizer.state_dict(), "scaler": member.scaler.state_dict(),
        "parts": member.parts.state_dict()})


def resume(member: Member, store: Store, rank: int, device: torch.device, say: Callable[[str], None] = print) -> None:
    """Continue from the run's checkpoint, if it has one; what the processes have summed goes on in the first."""
    damaged = store.damaged_state(member.run.id)
    if damaged:
        say(f"{damaged} is not what was written: {member.run.title} begins again")
        store.forget(member.run.id)
        return
    try:
        state = store.load_checkpoint(member.run.id)
    except ValueError as error:
        say(f"{error}: {member.run.title} begins again")
        return
    if state is None:
        return
    member.model.load_state_dict(state["model"])
    member.parts.load_state_dict(state.get("parts", {}))  # a checkpoint of a version without them has none
    for part in member.parts.values():
        if rank and hasattr(part, "forget"):
            part.forget()
    if member.ema:
        member.ema.module.load_state_dict(state["ema"])
    member.optimizer.load_state_dict(state["optimizer"])
    _lay_out(member.optimizer)
    member.scaler.load_state_dict(state["scaler"])
    member.epoch, member.seconds, member.history = state["epoch"], state["seconds"], state["history"]
    member.step, member.lr = state.get("step", 0), state.get("lr", 0.0)
    member.sums = {name: value.to(device) * (rank == 0) for name, value in state.get("sums", {}).items()}
    if member.scheduler:
        member.scheduler.step_update(member.epoch * member.steps_per_epoch + member.step)


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give what an optimizer holds the strides of its weights: fused ones go through memory and do not look."""
    optimizer = getattr(optimizer, "_base_optimizer", optimizer)  # within timm's lookahead
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
