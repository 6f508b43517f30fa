"""Damaged runs are found, set aside, and trained again to the same weights."""

import json

import pytest
import torch
from helpers.damage import cut_in_half, flip_bit, folder_content
from helpers.recipes import TINY, make_recipe
from helpers.small_study import comparable, train, trained_content
from helpers.training import plan, train_generation

from distill.errors import UserError
from distill.storage.find_runs import find_runs
from distill.storage.run_store import CARD, FILES


@pytest.mark.parametrize("fault", [flip_bit, cut_in_half])
@pytest.mark.parametrize("name", [*FILES, "epoch-0000.safetensors"])
def test_damage_to_any_file_of_a_run_is_found(study, name, fault):
    run_id, other = study.ids()[:2]
    path = study.store.folder(run_id) / name
    assert study.store.damage(run_id) is None
    fault(path)
    assert str(path) in study.store.damage(run_id)
    assert study.store.damage(other) is None


def test_a_changed_card_is_no_damage(study):
    (study.store.folder(study.ids()[0]) / CARD).write_text("My notes.")
    assert study.store.damage(study.ids()[0]) is None


def test_a_run_without_one_of_its_files_is_not_complete(study):
    for run_id, name in zip(study.ids(), FILES, strict=False):
        assert study.store.is_complete(run_id)
        (study.store.folder(run_id) / name).unlink()
        assert not study.store.is_complete(run_id)


def test_files_that_cannot_be_read_are_named(study):
    run_id = study.ids()[0]
    readers = {
        "run.json": study.store.record,
        "history.jsonl": study.store.history,
        "predictions.safetensors": study.store.predictions,
    }
    for name, read in readers.items():
        path = study.store.folder(run_id) / name
        read(run_id)
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(UserError, match=str(path)):
            read(run_id)


def test_a_damaged_run_is_trained_again_to_the_same_content(study, capfd):
    run_id = study.ids()[0]
    before = trained_content(study.out)
    damaged = study.store.folder(run_id) / "model.safetensors"
    flip_bit(damaged)
    assert comparable(train(study.out).results) == comparable(study.results)
    assert trained_content(study.out) == before
    log = capfd.readouterr().err
    assert str(damaged) in log and f"{run_id}.damaged" in log
    assert (study.out / "models" / f"{run_id}.damaged").is_dir()


@pytest.mark.slow
def test_damaged_caches_of_logits_and_analysis_are_made_again(study, capfd):
    caches = [*study.out.glob("logits/*/*.npy"), *study.out.glob("analysis/*")]
    assert len(caches) == 2 + 4
    before = {path: path.read_bytes() for path in caches}
    for path in caches:
        flip_bit(path, 0.9)
    # A student is trained again, so that the logits are needed.
    student = study.ids()[-1]
    study.store.set_aside(student)
    assert comparable(train(study.out).results) == comparable(study.results)
    log = capfd.readouterr().err
    assert all(path.name in log for path in caches)
    assert {path: path.read_bytes() for path in before if path.suffix == ".npy"} == {
        path: content for path, content in before.items() if path.suffix == ".npy"
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["results.json", "features.safetensors"])
def test_a_damaged_study_is_refused_by_report_and_written_again_by_run(
    study, monkeypatch, capsys, name
):
    from distill.cli import main

    folder = study.out / "tiny"
    page = (folder / "report.html").read_bytes()
    flip_bit(folder / name)
    monkeypatch.chdir(study.out.parent)
    monkeypatch.setattr("sys.argv", ["distill", "report", "tiny"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert name in capsys.readouterr().err
    assert comparable(train(study.out).results) == comparable(study.results)
    assert (folder / "report.html").read_bytes() == page


def test_a_number_that_was_changed_by_hand_is_noticed(study):
    from distill.storage.study_results import read_results

    path = study.out / "tiny" / "results.json"
    results = json.loads(path.read_text())
    results["runs"][0]["metrics"]["test"]["top1"] = 0.999
    path.write_text(json.dumps(results))
    with pytest.raises(UserError, match=str(path)):
        read_results(path.parent)


def test_a_finished_study_can_be_shown_where_nothing_can_be_written(study, monkeypatch):
    (study.out / ".tiny.lock").unlink()
    monkeypatch.setattr("distill.storage.locks.os.access", lambda *_: False)
    assert comparable(train(study.out).results) == comparable(study.results)
    assert not (study.out / ".tiny.lock").exists()


def test_snapshots_that_another_study_left_are_not_stored(study_context):
    ctx = study_context(make_recipe(TINY))
    run = plan(ctx)[0]
    ctx.store.checkpoints.save_snapshot(run.id, 0, {"x": torch.ones(1)})
    train_generation(ctx, [run])
    assert ctx.store.snapshots(run.id) == {}
    assert not ctx.store.checkpoints.snapshots(run.id)


def test_a_run_that_cannot_be_written_leaves_no_folder(study_context, monkeypatch):
    ctx = study_context(make_recipe(TINY))
    run = plan(ctx)[0]
    model = ctx.build(run.arm, run.seed)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distill.storage.run_store.save_file", full_disk)
    with pytest.raises(UserError, match="No space left"):
        ctx.store.save(run, model, {}, [], {"test.logits": torch.ones(1, 10)})
    assert folder_content(ctx.store.root) == {}


def test_runs_are_found_by_folder_beginning_of_the_id_and_arm(study):
    first, *_ = study.ids()
    assert find_runs(study.store, str(study.store.folder(first))) == [first]
    assert find_runs(study.store, first[:10]) == [first]
    assert find_runs(study.store, "tiny:hard") == [first]
    with pytest.raises(UserError, match="0 of the 4"):
        find_runs(study.store, "zzz")
    with pytest.raises(UserError, match="4 of the 4"):
        find_runs(study.store, "")
    with pytest.raises(UserError, match="'hard'"):
        find_runs(study.store, "tiny:hart")
    with pytest.raises(UserError, match="tiny:hard"):
        find_runs(study.store, "tiny")


def test_every_file_of_a_run_can_be_read_by_those_who_may_read_any_new_file(study, tmp_path):
    """Others share the folder; safetensors alone would let only the owner read."""
    (tmp_path / "new").touch()
    expected = (tmp_path / "new").stat().st_mode
    folder = study.store.folder(study.ids()[0])
    assert {path.stat().st_mode for path in folder.iterdir()} == {expected}
