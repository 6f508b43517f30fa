"""First results before deep looks: what is there when training ends, and after an interruption."""

import json

import pytest
from helpers.recipes import TINY, make_recipe, merge

from distill import run_study
from distill.storage.study_results import read_results
from distill.study import finish_study

SMALL = merge(TINY, {"analysis": {"examples": 5, "num_attacked": 10, "num_views": 2, "steps": 2}})


def without_analysis(results):
    """Return the numbers of training: accuracies by run, and the verdicts."""
    accuracies = [(run.id, run.test.top1, run.test.ece) for run in results.runs]
    return accuracies, [(one.a, one.b, one.verdict) for one in results.comparisons]


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A study that is interrupted when its analysis begins."""
    recipe = make_recipe(SMALL)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finish_study, "analyse_runs", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_study(recipe, tmp_path / "runs")
    return recipe, tmp_path / "runs" / recipe.name


def test_results_and_report_are_there_before_the_analysis(interrupted):
    _, folder = interrupted
    results = read_results(folder)
    assert results.unanalysed == len({run.id for run in results.runs})
    assert all(run.test.within_between is None for run in results.runs)
    assert all(run.test.num_attacked is None for run in results.runs)
    assert (folder / "report.html").stat().st_size > 10_000
    assert (folder / "figures" / "accuracy.png").is_file()
    assert not (folder / "features.safetensors").exists()


def test_the_same_command_adds_the_analysis(interrupted, tmp_path):
    recipe, folder = interrupted
    first = read_results(folder)
    results = run_study(recipe, folder.parent)
    assert results.unanalysed == 0
    assert all(run.test.num_attacked == 10 for run in results.runs)
    assert (folder / "features.safetensors").is_file()
    assert without_analysis(results) == without_analysis(first)
    uninterrupted = run_study(recipe, tmp_path / "others")
    seconds = {"seconds"}
    assert [
        {key: value for key, value in run.items() if key not in seconds}
        for run in results.to_dict()["runs"]
    ] == [
        {key: value for key, value in run.items() if key not in seconds}
        for run in uninterrupted.to_dict()["runs"]
    ]


def test_first_results_are_shown_once_and_before_the_analysis(tmp_path, monkeypatch):
    recipe = make_recipe(SMALL)
    order = []
    analyse = finish_study.analyse_runs

    def watched(*arguments):
        order.append("analysis")
        return analyse(*arguments)

    monkeypatch.setattr(finish_study, "analyse_runs", watched)
    show = lambda results: order.append(results.unanalysed)  # noqa: E731
    run_study(recipe, tmp_path / "runs", on_results=show)
    assert order == [len({run["id"] for run in stored_runs(tmp_path, recipe)}), "analysis"]

    order.clear()
    run_study(recipe, tmp_path / "runs", on_results=show)
    assert order == [0], "a stored study is shown, and not analysed again"


def stored_runs(folder, recipe):
    return json.loads((folder / "runs" / recipe.name / "results.json").read_text())["runs"]


def test_what_the_budget_lowers_is_noted(tmp_path):
    """A tenth of the cost of one epoch leaves no room for attacks."""
    budget = {"budget": 0.1, "examples": 5}
    recipe = make_recipe(merge(TINY, {"train": {"epochs": 1}, "analysis": budget}))
    results = run_study(recipe, tmp_path / "runs")
    assert results.analysis["num_attacked"] == results.analysis["num_views"] == 0
    assert results.analysis["examples"] == 5
    assert any("num_attacked: 500" in note for note in results.notes)
    assert not any("examples: " in note for note in results.notes)


def test_an_interrupted_second_report_leaves_the_first(interrupted, monkeypatch):
    """The plot of features is the slow part; results.json comes last and makes it count."""
    recipe, folder = interrupted
    report = (folder / "report.html").read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finish_study, "write_report", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_study(recipe, folder.parent)
    assert (folder / "report.html").read_bytes() == report
    assert read_results(folder).unanalysed > 0
    assert run_study(recipe, folder.parent).unanalysed == 0
    assert (folder / "report.html").read_bytes() != report


def test_results_that_cannot_be_shown_are_written(tmp_path):
    recipe = make_recipe(SMALL)

    def fail(_):
        raise UnicodeEncodeError("cp1252", "±", 0, 1, "no such character")

    with pytest.raises(UnicodeEncodeError):
        run_study(recipe, tmp_path / "runs", on_results=fail)
    folder = tmp_path / "runs" / recipe.name
    assert (folder / "report.html").is_file()
    assert read_results(folder).unanalysed > 0


def test_a_study_without_an_analysis_is_written_once(tmp_path, monkeypatch):
    nothing = {"examples": 0, "num_attacked": 0, "num_views": 0}
    recipe = make_recipe(merge(TINY, {"analysis": nothing}))
    written = []
    monkeypatch.setattr(finish_study, "write_report", lambda *_: written.append(1))
    monkeypatch.delattr(finish_study, "analyse_runs")
    assert run_study(recipe, tmp_path / "runs").unanalysed == 0
    assert written == [1]
