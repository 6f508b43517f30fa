"""The whole story: recipe → arms → runs → cohorts → views → outputs → steps → predictions → analysis → report."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from distill import arms
from distill.analysis.calibration import gamma
from distill.data.sources import load_splits
from distill.document import UserError
from distill.evaluation import accuracy, predict_all
from distill.files import remove_left_over
from distill.logits import Answers, LogitStore, codec_of
from distill.losses import TERMS
from distill.members import Member, layout, resume, start
from distill.models.build import blank_input, native_side, parameter_count
from distill.models.heads import last_linear
from distill.planning import (
    answers_identity,
    cohorts_of,
    damaged_of,
    kept_answers,
    memory_for_runs,
    missing_of,
    needs_of_teachers,
    preflight,
    share_out,
    steps_of,
    told,
)
from distill.progress import Progress
from distill.recipe import Recipe
from distill.report import write_report
from distill.results import collect, is_written, notes_of, write_study
from distill.runs import Run, Store, plan_runs
from distill.teachers import Teacher, check_teacher
from distill.training import fit
from distill.workplace import Workplace, make_accelerator, precision_of


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The study that a YAML file states, with ``KEY=VALUE`` overrides; see `distill.arms.load`."""
    return arms.load(path, TERMS, overrides)


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
    if recipe.name in ("models", "logits", "analysis", "..", ".", ""):
        raise UserError(f"a recipe cannot be named '{recipe.name}': a study's results lie in a folder of that name, "
                        "beside models, logits and analysis")
    accelerator = accelerator or make_accelerator(precision_of(recipe))
    (Path(out) / "models").mkdir(parents=True, exist_ok=True)  # now, rather than after an hour of training
    store = Store(Path(out))
    with store.locked(recipe.name) if accelerator.is_main_process else nullcontext(), \
            Progress(accelerator.is_main_process) as progress:
        with accelerator.main_process_first():  # one process downloads
            splits = load_splits(recipe.data, native_side(recipe.arms))
        place = Workplace(recipe, splits, store, accelerator, progress)
        notes = notes_of(place)
        for note in notes:
            progress.say(note)
        runs = plan_runs(recipe, splits.identity, accelerator.mixed_precision)
        if accelerator.is_main_process:
            remove_left_over(store.root / "models")
            remove_left_over(store.root / "analysis")
            _set_damaged_aside(place, runs)
        accelerator.wait_for_everyone()
        missing = missing_of(place, runs)
        sizes = preflight(place, missing)
        progress.say(f"{len(runs)} runs, {len(runs) - len(missing)} of them stored")
        failed: dict[str, str] = {}
        for depth in sorted({run.depth for run in runs}):
            possible = [run for run in missing if run.depth == depth and not _ancestors(run) & failed.keys()]
            failed |= _of_all(place, _train_phase(place, possible, sizes))
            teachers = [run for run in runs if run.depth == depth and run.arm.role == "teacher"]
            try:
                _check_teachers(place, [run for run in teachers if not ({run.id} | _ancestors(run)) & failed.keys()])
            except UserError as error:
                raise UserError("\n".join([*failed.values(), str(error)])) from None
        if failed:
            without = sum(1 for run in runs if _ancestors(run) & failed.keys())
            rest = f"; {without} runs that learn from them were not trained" if without else ""
            raise UserError("\n".join([*failed.values(), f"all other runs are stored{rest}; this study has no results "
                                        "until these are changed or left out"]))
        stateless = [run for run in runs if not run.arm.given
                     and run.arm.train.state_epochs - place.store.states(run.id).keys()]
        if stateless:
            progress.say(f"{len(stateless)} stored runs lack states on their way (train.snapshots), for one "
                         f"{stateless[0].title} ({stateless[0].id}); remove their folders to train them with these")
        results: dict[str, Any] = {}
        found = _look_inside(place, runs)
        if accelerator.is_main_process:
            results = collect(place, runs, found)
            for note in results["notes"]:
                if note not in notes:
                    progress.say(note)
            study = place.store.root / recipe.name
            if not is_written(study, recipe, results):
                write_study(study, recipe, results)
                _picture(place, runs, study)
                write_report(study, place.store)
            progress.say(f"report: {study / 'report.html'}")
    return broadcast_object_list([results])[0] if accelerator.num_processes > 1 else results


def _set_damaged_aside(place: Workplace, runs: list[Run]) -> None:
    """Stored runs whose files are not what was written are to be trained again."""
    titles = {run.id: run.title for run in runs}
    for run_id, damage in damaged_of(place.store, runs).items():
        left = place.store.set_aside(run_id)
        place.progress.say(f"{damage}: {titles[run_id]} is trained again, and what was there is in {left}")


# ---------------------------------------------------------------------------------------------- the training


def _ancestors(run: Run) -> set[str]:
    """Ids of the teachers, and theirs."""
    return {run_id for teacher in run.teachers for run_id in {teacher.id} | _ancestors(teacher)}


def _of_all(place: Workplace, found: dict[str, str]) -> dict[str, str]:
    """What all processes found, when all are done."""
    place.accelerator.wait_for_everyone()
    every = gather_object([found]) if place.accelerator.num_processes > 1 else [found]
    return {key: value for own in every for key, value in own.items()}


def _train_phase(place: Workplace, runs: list[Run], sizes: dict[str, int] | None = None) -> dict[str, str]:
    """Train runs that do not depend on each other; returns why runs failed, by their ids."""
    for run in [run for run in runs if run.arm.given]:
        _store_given(place, run)
    runs = [run for run in runs if not run.arm.given]
    failed: dict[str, str] = {}
    if not runs:
        return failed
    process, processes = place.accelerator.process_index, place.accelerator.num_processes
    cohorts = cohorts_of(runs, sizes, memory_for_runs(place.accelerator))
    cohorts, sharing = share_out(cohorts, processes, runs[0].arm.train.spread)
    for line in told(kept_answers(place, cohorts, sharing)):
        place.progress.say(line)
    waiting = cohorts if sharing else cohorts[process::processes]
    while waiting:
        cohort, *waiting = waiting
        if not _fits(place, cohort, sharing, failed):
            half = (len(cohort) + 1) // 2
            place.progress.say(f"out of memory with {len(cohort)} runs side by side: {half} at a time")
            waiting = [cohort[:half], cohort[half:], *waiting]
    return failed


def _fits(place: Workplace, cohort: list[Run], sharing: bool, failed: dict[str, str]) -> bool:
    """Train a cohort, noting why runs failed; False if it is too large for the device, and can be split."""
    try:
        _train_cohort(place, cohort, sharing, failed)
        return True
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        told = (f"{cohort[0].title}: out of memory; lower train.batch_size, raise train.accumulate, or set "
                "train.precision=bf16")
        if sharing:  # the other processes have not met it
            raise UserError(told) from None
        if len(cohort) == 1:
            failed[cohort[0].id] = told
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # not before the exception is gone, which holds all that there was
    return len(cohort) == 1


def _is_out_of_memory(error: BaseException) -> bool:
    """CUDA has an exception of its own; of a CPU it is a sentence."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _train_cohort(place: Workplace, cohort: list[Run], sharing: bool, failed: dict[str, str]) -> None:
    device, train = place.accelerator.device, cohort[0].arm.train
    teachers = _teachers_of(place, cohort)
    members: list[Member] = []
    for run in cohort:
        model = place.build(run.arm, run.seed)
        members.append(start(run, model, teachers, place.splits.shares, steps_of(place.splits, run.arm),
                             place.accelerator, sharing))
        resume(members[-1], place.store, place.accelerator.process_index if sharing else 0, device,
               place.progress.say)
    names = list(dict.fromkeys(run.arm.name.split("/")[0] for run in cohort))
    names = [*names[:3], f"{len(names) - 3} more"] if len(names) > 4 else names
    title = f"{'+'.join(names)}, seed {cohort[0].seed}, {len(cohort)} run{'s' if len(cohort) > 1 else ''}"
    with _answers_of(place, cohort, teachers, sharing) as answers:
        for reached in sorted({(member.epoch, member.step) for member in members}):  # a kill between two checkpoints
            level = [member for member in members if (member.epoch, member.step) == reached]  # leaves two
            with place.progress.task(title, train.epochs, *reached) as log:
                fit(level, answers, place.splits, place.store, place.accelerator, sharing, log)
    for member in [member for member in members if member.failure]:
        failed[member.run.id] = member.failure
        place.progress.say(member.failure)
    for member in [member for member in members if not member.failure]:
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
            needs.setdefault(teacher.id, set()).update(needs_of_teachers(run))
    known = {teacher.id: teacher for run in cohort for teacher in run.teachers}
    train = cohort[0].arm.train
    return {name: Teacher(place.load(known[name]).to(memory_format=layout(train)), wanted, place.half, train.compile)
            for name, wanted in needs.items()}


@contextmanager
def _answers_of(place: Workplace, cohort: list[Run], teachers: dict[str, Teacher],
                sharing: bool) -> Iterator[dict[str, Answers]]:
    """What teachers say to the cohort's views, from and to the files in which that is kept."""
    arm, data, shared = cohort[0].arm, place.recipe.data, place.accelerator if sharing else None
    size = min(arm.train.batch_size, len(place.splits.train))
    rows = size * steps_of(place.splits, arm)
    with ExitStack() as stack:
        answers = {}
        for name, teacher in teachers.items():
            codec, store = codec_of(teacher, blank_input(teacher.model), data.store), None
            if not teacher.needs:
                identity = answers_identity(place, cohort[0], name, sharing)
                store = LogitStore(place.store.answers(identity), identity, rows, codec, place.progress.say)
                if not sharing or place.accelerator.is_main_process:
                    stack.enter_context(store.writing(arm.train.epochs, data.store_limit * 1e9))
            answers[name] = Answers(teacher, codec if data.store != "exact" else None, store, size, shared)
        yield answers


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
        index = gamma(logits, labels)
        place.progress.say(f"teacher {run.title}: {accuracy(logits, labels):.2%} of {len(labels)} validation images, "
                           f"its answers as good as smoothed by {index:.2f} (gamma)")


# ---------------------------------------------------------------------------------------------- the analysis


def _look_inside(place: Workplace, runs: list[Run]) -> dict[str, dict[str, Any]]:
    """What is found within each run, by its id; each process looks into some of them."""
    from distill.explain.inside import look_into  # what it needs takes a second to import

    process, processes = place.accelerator.process_index, place.accelerator.num_processes
    def look(share: slice) -> dict[str, dict[str, Any]]:
        return look_into(runs, place.splits, place.store, place.recipe.analysis, place.accelerator.device,
                         place.recipe.seeds, share,
                         lambda new: place.progress.each("looking into networks", new, "networks"),
                         place.progress.say)

    found = look(slice(process, None, processes))
    if processes == 1:
        return found
    place.accelerator.wait_for_everyone()
    return look(slice(None)) if place.accelerator.is_main_process else {}


def _picture(place: Workplace, runs: list[Run], study: Path) -> None:
    """What the report draws of penultimate features: teachers and a student of each, first seed."""
    from distill.explain.pictures import ROWS, make_picture

    path = study / "features.safetensors"
    path.unlink(missing_ok=True)
    if not place.recipe.analysis.examples:
        return
    first: dict[str, Run] = {}
    for run in [run for run in runs if not run.arm.given] or runs:
        if run.arm.name not in first and last_linear(place.load(run)) is not None:
            first[run.arm.name] = run
    teachers = [run for run in first.values() if run.arm.role == "teacher"]
    teachers = [teachers[0], teachers[-1]] if len(teachers) > 2 else teachers
    students = [run for run in first.values() if run.arm.role == "student"]
    taught = [next((s for s in students if s.arm.teachers == (t.arm.name,)), None) for t in teachers]
    shown = [run for run in (*teachers, *taught) if run] or students
    titles = {run.id: run.arm.name for run in shown[:ROWS]}
    kinds = ("plane", "pca", "tsne") if len(place.splits.class_names) > 2 else ("pca", "tsne")
    if not titles:
        return
    try:
        make_picture(titles, place.splits, place.store, place.recipe.analysis, place.accelerator.device,
                     kinds).save(path)
    except UserError as error:
        place.progress.say(f"no picture of features: {error}")
