"""Networks of a study may have input sizes of their own."""

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.recipes import TINY, make_recipe

from distill import run_study
from distill.storage.run_fingerprint import plan_runs
from distill.storage.run_store import RunStore


def teacher_run(results):
    (run,) = [run for run in results.runs if run.arm == "hard"]
    return run


@pytest.mark.slow
def test_each_network_gets_the_views_at_its_own_size(study_context):
    """The stored logits are those of images that are resized and normalised by hand."""
    recipe = make_recipe(
        TINY,
        "train.epochs=1",
        "teachers.hard.model=cifar_resnet8",
        "teachers.hard.input_size=12",
        "students.distilled.input_size=6",
    )
    ctx = study_context(recipe)
    run = teacher_run(run_study(ctx.recipe, ctx.store.root, ctx.accelerator))
    store = RunStore(ctx.store.root)
    model = timm.create_model(f"local-dir:{store.folder(run.id)}", pretrained=True).eval()
    assert tuple(model.pretrained_cfg["input_size"]) == (1, 12, 12)

    test = ctx.splits.test
    images = test.images.pixels[test.positions].float()
    images = F.interpolate(images, (12, 12), mode="bilinear", antialias=True, align_corners=False)
    (mean,), (std,) = ctx.splits.normalisation
    with torch.no_grad():
        expected = model((images / 255 - mean) / std)
    stored = store.predictions(run.id)["test.logits"]
    torch.testing.assert_close(stored, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_frozen_network_keeps_the_size_that_it_was_trained_with(tmp_path):
    """A run that was trained at 6×6 keeps its accuracy in a study of 8×8 views."""
    alone = {**TINY, "students": {}}
    first = run_study(make_recipe(alone, "teachers.hard.input_size=6"), tmp_path / "one")
    run = teacher_run(first)
    folder = tmp_path / "one" / "models" / run.id
    frozen = f"teachers.hard={{model: {run.model}, checkpoint: {folder}}}"
    second = run_study(make_recipe(alone, frozen), tmp_path / "two")
    again = teacher_run(second).test
    assert again.errors == run.test.errors
    assert again.nll == pytest.approx(run.test.nll, rel=1e-5)


def test_the_input_size_is_part_of_a_runs_identity(study_context):
    def teacher_ids(*overrides):
        ctx = study_context(make_recipe(TINY, *overrides))
        runs = plan_runs(ctx.recipe, ctx.splits.identity, "no")
        return {run.id for run in runs if run.arm.role == "teacher"}

    assert teacher_ids() == teacher_ids()
    assert not teacher_ids() & teacher_ids("teachers.hard.input_size=6")
