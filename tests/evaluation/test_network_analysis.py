"""Analyses of stored networks against timm's features and plain gradients."""

import math

import numpy as np
import pytest
import torch
from helpers import oracles_analysis as oracles

from distill.data.augment import normalise
from distill.evaluation.class_selection import select_classes
from distill.evaluation.network_analysis import (
    analyse_geometry,
    analyse_information,
    analyse_robustness,
    transfer_attack,
)
from distill.evaluation.robustness import Ball, pgd
from distill.models.factory import input_config


@pytest.mark.parametrize("arm", ["hard", "alone/smoothing=0.1"])
def test_the_geometry_is_that_of_timms_own_features(trained, analysis, arm):
    validation = trained.splits.validation
    first = [(validation.labels == k).nonzero()[:100, 0] for k in range(10)]
    positions = torch.cat(first)
    images = validation.images.pixels[validation.positions[positions]]
    labels = validation.labels[positions].tolist()
    model = trained.model(arm)
    with torch.no_grad():
        maps = model.forward_features(normalise(images, *input_config(model)))
        features = model.forward_head(maps, pre_logits=True).double().tolist()

    augment = trained.run(arm).arm.augment
    found = analyse_geometry(analysis(), model, augment)
    got = found["geometry"]["validation"]
    assert got["examples"] == len(labels) / 10
    separation = oracles.class_separation(features, labels)
    assert got["class_separation"] == pytest.approx(separation, abs=1e-5)
    head = model.get_classifier()
    with_bias = torch.cat([head.weight, head.bias[:, None]], 1).double().tolist()
    with_one = [[*row, 1.0] for row in features]
    spread = oracles.wrong_template_spread(with_one, with_bias, labels)
    assert got["wrong_template_spread"] == pytest.approx(spread, rel=1e-4)
    assert 0 < got["within_between_templates"] < got["within_between"]
    assert got["nc1"] > 0

    squares = np.square(head.weight.double().numpy()).sum(1)
    assert found["template_spread"] == pytest.approx(squares.std() / squares.mean(), rel=1e-5)


def test_class_means_are_of_training_features(trained, analysis):
    model = trained.model("hard")
    found = analyse_geometry(analysis(examples=5), model, trained.run("hard").arm.augment)
    train = trained.splits.train
    threes = (train.labels == 3).nonzero()[:5, 0]
    images = train.images.pixels[train.positions[threes]]
    with torch.no_grad():
        maps = model.forward_features(normalise(images, *input_config(model)))
        features = model.forward_head(maps, pre_logits=True)
    assert torch.allclose(found["class_means"][3], features.mean(0), atol=1e-5)


def test_attacks_are_made_on_test_images(trained, analysis):
    test = trained.splits.test
    positions = torch.arange(60) * len(test) // 60
    images = test.images.pixels[test.positions[positions]].float() / 255
    labels = test.labels[positions]
    model = trained.model("hard")

    def classify(x):
        return model(normalise(255 * x, *input_config(model)))

    def accuracy(x):
        return (classify(x).argmax(1) == labels).double().mean().item()

    other = trained.run("hard", seed=1)
    transferred = transfer_attack(analysis(), other)
    found = analyse_robustness(analysis(), model, other.arm.augment, transferred)
    assert found["num_attacked"] == 60
    assert found["unattacked"] == pytest.approx(accuracy(images))
    x = images.clone().requires_grad_()
    torch.nn.functional.cross_entropy(classify(x), labels).backward()
    moved = (images + 0.1 * x.grad.sign()).clamp(0, 1)
    assert found["fgsm"] == pytest.approx(accuracy(moved), abs=1e-9)
    assert found["zero_gradient"] == 0

    other_model = trained.model("hard", seed=1)

    def classify_by_other(x):
        return other_model(normalise(255 * x, *input_config(other_model)))

    expected = pgd(classify_by_other, images, labels, Ball(0.1), steps=3)
    assert torch.allclose(transferred, expected, atol=1e-6)
    assert found["transfer"] == pytest.approx(accuracy(transferred))
    linf = ("unattacked", "fgsm", "pgd_linf", "margin_linf", "transfer")
    assert found["worst_linf"] <= min(found[name] for name in linf)
    assert "transfer" not in analyse_robustness(analysis(), model, other.arm.augment, None)


@pytest.mark.parametrize("seed", [0, 1])
def test_information_grows_in_training_and_stays_below_log_n(trained, analysis, seed):
    selected = select_classes(
        trained.recipe.analysis, trained.splits.class_names, trained.predictions("hard")
    )
    found = analyse_information(analysis(), trained.run("hard", seed), selected.pair)
    assert [state["epoch"] for state in found] == [0, 1, 2, 3]
    assert found[0]["nats"] < 0.5
    assert found[-1]["nats"] > found[0]["nats"] + 0.2
    labels = trained.splits.train.labels
    for state in found:
        assert state["examples"] == torch.isin(labels, torch.tensor(selected.pair)).sum()
        assert state["nats"] <= math.log(state["examples"])
