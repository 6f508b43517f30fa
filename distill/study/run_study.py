"""Run a study: recipe → runs → cohorts → predictions → analysis → results → report."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate import Accelerator

from distill.data.splits import load_splits
from distill.devices.accelerator import idle_core_warnings, make_accelerator
from distill.errors import UserError, pluralize
from distill.losses import LOSSES
from distill.models.factory import largest_pretrained_side
from distill.recipe.included import find_recipe
from distill.recipe.load import load
from distill.recipe.schema import Recipe
from distill.storage.files import clean_stale_temp_files
from distill.storage.run_fingerprint import Run, plan_runs
from distill.storage.run_store import RunStore
from distill.storage.study_results import StudyResults, read_results
from distill.study.context import StudyContext, study_precision
from distill.study.finish_study import finish_study
from distill.study.plan import ancestor_ids, damaged_runs, missing_runs
from distill.study.preflight import preflight
from distill.study.progress import Progress
from distill.study.result_notes import study_notes
from distill.study.run_locks import NoLocks, RunLocks, Shard, clear_failures
from distill.study.scheduler import Failures, check_teachers, train_with_other_jobs
from distill.study.tracking import start_tracking

# Folders beside the studies in the output folder.
RESERVED_NAMES = ("models", "logits", "analysis", "..", ".", "")


def load_recipe(path: str | Path, overrides: str | Iterable[str] = ()) -> Recipe:
    """Return the study of a recipe, after overrides, as `distill run` does.

    Args:
        path: a YAML file, or the name of a recipe that is included in distill.
        overrides: `KEY=VALUE` texts, as in ``["train.epochs=3"]``.

    Raises:
        UserError: if there is no such recipe, or if it has problems; see `distill.recipe.load`.
    """
    if isinstance(overrides, str):
        overrides = [overrides]
    return load(find_recipe(str(path)), LOSSES, overrides)


def run_study(
    recipe: Recipe,
    out: str | Path = "runs",
    accelerator: Accelerator | None = None,
    shard: Shard | None = None,
    on_results: Callable[[StudyResults], None] | None = None,
    track: Iterable[str] = (),
) -> StudyResults | None:
    """Train what is not trained yet, evaluate, and write results and report.

    Args:
        recipe: as `load_recipe` returns it.
        out: the folder of all studies and runs.
        accelerator: of this process; created here by default.
        shard: which of several jobs this is, where jobs share the runs of a study through a common
            folder `out`.
        on_results: is called with the results as soon as training ends. The analysis of the
            networks comes after that, and adds to the results and to the report.
        track: names of accelerate's trackers, which log every epoch; not with an accelerator.

    Returns:
        the content of `results.json`; None while other jobs are still at work: the last one writes
        the results.

    Raises:
        UserError: for whatever the user can mend.
    """
    if recipe.name in RESERVED_NAMES:
        raise UserError(
            f"a recipe cannot be named '{recipe.name}': its results are written to a "
            "folder of that name, beside the folders models, logits and analysis"
        )
    accelerator = accelerator or make_accelerator(study_precision(recipe), track, Path(out))
    store = RunStore(Path(out))
    models_folder = store.root / "models"
    models_folder.mkdir(parents=True, exist_ok=True)  # fail now, not after an hour of training
    with ExitStack() as stack:
        if accelerator.is_main_process and not shard:
            stack.enter_context(store.lock_study(recipe.name))
        progress = stack.enter_context(Progress(enabled=accelerator.is_main_process))
        run_locks = NoLocks()
        if shard:
            run_locks = stack.enter_context(RunLocks(models_folder, shard))
        with accelerator.main_process_first():  # one process downloads
            native = largest_pretrained_side(recipe.arms)
            splits = load_splits(recipe.data, native, progress.track)
        ctx = StudyContext(recipe, splits, store, accelerator, progress, run_locks)
        ctx.on_results = on_results
        return _run(ctx)


def _run(ctx: StudyContext) -> StudyResults | None:
    notes = study_notes(ctx)
    for note in [*idle_core_warnings(ctx.accelerator), *notes]:
        ctx.progress.log(note)
    runs = plan_runs(ctx.recipe, ctx.splits.identity, ctx.accelerator.mixed_precision)
    if ctx.processes.is_main:
        _clean_up(ctx, runs)
    ctx.processes.wait()

    _note_another_study(ctx)
    missing = missing_runs(ctx, runs)
    sizes = preflight(ctx, missing)
    weight_notes = [note for of_arm in ctx.build_notes.values() for note in of_arm]
    for note in weight_notes:
        ctx.progress.log(note)
    notes += weight_notes
    total = len({run.id for run in runs})  # two arms may state the same run
    ctx.progress.log(f"{pluralize(total, 'run')}, {total - len(missing)} of them stored")
    start_tracking(ctx)

    failed = _train_generations(ctx, runs, missing, sizes)
    if failed:
        raise UserError(_failure_message(ctx, runs, failed))
    if ctx.run_locks.is_shared:
        left = missing_runs(ctx, runs)
        if left:
            ctx.progress.log(
                f"other jobs are training {pluralize(len(left), 'run')}, e.g. "
                f"{left[0].display_name}; the last job to end writes the report (or any "
                "`distill run` of the recipe without --shard)"
            )
            return None
    with _only_writer(ctx) as is_only_writer:
        return finish_study(ctx, runs, notes) if is_only_writer else None


def _note_another_study(ctx: StudyContext) -> None:
    """Say if the folder has the results of another recipe of the same name."""
    try:
        stored = read_results(ctx.store.root / ctx.recipe.name)
    except UserError:
        return
    arms = {run.arm for run in stored.runs}
    if not arms & {arm.name for arm in ctx.recipe.arms}:
        ctx.progress.log(
            f"the results of another recipe named '{ctx.recipe.name}' will be replaced "
            f"({', '.join(sorted(arms)[:3])}); its runs stay stored. Use another --out to keep both"
        )


def _clean_up(ctx: StudyContext, runs: list[Run]) -> None:
    """Remove what killed processes left, forget old failures, set damaged runs aside."""
    caches = (ctx.store.root / "logits").glob("*")
    for folder in (ctx.store.root / "models", ctx.store.root / "analysis", *caches):
        clean_stale_temp_files(folder)
    if not ctx.run_locks.is_shared:
        clear_failures(ctx.store.root / "models")
    names = {run.id: run.display_name for run in runs}
    for run_id, damage in damaged_runs(ctx.store, runs).items():
        # Another job may have been faster, and the run may be whole again by now.
        if ctx.run_locks.acquire(run_id) and ctx.store.damage(run_id):
            copy = ctx.store.set_aside(run_id)
            ctx.progress.log(
                f"{damage}: {names[run_id]} will be trained again; the damaged folder is kept as "
                f"{copy}"
            )
        ctx.run_locks.release(run_id)


def _train_generations(
    ctx: StudyContext, runs: list[Run], missing: list[Run], sizes: dict[str, int]
) -> Failures:
    """Train teachers before their students, generation by generation; return why runs failed."""
    failed: Failures = {}
    generations = sorted({run.generation for run in runs})
    for generation in generations:
        trainable = [
            run
            for run in missing
            if run.generation == generation and not ancestor_ids(run) & failed.keys()
        ]
        is_last = generation == generations[-1]
        failed |= train_with_other_jobs(ctx, trainable, sizes, wait=not is_last)
        teachers = [
            run
            for run in runs
            if run.generation == generation
            and run.arm.role == "teacher"
            and not ({run.id} | ancestor_ids(run)) & failed.keys()
        ]
        if ctx.run_locks.is_shared:
            teachers = [run for run in teachers if ctx.store.is_complete(run.id)]
        try:
            check_teachers(ctx, teachers)
        except UserError as error:
            raise UserError("\n".join([*failed.values(), str(error)])) from None
    return failed


def _failure_message(ctx: StudyContext, runs: list[Run], failed: Failures) -> str:
    """Say why runs failed, what became of the others, and what to do."""
    without_teacher = sum(1 for run in runs if ancestor_ids(run) & failed.keys())
    rest = ""
    if without_teacher:
        rest = f"; {pluralize(without_teacher, 'run')} without a teacher cannot be trained"
    others = "all other runs are stored"
    if ctx.run_locks.is_shared:
        others = "other jobs continue with the others"
    summary = f"{others}{rest}; fix or remove the failed arms to get the results of this study"
    return "\n".join([*failed.values(), summary])


@contextmanager
def _only_writer(ctx: StudyContext) -> Iterator[bool]:
    """Hold the study's lock while results are written, and yield whether this job has it.

    A job without `--shard` has held it from the start.
    """
    is_only_writer = True
    with ExitStack() as stack:
        if ctx.run_locks.is_shared and ctx.processes.is_main:
            try:
                stack.enter_context(ctx.store.lock_study(ctx.recipe.name))
            except UserError:
                ctx.progress.log("another job is analysing the runs and writing the report")
                is_only_writer = False
        if ctx.run_locks.is_shared:
            is_only_writer = ctx.processes.broadcast_object(is_only_writer)
        yield is_only_writer
