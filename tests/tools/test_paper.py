"""What `tools/paper.py` keeps of a study, and how numbers are written in the README."""

import importlib
import json

import pytest
from helpers.recipes import ROOT
from helpers.results import make_comparison, make_results, make_run

from distill.evaluation.statistics import compare
from distill.storage.study_results import write_results


@pytest.fixture
def paper(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("paper")


@pytest.fixture
def numbers(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("paper_numbers")


def test_results_are_kept_to_seven_digits_with_a_line_for_each_run(paper, numbers, tmp_path):
    runs = [
        make_run("s/t=1", seed, axes={"t": 1}, test={"top1": 0.123456789 + seed, "errors": 7})
        for seed in (0, 1)
    ]
    comparisons = [make_comparison(difference=1 / 3), make_comparison(metric="nll")]
    write_results(tmp_path, make_results(runs, comparisons=comparisons))
    paper.keep(tmp_path, tmp_path)
    kept = numbers.load("tiny", tmp_path)
    assert [run.test.top1 for run in kept.runs] == [0.1234568, 1.123457]
    assert [run.axes for run in kept.runs] == [{"t": 1}] * 2
    # only accuracies are kept
    assert [one.metric for one in kept.comparisons] == ["top1"]
    assert kept.comparisons[0].difference == 0.3333333
    lines = (tmp_path / "tiny.json").read_text().splitlines()
    assert sum(line.startswith('{"id"') for line in lines) == 2


def test_an_arm_is_found_by_its_group_and_axes(numbers):
    runs = []
    for smoothing in (0.0, 0.1):
        for seed in (1, 0):
            axes = {"teacher.smoothing": smoothing}
            runs.append(make_run(f"kd/teacher.smoothing={smoothing}", seed, axes=axes))
    found = numbers.arm(make_results(runs), "kd", teacher_smoothing=0.1)
    assert [(run.axes["teacher.smoothing"], run.seed) for run in found] == [(0.1, 0), (0.1, 1)]
    with pytest.raises(ValueError, match=r"0\.2"):
        numbers.arm(make_results(runs), "kd", teacher_smoothing=0.2)


def test_a_difference_is_bold_where_it_is_significant_and_marked_where_images_disagree(numbers):
    test = compare([0.0, 0.1, 0.2], [1.0, 1.2, 1.1])
    plain = numbers.difference(test)
    assert plain.startswith("**+1.0 (+0.")
    assert numbers.difference(test, 1, (0.1, 2.0)) == plain
    assert numbers.difference(test, 1, (-0.1, 2.0)) == f"{plain} †"
    unclear = compare([1.0, 0.1, 0.2], [0.0, 1.2, -1.0])
    assert not numbers.difference(unclear).startswith("**")
    assert numbers.signed(-1.25, 2) == "−1.25"


@pytest.mark.parametrize("name", ["digits", "section4", "map", "cifar10_small"])
def test_kept_files_are_complete_and_in_the_form_that_is_written(paper, numbers, name):
    text = (ROOT / "tools" / "results" / f"{name}.json").read_text()
    values = json.loads(text)
    assert paper.to_lines(paper.rounded(values)) == text
    results = numbers.load(name)
    assert len(results.runs) == len({(run.arm, run.seed) for run in results.runs})
    assert len(results.runs) % len(results.seeds) == 0
    assert all(run["metrics"].keys() == {"test", "train", "validation"} for run in values["runs"])
