"""Checkpoints are replaced as a whole; a damaged one begins its run again, to the same weights."""

import pytest
import torch
from helpers.damage import cut_in_half, flip_bit
from helpers.small_study import comparable, train, trained_content

from distill.storage.checkpoints import Checkpoints

WEIGHTS = {"weight": torch.randn(3, 4).t(), "count": torch.tensor(7)}


def test_a_checkpoint_is_replaced_and_forgotten(tmp_path):
    checkpoints = Checkpoints(tmp_path / "models")
    assert checkpoints.load("run") is None
    checkpoints.save("run", {"epoch": 1, "model": WEIGHTS})
    checkpoints.save("run", {"epoch": 2, "model": WEIGHTS})
    state = checkpoints.load("run")
    assert state["epoch"] == 2
    assert torch.equal(state["model"]["weight"], WEIGHTS["weight"])

    checkpoints.save_snapshot("run", 0, WEIGHTS)
    checkpoints.save_snapshot("run", 10, WEIGHTS)
    assert list(checkpoints.snapshots("run")) == [0, 10]
    assert checkpoints.damaged_snapshot("run") is None
    checkpoints.forget("run")
    assert not list(checkpoints.root.iterdir())


@pytest.mark.parametrize("fault", [flip_bit, cut_in_half])
def test_damage_is_found(tmp_path, fault):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("run", {"model": WEIGHTS})
    fault(tmp_path / "run.partial")
    with pytest.raises(ValueError, match=r"run\.partial"):
        checkpoints.load("run")
    for epoch in (0, 1):
        checkpoints.save_snapshot("run", epoch, WEIGHTS)
    second = checkpoints.snapshots("run")[1]
    fault(second)
    assert checkpoints.damaged_snapshot("run") == second


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "pattern"),
    [(cut_in_half, "*.partial"), (flip_bit, "*.epochs/epoch-0000.safetensors")],
    ids=["checkpoint", "snapshot"],
)
def test_a_run_with_a_damaged_checkpoint_begins_again(
    tmp_path, monkeypatch, capfd, fault, pattern, finished
):
    save = Checkpoints.save

    def save_and_stop(checkpoints, run_id, state):
        save(checkpoints, run_id, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", save_and_stop)
        train(tmp_path)
    damaged = next((tmp_path / "models").glob(pattern))
    fault(damaged)
    assert comparable(train(tmp_path).results) == comparable(finished.results)
    assert trained_content(tmp_path) == trained_content(finished.out)
    assert str(damaged) in capfd.readouterr().err
