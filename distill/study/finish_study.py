"""Finish a study whose runs are all stored: analyse, collect results, draw, report."""

from pathlib import Path
from typing import Any

from distill.errors import UserError, pluralize
from distill.evaluation.analyse import AnalysisContext, analyse_runs, stored_analyses
from distill.evaluation.analysis_budget import plan_analysis
from distill.evaluation.comparisons import smoothing_pair
from distill.models.heads import last_linear
from distill.recipe.schema import Analysis
from distill.report.arm_names import short_names
from distill.report.html import write_report
from distill.report.notebook import NotebookResults
from distill.storage.run_fingerprint import Run
from distill.storage.study_results import StudyResults, write_results
from distill.study.context import StudyContext
from distill.study.results import collect, is_written, write_tables


def finish_study(ctx: StudyContext, runs: list[Run], notes: list[str]) -> StudyResults:
    """Write the results and the report of a study whose runs are all stored, then analyse the runs.

    Results and report are written twice: at once, and again with what the analysis has found. So
    the numbers of training are there first, and stay if the analysis is interrupted.

    Args:
        ctx: of the study.
        runs: all of its runs.
        notes: that were logged already.
    """
    _warn_of_missing_snapshots(ctx, runs)
    plan = plan_analysis(ctx.recipe.analysis, ctx.splits, runs)
    analysis = AnalysisContext(
        ctx.splits, ctx.store, plan.settings, ctx.accelerator.device, ctx.recipe.seeds
    )
    results = None
    unanalysed = 0
    if ctx.processes.is_main:
        found = stored_analyses(analysis, runs)
        results = collect(ctx, runs, found, plan)
        unanalysed = results.unanalysed
        for note in results.notes:
            if note not in notes:
                ctx.progress.log(note)
        _write(ctx, runs, results)
        if ctx.on_results:
            with ctx.progress.paused():
                ctx.on_results(results)
    if ctx.processes.broadcast_object(unanalysed):
        found = _analyse(ctx, analysis, runs)
        if ctx.processes.is_main:
            results = collect(ctx, runs, found, plan)
            _write(ctx, runs, results)
    return NotebookResults.of(ctx.processes.broadcast_object(results))


def _write(ctx: StudyContext, runs: list[Run], results: StudyResults) -> None:
    """Write the files of a study, unless they hold these results already.

    `results.json` is written last: a study counts as written once it holds the results. If this is
    interrupted, the former report stays, or a newer one is complete.
    """
    folder = ctx.store.root / ctx.recipe.name
    # Drawing is the slow part of a study that has not changed.
    if not is_written(folder, ctx.recipe, results):
        folder.mkdir(parents=True, exist_ok=True)
        _write_feature_plot(ctx, runs, folder, results)
        write_tables(folder, ctx.recipe, results)
        write_report(folder, results, ctx.store)
        write_results(folder, results)
    rest = ""
    if results.unanalysed:
        rest = f" (the analysis of {pluralize(results.unanalysed, 'network')} will be added)"
    ctx.progress.log(f"report: {folder / 'report.html'}{rest}")


def _warn_of_missing_snapshots(ctx: StudyContext, runs: list[Run]) -> None:
    """Say which stored runs were trained before the recipe asked for snapshots."""
    lacking = [
        run
        for run in runs
        if not run.arm.frozen and run.arm.train.snapshot_epochs - ctx.store.snapshots(run.id).keys()
    ]
    if lacking:
        ctx.progress.log(
            f"{len(lacking)} stored runs have no snapshots (train.snapshots was added later), e.g. "
            f"{lacking[0].display_name} ({lacking[0].id}); delete their folders to train them "
            "again with snapshots"
        )


def _analyse(
    ctx: StudyContext, analysis: AnalysisContext, runs: list[Run]
) -> dict[str, dict[str, Any]]:
    """Analyse every run, each process its share; return findings by run id on the main one."""

    def analyse(share: slice) -> dict[str, dict[str, Any]]:
        return analyse_runs(
            analysis,
            runs,
            share,
            lambda new: ctx.progress.track(new, "analysing networks", "networks"),
            ctx.progress.log,
        )

    rank = ctx.processes.rank
    found = analyse(slice(rank, None, ctx.processes.world_size))
    if ctx.processes.is_single:
        return found
    ctx.processes.wait()
    return analyse(slice(None)) if ctx.processes.is_main else {}


def _write_feature_plot(
    ctx: StudyContext, runs: list[Run], folder: Path, results: StudyResults
) -> None:
    """Store the data of the report's plots of penultimate features, once the analysis is done.

    There is no such file if the analysis has no features.
    """
    from distill.evaluation.project_features import make_feature_plot

    path = folder / "features.safetensors"
    settings = Analysis(**results.analysis)
    plotted = []
    if settings.examples and not results.unanalysed:
        plotted = _runs_to_plot(ctx, runs, smoothing_pair(results))
    if not plotted:
        path.unlink(missing_ok=True)
        return
    has_planes = len(ctx.splits.class_names) > 2
    kinds = ("plane", "pca", "tsne") if has_planes else ("pca", "tsne")
    names = short_names(results)
    try:
        feature_plot = make_feature_plot(
            {run.id: names[run.arm.name] for run in plotted},
            ctx.splits,
            ctx.store,
            settings,
            ctx.accelerator.device,
            kinds,
        )
        feature_plot.save(path)
    except UserError as error:
        path.unlink(missing_ok=True)
        ctx.progress.log(f"no plot of features: {error}")


def _runs_to_plot(ctx: StudyContext, runs: list[Run], pair: tuple[str, str] | None) -> list[Run]:
    """Return the runs of the first seed to plot: teachers, and one student of each.

    Of more than two teachers, these are the hard and the smoothed one of `pair` if it names
    teachers, else the first and the last.
    """
    from distill.evaluation.project_features import ROWS

    first_of_arm: dict[str, Run] = {}
    for run in [run for run in runs if not run.arm.frozen] or runs:
        is_new = run.arm.name not in first_of_arm
        if is_new and last_linear(ctx.load(run)) is not None:
            first_of_arm[run.arm.name] = run
    teachers = [run for run in first_of_arm.values() if run.arm.role == "teacher"]
    students = [run for run in first_of_arm.values() if run.arm.role == "student"]
    if len(teachers) > 2:
        of_pair = [run for run in teachers if run.arm.name in (pair or ())]
        teachers = of_pair or [teachers[0], teachers[-1]]
    plotted = list(teachers)
    for teacher in teachers:
        own_students = [s for s in students if s.arm.teachers == (teacher.arm.name,)]
        plotted += own_students[:1]
    return (plotted or students)[:ROWS]
