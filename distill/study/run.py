"""The whole story: recipe → arms → runs → cohorts → views → outputs → steps → predictions → analysis → report."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from distill.data.splits import load_splits
from distill.errors import UserError, pluralize
from distill.evaluation.comparisons import smoothing_pair
from distill.losses import LOSSES
from distill.models.cosine_head import last_linear
from distill.models.factory import largest_pretrained_side
from distill.recipe.load import load
from distill.recipe.schema import Recipe
from distill.report.html import write_report
from distill.storage.files import clean_stale_temp_files
from distill.storage.run import Run, plan_runs
from distill.storage.run_store import RunStore
from distill.storage.study_results import StudyResults
from distill.study.context import StudyContext, idle_cores, make_accelerator, study_precision
from distill.study.plan import damaged_runs, missing_runs
from distill.study.preflight import preflight
from distill.study.progress import Progress
from distill.study.results import collect, is_written, study_notes, write_study
from distill.study.run_locks import RunLocks, Shard, clear_failures
from distill.study.scheduler import ancestor_ids, check_teachers, train_all
from distill.study.tracking import start_tracking


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The study that a YAML file states, with ``KEY=VALUE`` overrides; see `distill.arms.load`."""
    return load(path, LOSSES, overrides)


def run_study(
    recipe: Recipe,
    out: str | Path = "runs",
    accelerator: Accelerator | None = None,
    shard: Shard | None = None,
) -> StudyResults | None:
    """Train what is not trained yet, evaluate, write the report.

    Args:
        recipe: as `load_recipe` returns it.
        out: the folder of all studies and runs.
        accelerator: made here by default.
        shard: which of several jobs this is, that share out the runs of a study on a folder that they share.

    Returns:
        the content of `results.json`; None where another job is still at work: the last one writes the study.

    Raises:
        UserError: for whatever a person can mend.
    """
    if recipe.name in ("models", "logits", "analysis", "..", ".", ""):
        raise UserError(
            f"a recipe cannot be named '{recipe.name}': a study's results lie in a folder of that name, "
            "beside models, logits and analysis"
        )
    accelerator = accelerator or make_accelerator(study_precision(recipe))
    (Path(out) / "models").mkdir(
        parents=True, exist_ok=True
    )  # now, rather than after an hour of training
    store = RunStore(Path(out))
    lock = store.locked(recipe.name) if accelerator.is_main_process and not shard else nullcontext()
    with (
        lock,
        Progress(accelerator.is_main_process) as progress,
        RunLocks(store.root / "models", shard) if shard else nullcontext() as claims,
    ):
        with accelerator.main_process_first():  # one process downloads
            splits = load_splits(recipe.data, largest_pretrained_side(recipe.arms))
        ctx = StudyContext(recipe, splits, store, accelerator, progress, claims)
        notes = study_notes(ctx)
        for note in [*idle_cores(accelerator), *notes]:
            progress.log(note)
        runs = plan_runs(recipe, splits.identity, accelerator.mixed_precision)
        if accelerator.is_main_process:
            clean_stale_temp_files(store.root / "models")
            clean_stale_temp_files(store.root / "analysis")
            if not shard:
                clear_failures(store.root / "models")
            _set_damaged_aside(ctx, runs)
        accelerator.wait_for_everyone()
        missing = missing_runs(ctx, runs)
        sizes = preflight(ctx, missing)
        different = len({run.id for run in runs})  # two arms may state the same run
        progress.log(f"{pluralize(different, 'run')}, {different - len(missing)} of them stored")
        start_tracking(ctx)
        failed: dict[str, str] = {}
        depths = sorted({run.generation for run in runs})
        for depth in depths:
            possible = [
                run
                for run in missing
                if run.generation == depth and not ancestor_ids(run) & failed.keys()
            ]
            failed |= train_all(ctx, possible, sizes, wait=depth != depths[-1])
            teachers = [
                run
                for run in runs
                if run.generation == depth
                and run.arm.role == "teacher"
                and (not shard or store.is_complete(run.id))
            ]
            try:
                check_teachers(
                    ctx,
                    [run for run in teachers if not ({run.id} | ancestor_ids(run)) & failed.keys()],
                )
            except UserError as error:
                raise UserError("\n".join([*failed.values(), str(error)])) from None
        if failed:
            without = sum(1 for run in runs if ancestor_ids(run) & failed.keys())
            rest = (
                f"; {pluralize(without, 'run')} that would learn from them cannot be trained"
                if without
                else ""
            )
            others = "other jobs go on with the others" if shard else "all other runs are stored"
            raise UserError(
                "\n".join(
                    [
                        *failed.values(),
                        f"{others}{rest}; this study has no results until these are "
                        "changed or left out",
                    ]
                )
            )
        others = missing_runs(ctx, runs) if shard else []
        if others:
            progress.log(
                f"other jobs train {pluralize(len(others), 'run')}, {others[0].display_name} for one; the last job to "
                "end writes the report (or any `distill run` of the recipe without --shard)"
            )
            return None
        with _alone(ctx, shard) as alone:
            return _conclude(ctx, runs, notes) if alone else None


@contextmanager
def _alone(ctx: StudyContext, shard: Shard | None) -> Iterator[bool]:
    """Within it no other job writes the study; False if one does."""
    alone = [True]
    with ExitStack() as stack:
        if shard and ctx.accelerator.is_main_process:
            try:
                stack.enter_context(ctx.store.locked(ctx.recipe.name))
            except UserError:
                ctx.progress.log("another job looks into the runs and writes the report")
                alone = [False]
        if shard and ctx.accelerator.num_processes > 1:
            broadcast_object_list(alone)
        yield alone[0]


def _conclude(ctx: StudyContext, runs: list[Run], notes: list[str]) -> StudyResults | None:
    """Look into the runs of a study, all of which are stored, and write its files; returns `results.json`."""
    recipe, accelerator, progress = ctx.recipe, ctx.accelerator, ctx.progress
    stateless = [
        run
        for run in runs
        if not run.arm.frozen and run.arm.train.snapshot_epochs - ctx.store.snapshots(run.id).keys()
    ]
    if stateless:
        progress.log(
            f"{len(stateless)} stored runs lack states on their way (train.snapshots), for one "
            f"{stateless[0].display_name} ({stateless[0].id}); remove their folders to train them with these"
        )
    results: StudyResults | None = None
    found = _look_inside(ctx, runs)
    if accelerator.is_main_process:
        results = collect(ctx, runs, found)
        for note in results.notes:
            if note not in notes:
                progress.log(note)
        study = ctx.store.root / recipe.name
        if not is_written(study, recipe, results):
            write_study(study, recipe, results)
            _picture(ctx, runs, study, smoothing_pair(results) or ())
            write_report(study, ctx.store)
        progress.log(f"report: {study / 'report.html'}")
    return broadcast_object_list([results])[0] if accelerator.num_processes > 1 else results


def _set_damaged_aside(ctx: StudyContext, runs: list[Run]) -> None:
    """Stored runs whose files are not what was written are to be trained again."""
    titles = {run.id: run.display_name for run in runs}
    for run_id, damage in damaged_runs(ctx.store, runs).items():
        if not ctx.claims or (
            ctx.claims.take(run_id) and ctx.store.damage(run_id)
        ):  # no job was faster
            left = ctx.store.set_aside(run_id)
            ctx.progress.log(
                f"{damage}: {titles[run_id]} is trained again, and what was there is in {left}"
            )
        if ctx.claims:
            ctx.claims.release(run_id)


def _look_inside(ctx: StudyContext, runs: list[Run]) -> dict[str, dict[str, Any]]:
    """What is found within each run, by its id; each process looks into some of them."""
    from distill.evaluation.analyse import analyse_runs

    process, processes = ctx.accelerator.process_index, ctx.accelerator.num_processes

    def look(share: slice) -> dict[str, dict[str, Any]]:
        return analyse_runs(
            runs,
            ctx.splits,
            ctx.store,
            ctx.recipe.analysis,
            ctx.accelerator.device,
            ctx.recipe.seeds,
            share,
            lambda new: ctx.progress.each("looking into networks", new, "networks"),
            ctx.progress.log,
        )

    found = look(slice(process, None, processes))
    if processes == 1:
        return found
    ctx.accelerator.wait_for_everyone()
    return look(slice(None)) if ctx.accelerator.is_main_process else {}


def _picture(ctx: StudyContext, runs: list[Run], study: Path, pair: tuple[str, ...]) -> None:
    """What the report draws of penultimate features: teachers and a student of each, first seed.

    Of more than two teachers it is the hard and the smoothed one that the report's sentences are of, `pair`, where it
    names teachers, else the first and the last.
    """
    from distill.evaluation.project_features import ROWS, make_feature_plot

    path = study / "features.safetensors"
    path.unlink(missing_ok=True)
    if not ctx.recipe.analysis.examples:
        return
    first: dict[str, Run] = {}
    for run in [run for run in runs if not run.arm.frozen] or runs:
        if run.arm.name not in first and last_linear(ctx.load(run)) is not None:
            first[run.arm.name] = run
    teachers = [run for run in first.values() if run.arm.role == "teacher"]
    if len(teachers) > 2:
        teachers = [run for run in teachers if run.arm.name in pair] or [teachers[0], teachers[-1]]
    students = [run for run in first.values() if run.arm.role == "student"]
    taught = [
        next((s for s in students if s.arm.teachers == (t.arm.name,)), None) for t in teachers
    ]
    shown = [run for run in (*teachers, *taught) if run] or students
    titles = {run.id: run.arm.name for run in shown[:ROWS]}
    kinds = ("plane", "pca", "tsne") if len(ctx.splits.class_names) > 2 else ("pca", "tsne")
    if not titles:
        return
    try:
        make_feature_plot(
            titles, ctx.splits, ctx.store, ctx.recipe.analysis, ctx.accelerator.device, kinds
        ).save(path)
    except UserError as error:
        ctx.progress.log(f"no feature_plot of features: {error}")
