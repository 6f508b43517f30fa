"""Two processes that share batches: what they learn, gather and store."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from helpers.loss_studies import ALL_TERMS
from helpers.recipes import merge, write_recipe
from helpers.training import assert_close, plan, run_of, stored_weights

from distill.data.splits import load_splits
from distill.evaluation.predict import predict

pytestmark = pytest.mark.slow

# rkd compares the examples of a batch with each other, and each process sees only its own half.
STUDY = merge(ALL_TERMS, {"train": {"epochs": 2, "batch_size": 101, "parallelism": "batches"}})
STUDY["students"]["related"]["loss"] = {"kd": {"temperature": 1}}

# Batch statistics are those of a process, so this arm's weights differ from one process's.
BATCH_NORM = {
    "model": "cifar_resnet8",
    "train": {"ema": 0.9},
    "loss": {"cross_entropy": {}},
}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    """Return the folder of the study that two processes have trained."""
    folder = tmp_path_factory.mktemp("two_processes")
    document = merge(STUDY, {"students": {"batch_norm": BATCH_NORM}})
    recipe = write_recipe(folder / "two.yaml", document)
    tests = Path(__file__).parent.parent
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    program = (str(tests / "helpers" / "train_in_processes.py"), str(recipe), str(folder / "runs"))
    finished = subprocess.run(
        [sys.executable, *launcher, *program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return folder / "runs"


@pytest.fixture
def shared_ctx(two_processes, study_context):
    """Return the context of the study that two processes have trained."""
    ctx = study_context(merge(STUDY, {"students": {"batch_norm": BATCH_NORM}}))
    ctx.store = type(ctx.store)(two_processes)
    return ctx


def test_they_learn_what_one_process_learns_but_for_rounding(shared_ctx, trained_once):
    """Gradients of projectors and networks, and predictions for online targets, add up."""
    one = trained_once(STUDY)
    for run in plan(one.ctx):
        assert_close(
            stored_weights(shared_ctx, run), one.weights[run.arm.name], rtol=1e-4, atol=1e-5
        )


def test_their_history_is_that_of_one_process(shared_ctx, trained_once):
    one = trained_once(STUDY)
    for run in plan(one.ctx):
        histories = (one.ctx.store.history(run.id), shared_ctx.store.history(run.id))
        for expected, entry in zip(*histories, strict=True):
            assert entry["loss"] == pytest.approx(expected["loss"], rel=1e-4)
            assert entry["terms"] == pytest.approx(expected["terms"], rel=1e-4)
            assert entry["train"]["top1"] == pytest.approx(expected["train"]["top1"], abs=2e-3)


def test_they_store_the_predictions_of_one_network(shared_ctx):
    """Batch statistics, also of the average of the weights, are process 0's in both of them.

    Each process predicts a part of the images.
    """
    run = run_of(shared_ctx, "batch_norm")
    folder = shared_ctx.store.folder(run.id)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    splits = load_splits(shared_ctx.recipe.data)
    logits = predict(model, splits, splits.test, run.arm.augment, torch.device("cpu"))
    stored = shared_ctx.store.predictions(run.id)["test.logits"]
    torch.testing.assert_close(logits, stored, rtol=1e-4, atol=1e-5)
