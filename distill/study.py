"""The whole story: recipe → arms → runs → cohorts → views → outputs → steps → predictions → analysis → report."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from distill import arms
from distill.claims import Claims, Shard, forget_failures
from distill.data.sources import load_splits
from distill.document import UserError, counted
from distill.files import remove_left_over
from distill.losses import TERMS
from distill.models.build import native_side
from distill.models.heads import last_linear
from distill.phases import ancestors, check_teachers, train_all
from distill.planning import damaged_of, missing_of, preflight
from distill.progress import Progress
from distill.recipe import Recipe
from distill.report import write_report
from distill.report.readings import smoothing_pair
from distill.results import collect, is_written, notes_of, write_study
from distill.runs import Run, Store, plan_runs
from distill.tracking import start_tracking
from distill.workplace import Workplace, idle_cores, make_accelerator, precision_of


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The study that a YAML file states, with ``KEY=VALUE`` overrides; see `distill.arms.load`."""
    return arms.load(path, TERMS, overrides)


def run_study(recipe: Recipe, out: str | Path = "runs", accelerator: Accelerator | None = None,
              shard: Shard | None = None) -> dict[str, Any]:
    """Train what is not trained yet, evaluate, write the report.

    Args:
        recipe: as `load_recipe` returns it.
        out: the folder of all studies and runs.
        accelerator: made here by default.
        shard: which of several jobs this is, that share out the runs of a study on a folder that they share.

    Returns:
        the content of `results.json`; nothing where another job is still at work: the last one writes the study.

    Raises:
        UserError: for whatever a person can mend.
    """
    if recipe.name in ("models", "logits", "analysis", "..", ".", ""):
        raise UserError(f"a recipe cannot be named '{recipe.name}': a study's results lie in a folder of that name, "
                        "beside models, logits and analysis")
    accelerator = accelerator or make_accelerator(precision_of(recipe))
    (Path(out) / "models").mkdir(parents=True, exist_ok=True)  # now, rather than after an hour of training
    store = Store(Path(out))
    lock = store.locked(recipe.name) if accelerator.is_main_process and not shard else nullcontext()
    with lock, Progress(accelerator.is_main_process) as progress, \
            Claims(store.root / "models", shard) if shard else nullcontext() as claims:
        with accelerator.main_process_first():  # one process downloads
            splits = load_splits(recipe.data, native_side(recipe.arms))
        place = Workplace(recipe, splits, store, accelerator, progress, claims)
        notes = notes_of(place)
        for note in [*idle_cores(accelerator), *notes]:
            progress.say(note)
        runs = plan_runs(recipe, splits.identity, accelerator.mixed_precision)
        if accelerator.is_main_process:
            remove_left_over(store.root / "models")
            remove_left_over(store.root / "analysis")
            if not shard:
                forget_failures(store.root / "models")
            _set_damaged_aside(place, runs)
        accelerator.wait_for_everyone()
        missing = missing_of(place, runs)
        sizes = preflight(place, missing)
        different = len({run.id for run in runs})  # two arms may state the same run
        progress.say(f"{counted(different, 'run')}, {different - len(missing)} of them stored")
        start_tracking(place)
        failed: dict[str, str] = {}
        depths = sorted({run.depth for run in runs})
        for depth in depths:
            possible = [run for run in missing if run.depth == depth and not ancestors(run) & failed.keys()]
            failed |= train_all(place, possible, sizes, wait=depth != depths[-1])
            teachers = [run for run in runs if run.depth == depth and run.arm.role == "teacher"
                        and (not shard or store.complete(run.id))]
            try:
                check_teachers(place, [run for run in teachers if not ({run.id} | ancestors(run)) & failed.keys()])
            except UserError as error:
                raise UserError("\n".join([*failed.values(), str(error)])) from None
        if failed:
            without = sum(1 for run in runs if ancestors(run) & failed.keys())
            rest = f"; {counted(without, 'run')} that would learn from them cannot be trained" if without else ""
            others = "other jobs go on with the others" if shard else "all other runs are stored"
            raise UserError("\n".join([*failed.values(), f"{others}{rest}; this study has no results until these are "
                                        "changed or left out"]))
        others = missing_of(place, runs) if shard else []
        if others:
            progress.say(f"other jobs train {counted(len(others), 'run')}, {others[0].title} for one; the last job to "
                         "end writes the report (or any `distill run` of the recipe without --shard)")
            return {}
        with _alone(place, shard) as alone:
            return _conclude(place, runs, notes) if alone else {}


@contextmanager
def _alone(place: Workplace, shard: Shard | None) -> Iterator[bool]:
    """Within it no other job writes the study; False if one does."""
    alone = [True]
    with ExitStack() as stack:
        if shard and place.accelerator.is_main_process:
            try:
                stack.enter_context(place.store.locked(place.recipe.name))
            except UserError:
                place.progress.say("another job looks into the runs and writes the report")
                alone = [False]
        if shard and place.accelerator.num_processes > 1:
            broadcast_object_list(alone)
        yield alone[0]


def _conclude(place: Workplace, runs: list[Run], notes: list[str]) -> dict[str, Any]:
    """Look into the runs of a study, all of which are stored, and write its files; returns `results.json`."""
    recipe, accelerator, progress = place.recipe, place.accelerator, place.progress
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
            _picture(place, runs, study, smoothing_pair(results) or ())
            write_report(study, place.store)
        progress.say(f"report: {study / 'report.html'}")
    return broadcast_object_list([results])[0] if accelerator.num_processes > 1 else results


def _set_damaged_aside(place: Workplace, runs: list[Run]) -> None:
    """Stored runs whose files are not what was written are to be trained again."""
    titles = {run.id: run.title for run in runs}
    for run_id, damage in damaged_of(place.store, runs).items():
        if not place.claims or (place.claims.take(run_id) and place.store.damage(run_id)):  # no job was faster
            left = place.store.set_aside(run_id)
            place.progress.say(f"{damage}: {titles[run_id]} is trained again, and what was there is in {left}")
        if place.claims:
            place.claims.release(run_id)


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


def _picture(place: Workplace, runs: list[Run], study: Path, pair: tuple[str, ...]) -> None:
    """What the report draws of penultimate features: teachers and a student of each, first seed.

    Of more than two teachers it is the hard and the smoothed one that the report's sentences are of, `pair`, where it
    names teachers, else the first and the last.
    """
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
    if len(teachers) > 2:
        teachers = [run for run in teachers if run.arm.name in pair] or [teachers[0], teachers[-1]]
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
