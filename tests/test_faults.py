"""Faults put into a finished study and under a running one: each is named, and mended where it can be."""

import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys

import pytest
from helpers.recipes import TINY_YAML
from PIL import Image

from distill import load_recipe, run_study
from distill.errors import UserError
from distill.storage.files import locked, read_tree, with_checksum, write_tree
from distill.study.dry_run import dry_run

SMALL = TINY_YAML.replace("checkpoint_minutes: 0", "checkpoint_minutes: 0, snapshots: 1")
SMALL = SMALL.replace(
    "teachers:", "analysis: {examples: 10, attacked: 10, draws: 2, steps: 1}\nteachers:", 1
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    (folder / "tiny.yaml").write_text(SMALL)
    return folder, run_study(load_recipe(folder / "tiny.yaml"), folder / "runs")


@pytest.fixture
def study(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "copy")
    return tmp_path / "copy", finished[1]


def again(folder):
    return run_study(load_recipe(folder / "tiny.yaml"), folder / "runs")


def command(folder, before=None):
    """`distill run` in a process of its own."""
    words = [sys.executable, "-m", "distill", "run", "tiny.yaml"]
    return subprocess.run(
        words, cwd=folder, capture_output=True, text=True, check=False, preexec_fn=before
    )


def without_seconds(results):
    return [{k: v for k, v in run.items() if k != "seconds"} for run in results["runs"]], results[
        "comparisons"
    ]


def content(folder):
    """Bytes of all runs' files but for times."""
    files = {
        p.relative_to(folder): p
        for p in sorted((folder / "runs" / "models").rglob("*"))
        if p.is_file()
    }
    return {
        name: p.read_bytes()
        for name, p in files.items()
        if name.name != "run.json" and "damaged" not in str(name)
    }


def flip(path, place=0.5):
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 4
    path.write_bytes(bytes(data))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("fault", [flip, cut])
@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "predictions.safetensors",
        "history.jsonl",
        "config.json",
        "run.json",
        "epoch-0000.safetensors",
    ],
)
def test_a_damaged_run_is_named_and_trained_again_to_the_same(study, capfd, name, fault):
    folder, before = study
    expected = content(folder)
    damaged = before["runs"][0]["id"]
    fault(folder / "runs" / "models" / damaged / name)
    plan = dry_run(load_recipe(folder / "tiny.yaml"), folder / "runs")
    assert [run["id"] for run in plan["runs"] if not run["stored"]] == [damaged] and name in plan[
        "notes"
    ][-1]
    results = again(folder)
    told = capfd.readouterr().err
    assert name in told and "hard, seed 0 is trained again" in told
    assert without_seconds(results) == without_seconds(before) and content(folder) == expected
    assert (folder / "runs" / "models" / f"{damaged}.damaged").is_dir()


@pytest.mark.parametrize("fault", [flip, cut])
@pytest.mark.parametrize("name", ["results.json", "features.safetensors"])
def test_a_damaged_study_is_refused_by_report_and_written_again_by_run(
    study, monkeypatch, capsys, name, fault
):
    from distill.cli import main

    folder, before = study
    page = (folder / "runs/tiny/report.html").read_bytes()
    fault(folder / "runs" / "tiny" / name)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["distill", "report", "tiny"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and name in capsys.readouterr().err
    assert without_seconds(again(folder)) == without_seconds(before)
    assert (folder / "runs/tiny/report.html").read_bytes() == page


def test_a_number_changed_by_hand_is_seen(study):
    folder, _ = study
    path = folder / "runs" / "tiny" / "results.json"
    results = json.loads(path.read_text())
    results["runs"][0]["metrics"]["test"]["top1"] = 0.999
    path.write_text(json.dumps(results))
    from distill.storage.run_store import read_results

    with pytest.raises(UserError, match="not what was written"):
        read_results(path.parent)


def test_damaged_answers_and_findings_are_made_again(study, capfd):
    folder, before = study
    for path in [
        *(folder / "runs" / "logits").iterdir(),
        *(folder / "runs" / "analysis").iterdir(),
    ]:
        flip(path, 0.9)
    shutil.rmtree(
        folder / "runs" / "models" / before["runs"][3]["id"]
    )  # a student, so that the answers are asked
    assert without_seconds(again(folder)) == without_seconds(before)
    told = capfd.readouterr().err
    assert "are damaged, and made again" in told and "analysis" in told and "is damaged" in told


@pytest.mark.parametrize("fault", [flip, cut])
def test_a_damaged_checkpoint_begins_its_run_again(tmp_path, monkeypatch, capfd, fault, finished):
    (tmp_path / "tiny.yaml").write_text(SMALL)
    import distill.training

    save, calls = distill.training.save_checkpoint, []

    def stop(member, store):
        save(member, store)
        calls.append(member)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("distill.training.save_checkpoint", stop)
        again(tmp_path)
    partial = sorted((tmp_path / "runs" / "models").glob("*.partial"))
    fault(partial[0])
    assert without_seconds(again(tmp_path)) == without_seconds(finished[1])
    assert f"{partial[0].name} is damaged" in capfd.readouterr().err and content(
        tmp_path
    ) == content(finished[0])


def test_a_tree_that_was_written_is_read_and_any_bit_counts(tmp_path):
    import torch

    value = {"a": [1, {"b": torch.arange(5)}], "c": torch.tensor([1.5, -0.0]), 3: "text"}
    write_tree(tmp_path / "x", value)
    got = read_tree(tmp_path / "x")
    assert got["a"][0] == 1 and torch.equal(got["a"][1]["b"], torch.arange(5)) and got[3] == "text"
    whole = (tmp_path / "x").read_bytes()
    for place in range(0, 8 * len(whole), 7):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        (tmp_path / "x").write_bytes(bytes(data))
        with pytest.raises(ValueError, match="x is damaged"):
            read_tree(tmp_path / "x")
    assert read_tree(tmp_path / "nothing") is None and "seal" in with_checksum({})


def test_a_second_process_is_locked_out(study):
    folder, _ = study
    with locked(folder / "runs" / "tiny"):
        done = command(folder)
    assert (
        done.returncode == 2
        and f"being written by another process ({os.getpid()} on" in done.stderr
    )
    assert "Traceback" not in done.stderr
    again(folder)  # the lock is free again
    with (folder / "runs" / ".tiny.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("limit", [500, 3000, 20_000, 60_000])
def test_a_disk_that_is_full_is_told_and_what_is_whole_stays(tmp_path, limit, finished):
    """No file may grow beyond a limit: wherever writing ends, it is a sentence, and with room all is as ever."""
    (tmp_path / "tiny.yaml").write_text(SMALL)
    done = command(tmp_path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "File too large" in done.stderr or "cannot write" in done.stderr
    assert without_seconds(again(tmp_path)) == without_seconds(finished[1]) and content(
        tmp_path
    ) == content(finished[0])
    assert not [p for p in (tmp_path / "runs").rglob(".*") if not p.name.endswith(".lock")]


def test_a_finished_study_is_shown_where_nothing_can_be_written(study, monkeypatch):
    folder, before = study
    (folder / "runs" / ".tiny.lock").unlink()
    monkeypatch.setattr("distill.files.os.access", lambda *_: False)  # root may write anywhere
    assert without_seconds(again(folder)) == without_seconds(before)
    assert not (folder / "runs" / ".tiny.lock").exists()


def test_a_folder_that_is_a_file_is_told(tmp_path, monkeypatch, capsys):
    from distill.cli import main

    (tmp_path / "tiny.yaml").write_text(SMALL)
    (tmp_path / "runs").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["distill", "run", "tiny.yaml"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and "runs" in capsys.readouterr().err


def pictures(folder):
    for name in ("a", "b", "c"):
        (folder / name).mkdir(parents=True)
        for i in range(20):
            Image.new("L", (8, 8), 5 * i + len(name)).save(folder / name / f"{i}.png")
    (folder / "a" / "3.png").write_bytes(b"no image")
    (folder / "b" / "7.png").write_bytes((folder / "b" / "8.png").read_bytes()[:48])


@pytest.mark.parametrize("resident", [1, 0])
def test_damaged_images_are_named_or_left_out_and_counted(tmp_path, resident):
    pictures(tmp_path / "photos")
    text = SMALL.replace(
        "source: digits", f"source: folder, root: {tmp_path / 'photos'}, resident_gb: {resident}"
    )
    (tmp_path / "tiny.yaml").write_text(text.replace("batch_size: 128", "batch_size: 8"))
    with pytest.raises(UserError, match=r"cannot read the image .*\.png.*data.on_error=skip"):
        again(tmp_path)
    results = run_study(
        load_recipe(tmp_path / "tiny.yaml", ["data.on_error=skip"]), tmp_path / "runs"
    )
    assert results["data"]["train"] + results["data"]["validation"] + results["data"]["test"] == 58
    note = next(note for note in results["notes"] if "left out" in note)
    assert (
        "2 images that cannot be read are left out" in note
        and "a/3.png" in note
        and "b/7.png" in note
    )
    assert "left out" in (tmp_path / "runs" / "tiny" / "report.html").read_text()
    ids = {run["id"] for run in results["runs"]}
    for path in ("a/3.png", "b/7.png"):
        (tmp_path / "photos" / path).unlink()
    same = run_study(load_recipe(tmp_path / "tiny.yaml"), tmp_path / "runs")
    assert {run["id"] for run in same["runs"]} == ids  # the same images, so the same runs


def test_a_damaged_state_on_the_way_begins_its_run_again(tmp_path, monkeypatch, capfd, finished):
    import distill.training

    (tmp_path / "tiny.yaml").write_text(SMALL)
    save = distill.training.save_checkpoint

    def stop(member, store):
        save(member, store)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("distill.training.save_checkpoint", stop)
        again(tmp_path)
    state = sorted((tmp_path / "runs" / "models").glob("*.epochs/epoch-0000.safetensors"))[0]
    flip(state, 0.9)
    assert without_seconds(again(tmp_path)) == without_seconds(finished[1]) and content(
        tmp_path
    ) == content(finished[0])
    assert "epoch-0000.safetensors is not what was written" in capfd.readouterr().err


def test_states_that_another_study_left_are_not_taken(tmp_path, capfd):
    """A stop with states, and an end by a study that wants none: none are kept."""
    (tmp_path / "tiny.yaml").write_text(SMALL.replace("snapshots: 1", "snapshots: 3"))
    results = again(tmp_path)
    store = tmp_path / "runs" / "models"
    for path in store.glob("*/epoch-*"):
        path.unlink()
    shutil.rmtree(store / results["runs"][0]["id"])
    left = store / f"{results['runs'][0]['id']}.epochs"
    left.mkdir()
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, left / "epoch-0000.safetensors")
    (tmp_path / "tiny.yaml").write_text(SMALL.replace(", snapshots: 1", ""))
    again(tmp_path)
    assert not list((store / results["runs"][0]["id"]).glob("epoch-*")) and not left.exists()


def test_a_run_that_does_not_fit_into_memory_stops_no_other(tmp_path, monkeypatch):
    import distill.phases

    (tmp_path / "tiny.yaml").write_text(SMALL.replace("smoothing: [0.0, 0.1]", "smoothing: 0.1"))
    start = distill.phases.start

    def too_large(run, *rest):
        if run.arm.name == "alone":
            raise MemoryError
        return start(run, *rest)

    monkeypatch.setattr("distill.phases.start", too_large)
    with pytest.raises(
        UserError,
        match=r"alone, seed 0: out of memory; lower train.batch_size(?s:.*)all other runs are stored",
    ):
        again(tmp_path)
    assert len(list((tmp_path / "runs" / "models").glob("*/run.json"))) == 2


def test_a_damaged_tar_file_is_named(tmp_path):
    import tarfile

    pictures(tmp_path / "photos")
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(tmp_path / "photos", "photos")
    whole = (tmp_path / "photos.tar").read_bytes()
    with tarfile.open(tmp_path / "photos.tar") as tar:
        middle = tar.getmembers()[30].offset
    (tmp_path / "tiny.yaml").write_text(
        SMALL.replace("source: digits", f"source: tar, root: {tmp_path / 'photos.tar'}")
    )
    damaged = bytearray(whole)
    damaged[middle + 5] ^= 1
    for content_ in (bytes(damaged), whole[: middle + 700], b"", b"\xff" * 4000):
        (tmp_path / "photos.tar").write_bytes(content_)
        with pytest.raises(UserError, match=r"photos\.tar"):
            again(tmp_path)


def test_the_lock_of_a_process_that_was_killed_is_waited_for(tmp_path):
    """Processes that decoded images have it for some seconds more."""
    (tmp_path / "runs").mkdir()
    file = (tmp_path / "runs" / ".tiny.lock").open("w")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    import platform

    file.write(f"{ended.pid} on {platform.node()}")
    file.flush()
    program = (
        f"import fcntl, time; fcntl.flock({file.fileno()}, 2); print(1, flush=True); time.sleep(2)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], pass_fds=[file.fileno()], stdout=subprocess.PIPE, text=True
    ) as child:
        child.stdout.readline()
        file.close()
        with locked(tmp_path / "runs" / "tiny"):
            assert child.wait() == 0
