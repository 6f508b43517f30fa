"""Analyses of a study's runs: which network attacks which, and what is kept in files."""

import dataclasses
import shutil

import pytest
import torch

from distill.evaluation.analyse import AnalysisContext, analyse_runs, attack_source
from distill.storage.run_store import RunStore


def analysis_files(ctx):
    return sorted((ctx.store.root / "analysis").iterdir())


def modification_times(ctx):
    return {path: path.stat().st_mtime_ns for path in analysis_files(ctx)}


@pytest.fixture(scope="module")
def analysed(trained, tmp_path_factory):
    """A copy of the trained study with the analyses of all runs."""
    root = tmp_path_factory.mktemp("analysed") / "runs"
    shutil.copytree(trained.store.root, root)
    return dataclasses.replace(trained, store=RunStore(root))


@pytest.fixture(scope="module")
def contexts(analysed):
    """Make the context of an analysis of the copy, with changed settings."""

    def make(**changes):
        settings = analysed.recipe.analysis.model_copy(update=changes)
        seeds = analysed.recipe.seeds
        return AnalysisContext(
            analysed.splits, analysed.store, settings, torch.device("cpu"), seeds
        )

    return make


@pytest.fixture(scope="module")
def found(analysed, contexts):
    return analyse_runs(contexts(), analysed.runs)


def test_every_run_has_all_analyses(analysed, found):
    assert found.keys() == {run.id for run in analysed.runs}
    for run in analysed.runs:
        assert found[run.id]["geometry"].keys() == {"train", "validation", "test"}
        assert found[run.id]["robustness"]["transfer"] is not None
        assert [state["epoch"] for state in found[run.id]["information"]] == [0, 1, 2, 3]


def test_stored_analyses_are_not_repeated(analysed, contexts, found):
    ctx = contexts()
    before = modification_times(ctx)
    assert len(before) == len(found)
    repeated = []
    again = analyse_runs(ctx, analysed.runs, watch=lambda runs: repeated.extend(runs) or runs)
    assert not repeated
    assert modification_times(ctx) == before
    for run_id, values in found.items():
        assert again[run_id]["geometry"] == values["geometry"]
        assert again[run_id]["robustness"] == values["robustness"]


def test_a_share_of_the_runs_is_analysed_and_all_stored_findings_are_returned(analysed, contexts):
    ctx = contexts(num_attacked=0, num_views=0, examples=3)
    first = analyse_runs(ctx, analysed.runs, share=slice(0, None, 2))
    assert first.keys() == {run.id for run in analysed.runs[::2]}
    second = analyse_runs(ctx, analysed.runs, share=slice(1, None, 2))
    assert second.keys() == {run.id for run in analysed.runs}


def test_other_settings_are_analysed_anew(analysed, contexts, found):
    ctx = contexts(eps_linf=0.3, num_views=0, examples=0)
    before = len(analysis_files(ctx))
    stronger = analyse_runs(ctx, analysed.runs)
    assert len(analysis_files(ctx)) == before + len(found)
    accuracies = [
        (found[run_id]["robustness"]["worst_linf"], stronger[run_id]["robustness"]["worst_linf"])
        for run_id in found
    ]
    assert all(weak >= strong for weak, strong in accuracies)
    assert sum(weak for weak, _ in accuracies) > sum(strong for _, strong in accuracies)


def test_analyses_can_be_turned_off(analysed, contexts):
    none = analyse_runs(contexts(num_attacked=0, num_views=0, examples=0), analysed.runs[:1])
    assert none[analysed.runs[0].id] == {
        "geometry": {},
        "robustness": {},
        "information": [],
        "class_means": None,
        "template_spread": None,
    }


def test_a_damaged_file_is_reported_and_its_analysis_repeated(analysed, contexts):
    ctx = contexts(num_attacked=0, num_views=0, examples=4)
    before = set(analysis_files(ctx))
    run = analysed.runs[0]
    values = analyse_runs(ctx, [run])
    (file,) = set(analysis_files(ctx)) - before
    file.write_bytes(file.read_bytes()[:-1])
    lines = []
    again = analyse_runs(ctx, [run], log=lines.append)
    assert len(lines) == 1
    assert str(file) in lines[0]
    assert again[run.id]["geometry"] == values[run.id]["geometry"]


def test_no_network_attacks_itself(trained):
    runs = trained.runs
    for run in runs:
        source = attack_source(run, runs, [0, 1])
        assert source.arm.name == runs[0].arm.name
        assert source.seed == 1 - run.seed
        assert source.id != run.id


def test_of_one_seed_the_first_network_is_not_attacked_by_another(trained):
    first, second, *_ = [run for run in trained.runs if run.seed == 0]
    runs = [run for run in trained.runs if run.seed == 0]
    assert attack_source(first, runs, [0]) is None
    assert attack_source(second, runs, [0]).id == first.id


def test_a_network_is_attacked_only_by_networks_that_see_images_of_one_size(trained):
    runs = trained.runs
    student = runs[-1]
    augment = student.arm.augment.model_copy(update={"crop": 6})
    cropped = dataclasses.replace(student, arm=dataclasses.replace(student.arm, augment=augment))
    assert attack_source(cropped, [*runs[:-1], cropped], [0, 1]) is None
