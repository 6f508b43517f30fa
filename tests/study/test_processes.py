"""Several processes train what one process trains, and killed ones continue to the same weights."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from helpers import run_studies, stored
from helpers.commands import PYTHON, command, finish, start
from helpers.finished_study import STUDY
from helpers.recipes import TINY, make_recipe, merge, write_recipe

from distill import cli, run_study

pytestmark = pytest.mark.slow

PROCESSES = 3
TORCHRUN = (*PYTHON, "-m", "torch.distributed.run", "--nproc-per-node", str(PROCESSES))
NO_ANALYSIS = {"examples": 0, "num_attacked": 0, "num_views": 0}
INTERRUPTED = merge(
    TINY,
    {
        "analysis": NO_ANALYSIS,
        # Dropout is random for each process, so processes that share batches would differ by it.
        "teachers": {"hard": {"model": {"drop_rate": 0.0}}},
        "students": {"distilled": {"model": {"drop_rate": 0.0}}},
        "train": {"parallelism": "batches", "epochs": 12, "accumulate": 2},
    },
)
PATIENCE = 120  # seconds


def wait_until(condition, process):
    """Wait until a condition holds while a process runs."""
    deadline = time.monotonic() + PATIENCE
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for run_id, weights in found.items():
        for name, weight in weights.items():
            assert torch.equal(weight, expected[run_id][name]), (run_id, name)


# ------------------------------------------------------------------------------------ one process


def test_accelerate_launch_trains_what_a_single_process_trains(out, tmp_path):
    write_recipe(tmp_path / "tiny.yaml", merge(STUDY, {"analysis": NO_ANALYSIS}))
    launcher = (*PYTHON, "-m", "accelerate.commands.launch", "-m", "distill")
    done = finish(start(tmp_path, "run", "tiny.yaml", launcher=launcher))
    assert_same_bits(stored.weights(tmp_path / "runs"), stored.weights(out))
    assert stored.page(tmp_path / "runs")
    assert all(arm in done.out for arm in ("hard", "alone/smoothing=0.1", "distilled"))


def test_a_killed_study_continues_to_the_same_weights(tmp_path, no_report):
    recipe = merge(
        STUDY, {"train": {"epochs": 24, "snapshots": 3}, "analysis": NO_ANALYSIS, "seeds": 2}
    )
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
        write_recipe(tmp_path / name / "tiny.yaml", recipe)
    killed = tmp_path / "killed"
    out = killed / "runs"

    def has_checkpoint():
        return any(out.glob("models/*.partial"))

    def is_in_the_second_cohort():
        return len(stored.finished_runs(out)) >= 3 and has_checkpoint()

    process = start(killed, "run", "tiny.yaml")
    wait_until(has_checkpoint, process)
    process.send_signal(signal.SIGKILL)
    finish(process, -signal.SIGKILL)

    process = start(killed, "run", "tiny.yaml")
    wait_until(is_in_the_second_cohort, process)
    process.send_signal(signal.SIGINT)
    done = finish(process, 128 + signal.SIGINT)
    assert "Traceback" not in done.err and cli.STOPPED in done.err
    assert "continues after" in done.err
    assert not (out / "tiny").exists()

    done = command(killed, "run", "tiny.yaml")
    assert "continues after" in done.err
    run_study(make_recipe(recipe), tmp_path / "whole" / "runs")
    expected = stored.weights(tmp_path / "whole" / "runs")
    assert len(expected) == 8
    assert_same_bits(stored.weights(out), expected)
    for path in (tmp_path / "whole" / "runs" / "models").glob("*/epoch-*.safetensors"):
        assert (out / "models" / path.parent.name / path.name).read_bytes() == path.read_bytes()
    assert not list((out / "models").glob("*.partial"))


# ------------------------------------------------------------------------------- several processes


def kill_one_of_several(folder: Path) -> None:
    """Start a study in several processes, kill one after the first checkpoint, and wait."""
    process = start(folder, "-m", "distill", "run", "interrupted.yaml", launcher=TORCHRUN)
    wait_until(lambda: any(folder.glob("runs/models/*.partial")), process)
    ranks = psutil.Process(process.pid).children()
    os.kill(ranks[-1].pid, signal.SIGKILL)
    try:
        # The other processes must not wait for ever.
        finish(process, None)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


@pytest.fixture(scope="module")
def of_three(tmp_path_factory):
    """The folder of studies trained by three processes, and what they printed.

    In the study that was interrupted, processes share batches; in the other, each has whole runs.
    """
    folder = tmp_path_factory.mktemp("three")
    write_recipe(folder / "interrupted.yaml", INTERRUPTED)
    runs = {"train": {"parallelism": "runs"}, "analysis": NO_ANALYSIS}
    write_recipe(folder / "runs.yaml", merge(STUDY, runs))
    kill_one_of_several(folder)
    assert not (folder / "runs" / "interrupted").exists()
    recipes = ("interrupted.yaml", "runs.yaml")
    done = finish(start(folder, run_studies.__file__, *recipes, launcher=TORCHRUN))
    return folder, done


def ids_of(out, study):
    return {run["id"] for run in stored.results_json(out, study)["runs"]}


def test_whole_runs_in_several_processes_have_the_weights_of_one_process(of_three, out):
    several = of_three[0] / "runs"
    weights = stored.weights(several)
    found = {run_id: weights[run_id] for run_id in ids_of(several, "runs")}
    assert len(found) == 12
    assert_same_bits(found, stored.weights(out))
    for run in stored.results_json(out)["runs"]:
        one = stored.predictions(out, run["id"])
        three = stored.predictions(several, run["id"])
        assert all(torch.equal(three[name], one[name]) for name in one)


def test_an_interrupted_study_with_shared_batches_has_the_result_of_one_process(
    of_three, tmp_path, no_report
):
    """Within rounding: three processes add up gradients in another order than one."""
    folder, done = of_three
    several = folder / "runs"
    run_study(make_recipe(INTERRUPTED, name="interrupted"), tmp_path)
    expected = stored.weights(tmp_path)
    found = stored.weights(several)
    assert ids_of(several, "interrupted") == expected.keys() and len(expected) == 4
    assert "continues after" in done.err
    for run_id, weights in expected.items():
        for key, weight in weights.items():
            distance = (found[run_id][key] - weight).norm() / weight.norm().clamp(min=1e-3)
            assert distance < 1e-4, (run_id, key)
        assert_same_predictions(several, tmp_path, run_id)
        assert_same_history(several, tmp_path, run_id)


def assert_same_predictions(several, one, run_id):
    three = stored.predictions(several, run_id)
    expected = stored.predictions(one, run_id)
    for split in ("test", "validation", "train"):
        assert torch.equal(three[f"{split}.labels"], expected[f"{split}.labels"])
        predicted = three[f"{split}.logits"].argmax(1)
        different = predicted != expected[f"{split}.logits"].argmax(1)
        assert different.sum() <= 2


def assert_same_history(several, one, run_id):
    """Compare sums over an epoch, also over one that was interrupted."""
    entries = zip(stored.history(several, run_id), stored.history(one, run_id), strict=True)
    for three, expected in entries:
        assert (three["epoch"], three["lr"]) == (expected["epoch"], expected["lr"])
        assert three["loss"] == pytest.approx(expected["loss"], rel=1e-3)
        assert three["train"]["top1"] == pytest.approx(expected["train"]["top1"], abs=0.005)
