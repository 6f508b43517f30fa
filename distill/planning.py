"""What is to be trained, whether it can be, side by side with what, and at what cost; nothing is trained here."""

import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.nn import functional as F

from distill.advice import advise
from distill.data.sources import Splits, load_splits
from distill.document import UserError
from distill.losses import Outputs, ensemble, make_parts, needs_of, weighted_sum, with_shares
from distill.models.inside import observe
from distill.progress import Progress
from distill.recipe import Arm, Recipe
from distill.runs import Run, Store, plan_runs
from distill.teachers import Teacher
from distill.training import make_optimizer
from distill.workplace import Workplace, make_accelerator, precision_of


def missing_of(place: Workplace, runs: list[Run]) -> list[Run]:
    """Runs to train, each identity once; the main process looks, so that all agree."""
    unique = {run.id: run for run in reversed(runs)}
    missing = [[i for i in unique if not place.store.complete(i)]]
    if place.accelerator.num_processes > 1:
        broadcast_object_list(missing)
    return [run for run in runs if run.id in missing[0] and unique.pop(run.id, None)]


def preflight(place: Workplace, runs: list[Run]) -> None:
    """Build every arm once, and evaluate network and loss on two images: a mistake ends the study at once.

    Raises:
        UserError: naming the arm.
    """
    answers: dict[Any, Outputs] = {}  # of the teachers, to one or two blank images

    def answer(name: str, needs: frozenset[str], views: Tensor) -> Outputs:
        key = (name, needs, len(views))
        if key not in answers:
            answers[key] = Teacher(place.build(place.recipe.arm(name), 0), needs)(views)
        return answers[key]

    for arm in {run.arm.name: run.arm for run in runs}.values():
        try:
            model = place.build(arm, 0).train(not arm.given)
        except UserError as error:
            raise UserError(f"{arm.name}: {error}") from None
        shape = place.view_shape(arm)
        size = min(arm.train.batch_size, len(place.splits.train)) // place.accelerator.num_processes
        part = len(torch.empty(max(1, size)).chunk(arm.train.accumulate)[-1])
        views = torch.zeros(min(2, part), *shape)
        try:
            with observe(model, needs_of(arm.loss or {})) as seen:
                student = Outputs(model(views), **seen)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(f"{arm.name}: model {arm.model} does not take images of {'×'.join(map(str, shape))}: "
                            f"{error}") from None
        except UserError as error:
            raise UserError(f"{arm.name}: {error}") from None
        if arm.given:
            continue
        if any(place.view_shape(place.recipe.arm(name)) != shape for name in arm.teachers):
            raise UserError(f"{arm.name}: its views are {shape[1]}×{shape[2]} and its teacher's are not: student and "
                            "teacher see the same view, so augment.crop must be the same")
        if arm.train.batch_size < place.accelerator.num_processes:
            raise UserError(f"{arm.name}: train.batch_size {arm.train.batch_size} is smaller than the number of "
                            "processes")
        make_optimizer(model, arm.train, steps_of(place.splits, arm), arm.name)
        needs = needs_of(arm.loss, of_teacher=True) if len(arm.teachers) == 1 else frozenset()
        try:
            teacher = ensemble([answer(name, needs, views) for name in arm.teachers]) if arm.teachers else None
        except UserError as error:
            raise UserError(f"{arm.name}: its teacher {arm.teachers[0]}: {error}") from None
        _try_loss(arm, with_shares(arm.loss, place.splits.shares), student, teacher)


def _try_loss(arm: Arm, loss: dict[str, dict[str, Any]], student: Outputs, teacher: Outputs | None) -> None:
    """One evaluation of an arm's loss on what its networks say: terms refuse what they cannot do."""
    classes, count = student.logits.shape[1], len(student.logits)
    labels = torch.arange(count) % classes
    mixed = arm.augment.mixup > 0 or arm.augment.cutmix > 0
    try:
        parts = make_parts(loss, student, teacher, 0)
        labels = F.one_hot(labels, classes).float() if mixed else labels
        weighted_sum(loss, student, labels, teacher, count, parts)
        learning = {name: settings for name, settings in loss.items()
                    if settings.get("weight", 1.0) > 0 and "weights" not in needs_of([name])}
        value, _ = weighted_sum(learning, student, labels, teacher, count, parts)
    except ValueError as error:
        raise UserError(f"{arm.name}: loss: {error}") from None
    logits = student.logits
    if not value.requires_grad or torch.autograd.grad(value, logits, allow_unused=True)[0] is None:
        raise UserError(f"{arm.name}: no term of its loss trains the last layer, so its answers stay random; add "
                        "cross_entropy or kd")


def steps_of(splits: Splits, arm: Arm) -> int:
    """Updates in an epoch."""
    return max(1, len(splits.train) // arm.train.batch_size)


def cohorts_of(runs: list[Run]) -> list[list[Run]]:
    """Runs that train side by side: equal in seed, views, batches and epochs."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        train = run.arm.train
        same = (run.seed, run.arm.augment, train.batch_size, train.accumulate, train.epochs)
        groups.setdefault(same, []).append(run)
    return list(groups.values())


def share_out(cohorts: list[list[Run]], processes: int, spread: str) -> tuple[list[list[Run]], bool]:
    """Cohorts for several processes, and whether the processes share each batch rather than the cohorts.

    Large cohorts are halved until every process has one; where there are fewer runs than processes, the
    batches are shared (unless `spread` says otherwise).
    """
    runs = sum(map(len, cohorts))
    if processes == 1 or spread == "data" or (spread == "auto" and runs < processes):
        return cohorts, processes > 1
    cohorts = list(cohorts)
    while len(cohorts) < min(processes, runs):
        largest = max(cohorts, key=len)
        cohorts.remove(largest)
        half = (len(largest) + 1) // 2
        cohorts += [largest[:half], largest[half:]]
    return sorted(cohorts, key=len, reverse=True), False


# ------------------------------------------------------------------------------------------------ the dry run


def dry_run(recipe: Recipe, out: str | Path = "runs") -> dict[str, Any]:
    """The plan without training: which runs are stored, the cohorts of the others, and their cost.

    Returns:
        ``notes``, ``runs`` (each with `id`, `name`, `stored`), ``cohorts`` (each with `runs`, `epochs`, `seconds`) and
        ``seconds`` in all: on this machine, a student's step taken as three of its passes and a teacher's
        pass once a cohort, from passes timed now.
    """
    with Progress(speaking=False) as progress:
        accelerator = make_accelerator(precision_of(recipe))
        place = Workplace(recipe, load_splits(recipe.data), Store(Path(out)), accelerator, progress)
    runs = plan_runs(recipe, place.splits.identity, accelerator.mixed_precision)
    missing = missing_of(place, runs)
    preflight(place, missing)
    seconds: dict[str, float] = {}

    def cost(arm: Arm) -> float:
        if arm.name not in seconds:
            seconds[arm.name] = _seconds_per_image(place, arm)
        return seconds[arm.name]

    cohorts = []
    for depth in sorted({run.depth for run in missing}):
        trained = [run for run in missing if run.depth == depth and not run.arm.given]
        for cohort in cohorts_of(trained):
            arms = {teacher.arm.name: teacher.arm for run in cohort for teacher in run.teachers}
            per_image = sum(map(cost, arms.values())) + 3 * sum(cost(run.arm) for run in cohort)
            epochs = cohort[0].arm.train.epochs
            cohorts.append({"runs": [run.title for run in cohort], "epochs": epochs,
                            "seconds": per_image * epochs * len(place.splits.train)})
    return {"notes": advise(recipe, len(place.splits.class_names)),
            "runs": [{"id": run.id, "name": run.title, "stored": place.store.complete(run.id)} for run in runs],
            "cohorts": cohorts, "seconds": sum(cohort["seconds"] for cohort in cohorts)}


@torch.no_grad()
def _seconds_per_image(place: Workplace, arm: Arm) -> float:
    """Of a forward pass, the fastest of four on 64 images."""
    model = place.build(arm, 0).to(place.accelerator.device).eval()
    images = torch.zeros(64, *place.view_shape(arm), device=place.accelerator.device)
    taken = []
    for _ in range(4):
        began = time.monotonic()
        model(images).sum().item()
        taken.append(time.monotonic() - began)
    return min(taken) / len(images)
