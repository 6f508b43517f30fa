"""`results.json` and `results.csv`: what is written is read back, and damage is refused."""

import csv
import json

import pytest
from helpers.results import make_comparison, make_results, make_run

from distill.errors import UserError
from distill.storage.results_csv import results_csv
from distill.storage.study_results import (
    InformationEstimate,
    QuestionCode,
    RankedStudent,
    StudyResults,
    Verdict,
    read_results,
    write_results,
)


@pytest.fixture
def results():
    loss = {"kd": {"weight": 1.0, "temperature": 4.0}}
    runs = [
        make_run("t", role="teacher", test={"top1": 0.9, "fgsm": 0.5}, smoothing=0.1),
        make_run(
            "s/temperature=4",
            teacher="t-0",
            axes={"temperature": 4},
            loss=loss,
            temperature=4.0,
            information=[InformationEstimate(3, 0.7, 200), InformationEstimate(0, None, 200)],
        ),
    ]
    return make_results(
        runs,
        comparisons=[make_comparison(ci95_images=(-0.1, 0.2))],
        ranking=[RankedStudent(1, "s", 0.9, 0.01, (0.8, 1.0), 0.0, None, None)],
        notes=["data: few"],
    )


def test_results_are_read_as_they_were_written(results, tmp_path):
    write_results(tmp_path, results)
    assert read_results(tmp_path) == results


def test_the_json_has_the_documented_keys(results, tmp_path):
    write_results(tmp_path, results)
    values = json.loads((tmp_path / "results.json").read_text())
    assert values.keys() >= {"study", "versions", "runs", "comparisons"}
    run = values["runs"][1]
    assert run.keys() >= {
        "id", "role", "arm", "axes", "seed", "model", "parameters", "teacher", "epochs",
        "seconds", "loss", "metrics",
    }  # fmt: skip
    assert run["loss"] == {"kd": {"weight": 1.0, "temperature": 4.0}}
    assert values["runs"][0]["teacher"] is None
    assert run["metrics"].keys() == {"test", "train", "validation"}
    # what does not apply is null
    assert run["metrics"]["test"]["agreement"] is None
    comparison = values["comparisons"][0]
    assert comparison.keys() >= {
        "question", "question_code", "a", "b", "metric", "mean_a", "mean_b", "difference", "ci95",
        "p_value", "p_holm", "seeds", "verdict",
    }  # fmt: skip
    assert comparison["verdict"] == "better"
    assert comparison["question_code"] == "distillation"
    assert comparison["ci95"] == [0.005, 0.015]


def test_codes_are_text_in_json_and_constants_in_python(results):
    values = json.loads(json.dumps(results.to_dict()))
    read = StudyResults.from_dict(values)
    assert read.comparisons[0].verdict is Verdict.BETTER
    assert read.comparisons[0].question_code is QuestionCode.DISTILLATION


def test_keys_that_are_missing_or_unknown_do_not_matter_where_there_is_a_default(results):
    values = json.loads(json.dumps(results.to_dict())) | {"invented": 1}
    del values["ranking"], values["classes"], values["runs"][0]["loss"]
    del values["runs"][0]["metrics"]["test"]["nll"]
    read = StudyResults.from_dict(values)
    assert read.ranking == []
    assert read.runs[0].loss is None
    assert read.runs[0].test.nll is None
    assert read.runs[1] == results.runs[1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("0.91", "0.92"),
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: "{}",
    ],
    ids=["changed", "cut", "list", "empty"],
)
def test_a_damaged_file_is_refused_with_its_name(results, tmp_path, damage):
    write_results(tmp_path, results)
    path = tmp_path / "results.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=r"results.json"):
        read_results(tmp_path)


def test_a_file_of_another_version_and_a_missing_one_are_refused(results, tmp_path):
    with pytest.raises(UserError, match=r"results.json"):
        read_results(tmp_path)
    from distill.storage.files import with_checksum

    values = json.loads(json.dumps(results.to_dict()))
    del values["comparisons"][0]["verdict"]
    (tmp_path / "results.json").write_text(json.dumps(with_checksum(values)))
    with pytest.raises(UserError, match=r"verdict"):
        read_results(tmp_path)


def test_the_csv_has_a_row_a_run_with_axes_and_metrics(results):
    rows = list(csv.DictReader(results_csv(results).splitlines()))
    assert [row["id"] for row in rows] == ["t-0", "s/temperature=4-0"]
    assert [row["axis.temperature"] for row in rows] == ["", "4"]
    assert rows[0]["test.top1"] == "0.9"
    assert rows[0]["test.fgsm"] == "0.5"
    assert rows[1]["temperature"] == "4.0"
    # only test images are attacked
    assert "train.fgsm" not in rows[0]
    assert "train.nll" in rows[0]
