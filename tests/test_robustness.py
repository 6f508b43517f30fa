"""Attacks against torchattacks on the same network, and against what must hold of any attack."""

import math

import numpy as np
import oracles_inside as oracles
import pytest
import torch
import torchattacks
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn

from distill.evaluation import robustness

RADIUS = {"linf": 0.1, "l2": 0.5}


@pytest.fixture(scope="module")
def network():
    """A small network that knows the digits, and images that it has not seen."""
    data = load_digits()
    x = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    y = torch.tensor(data.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:1200]), y[:1200]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval().requires_grad_(False), x[1200:], y[1200:]


def accuracy(model, images, labels):
    return (model(images).argmax(1) == labels).double().mean().item()


def test_attacks_are_as_strong_as_torchattacks(network):
    model, x, y = network
    assert accuracy(model, x, y) > 0.9
    ours = robustness.fgsm(model, x, y, 0.1)
    theirs = torchattacks.FGSM(model, eps=0.1)(x, y)
    assert torch.allclose(ours, theirs, atol=1e-6)
    torch.manual_seed(0)
    cases = {
        "linf": torchattacks.PGD(
            model, eps=RADIUS["linf"], alpha=2.5 * RADIUS["linf"] / 20, steps=20
        ),
        "l2": torchattacks.PGDL2(model, eps=RADIUS["l2"], alpha=2.5 * RADIUS["l2"] / 20, steps=20),
    }
    for norm, attack in cases.items():
        ours = accuracy(model, robustness.pgd(model, x, y, RADIUS[norm], norm=norm), y)
        theirs = accuracy(model, attack(x, y), y)
        assert ours == pytest.approx(theirs, abs=0.01), norm
        assert ours < accuracy(model, x, y) - 0.2


@given(
    st.integers(0, 10_000), st.floats(1e-3, 2), st.sampled_from(["linf", "l2"]), st.integers(1, 4)
)
def test_an_attack_stays_in_the_ball_and_among_images(seed, radius, norm, steps):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 2, 4, 5, generator=generator).round(decimals=seed % 3)  # 0 and 1 among them
    y = torch.randint(4, (3,), generator=generator)
    weight = torch.randn(40, 4, generator=generator) * 10.0 ** (seed % 5 - 2)
    for loss in (robustness.cross_entropy, robustness.margin):
        attacked = robustness.pgd(
            lambda i: i.flatten(1) @ weight,
            x,
            y,
            radius,
            norm=norm,
            loss=loss,
            steps=steps,
            seed=seed,
        )
        moves = (attacked - x).flatten(1)
        length = moves.abs().amax(1) if norm == "linf" else moves.norm(dim=1)
        assert (length <= radius + 1e-6).all() and attacked.min() >= 0 and attacked.max() <= 1
    assert (
        robustness.fgsm(lambda i: i.flatten(1) @ weight, x, y, radius) - x
    ).abs().max() <= radius + 1e-6


def test_pgd_finds_the_worst_of_a_linear_network():
    """Two classes and a plane between them: the worst move is known, the sign of the plane's normal."""
    generator = torch.Generator().manual_seed(0)
    x = 0.3 + 0.4 * torch.rand(
        200, 1, 3, 3, generator=generator
    )  # the ball never meets the edge of [0, 1]
    normal = torch.randn(9, generator=generator)

    def classify(images):
        side = (images.flatten(1) - 0.5) @ normal
        return torch.stack([torch.zeros_like(side), side], 1)

    y = (((x.flatten(1) - 0.5) @ normal) > 0).long()
    side = ((x.flatten(1) - 0.5) @ normal).abs()
    for norm, reach in (("linf", normal.abs().sum()), ("l2", normal.norm())):
        attacked = robustness.pgd(classify, x, y, 0.1, norm=norm, steps=20)
        moved = (side - ((attacked.flatten(1) - 0.5) @ normal) * (2 * y - 1)) / (0.1 * reach)
        assert moved.max() <= 1 + 1e-5 and moved.min() > (0.99999 if norm == "linf" else 0.95)


def test_margin_and_cross_entropy_are_their_definitions():
    generator = torch.Generator().manual_seed(0)
    logits, labels = (
        torch.randn(6, 5, generator=generator, dtype=torch.float64),
        torch.arange(6) % 5,
    )
    expected = [
        oracles.margin_loss(row, k) for row, k in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    assert robustness.margin(logits, labels).tolist() == pytest.approx(expected)
    expected = [
        math.log(sum(map(math.exp, row))) - row[k]
        for row, k in zip(logits.tolist(), labels, strict=True)
    ]
    assert robustness.cross_entropy(logits, labels).tolist() == pytest.approx(expected)


def test_masked_gradients_are_seen_and_the_margin_gets_around_them(network):
    """Logits times a thousand: answers are the same, but cross-entropy is flat, and its attack fails."""
    model, x, y = network

    def sharp(images):
        return 1000 * model(images)

    right = sharp(x).argmax(1) == y
    hidden = robustness.zero_gradient(sharp, x, y)
    assert hidden[right].double().mean() > 0.8 and not robustness.zero_gradient(model, x, y).any()
    gradients = torch.stack(
        [robustness.gradient(sharp, x[i : i + 1], y[i : i + 1])[0] for i in range(len(x))]
    )
    assert torch.equal(hidden, (gradients == 0).all((1, 2, 3)))
    fooled = {
        loss: accuracy(model, robustness.pgd(sharp, x, y, 0.1, loss=loss), y)
        for loss in (robustness.cross_entropy, robustness.margin)
    }
    honest = accuracy(model, robustness.pgd(model, x, y, 0.1), y)
    assert fooled[robustness.cross_entropy] > honest + 0.2
    assert fooled[robustness.margin] == pytest.approx(honest, abs=0.05)


def test_an_attack_is_the_same_each_time_and_leaves_the_network_alone(network):
    model, x, y = network
    before = x.clone()
    first, second = (robustness.pgd(model, x, y, 0.1, seed=3) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(x, before)
    assert not torch.equal(first, robustness.pgd(model, x, y, 0.1, seed=4))
    assert all(p.grad is None for p in model.parameters()) and np.isfinite(first.numpy()).all()
