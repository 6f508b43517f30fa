"""A run's network over its training."""

import torch
from helpers.analysed_study import analysed_recipe
from helpers.training import plan, train_generation
from safetensors.torch import load_file

from distill.evaluation.snapshots import models_over_training


def weights_over_training(trained, arm):
    """Return copies of a run's weights by epoch."""
    run = trained.run(arm)
    copies = {}
    for epoch, model in models_over_training(trained.store, run.id, torch.device("cpu")):
        copies[epoch] = {name: value.clone() for name, value in model.state_dict().items()}
    return copies


def test_models_over_training_are_the_snapshots_and_end_with_the_final_weights(trained):
    found = weights_over_training(trained, "hard")
    assert list(found) == [0, 1, 2, 3]
    files = trained.store.snapshots(trained.run("hard").id)
    final = trained.folder("hard") / "model.safetensors"
    for epoch, file in {**files, 3: final}.items():
        stored = load_file(file)
        assert found[epoch].keys() == stored.keys()
        for name, value in stored.items():
            assert torch.equal(found[epoch][name], value)


def test_a_snapshot_is_the_final_network_of_a_shorter_run(trained, study_context):
    """At a constant rate, that after one epoch is what a run of one epoch ends with."""
    ctx = study_context(analysed_recipe("train.epochs=1", "seeds=1"))
    names = ("hard", "alone/smoothing=0.1")
    shorter = train_generation(ctx, [run for run in plan(ctx) if run.arm.name in names])
    for arm in names:
        found = weights_over_training(trained, arm)
        for name, value in shorter[arm].items():
            assert torch.equal(found[1][name], value)
        for name, value in found[3].items():
            if "weight" in name:
                assert not torch.equal(found[0][name], value)  # the first is untrained


def test_no_snapshots_are_left_beside_finished_runs(trained):
    assert not list((trained.store.root / "models").glob("*.epochs"))
