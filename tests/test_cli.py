"""The command line: exit statuses, included recipes, the schema and the printed plan."""

import json
from types import SimpleNamespace

import pytest
from helpers.recipes import TINY, merge, write_recipe
from typer.testing import CliRunner

from distill import cli
from distill.errors import UserError
from distill.recipe import included
from distill.report.terminal import best_student, plan_lines


def exit_status(monkeypatch, *words):
    """Return the status with which the program exits, without its signal handlers."""
    monkeypatch.setattr(cli, "_stop_on_signals", lambda _: None)
    monkeypatch.setattr("sys.argv", ["distill", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code


def invoke(*words):
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_wrong_recipe_ends_with_status_2_and_its_problems(tmp_path, monkeypatch, capsys):
    path = write_recipe(tmp_path / "wrong.yaml", merge(TINY, {"train": {"epohcs": 2, "lr": "x"}}))
    assert exit_status(monkeypatch, "run", path, "--out", tmp_path / "runs") == 2
    error = capsys.readouterr().err
    lines = error.splitlines()
    assert len(lines) == 2 and lines[0].startswith(f"distill: {path}:")
    assert "'epochs'" in error and "Traceback" not in error


def test_an_error_of_the_file_system_ends_with_status_2_and_the_path(tmp_path, monkeypatch, capsys):
    path = write_recipe(tmp_path / "tiny.yaml", TINY)
    file = tmp_path / "runs"
    file.write_text("")
    assert exit_status(monkeypatch, "run", path, "--out", file) == 2
    error = capsys.readouterr().err
    assert str(file) in error and "Traceback" not in error


def test_the_included_recipes_are_listed_and_printed():
    names = [line.split()[0] for line in invoke("recipes").splitlines()]
    assert names == sorted(names) and {"digits", "paper/map"} <= set(names)
    text = (included.recipes_folder() / "digits.yaml").read_text()
    assert invoke("recipes", "digits") == text


def test_a_recipe_is_found_by_path_or_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert included.find_recipe("digits") == included.recipes_folder() / "digits.yaml"
    (tmp_path / "other.yaml").write_text("")
    assert included.find_recipe("other.yaml").name == "other.yaml"
    with pytest.raises(UserError, match="distill recipes"):
        included.find_recipe("another.yaml")
    (tmp_path / "digits").write_text("")
    assert included.find_recipe("digits").resolve() == tmp_path / "digits"
    with pytest.raises(UserError, match="'mnist'"):
        included.find_recipe("mnits")


def test_the_schema_is_json():
    assert "students" in json.loads(invoke("schema"))["properties"]


PLAN = {
    "runs": [
        {"id": "ab12", "name": "hard, seed 0", "stored": True},
        *({"id": f"c{i}", "name": f"s{i}, seed 0", "stored": False} for i in range(6)),
    ],
    "cohorts": [
        {
            "runs": [f"s{i}, seed 0" for i in range(6)],
            "epochs": 4,
            "seconds": 7200.0,
            "saved": 90.0,
            "teacher_logits": [
                {"teacher": "hard, seed 0", "stored": 3, "bytes": 1_500_000},
                {"teacher": "soft, seed 0", "stored": 0, "bytes": 500_000},
            ],
        },
        {"runs": ["a, seed 0"], "epochs": 1, "seconds": 3.2, "saved": 0.0, "teacher_logits": []},
    ],
    "notes": ["a note"],
    "seconds": 200_000.0,
    "analysis_seconds": 5400.0,
}


def test_the_plan_shows_runs_cohorts_cached_logits_and_cost():
    lines = plan_lines(PLAN)
    text = "\n".join(lines)
    assert lines[0].startswith("7 runs, 1 of them stored")
    assert "ab12  stored  hard, seed 0" in text
    assert "6 runs, 4 epochs, about 2.0 h: s0, seed 0; s1" in text and "2 more" in text
    assert "2 teachers" in text and "3 of 8 epochs" in text and "2 MB" in text
    assert "1 run, 1 epoch, about 3 s: a, seed 0" in text
    assert "note: a note" in lines
    assert "about 2.3 days" in lines[-1] and "1.5 min" in lines[-1]
    assert "1.5 h" in lines[-1]


def test_the_best_student_is_named_as_a_run():
    first = SimpleNamespace(arm="a/temperature=1")
    second = SimpleNamespace(arm="b")
    results = SimpleNamespace(study="tiny", ranking=[first, second], untrained=["b"])
    assert best_student(results) == "tiny:a/temperature=1"
    assert best_student(SimpleNamespace(study="tiny", ranking=[])) is None


def test_stopped_in_the_analysis_a_study_says_where_its_report_is(tmp_path, monkeypatch):
    """The tables are printed before that, and once."""
    messages = []
    printed = []
    monkeypatch.setattr(cli, "_stop_on_signals", messages.append)
    monkeypatch.setattr(cli, "print_results", lambda results: printed.append(results.unanalysed))
    recipe = merge(TINY, {"train": {"epochs": 1}, "analysis": {"examples": 5}})
    path = write_recipe(tmp_path / "tiny.yaml", recipe)
    out = tmp_path / "runs"
    invoke("run", str(path), "--out", str(out))
    runs = json.loads((out / "tiny" / "results.json").read_text())["runs"]
    assert printed == [len({run["id"] for run in runs})]
    assert messages == [cli.STOPPED_IN_ANALYSIS.format(report=out / "tiny" / "report.html")]
