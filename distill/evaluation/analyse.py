"""Analyse the runs of a study, and keep what was found in files that later studies use again."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.evaluation.class_selection import select_classes
from distill.evaluation.network_analysis import (
    AnalysisContext,
    analyse_geometry,
    analyse_information,
    analyse_robustness,
    transfer_attack,
)
from distill.models.heads import last_linear
from distill.storage.files import read_tree, write_tree
from distill.storage.run_fingerprint import Run

VERSION = 2  # raise it when the same settings would give other numbers


def analyse_runs(
    ctx: AnalysisContext,
    runs: Sequence[Run],
    share: slice = slice(None),
    watch: Callable[[list[Run]], Iterable[Run]] = list,
    log: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """Analyse runs, and read the findings about those that were analysed before from their files.

    Args:
        ctx: data, store, settings, device and seeds of the study.
        runs: all runs of the study; all of them are stored.
        share: which of the runs this process analyses.
        watch: wraps the runs that are to be analysed, to show progress.
        log: prints a line, for a damaged file, whose run is analysed again.

    Returns:
        by run id, see `_analyse`; only of runs whose file exists by now: another process may have
        the others.
    """
    pair = _pair(ctx, runs)
    files = {run.id: ctx.store.analysis_path(_identity(ctx, run, runs, pair)) for run in runs}
    unique = {run.id: run for run in runs}
    # The share is taken before files are looked up, because other processes are writing files
    # meanwhile.
    own = list(unique.values())[share]
    missing = [run for run in own if _stored(files[run.id], log) is None]

    transferred: dict[str, Tensor] = {}  # attacked images, by the id of the network that made them
    for run in watch(missing):
        source = attack_source(run, runs, ctx.seeds) if ctx.settings.num_attacked else None
        if source and source.id not in transferred:
            transferred[source.id] = transfer_attack(ctx, source)
        found = _analyse(ctx, run, pair, transferred[source.id] if source else None)
        write_tree(files[run.id], found)

    return _all_stored(files, log)


def stored_analyses(ctx: AnalysisContext, runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Return the findings about the runs that were analysed before, by run id.

    Some of the runs may not be trained yet. A damaged file counts as missing.
    """
    if not ctx.store.is_complete(runs[0].id):
        return {}  # its predictions choose the classes of every analysis
    complete = []
    for run in runs:
        source = attack_source(run, runs, ctx.seeds) or run
        if ctx.store.is_complete(run.id) and ctx.store.is_complete(source.id):
            complete.append(run)
    pair = _pair(ctx, runs)
    files = {run.id: ctx.store.analysis_path(_identity(ctx, run, runs, pair)) for run in complete}
    return _all_stored(files, log=lambda _: None)


def no_findings() -> dict[str, Any]:
    """Return what is known of a network before its analysis; see `_analyse` for the content."""
    return {
        "geometry": {},
        "robustness": {},
        "information": [],
        "class_means": None,
        "template_spread": None,
    }


def _pair(ctx: AnalysisContext, runs: Sequence[Run]) -> list[int]:
    """Return the two classes of the analysis of information: one pair for all runs."""
    predictions = ctx.store.predictions(runs[0].id)
    return select_classes(ctx.settings, ctx.splits.class_names, predictions).pair


def _all_stored(files: dict[str, Path], log: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Read the findings of those files that exist and are whole, by run id."""
    stored = {run_id: _stored(file, log) for run_id, file in files.items()}
    return {run_id: found for run_id, found in stored.items() if found is not None}


def _stored(file: Path, log: Callable[[str], None]) -> dict[str, Any] | None:
    """Return a stored analysis, or None if there is none or it is damaged."""
    try:
        return read_tree(file)
    except ValueError as error:
        log(f"{error}: this analysis is repeated")
        return None


def attack_source(run: Run, runs: Sequence[Run], seeds: list[int]) -> Run | None:
    """Return the run whose gradient makes the transfer attack on a run.

    It is of the first arm that is trained here, a teacher where there is one, and of the next seed,
    so that no network attacks itself. Its images must have the same size.

    Args:
        run: the run under attack.
        runs: all runs of the study, teachers first.
        seeds: the study's.

    Returns:
        None if there is no such run.
    """
    candidates = [
        other
        for other in runs
        if not other.arm.frozen and other.arm.augment.crop == run.arm.augment.crop
    ]
    if not candidates:
        return None
    of_first_arm = [other for other in candidates if other.arm.name == candidates[0].arm.name]
    next_seed = seeds[0]
    if run.seed in seeds:
        next_seed = seeds[(seeds.index(run.seed) + 1) % len(seeds)]
    source = next((other for other in of_first_arm if other.seed == next_seed), of_first_arm[0])
    return source if source.id != run.id else None


def _identity(
    ctx: AnalysisContext, run: Run, runs: Sequence[Run], pair: list[int]
) -> dict[str, Any]:
    """Return everything that the findings depend on; the run's id stands for its data."""
    source = attack_source(run, runs, ctx.seeds)
    networks = [run, source] if source else [run]
    digests = [ctx.store.record(network.id)["sha256"] for network in networks]
    return {
        "run": run.id,
        "version": VERSION,
        **ctx.settings.model_dump(exclude={"budget", "classes", "pair"}),
        "pair": pair,
        "source": source.id if source else None,
        "weights": [digest["model.safetensors"] for digest in digests],
        "states": list(ctx.store.snapshots(run.id)),
    }


@torch.no_grad()
def _analyse(
    ctx: AnalysisContext, run: Run, pair: list[int], transferred: Tensor | None
) -> dict[str, Any]:
    """Analyse one run.

    Returns:
        ``geometry``, ``class_means`` and ``template_spread`` (see `analyse_geometry`),
        ``information`` (see `analyse_information`) and ``robustness`` (see `analyse_robustness`);
        empty or None where the recipe turns an analysis off or it does not apply.
    """
    model = ctx.load(run)
    augment = run.arm.augment
    found = no_findings()
    if ctx.settings.examples and last_linear(model) is not None:
        found |= analyse_geometry(ctx, model, augment)
    if ctx.settings.num_views and pair and augment.moves:
        found["information"] = analyse_information(ctx, run, pair)
    if ctx.settings.num_attacked:
        found["robustness"] = analyse_robustness(ctx, model, augment, transferred)
    return found
