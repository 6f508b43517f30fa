"""The history of a run: losses, terms, accuracy and norms of the weights after each epoch."""

import pytest
import torch
from helpers.loss_studies import ALL_TERMS
from helpers.recipes import TINY
from helpers.training import run_of, train_run

from distill.losses import compute_loss

STEPS = 8  # of an epoch: 1078 images in batches of 128


def test_terms_are_logged_before_their_weights(study_context):
    ctx = study_context(TINY, "train.epochs=1")
    train_run(ctx, "distilled")
    [entry] = ctx.store.history(run_of(ctx, "distilled").id)
    terms = entry["terms"]
    assert entry["loss"] == pytest.approx(
        0.1 * terms["cross_entropy"] + 0.9 * terms["kd"], rel=1e-5
    )
    assert entry["lr"] == 0.1
    assert entry["epoch"] == 1
    assert "weights" not in entry


def test_each_epoch_has_its_own_means(study_context, monkeypatch):
    """The mean over the steps of the epoch alone, of losses and of correct predictions."""
    ctx = study_context(TINY)
    losses = []
    correct = []

    def spy(terms, outputs, labels, *arguments, **keywords):
        loss, sums = compute_loss(terms, outputs, labels, *arguments, **keywords)
        losses.append(loss.item())
        correct.append((outputs.logits.argmax(1) == labels).double().mean().item())
        return loss, sums

    monkeypatch.setattr("distill.training.state.compute_loss", spy)
    train_run(ctx, "alone/smoothing=0")
    history = ctx.store.history(run_of(ctx, "alone/smoothing=0").id)
    assert len(losses) == 3 * STEPS
    for epoch, entry in enumerate(history):
        steps = slice(epoch * STEPS, (epoch + 1) * STEPS)
        assert entry["loss"] == pytest.approx(sum(losses[steps]) / STEPS, rel=1e-5)
        assert entry["terms"]["cross_entropy"] == pytest.approx(entry["loss"], rel=1e-5)
        assert entry["train"]["top1"] == pytest.approx(sum(correct[steps]) / STEPS)


@pytest.mark.parametrize("overrides", [(), ("train.ema=0.9",)], ids=["plain", "average"])
def test_the_last_validation_entry_is_that_of_the_stored_predictions(trained_once, overrides):
    ctx, weights = trained_once(TINY, *overrides)
    for arm in weights:
        run = run_of(ctx, arm)
        history = ctx.store.history(run.id)
        assert [entry["epoch"] for entry in history] == [1, 2, 3]
        predictions = ctx.store.predictions(run.id)
        logits = predictions["validation.logits"].double()
        labels = predictions["validation.labels"]
        validation = history[-1]["validation"]
        assert validation["top1"] == (logits.argmax(1) == labels).double().mean().item()
        nll = -logits.log_softmax(1)[torch.arange(len(labels)), labels].mean().item()
        assert validation["nll"] == pytest.approx(nll, rel=1e-6)


def test_norms_and_distances_are_logged_for_every_layer_and_epoch(study_context):
    ctx = study_context(ALL_TERMS)
    run = run_of(ctx, "penalised")
    start = ctx.build(run.arm, run.seed).state_dict()["fc2.weight"].clone()
    end = train_run(ctx, "penalised")["fc2.weight"]
    entries = [entry["weights"] for entry in ctx.store.history(run.id)]
    assert len(entries) == 3
    for entry in entries:
        assert set(entry["layers"]) == {"fc1.weight", "fc2.weight", "head.weight"}
    layer = entries[-1]["layers"]["fc2.weight"]
    assert layer["l2"] == pytest.approx(end.norm().item(), rel=1e-5)
    assert layer["distance"] == pytest.approx((end - start).norm().item(), rel=1e-5)
    assert entries[0]["total"]["distance"] < entries[-1]["total"]["distance"]
