"""A full disk is reported; with room again, the study is what it would have been."""

import resource
import subprocess
import sys

import pytest
from helpers.recipes import write_recipe
from helpers.small_study import SMALL, comparable, train, trained_content


@pytest.mark.slow
@pytest.mark.parametrize("limit", [3000, 20_000, 60_000])
def test_a_full_disk_is_reported_and_complete_files_stay(tmp_path, limit, finished):
    """No file may grow beyond the limit, so writing fails at different points."""
    write_recipe(tmp_path / "tiny.yaml", SMALL)
    done = subprocess.run(
        [sys.executable, "-m", "distill", "run", "tiny.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "runs") in done.stderr or "cannot write" in done.stderr
    out = tmp_path / "runs"
    assert comparable(train(out).results) == comparable(finished.results)
    assert trained_content(out) == trained_content(finished.out)
    hidden = {path.name for path in out.rglob(".*")}
    assert all(name.endswith(".lock") for name in hidden)


def test_a_file_where_the_folder_of_runs_should_be_is_reported(tmp_path, monkeypatch, capsys):
    from distill.cli import main

    write_recipe(tmp_path / "tiny.yaml", SMALL)
    (tmp_path / "runs").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["distill", "run", "tiny.yaml"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "runs" in capsys.readouterr().err
