"""Losses that own a module, read features or use the data's classes, in training."""

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.loss_studies import ALL_TERMS
from helpers.training import (
    assert_close,
    create_students,
    load_teachers,
    plan,
    run_of,
    same,
    train_generation,
    train_run,
    train_study,
)
from torch import nn

from distill.data.augment import normalise
from distill.data.loaders import training_batches
from distill.errors import UserError
from distill.losses import Outputs, compute_loss, make_loss_modules
from distill.models.cosine_head import CosineHead
from distill.models.factory import input_config
from distill.models.hooks import capture_outputs
from distill.training.optim import make_optimizer, make_scheduler

SEED = 3
STEPS = 8


def test_hints_train_their_projector_as_a_loop_by_hand_does(study_context):
    ctx = study_context(ALL_TERMS, "students.hinted.loss.hint.weight=0.7", "train.epochs=2")
    trained = train_run(ctx, "hinted")

    arm = run_of(ctx, "hinted").arm
    teacher = ctx.load(run_of(ctx, "hard")).eval()
    model = ctx.build(arm, SEED).train()
    of_student = Outputs(torch.zeros(1, 10), torch.zeros(1, 16))
    of_teacher = Outputs(torch.zeros(1, 10), torch.zeros(1, 32))
    projector = make_loss_modules(arm.loss, of_student, of_teacher, SEED)["hint"]
    optimizer = make_optimizer(nn.ModuleList([model, projector]), arm.train, "")
    schedule = make_scheduler(optimizer, arm.train, STEPS, "")
    step = 0
    for epoch in range(2):
        for batch in training_batches(
            ctx.splits, arm.augment, 128, SEED, epoch, torch.device("cpu")
        ):
            inputs = normalise(batch.views, *input_config(model))
            features = model.forward_features(inputs)
            with torch.no_grad():
                teacher_features = teacher.forward_features(inputs)
            hint = F.mse_loss(projector(features), teacher_features) / 2
            loss = F.cross_entropy(model.head(features), batch.labels) + 0.7 * hint
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            schedule.step_update(step)
    assert_close(trained, model.state_dict(), rtol=1e-4, atol=1e-6)


def test_a_projector_has_the_seed_and_the_shapes_of_its_run(study_context):
    ctx = study_context(ALL_TERMS, "seeds=[3, 4]", "train.epochs=1")
    runs = plan(ctx)
    teachers = [run for run in runs if run.arm.name == "hard"]
    train_generation(ctx, teachers)
    hinted = [run for run in runs if run.arm.name == "hinted"]
    loaded = load_teachers(ctx, hinted)
    state = torch.get_rng_state()
    first, second = create_students(ctx, hinted, loaded)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.loss_modules["hint"].weight.shape == (32, 16)
    first_weights = first.loss_modules.state_dict()
    assert not same(first_weights, second.loss_modules.state_dict())
    [again] = create_students(ctx, hinted[:1], loaded)
    assert same(first_weights, again.loss_modules.state_dict())
    assert first.model.training


def test_a_projector_to_an_ensemble_is_refused(study_context):
    ctx = study_context(ALL_TERMS, "students.hinted.teacher=[[hard, soft]]", "train.epochs=1")
    runs = [run for run in plan(ctx) if run.arm.role == "teacher"]
    train_generation(ctx, runs)
    hinted = run_of(ctx, "hinted/teacher=hard+soft")
    with pytest.raises(UserError, match=r"hinted.*hint"):
        create_students(ctx, [hinted], load_teachers(ctx, [hinted]))


@pytest.mark.parametrize(("arm", "scale"), [("margin", 8), ("sphere", 0)])
def test_a_cosine_head_is_stored_and_read_by_timm(study_context, arm, scale):
    ctx = study_context(ALL_TERMS, "train.epochs=1")
    train_run(ctx, arm)
    run_id = run_of(ctx, arm).id
    model = timm.create_model(f"local-dir:{ctx.store.folder(run_id)}", pretrained=True).eval()
    assert isinstance(model.head, CosineHead)
    split = ctx.splits.validation
    inputs = normalise(split.images.pixels[split.positions], *input_config(model))
    with torch.no_grad(), capture_outputs(model, {"features", "templates"}) as captured:
        logits = model(inputs)
    stored = ctx.store.predictions(run_id)["validation.logits"]
    torch.testing.assert_close(logits, stored, rtol=1e-5, atol=1e-5)
    features = captured["features"]
    cosines = F.normalize(features, dim=1) @ captured["templates"].T
    length = scale or features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(logits, length * cosines, rtol=1e-5, atol=1e-5)
    assert captured["logit_scale"] == scale


def test_attention_transfer_learns_from_the_stages_of_convolutional_networks(study_context):
    kinds = ["cifar_resnet8", "resnet10t"]
    document = {
        "data": {
            "source": "synthetic",
            "synthetic": {"shape": [3, 16, 16], "train": 60, "test": 20},
        },
        "train": {"epochs": 1, "batch_size": 25},
        "teachers": {"t": {"model": "cifar_wrn_16_2", "loss": {"cross_entropy": {}}}},
        "students": {
            "s": {"model": kinds, "teacher": "t", "loss": {"kd": {}, "attention_transfer": {}}},
        },
        "check_teachers": False,
    }
    ctx = study_context(document)
    train_study(ctx)
    students = [run for run in plan(ctx) if run.generation == 1]
    assert len(students) == 2
    for run in students:
        [entry] = ctx.store.history(run.id)
        assert entry["terms"]["attention_transfer"] > 0


def test_losses_get_the_share_of_training_that_is_done(study_context, monkeypatch):
    """Warm-ups and changing temperatures follow it: 0 in the first step, 23/24 in the last."""
    ctx = study_context(ALL_TERMS)
    shares = []

    def spy(*arguments, progress, **keywords):
        shares.append(progress)
        return compute_loss(*arguments, progress=progress, **keywords)

    monkeypatch.setattr("distill.training.state.compute_loss", spy)
    train_run(ctx, "online")
    assert shares == pytest.approx([step / 24 for step in range(24)])


def test_class_frequencies_are_a_prior_and_balanced_weights(study_context):
    prior_and_weights = {"smoothing": 0.2, "prior": "data", "class_weights": "balanced"}
    loss = f"students.online.loss={{cross_entropy: {prior_and_weights}}}"
    ctx = study_context(ALL_TERMS, loss)
    labels = ctx.splits.train.labels
    frequencies = [(labels == k).double().mean().item() for k in range(10)]
    assert ctx.splits.class_frequencies == pytest.approx(frequencies)
    # The weights have a mean of 1 over the images.
    weights = [1 / (10 * share) for share in frequencies]
    assert sum(weights[k] for k in labels.tolist()) / len(labels) == pytest.approx(1)

    by_hand = study_context(ALL_TERMS, loss, out="by hand")
    run = run_of(by_hand, "online")
    run.arm.loss["cross_entropy"] |= {
        "prior": [round(share, 6) for share in frequencies],
        "class_weights": weights,
    }
    expected = train_generation(by_hand, [run])["online"]
    assert_close(train_run(ctx, "online"), expected, rtol=1e-3, atol=1e-5)


def test_networks_have_an_output_for_the_background_class(study_context):
    ctx = study_context(ALL_TERMS, "data.background=true", "train.epochs=1")
    plain = study_context(ALL_TERMS)
    assert ctx.splits.class_names == ["background", *plain.splits.class_names]
    for name in ("train", "validation", "test"):
        with_background = getattr(ctx.splits, name).labels
        assert torch.equal(with_background, getattr(plain.splits, name).labels + 1)
    assert ctx.splits.identity != plain.splits.identity
    assert "background" not in plain.splits.identity
    assert train_run(ctx, "online")["head.weight"].shape[0] == 11
