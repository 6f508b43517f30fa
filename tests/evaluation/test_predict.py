"""Logits and features of stored networks against plain forward passes."""

from dataclasses import dataclass

import pytest
import torch

from distill.data.augment import normalise
from distill.devices.distributed import Distributed
from distill.evaluation.predict import features_and_logits, predict, predict_all
from distill.models.factory import input_config
from distill.recipe.schema import Augment

CPU = torch.device("cpu")


def forward(model, splits, split):
    """Return the logits of a split in one forward pass."""
    images = splits.train.images.pixels[split.positions]
    with torch.no_grad():
        return model(normalise(images, *input_config(model)))


def test_stored_predictions_are_those_of_the_stored_network(trained):
    model = trained.model("hard").train()
    found = predict_all(model, trained.splits, Augment(), CPU)
    assert model.training  # left as it was
    stored = trained.predictions("hard")
    assert found.keys() == stored.keys()
    for name in found:
        assert torch.allclose(found[name], stored[name], atol=1e-5)
    expected = forward(model.eval(), trained.splits, trained.splits.test)
    assert torch.allclose(found["test.logits"], expected, atol=1e-5)


@dataclass(frozen=True)
class FakeProcess(Distributed):
    """One of two processes, whose broadcasts arrive from a list of all that were sent."""

    number: int = 0
    received: tuple[torch.Tensor, ...] = ()

    @property
    def world_size(self):
        return 2

    @property
    def rank(self):
        return self.number

    def broadcast(self, tensor, source=0):
        if source == self.rank:
            return tensor
        assert tensor.shape == self.received[source].shape
        return self.received[source]


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_predicts_a_part_and_gets_the_whole(trained, rank):
    model = trained.model("hard")
    splits = trained.splits
    positions = torch.arange(7)
    whole = predict(model, splits, splits.test, Augment(), CPU, positions)
    process = FakeProcess(number=rank, received=(whole[:4], whole[4:]))
    found = predict(model, splits, splits.test, Augment(), CPU, positions, process)
    assert torch.allclose(found, whole, atol=1e-6)


def test_no_positions_give_no_logits(trained):
    nothing = torch.zeros(0, dtype=torch.long)
    model = trained.model("hard")
    found = predict(model, trained.splits, trained.splits.test, Augment(), CPU, nothing)
    assert found.shape == (0, 10)


def test_features_are_timms_own(trained):
    model = trained.model("hard")
    test = trained.splits.test
    positions = torch.tensor([5, 0, 17])
    features, logits = features_and_logits(model, trained.splits, test, Augment(), CPU, positions)
    images = test.images.pixels[test.positions[positions]]
    with torch.no_grad():
        maps = model.forward_features(normalise(images, *input_config(model)))
        expected = model.forward_head(maps, pre_logits=True)
    assert torch.allclose(features, expected, atol=1e-5)
    assert torch.allclose(logits, model.get_classifier()(features), atol=1e-5)
