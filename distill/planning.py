"""What is to be trained, whether it can be, side by side with what, and at what cost; nothing is trained here."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.nn import functional as F

from distill.advice import advise, data_notes
from distill.data.sources import Splits, load_splits
from distill.document import UserError
from distill.explain.looking import check_analysis
from distill.logits import stored_epochs
from distill.losses import Outputs, ensemble, make_parts, needs_of, weighted_sum, with_shares
from distill.members import make_optimizer
from distill.models.build import blank_input, native_side, parameter_count
from distill.models.inside import observe
from distill.progress import Progress
from distill.recipe import Arm, Recipe
from distill.runs import Run, Store, plan_runs
from distill.teachers import Teacher
from distill.workplace import Workplace, make_accelerator, precision_of


def damaged_of(store: Store, runs: list[Run]) -> dict[str, str]:
    """Of stored runs whose files are not what was written: what is wrong, by id; they are to be trained again."""
    found = {run_id: store.damage(run_id) for run_id in dict.fromkeys(run.id for run in runs) if store.complete(run_id)}
    return {run_id: damage for run_id, damage in found.items() if damage}


def missing_of(place: Workplace, runs: list[Run]) -> list[Run]:
    """Runs to train, each identity once; the main process looks, so that all agree."""
    unique = {run.id: run for run in reversed(runs)}
    missing = [[i for i in unique if not place.store.complete(i)]]
    if place.accelerator.num_processes > 1:
        broadcast_object_list(missing)
    return [run for run in runs if run.id in missing[0] and unique.pop(run.id, None)]


def preflight(place: Workplace, runs: list[Run]) -> dict[str, int]:
    """Build every arm once, and evaluate network and loss on two images: a mistake ends the study at once.

    Returns:
        bytes that a run of each arm holds while it trains: weights, gradients, two states of an optimizer, and the
        average of the weights.

    Raises:
        UserError: naming the arm, or what is to be looked at in it.
    """
    check_analysis(place.recipe.analysis, place.splits)
    sizes: dict[str, int] = {}
    answers: dict[Any, Outputs] = {}  # of the teachers, to one or two blank images

    def answer(name: str, needs: frozenset[str], count: int) -> Outputs:
        key = (name, needs, count)
        if key not in answers:
            model = place.build(place.recipe.arm(name), 0)
            answers[key] = Teacher(model, needs)(blank_input(model, count))
        return answers[key]

    for arm in {run.arm.name: run.arm for run in runs}.values():
        try:
            model = place.build(arm, 0).train(not arm.given)
        except UserError as error:
            raise UserError(f"{arm.name}: {error}") from None
        sizes[arm.name] = 4 * parameter_count(model) * (5 if arm.train.ema else 4)
        shape = place.view_shape(arm)
        size = min(arm.train.batch_size, len(place.splits.train)) // place.accelerator.num_processes
        part = len(torch.empty(max(1, size)).chunk(arm.train.accumulate)[-1])
        views = blank_input(model, min(2, part))
        try:
            with observe(model, needs_of(arm.loss or {})) as seen:
                student = Outputs(model(views), **seen)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(f"{arm.name}: model {arm.model} does not take images of "
                            f"{'×'.join(map(str, views.shape[1:]))}: {error}") from None
        except UserError as error:
            raise UserError(f"{arm.name}: {error}") from None
        if arm.given:
            continue
        if any(place.view_shape(place.recipe.arm(name)) != shape for name in arm.teachers):
            raise UserError(f"{arm.name}: its views are {shape[1]}×{shape[2]} and its teacher's are not: student and "
                            "teacher see the same view, so augment.crop must be the same; input_size shows a "
                            "network its views at another size")
        if arm.train.batch_size < place.accelerator.num_processes:
            raise UserError(f"{arm.name}: train.batch_size {arm.train.batch_size} is smaller than the number of "
                            "processes")
        make_optimizer(model, arm.train, steps_of(place.splits, arm), arm.name)
        needs = needs_of(arm.loss, of_teacher=True) if len(arm.teachers) == 1 else frozenset()
        try:
            teacher = ensemble([answer(name, needs, len(views)) for name in arm.teachers]) if arm.teachers else None
        except UserError as error:
            raise UserError(f"{arm.name}: its teacher {arm.teachers[0]}: {error}") from None
        _try_loss(arm, with_shares(arm.loss, place.splits.shares), student, teacher)
        if arm.train.compile and {"features", "maps"} & needs_of(arm.loss):
            raise UserError(f"{arm.name}: train.compile does not go with a loss that looks inside the network "
                            f"({', '.join(arm.loss)})")
    return sizes


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


def needs_of_teachers(run: Run) -> frozenset[str]:
    """What a run's loss looks at in its teacher beside logits; an ensemble has nothing else."""
    return needs_of(run.arm.loss, of_teacher=True) if len(run.teachers) == 1 else frozenset()


def steps_of(splits: Splits, arm: Arm) -> int:
    """Updates in an epoch."""
    return max(1, len(splits.train) // arm.train.batch_size)


def cohorts_of(runs: list[Run], sizes: Mapping[str, int] | None = None, memory: int = 0) -> list[list[Run]]:
    """Runs that train side by side: equal in seed, views, batches and epochs, and small enough together.

    Args:
        runs: that do not depend on each other.
        sizes: bytes that an arm's run holds while it trains, by the arm's name.
        memory: what the runs of a cohort may hold together; where `sizes` are given.
    """
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        train = run.arm.train
        same = (run.seed, run.arm.augment, train.batch_size, train.accumulate, train.epochs, train.channels_last,
                train.compile)
        groups.setdefault(same, []).append(run)
    if sizes is None:
        return list(groups.values())
    cohorts = []
    for group in groups.values():
        full = 0
        cohorts.append([])
        for run in group:
            full += sizes[run.arm.name]
            if full > memory and cohorts[-1]:
                cohorts.append([])
                full = sizes[run.arm.name]
            cohorts[-1].append(run)
    return cohorts


def memory_for_runs(accelerator: Accelerator) -> int:
    """Bytes that the runs of a cohort may hold on one process: half of what is free; the rest is for what they do.

    The main process says it, so that all agree.
    """
    if accelerator.device.type == "cuda":
        torch.cuda.empty_cache()  # what this process has and does not use counts as taken
        free = torch.cuda.mem_get_info(accelerator.device)[0]
    else:
        free = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return broadcast_object_list([free // 2])[0] if accelerator.num_processes > 1 else free // 2


def share_out(cohorts: list[list[Run]], processes: int, spread: str, jobs: int = 1) -> tuple[list[list[Run]], bool]:
    """Cohorts for several processes, and whether the processes share each batch rather than the cohorts.

    Large cohorts are halved until every process has one; where there are fewer runs than processes, the
    batches are shared (unless `spread` says otherwise). Several `jobs` never share batches, but cohorts.
    """
    runs, sharing = sum(map(len, cohorts)), processes > 1 and spread == "data"
    if spread == "auto":
        sharing = processes > 1 and runs < processes * jobs
    if processes * jobs == 1 or (sharing and jobs == 1):
        return cohorts, sharing
    cohorts, takers = list(cohorts), jobs if sharing else processes * jobs
    while len(cohorts) < min(takers, runs):
        largest = max(cohorts, key=len)
        cohorts.remove(largest)
        half = (len(largest) + 1) // 2
        cohorts += [largest[:half], largest[half:]]
    return sorted(cohorts, key=len, reverse=True), sharing


# ------------------------------------------------------------------------------------------- the logit store


class Kept(NamedTuple):
    """A teacher's answers to a cohort's views, in the logit store."""

    teacher: Run
    path: Path
    epochs: int  # that the cohort needs
    stored: int
    size: int  # bytes that are still to be written, about


def answers_identity(place: Workplace, run: Run, teacher: str, sharing: bool) -> dict[str, Any]:
    """All that a teacher's answers to a run's views depend on, to the last bit: its weights, the stream of views, and
    how they go through the network."""
    train, store = run.arm.train, place.store
    weights = store.record(teacher)["sha256"]["model.safetensors"] if store.complete(teacher) else None
    processes = place.accelerator.num_processes if sharing else 1  # each puts so many images through at once
    return {"teacher": teacher, "weights": weights, "processes": processes, "seed": run.seed,
            "augment": run.arm.augment.model_dump(exclude_defaults=True), "batch_size": train.batch_size,
            "accumulate": train.accumulate, "channels_last": train.channels_last, "compile": train.compile,
            "precision": place.accelerator.mixed_precision, "store": place.recipe.data.store}


def kept_answers(place: Workplace, cohorts: list[list[Run]], sharing: bool = False) -> list[Kept]:
    """What cohorts find in the logit store, and what they leave there."""
    kept: dict[Path, Kept] = {}
    classes, data = len(place.splits.class_names), place.recipe.data
    bytes_each = 4 if data.store == "exact" and place.accelerator.mixed_precision == "no" else 2
    values = min(2 * data.store, classes) if isinstance(data.store, int) else classes
    for cohort in cohorts:
        arm = cohort[0].arm
        live = {t.id for run in cohort for t in run.teachers if needs_of_teachers(run)}
        for teacher in {t.id: t for run in cohort for t in run.teachers if t.id not in live}.values():
            path = place.store.answers(answers_identity(place, cohort[0], teacher.id, sharing))
            epochs, stored = arm.train.epochs, stored_epochs(path)
            size = len(place.splits.train) * values * bytes_each * max(0, epochs - stored) if data.store_limit else 0
            kept[path] = Kept(teacher, path, epochs, min(stored, epochs), size)
    return list(kept.values())


def told(answers: list[Kept]) -> list[str]:
    """For a person: which teachers need not answer again, and what is about to be written."""
    known, new = [k for k in answers if k.stored == k.epochs], sum(k.size for k in answers)
    lines = []
    if known:
        lines.append(f"answers of {len(known)} of {len(answers)} teachers are stored, which saves their passes")
    if new:
        lines.append(f"answers of {len(answers) - len(known)} teachers will be kept for later studies, about "
                     f"{new / 1e6:,.3g} MB in {answers[0].path.parent} (data.store_limit=0 keeps none)")
    return lines


# ------------------------------------------------------------------------------------------------ the dry run


def dry_run(recipe: Recipe, out: str | Path = "runs") -> dict[str, Any]:
    """The plan without training: which runs are stored, the cohorts of the others, and their cost.

    Returns:
        ``notes``, ``runs`` (each with `id`, `name`, `stored`), ``cohorts`` (each with `runs`, `epochs`, `seconds`;
        `answers` of its teachers: the epochs `stored` and the `bytes` to be written; the seconds that these have
        `saved`) and ``seconds`` in all: on this machine, a student's step taken as three of its passes and a
        teacher's pass once a cohort, from passes timed now.
    """
    with Progress(speaking=False) as progress:
        accelerator = make_accelerator(precision_of(recipe))
        splits = load_splits(recipe.data, native_side(recipe.arms))
        place = Workplace(recipe, splits, Store(Path(out)), accelerator, progress)
    runs = plan_runs(recipe, place.splits.identity, accelerator.mixed_precision)
    damaged = damaged_of(place.store, runs)
    absent = {run.id for run in missing_of(place, runs)} | damaged.keys()
    missing = list({run.id: run for run in runs if run.id in absent}.values())
    sizes, memory = preflight(place, missing), memory_for_runs(accelerator)
    seconds: dict[str, float] = {}

    def cost(arm: Arm) -> float:
        network = str((arm.model, arm.model_args, arm.input_size or place.view_shape(arm)))
        if network not in seconds:
            seconds[network] = _seconds_per_image(place, arm)
        return seconds[network]

    cohorts = []
    for depth in sorted({run.depth for run in missing}):
        trained = [run for run in missing if run.depth == depth and not run.arm.given]
        for cohort in cohorts_of(trained, sizes, memory):
            epochs, images = cohort[0].arm.train.epochs, len(place.splits.train)
            teachers = {teacher.id: teacher.arm for run in cohort for teacher in run.teachers}
            kept = kept_answers(place, [cohort])
            saved = sum(cost(k.teacher.arm) * k.stored for k in kept) * images
            per_image = sum(map(cost, teachers.values())) + 3 * sum(cost(run.arm) for run in cohort)
            cohorts.append({"runs": [run.title for run in cohort], "epochs": epochs,
                            "seconds": per_image * epochs * images - saved, "saved": saved, "answers": [
                                {"teacher": k.teacher.title, "stored": k.stored, "bytes": k.size} for k in kept]})
    notes = [*data_notes(place.splits), *advise(recipe, len(place.splits.class_names)),
             *(f"{damage}: the run will be trained again" for damage in damaged.values())]
    return {"notes": notes,
            "runs": [{"id": run.id, "name": run.title, "stored": run.id not in absent} for run in runs],
            "cohorts": cohorts, "seconds": sum(cohort["seconds"] for cohort in cohorts)}


@torch.no_grad()
def _seconds_per_image(place: Workplace, arm: Arm) -> float:
    """Of a forward pass, the fastest on 64 images of at least four and a quarter of a second.

    Others may be at work on this machine: threads that wait for each other while these hold a core can take a hundred
    times as long, so that one thread, alone, may be nearer the truth.
    """
    model = place.build(arm, 0).to(place.accelerator.device).eval()
    images, threads, taken = blank_input(model, 64), torch.get_num_threads(), []
    for count in {threads, 1} if images.device.type == "cpu" else {threads}:
        torch.set_num_threads(count)
        own: list[float] = []
        while len(own) < 4 or sum(own) < 0.25:
            began = time.monotonic()
            model(images).sum().item()
            own.append(time.monotonic() - began)
        taken.append(min(own))
    torch.set_num_threads(threads)
    return min(taken) / len(images)
