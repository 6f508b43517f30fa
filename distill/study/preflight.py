"""Build every arm and evaluate its loss once, so that mistakes are found before training."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from distill.models.foreign import check_logits
from distill.models.hooks import capture_outputs, check_features
from distill.recipe.schema import Arm
from distill.storage.run_fingerprint import Run
from distill.storage.trial import check_storable
from distill.study.context import StudyContext
from distill.training.optim import make_optimizer, make_scheduler
from distill.training.optimizer_trial import try_optimizer
from distill.training.state import steps_per_epoch
from distill.training.teacher import Teacher

# torch's message if batch normalisation gets one value for each channel.
ONE_IMAGE_ERROR = "more than 1 value per channel"


def preflight(ctx: StudyContext, runs: list[Run]) -> dict[str, int]:
    """Build each arm's network, optimizer and loss, and evaluate them on blank images.

    Returns:
        the bytes that one run of each arm needs while it trains, by the arm's name.

    Raises:
        UserError: naming the arm and what is wrong with it.
    """
    check_class_names(ctx.recipe.analysis, ctx.splits)
    teacher_outputs = BlankTeacherOutputs(ctx)
    sizes: dict[str, int] = {}
    arms = {run.arm.name: run.arm for run in runs}
    first_run = {run.arm.name: run for run in reversed(runs)}
    trials = Trials(ctx)
    for arm in arms.values():
        model = _build(ctx, arm)
        sizes[arm.name] = training_bytes(model, arm)
        images = blank_images(model, min(2, smallest_micro_batch(ctx, arm)))
        outputs = _outputs_for(arm, model, images, len(ctx.splits.class_names))
        trials.of_network(first_run[arm.name], model)
        if arm.frozen:
            continue
        trials.of_optimizer(arm)
        _check_views(ctx, arm)
        _check_batch_size(ctx, arm)
        _check_compile(arm)
        optimizer = make_optimizer(model, arm.train, arm.name)
        make_scheduler(optimizer, arm.train, steps_per_epoch(ctx.splits, arm.train), arm.name)
        _check_loss(ctx, arm, outputs, teacher_outputs.of(arm, len(images)))
    return sizes


def training_bytes(model: nn.Module, arm: Arm) -> int:
    """Return the bytes that a run needs while it trains.

    These are float32 weights, gradients, two optimizer states, and the moving average of the
    weights if there is one.
    """
    copies = 5 if arm.train.ema else 4
    return 4 * copies * parameter_count(model)


def smallest_micro_batch(ctx: StudyContext, arm: Arm) -> int:
    """Return the number of images in the smallest micro-batch of a process."""
    batch_size = min(arm.train.batch_size, len(ctx.splits.train))
    share = max(1, batch_size // ctx.processes.world_size)
    return len(torch.empty(share).chunk(arm.train.accumulate)[-1])


class Trials:
    """Trials of networks and optimizers, each kind once, however many arms have it."""

    def __init__(self, ctx: StudyContext) -> None:
        self.ctx = ctx
        self.done: set[str] = set()

    def of_network(self, run: Run, model: nn.Module) -> None:
        """Store a network, load it again and compare its outputs; capture its features.

        Raises:
            UserError: if it cannot be stored after training, or if it is another one then.
        """
        arm = run.arm
        if not self._is_new(f"network {arm.model} {arm.model_args} {arm.input_size}"):
            return
        was_training = model.training
        try:
            check_storable(run, model.eval())
            check_features(model)
        except UserError as error:
            raise UserError(f"{arm.name}: model {arm.model}: {error}") from None
        finally:
            model.train(was_training)

    def of_optimizer(self, arm: Arm) -> None:
        """Train and resume a tiny network with the arm's optimizer.

        Raises:
            UserError: if the optimizer cannot do that.
        """
        if self._is_new(f"optimizer {arm.train.optimizer} {arm.train.weight_decay}"):
            try_optimizer(arm.train, arm.name, self.ctx.accelerator.device)

    def _is_new(self, key: str) -> bool:
        is_new = key not in self.done
        self.done.add(key)
        return is_new


class BlankTeacherOutputs:
    """Teachers' outputs for blank images.

    Each network is built once, however many arms learn from it.
    """

    def __init__(self, ctx: StudyContext) -> None:
        self.ctx = ctx
        self.known: dict[tuple[str, frozenset[str], int], Outputs] = {}

    def of(self, arm: Arm, count: int) -> Outputs | None:
        """Return the outputs of an arm's teacher for `count` images; None without a teacher.

        Raises:
            UserError: if a teacher lacks what the loss needs, such as feature maps.
        """
        if not arm.teachers:
            return None
        needed = frozenset()
        if len(arm.teachers) == 1:
            needed = required_outputs(arm.loss, of_teacher=True)
        try:
            return ensemble([self._of_teacher(name, needed, count) for name in arm.teachers])
        except UserError as error:
            raise UserError(f"{arm.name}: its teacher {arm.teachers[0]}: {error}") from None

    def _of_teacher(self, name: str, needed: frozenset[str], count: int) -> Outputs:
        key = (name, needed, count)
        if key not in self.known:
            model = self.ctx.build(self.ctx.recipe.arm(name), 0)
            self.known[key] = Teacher(model, needed)(blank_images(model, count))
        return self.known[key]


def _build(ctx: StudyContext, arm: Arm) -> nn.Module:
    try:
        return ctx.build(arm, 0).train(not arm.frozen)
    except UserError as error:
        raise UserError(f"{arm.name}: {error}") from None


def _outputs_for(arm: Arm, model: nn.Module, images: Tensor, num_classes: int) -> Outputs:
    """Run the network once, with everything that its loss needs."""
    try:
        with capture_outputs(model, required_outputs(arm.loss or {})) as captured:
            logits = check_logits(model(images), num_classes)
            if _are_probabilities(logits):
                raise UserError(
                    f"model {arm.model} gives probabilities instead of logits; leave out its "
                    "softmax, which the losses apply themselves"
                )
        return Outputs(logits, **captured)
    except (RuntimeError, AssertionError, ValueError) as error:
        if len(images) == 1 and ONE_IMAGE_ERROR in str(error):
            raise UserError(
                f"{arm.name}: model {arm.model} has batch normalisation, which needs at least two "
                "images at a time, but a part of a batch has one (train.batch_size / processes / "
                "train.accumulate); raise train.batch_size, or lower train.accumulate"
            ) from None
        shape = "×".join(str(side) for side in images.shape[1:])
        raise UserError(
            f"{arm.name}: model {arm.model} does not accept images of shape {shape}: {error}"
        ) from None
    except UserError as error:
        raise UserError(f"{arm.name}: {error}") from None


def _are_probabilities(logits: Tensor) -> bool:
    """Return whether outputs are positive and sum to 1, as those of a softmax."""
    sums = logits.detach().sum(1)
    return bool((logits > 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4)


def _check_views(ctx: StudyContext, arm: Arm) -> None:
    """Refuse a teacher whose views have another size than those of its student."""
    _, height, width = ctx.view_shape(arm)
    for name in arm.teachers:
        _, teacher_height, teacher_width = ctx.view_shape(ctx.recipe.arm(name))
        if (teacher_height, teacher_width) != (height, width):
            raise UserError(
                f"{arm.name}: its views are {height}×{width}, but those of its teacher {name} are "
                f"{teacher_height}×{teacher_width}. Student and teacher see the same view, so "
                "augment.crop must be the same for both; set input_size to resize the views for "
                "one network"
            )


def _check_batch_size(ctx: StudyContext, arm: Arm) -> None:
    processes = ctx.processes.world_size
    if arm.train.batch_size < processes:
        raise UserError(
            f"{arm.name}: train.batch_size {arm.train.batch_size} is smaller than the number of "
            f"processes ({processes}); raise it, or use fewer processes"
        )


def _check_compile(arm: Arm) -> None:
    captured = {"features", "feature_maps"} & required_outputs(arm.loss)
    if arm.train.compile and captured:
        raise UserError(
            f"{arm.name}: train.compile does not work with a loss that needs "
            f"{' and '.join(sorted(captured))} ({', '.join(arm.loss)}); set train.compile=false"
        )


def _check_loss(
    ctx: StudyContext, arm: Arm, outputs: Outputs, teacher_outputs: Outputs | None
) -> None:
    """Evaluate an arm's loss once, and check that it trains the classifier.

    Raises:
        UserError: if a term refuses these outputs, with its reason, or if no term trains the
            classifier.
    """
    terms = resolve_priors(arm.loss, ctx.splits.class_frequencies)
    count, classes = outputs.logits.shape
    labels = torch.arange(count) % classes
    try:
        modules = make_loss_modules(terms, outputs, teacher_outputs, 0)
        if arm.augment.mixes:
            labels = F.one_hot(labels, classes).float()
        inputs = (outputs, labels, teacher_outputs)
        compute_loss(terms, *inputs, batch_size=count, modules=modules)
        training_terms = {
            name: settings
            for name, settings in terms.items()
            if settings["weight"] > 0 and "weights" not in required_outputs([name])
        }
        value, _ = compute_loss(training_terms, *inputs, batch_size=count, modules=modules)
    except ValueError as error:
        raise UserError(f"{arm.name}: loss: {error}") from None
    if not _reaches(value, outputs.logits):
        raise UserError(
            f"{arm.name}: no loss term reaches the classifier, so its logits stay random; add "
            "cross_entropy or kd"
        )


def _reaches(loss: Tensor, logits: Tensor) -> bool:
    """Return whether the logits get a gradient from the loss."""
    if not loss.requires_grad:
        return False
    return torch.autograd.grad(loss, logits, allow_unused=True)[0] is not None
