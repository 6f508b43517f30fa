"""The whole story: recipe → arms → runs → cohorts → views → outputs → steps → predictions → report."""

import csv
import io
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.nn import functional as F

from distill import arms
from distill.comparisons import compare_arms
from distill.data.sources import Splits, load_splits
from distill.document import UserError
from distill.evaluation import accuracy, metrics, predict_all
from distill.losses import TERMS, Outputs, ensemble, make_parts, needs_of, weighted_sum
from distill.models.build import build_model, load_stored, parameter_count
from distill.models.heads import last_linear
from distill.models.inside import has, observe
from distill.progress import Progress
from distill.recipe import Arm, Recipe, term_model
from distill.report import write_report
from distill.runs import Run, Store, one_or_list, plan_runs, read_results, versions, write_aside
from distill.teachers import Teacher, check_teacher
from distill.training import Member, fit, make_optimizer, resume, start


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The study that a YAML file states, with ``KEY=VALUE`` overrides; see `distill.arms.load`."""
    return arms.load(path, TERMS, overrides)


@dataclass
class Workplace:
    """What every part of a study works with: made once, passed on."""

    recipe: Recipe
    splits: Splits
    store: Store
    accelerator: Accelerator
    progress: Progress

    def view_shape(self, arm: Arm) -> tuple[int, int, int]:
        """Channels, height and width of what an arm's network is shown."""
        channels, height, width = self.splits.shape
        side = arm.augment.crop
        if side and side > min(height, width):
            raise UserError(f"{arm.name}: augment.crop {side} is larger than the images ({height}×{width})")
        return channels, side or height, side or width

    def build(self, arm: Arm, seed: int | None) -> nn.Module:
        """The network of an arm, with its initial weights."""
        mean, std = self.splits.normalisation
        return build_model(arm.model, arm.model_args, classes=len(self.splits.class_names),
                           shape=self.view_shape(arm), seed=seed or 0, mean=mean, std=std,
                           class_names=self.splits.class_names, pretrained=arm.pretrained, checkpoint=arm.checkpoint,
                           keep_head=arm.given)

    def load(self, run: Run) -> nn.Module:
        """The stored network of a run, on the device."""
        return load_stored(self.store.folder(run.id)).to(self.accelerator.device)


def make_accelerator(precision: str | None) -> Accelerator:
    """The one accelerator of a process: device, precision and, under a launcher, the other processes."""
    processes = InitProcessGroupKwargs(timeout=timedelta(days=7))  # whole runs are trained between two barriers
    return Accelerator(cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
                       mixed_precision=precision, kwargs_handlers=[processes])


def run_study(recipe: Recipe, out: str | Path = "runs", accelerator: Accelerator | None = None) -> dict[str, Any]:
    """Train what is not trained yet, evaluate, write the report.

    Args:
        recipe: as `load_recipe` returns it.
        out: the folder of all studies and runs.
        accelerator: made here by default.

    Returns:
        the content of `results.json`.

    Raises:
        UserError: for whatever a person can mend.
    """
    if recipe.name == "models":
        raise UserError("a recipe cannot be named models: the runs of all studies lie in the folder of that name")
    accelerator = accelerator or make_accelerator(precision_of(recipe))
    (Path(out) / "models").mkdir(parents=True, exist_ok=True)  # now, rather than after an hour of training
    with Progress(accelerator.is_main_process) as progress:
        with accelerator.main_process_first():  # one process downloads
            splits = load_splits(recipe.data)
        place = Workplace(recipe, splits, Store(Path(out)), accelerator, progress)
        for note in splits.notes:
            progress.say(f"data: {note}")
        runs = plan_runs(recipe, splits.identity, accelerator.mixed_precision)
        missing = _missing(place, runs)
        preflight(place, missing)
        progress.say(f"{len(runs)} runs, {len(runs) - len(missing)} of them stored")
        for depth in sorted({run.depth for run in runs}):
            _train_phase(place, [run for run in missing if run.depth == depth])
            accelerator.wait_for_everyone()
            _check_teachers(place, [run for run in runs if run.depth == depth and run.arm.role == "teacher"])
        results: dict[str, Any] = {}
        if accelerator.is_main_process:
            results = collect(place, runs)
            study = place.store.root / recipe.name
            if not _is_written(study, recipe, results):
                write_study(study, recipe, results)
                _draw_teachers(place, runs, study)
                write_report(study, place.store)
            progress.say(f"report: {study / 'report.html'}")
    return broadcast_object_list([results])[0] if accelerator.num_processes > 1 else results


# ------------------------------------------------------------------------------------------------ the plan


def precision_of(recipe: Recipe) -> str | None:
    """The one precision of a study, None for the launcher's."""
    precisions = {arm.train.precision for arm in recipe.teachers + recipe.students}
    if len(precisions) > 1:
        raise UserError("train.precision is one for the whole study: a process has one precision")
    return precisions.pop()


def _missing(place: Workplace, runs: list[Run]) -> list[Run]:
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
    arms = {run.arm.name: run.arm for run in runs}
    needs = frozenset().union(*(needs_of(arm.loss or {}) for arm in arms.values() if arm.teachers))
    answers: dict[tuple[str, int], Outputs] = {}  # of the teachers, to one or two blank images

    def answer(name: str, views: Tensor) -> Outputs:
        if (name, len(views)) not in answers:
            model = place.build(place.recipe.arm(name), 0)
            answers[name, len(views)] = Teacher(model, needs & has(model))(views)
        return answers[name, len(views)]

    for arm in arms.values():
        model = place.build(arm, 0).train(not arm.given)
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
        make_optimizer(model, arm.train, _steps(place.splits, arm), arm.name)
        teacher = ensemble([answer(name, views) for name in arm.teachers]) if arm.teachers else None
        _try_loss(arm, student, teacher, last_linear(model))


def _try_loss(arm: Arm, student: Outputs, teacher: Outputs | None, head: nn.Module | None) -> None:
    """One evaluation of an arm's loss on what its networks say: terms refuse what they cannot do."""
    classes, count = student.logits.shape[1], len(student.logits)
    labels = torch.arange(count) % classes
    mixed = arm.augment.mixup > 0 or arm.augment.cutmix > 0
    try:
        parts = make_parts(arm.loss, student, teacher, 0)
        loss, _ = weighted_sum(arm.loss, student, F.one_hot(labels, classes).float() if mixed else labels,
                               teacher, count, parts)
    except ValueError as error:
        raise UserError(f"{arm.name}: loss: {error}") from None
    if head is not None and torch.autograd.grad(loss, head.weight, allow_unused=True)[0] is None:
        raise UserError(f"{arm.name}: no term of its loss trains the last layer, so its answers stay random; add "
                        "cross_entropy or kd")


def _steps(splits: Splits, arm: Arm) -> int:
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


# ---------------------------------------------------------------------------------------------- the training


def _train_phase(place: Workplace, runs: list[Run]) -> None:
    """Train runs that do not depend on each other."""
    for run in [run for run in runs if run.arm.given]:
        _store_given(place, run)
    runs = [run for run in runs if not run.arm.given]
    if not runs:
        return
    process, processes = place.accelerator.process_index, place.accelerator.num_processes
    cohorts, sharing = share_out(cohorts_of(runs), processes, runs[0].arm.train.spread)
    for cohort in cohorts if sharing else cohorts[process::processes]:
        _train_cohort(place, cohort, sharing)


def _train_cohort(place: Workplace, cohort: list[Run], sharing: bool) -> None:
    device = place.accelerator.device
    teachers = _teachers_of(place, cohort)
    members: list[Member] = []
    for run in cohort:
        model = place.build(run.arm, run.seed)
        members.append(start(run, model, teachers, place.view_shape(run.arm), _steps(place.splits, run.arm),
                             place.accelerator, sharing))
        resume(members[-1], place.store)
    names = list(dict.fromkeys(run.arm.name.split("/")[0] for run in cohort))
    title = f"{'+'.join(names)}, seed {cohort[0].seed}, {len(cohort)} run{'s' if len(cohort) > 1 else ''}"
    for epoch in sorted({member.epoch for member in members}):  # a kill between two checkpoints leaves two
        level = [member for member in members if member.epoch == epoch]
        with place.progress.task(title, cohort[0].arm.train.epochs, epoch) as log:
            fit(level, teachers, place.splits, place.store, place.accelerator, sharing, log)
    for member in members:
        shared = place.accelerator if sharing else None
        predictions = predict_all(member.result, place.splits, member.run.arm.augment, device, shared)
        if place.accelerator.is_main_process or not sharing:
            record = {"model": member.run.arm.model, "parameters": parameter_count(member.result),
                      "epochs": member.train.epochs, "seconds": round(member.seconds, 3)}
            place.store.save(member.run, member.result, record, member.history, predictions)


def _teachers_of(place: Workplace, cohort: list[Run]) -> dict[str, Teacher]:
    """The networks that a cohort learns from, by id, ready to tell what its losses look at."""
    needs: dict[str, set[str]] = {}
    for run in cohort:
        for teacher in run.teachers:
            needs.setdefault(teacher.id, set()).update(needs_of(run.arm.loss) if len(run.teachers) == 1 else ())
    known = {teacher.id: teacher for run in cohort for teacher in run.teachers}
    return {name: Teacher(place.load(known[name]), wanted) for name, wanted in needs.items()}


def _store_given(place: Workplace, run: Run) -> None:
    """A network that is given: nothing to train, but judged and stored as the others are."""
    if place.accelerator.is_main_process:
        model = place.build(run.arm, None).to(place.accelerator.device)
        predictions = predict_all(model, place.splits, run.arm.augment, place.accelerator.device)
        record = {"model": run.arm.model, "parameters": parameter_count(model), "epochs": 0, "seconds": 0.0}
        place.store.save(run, model, record, [], predictions)


def _check_teachers(place: Workplace, teachers: list[Run]) -> None:
    """Every teacher's accuracy on the validation split, said and judged before a student starts."""
    for run in teachers:
        predictions = place.store.predictions(run.id)
        logits, labels = predictions["validation.logits"], predictions["validation.labels"]
        if place.recipe.check_teachers:
            check_teacher(run.title, logits, labels)
        place.progress.say(f"teacher {run.title}: {accuracy(logits, labels):.2%} of {len(labels)} validation images")


# ----------------------------------------------------------------------------------------------- the results


def collect(place: Workplace, runs: list[Run]) -> dict[str, Any]:
    """The content of `results.json`, from what is stored alone."""
    rows, predictions = [], {}
    for run in runs:
        if run.id not in predictions:
            predictions[run.id] = place.store.predictions(run.id)
        kd = (run.arm.loss or {}).get("kd")
        settings = term_model(TERMS["kd"])(**kd) if kd is not None else None
        temperature = (settings.final_temperature or settings.temperature) if settings else None
        record = place.store.record(run.id)
        rows.append({
            "id": run.id, "role": run.arm.role, "arm": run.arm.name, "axes": run.arm.axes, "seed": run.seed,
            "model": record["model"], "parameters": record["parameters"],
            "teacher": one_or_list([teacher.id for teacher in run.teachers]), "epochs": record["epochs"],
            "seconds": record["seconds"], "hardware": record["versions"]["hardware"],
            "metrics": metrics(predictions[run.id], _together([predictions[t.id] for t in run.teachers]), temperature),
        })
    return {"study": place.recipe.name, "versions": versions(), "classes": place.splits.class_names,
            "data": {"source": place.recipe.data.source, "train": len(place.splits.train),
                     "validation": len(place.splits.validation), "test": len(place.splits.test)},
            "precision": place.accelerator.mixed_precision, "seeds": place.recipe.seeds,
            "runs": rows, "comparisons": compare_arms(place.recipe, rows)}


def _together(teachers: list[dict[str, Tensor]]) -> dict[str, Tensor] | None:
    """The predictions of the teacher that a student has, an ensemble's as it learns from them."""
    if not teachers:
        return None
    return {name: ensemble([Outputs(t[name]) for t in teachers]).logits if name.endswith(".logits") else value
            for name, value in teachers[0].items()}


def write_study(folder: Path, recipe: Recipe, results: dict[str, Any]) -> None:
    """`recipe.yaml`, `results.json` and `results.csv`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.html").unlink(missing_ok=True)  # a report of older results must not outlive them
    write_aside(folder / "recipe.yaml", yaml.safe_dump(recipe.source, sort_keys=False, allow_unicode=True))
    write_aside(folder / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    axes = list(dict.fromkeys(axis for run in results["runs"] for axis in run["axes"]))
    columns = ["id", "role", "arm", "seed", "model", "parameters", "teacher", "epochs", "seconds"]
    rows = []
    for run in results["runs"]:
        row = {name: run[name] for name in columns} | {f"axis.{axis}": run["axes"].get(axis) for axis in axes}
        rows.append(row | {f"{split}.{metric}": value for split, values in run["metrics"].items()
                           for metric, value in values.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_aside(folder / "results.csv", text.getvalue())


def _is_written(folder: Path, recipe: Recipe, results: dict[str, Any]) -> bool:
    """Whether the study's folder says just this already; drawing is the slow part of a study that is done."""
    try:
        same = read_results(folder) == json.loads(json.dumps(results))
        return same and yaml.safe_load((folder / "recipe.yaml").read_text("utf-8")) == recipe.source \
            and (folder / "report.html").is_file()
    except (UserError, OSError, ValueError, yaml.YAMLError):
        return False


def _draw_teachers(place: Workplace, runs: list[Run], study: Path) -> None:
    """Penultimate clusters of the teachers (of the students, where none was trained), first seed each."""
    from distill.explain import ROWS, clusters_figure  # matplotlib takes a second to import

    for old in (study / "figures").glob("clusters.*"):
        old.unlink()
    trained = [run for run in runs if not run.arm.given]
    chosen = [run for run in trained if run.arm.role == "teacher"] or trained
    titles: dict[str, str] = {}
    for run in chosen:
        if run.arm.name not in titles.values() and len(titles) < ROWS:
            titles[run.id] = run.arm.name
    try:
        clusters_figure(place.store, place.splits, titles, study / "figures")
    except UserError as error:
        place.progress.say(f"no figure of clusters: {error}")


# ------------------------------------------------------------------------------------------------ the dry run


def dry_run(recipe: Recipe, out: str | Path = "runs") -> dict[str, Any]:
    """The plan without training: which runs are stored, the cohorts of the others, and their cost.

    Returns:
        ``runs`` (each with `id`, `name`, `stored`), ``cohorts`` (each with `runs`, `epochs`, `seconds`) and
        ``seconds`` in all: on this machine, a student's step taken as three of its passes and a teacher's
        pass once a cohort, from passes timed now.
    """
    with Progress(speaking=False) as progress:
        accelerator = make_accelerator(precision_of(recipe))
        place = Workplace(recipe, load_splits(recipe.data), Store(Path(out)), accelerator, progress)
    runs = plan_runs(recipe, place.splits.identity, accelerator.mixed_precision)
    missing = _missing(place, runs)
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
    return {"runs": [{"id": run.id, "name": run.title, "stored": place.store.complete(run.id)} for run in runs],
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
