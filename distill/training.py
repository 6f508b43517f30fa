"""The only training loop: a cohort of runs, side by side on one stream of views, with one answer of each teacher.

Reading order: a member of a cohort, how it starts and resumes; the loop; a step.
Nothing random is kept between steps: views, order and dropout are functions of (seed, epoch, step), so a
run ends with the same weights in any cohort, and after any interruption. A run whose loss is no number leaves its
cohort; the others go on.
"""

import inspect
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from distill.analysis.drift import norms, template_spread, total
from distill.data.loaders import Batch, training_batches
from distill.data.sources import Splits
from distill.data.views import key, normalise
from distill.document import UserError
from distill.evaluation import accuracy, predict
from distill.logits import Answers
from distill.losses import PARTS, Outputs, ensemble, make_parts, needs_of, weighted_sum, with_shares
from distill.models.build import normalisation
from distill.models.heads import last_linear
from distill.models.inside import decayed, observe, templates
from distill.recipe import Train
from distill.runs import Run, Store
from distill.teachers import Teacher

LOOK = 100  # steps between two looks at whether losses are numbers and a checkpoint is due; they wait for the device
Log = Callable[[int, int, float, str], None]  # (epochs done, epochs, images a second, a line on the members)


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
        raise UserError(f"{place}: train.optimizer '{name}': {error}") from None
    if shape == "plateau":
        raise UserError(f"{place}: train.schedule 'plateau' depends on a metric; use one that is a function of time")
    try:
        scheduler, _ = create_scheduler_v2(made, sched=shape, num_epochs=train.epochs, step_on_epochs=False,
                                           updates_per_epoch=steps_per_epoch, **schedule)
    except Exception as error:
        raise UserError(f"{place}: train.schedule '{shape}': {error}") from None
    return made, scheduler


def start(run: Run, model: nn.Module, teachers: dict[str, Teacher], shape: tuple[int, int, int],
          shares: list[float], steps_per_epoch: int, accelerator: Accelerator, sharing: bool) -> Member:
    """A member at its first step, on the device; `shape` is that of one view, `shares` the classes'."""
    train = run.arm.train
    model = model.to(accelerator.device, memory_format=layout(train))
    parts = parts_of(run, model, teachers, shape).to(accelerator.device)
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
def parts_of(run: Run, model: nn.Module, teachers: dict[str, Teacher], shape: tuple[int, int, int]) -> nn.ModuleDict:
    """The modules that the run's loss owns, made for what the networks say about one blank view.

    Raises:
        UserError: if the networks have not what a term needs.
    """
    if not PARTS.keys() & run.arm.loss.keys():
        return nn.ModuleDict()
    view = torch.zeros(1, *shape, device=next(model.parameters()).device).to(memory_format=layout(run.arm.train))
    needs, was_training = needs_of(run.arm.loss), model.training
    with observe(model.eval(), needs) as seen:
        student = Outputs(model(view), **seen)
    model.train(was_training)
    answers = [teachers[teacher.id](view) for teacher in run.teachers]
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


# ------------------------------------------------------------------------------------------------- the loop


def fit(members: list[Member], teachers: dict[str, Answers], splits: Splits, store: Store, accelerator: Accelerator,
        sharing: bool, log: Log) -> None:
    """Train a cohort to its last epoch; states on the way that are wanted are kept.

    A member whose loss or answers are not finite is left out from then on, and says so in `failure`.

    Args:
        members: of one seed, with equal views, batch size and epochs, all at the same step of the same epoch.
        teachers: by run id, what those that the members learn from say.
        splits: the study's data; only training and validation are looked at.
        store: where checkpoints go.
        accelerator: device and precision; with `sharing`, also the processes that share each batch.
        sharing: whether all processes train this cohort together.
        log: called after each epoch.
    """
    first = members[0]
    train, augment, seed = first.train, first.run.arm.augment, first.run.seed
    world, rank = (accelerator.num_processes, accelerator.process_index) if sharing else (1, 0)
    size = min(train.batch_size, len(splits.train))
    shared = accelerator if sharing else None
    writes, saved = accelerator.is_main_process or not sharing, time.monotonic()
    for epoch in range(first.epoch, train.epochs):
        began = started = time.monotonic()
        done = members[0].step  # of this epoch, before an interruption
        for member in members:
            if writes and not done and epoch in member.train.state_epochs:
                store.save_state(member.run.id, epoch, member.result.state_dict())
            member.model.train()
            member.parts.train()
            if not done:
                member.sums, member.lr = {}, member.optimizer.param_groups[0]["lr"]
        for teacher in teachers.values():
            teacher.begin(epoch, accelerator.device, whole=not done)
        batches = training_batches(splits, augment, size, seed, epoch, accelerator.device, rank, world, done)
        for number, batch in enumerate(batches, done):
            _step(members, teachers, batch, epoch, number, size, accelerator, world, rank)
            if (number + 1) % LOOK and number + 1 < first.steps_per_epoch:
                continue
            due = time.monotonic() - saved >= 60 * train.checkpoint_minutes
            members, due = _look(members, due, epoch, shared)
            if not members:
                return
            apart = world > 1 and any(hasattr(part, "end_epoch") for m in members for part in m.parts.values())
            if due and number + 1 < first.steps_per_epoch and not apart:  # what these have seen is one process's own
                now = time.monotonic()
                for member in members:
                    member.seconds, member.step = member.seconds + (now - began) / len(members), number + 1
                    if shared:
                        _gather_sums(member, shared)
                    if writes:
                        save_checkpoint(member, store)
                began = saved = time.monotonic()
        for teacher in teachers.values():
            teacher.end()
        means = [_means(member, first.steps_per_epoch * size, shared) for member in members]
        rate = (first.steps_per_epoch - done) * size / max(time.monotonic() - started, 1e-9)
        for member, mean in zip(members, means, strict=True):
            _finish_epoch(member, epoch, mean, splits, shared, accelerator.device)
        for member in members:
            member.seconds += (time.monotonic() - began) / len(members)
        members = [member for member in members if not member.failure]
        if not members:
            return
        if epoch + 1 < train.epochs and time.monotonic() - saved >= 60 * train.checkpoint_minutes:
            for member in members if writes else ():
                save_checkpoint(member, store)
            saved = time.monotonic()
        log(epoch + 1, train.epochs, rate, ", ".join(f"{m.history[-1]['validation']['top1']:.1%}" for m in members))


def _look(members: list[Member], due: bool, epoch: int, sharing: Accelerator | None) -> tuple[list[Member], bool]:
    """The members whose losses have been numbers since the last look; and `due`, as the first process sees it."""
    losses = [torch.stack([sums[""] for _, sums in member.recent]) for member in members]
    wrong = torch.stack([(~own.isfinite()).any() for own in losses]).float()
    if sharing:  # what one process finds or decides is for all
        mine = torch.tensor([float(due and sharing.is_main_process)], device=wrong.device)
        wrong, due = (t > 0 for t in sharing.reduce(torch.cat([wrong, mine]), "sum").split([len(members), 1]))
    for member, own, bad in zip(members, losses, wrong.tolist(), strict=True):
        if bad:
            finite = own.isfinite()
            step, sums = member.recent[int(finite.long().argmin())]  # the first; where another process has met it, any
            terms = ", ".join(f"{name} {value.item():g}" for name, value in sums.items() if name not in ("", "top1"))
            at = f"step {step + 1} of {member.steps_per_epoch}" if not finite.all() else "on another process"
            member.failure = (f"{member.run.title}: its loss is not finite: epoch {epoch + 1}, {at} (terms, summed "
                              f"over the batch: {terms}); lower train.lr, or clip with train.clip_grad")
        member.recent = []
    return [member for member in members if not member.failure], bool(due)


def _gather_sums(member: Member, sharing: Accelerator) -> None:
    """Bring what the processes have summed into the first one, so that a checkpoint of it has all."""
    names = sorted(member.sums)
    totals = sharing.reduce(torch.stack([member.sums[name] for name in names]), "sum")
    member.sums = dict(zip(names, totals * sharing.is_main_process, strict=True))


def _step(members: list[Member], teachers: dict[str, Answers], batch: Batch, epoch: int, number: int,
          size: int, accelerator: Accelerator, world: int, rank: int) -> None:
    """One update of every member by an epoch's batch of that number, in `accumulate` parts.

    Nothing here waits for the device, but now and then, when many answers of a teacher are written.
    """
    first = members[0]
    step = epoch * first.steps_per_epoch + number
    progress = step / (first.steps_per_epoch * first.train.epochs)
    for member in members:
        for weight in member.weights:
            weight.grad = None
    parts = [tensor.chunk(first.train.accumulate) for tensor in batch]
    done = 0
    for part, (views, labels) in enumerate(zip(*parts, strict=True)):
        inputs: dict[Any, Tensor] = {}
        answers: dict[str | tuple[str, ...], Outputs] = {}
        for member in members:
            for teacher in member.teachers:
                if teacher not in answers:
                    asked = partial(_input, teachers[teacher].teacher.model, views, inputs, layout(first.train))
                    answers[teacher] = teachers[teacher](asked, number, done, len(views))
            if member.teachers and member.teachers not in answers:
                answers[member.teachers] = ensemble([answers[teacher] for teacher in member.teachers])
            _seed(key("dropout", member.run.seed, step, part, rank), views.device)  # each run's own dropout
            last = done + len(views) == len(batch.views)
            with nullcontext() if last else accelerator.no_sync(member.wrapped):
                with accelerator.autocast(), observe(member.model, member.needs) as seen:
                    logits = member.wrapped(_input(member.model, views, inputs, layout(member.train)))
                loss, sums = weighted_sum(member.loss, Outputs(logits, **seen), labels,
                                          answers.get(member.teachers), size, member.parts, progress)
                # DDP takes the mean over the processes, so the sum over the whole batch needs their number
                member.scaler.scale(loss * world).backward()
            hard = labels.argmax(1) if labels.ndim == 2 else labels
            sums |= {"": loss.detach() * size, "top1": (logits.detach().argmax(1) == hard).sum()}
            member.recent.append((number, sums))
            for name, value in sums.items():
                member.sums[name] = member.sums.get(name, 0) + value.float()
        done += len(views)
    for member in members:
        _update(member, step, world)


def _seed(seed: int, device: torch.device) -> None:
    """`torch.manual_seed` of the generators that a network here can draw from; that of all devices takes 0.4 ms."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        getattr(torch, device.type).manual_seed(seed)


def _input(model: nn.Module, views: Tensor, made: dict[Any, Tensor], memory: torch.memory_format) -> Tensor:
    """The views as this network wants them; networks with equal normalisation share the tensor."""
    wanted = normalisation(model)
    if wanted not in made:
        made[wanted] = normalise(views, *wanted).contiguous(memory_format=memory)
    return made[wanted]


def _update(member: Member, step: int, world: int) -> None:
    for weight in member.parts.parameters() if world > 1 else ():  # the network's gradients are averaged already
        if weight.grad is not None:
            torch.distributed.all_reduce(weight.grad)
            weight.grad /= world
    if member.train.clip_grad:
        member.scaler.unscale_(member.optimizer)
        nn.utils.clip_grad_norm_(member.weights, member.train.clip_grad)
    member.scaler.step(member.optimizer)
    member.scaler.update()
    if member.ema:
        member.ema.update(member.model)
    if member.scheduler:
        member.scheduler.step_update(step + 1)


def _means(member: Member, images: int, sharing: Accelerator | None) -> dict[str, float]:
    """Over the epoch's images: the loss (under ""), its terms before their weights, and top1."""
    names = sorted(member.sums)
    totals = torch.stack([member.sums[name] for name in names])
    totals = sharing.reduce(totals, "sum") if sharing else totals
    return {name: value / images for name, value in zip(names, totals.tolist(), strict=True)}


def _finish_epoch(member: Member, epoch: int, means: dict[str, float], splits: Splits, sharing: Accelerator | None,
                  device: torch.device) -> None:
    """Judge the member on the validation split and write its line of history."""
    member.epoch, member.step = epoch + 1, 0
    for part in member.parts.values():
        if hasattr(part, "end_epoch"):
            part.end_epoch((lambda x: sharing.reduce(x, "sum")) if sharing else (lambda x: x))
    if sharing:
        for model in dict.fromkeys((member.model, member.result)):  # in one order everywhere, unlike a set's
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)  # each process has batch statistics of its own
    logits = predict(member.result, splits, splits.validation, member.run.arm.augment, device, sharing=sharing)
    if not logits.isfinite().all():
        member.failure = f"{member.run.title}: after epoch {epoch + 1} its answers are not finite; lower train.lr"
        return
    labels = splits.validation.labels
    member.history.append({
        "epoch": epoch + 1,
        "lr": member.lr,
        "loss": means[""],
        "train": {"top1": means["top1"]},
        "terms": {name: value for name, value in means.items() if name not in ("", "top1")},
        "validation": {
            "top1": accuracy(logits, labels),
            "nll": nn.functional.cross_entropy(logits.double(), labels).item(),
        },
    } | ({"weights": drift(member)} if member.initial is not None else {}))


def drift(member: Member) -> dict[str, Any]:
    """Norms of the weights that are stored, by layer and in all, and how far they are from where they started."""
    weights = {name: w.detach() for name, w in decayed(member.result).items()}
    single = last_linear(member.result) is not None
    spread = template_spread(templates(member.result).detach()) if single else None
    return {"total": total(weights, member.initial), "template_spread": spread,
            "layers": {name: norms(w, member.initial[name]) for name, w in weights.items()}}
