"""The only training loop: a cohort of runs, side by side on one stream of views, with one answer of each teacher.

Nothing random is kept between steps: views, order and dropout are functions of (seed, epoch, step), so a
run ends with the same weights in any cohort, and after any interruption. A run whose loss is no number leaves its
cohort; the others go on.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.data.augment import derive_seed, normalise
from distill.data.loaders import Batch, training_batches
from distill.data.splits import Splits
from distill.evaluation.predict import accuracy, predict
from distill.evaluation.weight_norms import norms, template_spread, total
from distill.losses import Outputs, compute_loss, ensemble
from distill.models.cosine_head import last_linear
from distill.models.factory import input_config
from distill.models.hooks import capture_outputs, templates, weight_decay_params
from distill.storage.run_store import RunStore
from distill.training.cached_teacher import CachedTeacher
from distill.training.checkpoint import save_checkpoint
from distill.training.state import TrainState, memory_format_of

LOOK = 100  # steps between two looks at whether losses are numbers and a checkpoint is due; they wait for the device
Log = Callable[
    [int, int, float, str], None
]  # (epochs done, epochs, images a second, a line on the members)


def fit(
    members: list[TrainState],
    teachers: dict[str, CachedTeacher],
    splits: Splits,
    store: RunStore,
    accelerator: Accelerator,
    sharing: bool,
    log: Log,
) -> None:
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
            if writes and not done and epoch in member.train.snapshot_epochs:
                store.save_snapshot(member.run.id, epoch, member.result.state_dict())
            member.model.train()
            member.parts.train()
            if not done:
                member.sums, member.lr = {}, member.optimizer.param_groups[0]["lr"]
        for teacher in teachers.values():
            teacher.begin(epoch, accelerator.device, whole=not done)
        batches = training_batches(
            splits, augment, size, seed, epoch, accelerator.device, rank, world, done
        )
        for number, batch in enumerate(batches, done):
            _step(members, teachers, batch, epoch, number, size, accelerator, world, rank)
            if (number + 1) % LOOK and number + 1 < first.steps_per_epoch:
                continue
            due = time.monotonic() - saved >= 60 * train.checkpoint_minutes
            members, due = _look(members, due, epoch, shared)
            if not members:
                return
            apart = world > 1 and any(
                hasattr(part, "end_epoch") for m in members for part in m.parts.values()
            )
            if (
                due and number + 1 < first.steps_per_epoch and not apart
            ):  # what these have seen is one process's own
                now = time.monotonic()
                for member in members:
                    member.seconds, member.step = (
                        member.seconds + (now - began) / len(members),
                        number + 1,
                    )
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
        log(
            epoch + 1,
            train.epochs,
            rate,
            ", ".join(f"{m.history[-1]['validation']['top1']:.1%}" for m in members),
        )


def _look(
    members: list[TrainState], due: bool, epoch: int, sharing: Accelerator | None
) -> tuple[list[TrainState], bool]:
    """The members whose losses have been numbers since the last look; and `due`, as the first process sees it."""
    losses = [torch.stack([sums[""] for _, sums in member.recent]) for member in members]
    wrong = torch.stack([(~own.isfinite()).any() for own in losses]).float()
    if sharing:  # what one process finds or decides is for all
        mine = torch.tensor([float(due and sharing.is_main_process)], device=wrong.device)
        wrong, due = (
            t > 0 for t in sharing.reduce(torch.cat([wrong, mine]), "sum").split([len(members), 1])
        )
    for member, own, bad in zip(members, losses, wrong.tolist(), strict=True):
        if bad:
            finite = own.isfinite()
            step, sums = member.recent[
                int(finite.long().argmin())
            ]  # the first; where another process has met it, any
            terms = ", ".join(
                f"{name} {value.item():g}"
                for name, value in sums.items()
                if name not in ("", "top1")
            )
            at = (
                f"step {step + 1} of {member.steps_per_epoch}"
                if not finite.all()
                else "on another process"
            )
            member.failure = (
                f"{member.run.display_name}: its loss is not finite: epoch {epoch + 1}, {at} (terms, summed "
                f"over the batch: {terms}); lower train.lr, or clip with train.clip_grad"
            )
        member.recent = []
    return [member for member in members if not member.failure], bool(due)


def _gather_sums(member: TrainState, sharing: Accelerator) -> None:
    """Bring what the processes have summed into the first one, so that a checkpoint of it has all."""
    names = sorted(member.sums)
    totals = sharing.reduce(torch.stack([member.sums[name] for name in names]), "sum")
    member.sums = dict(zip(names, totals * sharing.is_main_process, strict=True))


def _step(
    members: list[TrainState],
    teachers: dict[str, CachedTeacher],
    batch: Batch,
    epoch: int,
    number: int,
    size: int,
    accelerator: Accelerator,
    world: int,
    rank: int,
) -> None:
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
                    asked = partial(
                        _input,
                        teachers[teacher].teacher.model,
                        views,
                        inputs,
                        memory_format_of(first.train),
                    )
                    answers[teacher] = teachers[teacher](asked, number, done, len(views))
            if member.teachers and member.teachers not in answers:
                answers[member.teachers] = ensemble(
                    [answers[teacher] for teacher in member.teachers]
                )
            _seed(
                derive_seed("dropout", member.run.seed, step, part, rank), views.device
            )  # each run's own dropout
            last = done + len(views) == len(batch.views)
            with nullcontext() if last else accelerator.no_sync(member.wrapped):
                with accelerator.autocast(), capture_outputs(member.model, member.needs) as seen:
                    logits = member.wrapped(
                        _input(member.model, views, inputs, memory_format_of(member.train))
                    )
                loss, sums = compute_loss(
                    member.loss,
                    Outputs(logits, **seen),
                    labels,
                    answers.get(member.teachers),
                    size,
                    member.parts,
                    progress,
                )
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


def _input(
    model: nn.Module, views: Tensor, made: dict[Any, Tensor], memory: torch.memory_format
) -> Tensor:
    """The views as this network wants them; networks with equal normalisation share the tensor."""
    wanted = input_config(model)
    if wanted not in made:
        made[wanted] = normalise(views, *wanted).contiguous(memory_format=memory)
    return made[wanted]


def _update(member: TrainState, step: int, world: int) -> None:
    for weight in (
        member.parts.parameters() if world > 1 else ()
    ):  # the network's gradients are averaged already
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


def _means(member: TrainState, images: int, sharing: Accelerator | None) -> dict[str, float]:
    """Over the epoch's images: the loss (under ""), its terms before their weights, and top1."""
    names = sorted(member.sums)
    totals = torch.stack([member.sums[name] for name in names])
    totals = sharing.reduce(totals, "sum") if sharing else totals
    return {name: value / images for name, value in zip(names, totals.tolist(), strict=True)}


def _finish_epoch(
    member: TrainState,
    epoch: int,
    means: dict[str, float],
    splits: Splits,
    sharing: Accelerator | None,
    device: torch.device,
) -> None:
    """Judge the member on the validation split and write its line of history."""
    member.epoch, member.step = epoch + 1, 0
    for part in member.parts.values():
        if hasattr(part, "end_epoch"):
            part.end_epoch((lambda x: sharing.reduce(x, "sum")) if sharing else (lambda x: x))
    if sharing:
        for model in dict.fromkeys(
            (member.model, member.result)
        ):  # in one order everywhere, unlike a set's
            for buffer in model.buffers():
                torch.distributed.broadcast(
                    buffer, 0
                )  # each process has batch statistics of its own
    logits = predict(
        member.result, splits, splits.validation, member.run.arm.augment, device, sharing=sharing
    )
    if not logits.isfinite().all():
        member.failure = f"{member.run.display_name}: after epoch {epoch + 1} its answers are not finite; lower train.lr"
        return
    labels = splits.validation.labels
    member.history.append(
        {
            "epoch": epoch + 1,
            "lr": member.lr,
            "loss": means[""],
            "train": {"top1": means["top1"]},
            "terms": {name: value for name, value in means.items() if name not in ("", "top1")},
            "validation": {
                "top1": accuracy(logits, labels),
                "nll": nn.functional.cross_entropy(logits.double(), labels).item(),
            },
        }
        | ({"weights": drift(member)} if member.initial is not None else {})
    )


def drift(member: TrainState) -> dict[str, Any]:
    """Norms of the weights that are stored, by layer and in all, and how far they are from where they started."""
    weights = {name: w.detach() for name, w in weight_decay_params(member.result).items()}
    single = last_linear(member.result) is not None
    spread = template_spread(templates(member.result).detach()) if single else None
    return {
        "total": total(weights, member.initial),
        "template_spread": spread,
        "layers": {name: norms(w, member.initial[name]) for name, w in weights.items()},
    }
