"""What a study collects: from any loss term, typed, and written once."""

import copy
import pickle

import pytest
import torch
from helpers.recipes import TINY, make_recipe, merge
from safetensors.torch import load_file

from distill import run_study
from distill.evaluation.calibration import effective_smoothing
from distill.storage.study_results import QuestionCode, Verdict, read_results
from distill.study.results import is_written, loss_smoothing, loss_temperature

# ------------------------------------------------------------------- temperature and smoothing


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (None, None),
        ({"cross_entropy": {"smoothing": 0.1}}, None),
        ({"kd": {"temperature": 4.0, "final_temperature": None}}, 4.0),
        ({"kd": {"temperature": 4.0, "final_temperature": 1.0}}, 1.0),
        ({"dkd": {"temperature": 2.0}}, 2.0),
        ({"dkd": {"temperature": 2.0}, "nkd": {"temperature": 2.0}}, 2.0),
        # two temperatures, neither of which stands for the loss
        ({"dkd": {"temperature": 2.0}, "nkd": {"temperature": 1.0}}, None),
        # kd is the main term
        ({"dist": {"temperature": 1.0}, "kd": {"temperature": 4.0}}, 4.0),
        ({"hint": {"weight": 1.0}}, None),
    ],
)
def test_a_run_is_filed_under_the_temperature_of_its_loss(loss, expected):
    assert loss_temperature(loss) == expected


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (None, None),
        ({"cross_entropy": {"smoothing": 0.1}}, 0.1),
        ({"poly1": {"smoothing": 0.0}}, 0.0),
        ({"arcface": {"smoothing": 0.2}, "kd": {"temperature": 1.0}}, 0.2),
        ({"poly1": {"smoothing": 0.1}, "arcface": {"smoothing": 0.2}}, None),
        ({"poly1": {"smoothing": 0.1}, "cross_entropy": {"smoothing": 0.0}}, 0.0),
        ({"kd": {"temperature": 1.0}}, None),
    ],
)
def test_a_run_is_filed_under_the_smoothing_of_its_loss(loss, expected):
    assert loss_smoothing(loss) == expected


# ----------------------------------------------------------------------------------- a study

DKD = merge(
    TINY,
    {
        "train": {"epochs": 2},
        "analysis": {"num_attacked": 0, "num_views": 0, "examples": 0},
        "teachers": {"hard": {"model": "mlp_16"}},
        "students": {"distilled": {"model": "mlp_16"}},
        "seeds": [0, 1],
    },
)
# replaced, not merged with the terms of the small recipe
DKD["teachers"]["hard"]["loss"] = {"poly1": {"smoothing": [0.0, 0.1]}}
DKD["students"]["distilled"]["loss"] = {"dkd": {"temperature": [1, 4]}}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of dkd with poly1 teachers: results, recipe, and the folder of all studies."""
    out = tmp_path_factory.mktemp("dkd") / "runs"
    recipe = make_recipe(copy.deepcopy(DKD), name="dkd")
    return run_study(recipe, out), recipe, out


@pytest.mark.slow
def test_every_term_feeds_temperature_smoothing_and_effective_smoothing(study):
    results, _, out = study
    by_id = {run.id: run for run in results.runs}
    students = [run for run in results.runs if run.teacher is not None]
    assert {run.temperature for run in students} == {1, 4}
    assert {by_id[run.teacher].smoothing for run in students} == {0.0, 0.1}
    for run in students:
        stored = load_file(out / "models" / run.teacher / "predictions.safetensors")
        expected = effective_smoothing(
            stored["train.logits"].numpy(), stored["train.labels"].numpy(), run.temperature
        )
        assert run.train.effective_smoothing == pytest.approx(expected)
        # full settings, with the defaults of the term
        assert run.loss["dkd"].keys() >= {"temperature", "weight", "warmup", "others_weight"}
    codes = {one.question_code for one in results.comparisons}
    assert codes >= {
        QuestionCode.TEMPERATURE,
        QuestionCode.TEACHER_SMOOTHING,
        QuestionCode.TEACHER_SMOOTHING_ON_STUDENT,
    }
    figures = {path.stem for path in (out / "dkd" / "figures").iterdir()}
    assert figures >= {"temperature_map", "equivalent_smoothing"}


@pytest.mark.slow
def test_results_are_complete_and_travel_between_processes(study):
    results, recipe, out = study
    assert pickle.loads(pickle.dumps(results)) == results
    assert results.seeds == recipe.seeds
    assert len(results.runs) == len(recipe.arms) * len(recipe.seeds)
    assert [row.rank for row in results.ranking] == [1, 2, 3, 4, 5, 6]
    for one in results.comparisons:
        assert one.question
        assert one.verdict in Verdict
    for run in results.runs:
        stored = load_file(out / "models" / run.id / "predictions.safetensors")
        correct = stored["test.logits"].argmax(1) == stored["test.labels"]
        assert run.test.top1 == pytest.approx(correct.double().mean().item())
        assert run.test.errors == int(torch.sum(~correct))


@pytest.mark.slow
def test_a_study_is_written_until_something_in_its_folder_changes(study):
    results, recipe, out = study
    folder = out / "dkd"
    assert is_written(folder, recipe, results)
    assert is_written(folder, recipe, read_results(folder))
    report = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    assert not is_written(folder, recipe, results)
    (folder / "report.html").write_bytes(report)
    other = make_recipe(copy.deepcopy(DKD), "train.epochs=3", name="dkd")
    assert not is_written(folder, other, results)
