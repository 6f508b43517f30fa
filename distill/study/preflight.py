"""What is to be trained, whether it can be, side by side with what, and at what cost; nothing is trained here."""

from typing import Any

import torch
from torch.nn import functional as F

from distill.errors import UserError
from distill.evaluation.class_selection import check_class_names
from distill.losses import (
    Outputs,
    compute_loss,
    ensemble,
    make_loss_modules,
    required_outputs,
    resolve_priors,
)
from distill.models.factory import blank_images, parameter_count
from distill.models.hooks import capture_outputs
from distill.recipe.schema import Arm
from distill.storage.run import Run
from distill.study.context import StudyContext
from distill.study.plan import steps_per_epoch_of
from distill.training.optim import make_optimizer
from distill.training.teacher import Teacher


def preflight(ctx: StudyContext, runs: list[Run]) -> dict[str, int]:
    """Build every arm once, and evaluate network and loss on two images: a mistake ends the study at once.

    Returns:
        bytes that a run of each arm holds while it trains: weights, gradients, two states of an optimizer, and the
        average of the weights.

    Raises:
        UserError: naming the arm, or what is to be looked at in it.
    """
    check_class_names(ctx.recipe.analysis, ctx.splits)
    sizes: dict[str, int] = {}
    answers: dict[Any, Outputs] = {}  # of the teachers, to one or two blank images

    def answer(name: str, needs: frozenset[str], count: int) -> Outputs:
        key = (name, needs, count)
        if key not in answers:
            model = ctx.build(ctx.recipe.arm(name), 0)
            answers[key] = Teacher(model, needs)(blank_images(model, count))
        return answers[key]

    for arm in {run.arm.name: run.arm for run in runs}.values():
        try:
            model = ctx.build(arm, 0).train(not arm.frozen)
        except UserError as error:
            raise UserError(f"{arm.name}: {error}") from None
        sizes[arm.name] = 4 * parameter_count(model) * (5 if arm.train.ema else 4)
        shape = ctx.view_shape(arm)
        size = min(arm.train.batch_size, len(ctx.splits.train)) // ctx.accelerator.num_processes
        part = len(torch.empty(max(1, size)).chunk(arm.train.accumulate)[-1])
        views = blank_images(model, min(2, part))
        try:
            with capture_outputs(model, required_outputs(arm.loss or {})) as seen:
                student = Outputs(model(views), **seen)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(
                f"{arm.name}: model {arm.model} does not take images of "
                f"{'×'.join(map(str, views.shape[1:]))}: {error}"
            ) from None
        except UserError as error:
            raise UserError(f"{arm.name}: {error}") from None
        if arm.frozen:
            continue
        if any(ctx.view_shape(ctx.recipe.arm(name)) != shape for name in arm.teachers):
            raise UserError(
                f"{arm.name}: its views are {shape[1]}×{shape[2]} and its teacher's are not: student and "
                "teacher see the same view, so augment.crop must be the same; input_size shows a "
                "network its views at another size"
            )
        if arm.train.batch_size < ctx.accelerator.num_processes:
            raise UserError(
                f"{arm.name}: train.batch_size {arm.train.batch_size} is smaller than the number of "
                "processes"
            )
        make_optimizer(model, arm.train, steps_per_epoch_of(ctx.splits, arm), arm.name)
        needs = (
            required_outputs(arm.loss, of_teacher=True) if len(arm.teachers) == 1 else frozenset()
        )
        try:
            teacher = (
                ensemble([answer(name, needs, len(views)) for name in arm.teachers])
                if arm.teachers
                else None
            )
        except UserError as error:
            raise UserError(f"{arm.name}: its teacher {arm.teachers[0]}: {error}") from None
        _try_loss(arm, resolve_priors(arm.loss, ctx.splits.class_frequencies), student, teacher)
        if arm.train.compile and {"features", "feature_maps"} & required_outputs(arm.loss):
            raise UserError(
                f"{arm.name}: train.compile does not go with a loss that looks inside the network "
                f"({', '.join(arm.loss)})"
            )
    return sizes


def _try_loss(
    arm: Arm, loss: dict[str, dict[str, Any]], student: Outputs, teacher: Outputs | None
) -> None:
    """One evaluation of an arm's loss on what its networks say: terms refuse what they cannot do."""
    classes, count = student.logits.shape[1], len(student.logits)
    labels = torch.arange(count) % classes
    mixed = arm.augment.mixup > 0 or arm.augment.cutmix > 0
    try:
        parts = make_loss_modules(loss, student, teacher, 0)
        labels = F.one_hot(labels, classes).float() if mixed else labels
        compute_loss(loss, student, labels, teacher, count, parts)
        learning = {
            name: settings
            for name, settings in loss.items()
            if settings.get("weight", 1.0) > 0 and "weights" not in required_outputs([name])
        }
        value, _ = compute_loss(learning, student, labels, teacher, count, parts)
    except ValueError as error:
        raise UserError(f"{arm.name}: loss: {error}") from None
    logits = student.logits
    if not value.requires_grad or torch.autograd.grad(value, logits, allow_unused=True)[0] is None:
        raise UserError(
            f"{arm.name}: no term of its loss trains the last layer, so its answers stay random; add "
            "cross_entropy or kd"
        )
