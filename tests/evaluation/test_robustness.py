"""Attacks against torchattacks on the same network, and against what must hold of any attack."""

import math

import pytest
import torch
import torchattacks
from helpers import oracles_analysis as oracles
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn

from distill.evaluation import robustness
from distill.evaluation.robustness import Ball

LINF = Ball(0.1)
L2 = Ball(0.5, "l2")


@pytest.fixture(scope="module")
def network():
    """A small network trained on digits, and images that it was not trained on."""
    digits = load_digits()
    x = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    y = torch.tensor(digits.target)
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


def test_attacks_are_as_strong_as_those_of_torchattacks(network):
    model, x, y = network
    clean = accuracy(model, x, y)
    assert clean > 0.9
    ours = robustness.fgsm(model, x, y, 0.1)
    assert torch.allclose(ours, torchattacks.FGSM(model, eps=0.1)(x, y), atol=1e-6)

    torch.manual_seed(0)
    step_size = 2.5 / 20
    reference = {
        LINF: torchattacks.PGD(model, eps=0.1, alpha=step_size * 0.1, steps=20),
        L2: torchattacks.PGDL2(model, eps=0.5, alpha=step_size * 0.5, steps=20),
    }
    for ball, attack in reference.items():
        ours = accuracy(model, robustness.pgd(model, x, y, ball), y)
        assert ours == pytest.approx(accuracy(model, attack(x, y), y), abs=0.01), ball
        assert ours < clean - 0.2


@given(
    st.integers(0, 10_000), st.floats(1e-3, 2), st.sampled_from(["linf", "l2"]), st.integers(1, 4)
)
def test_an_attack_stays_in_the_ball_and_among_images(seed, radius, norm, steps):
    generator = torch.Generator().manual_seed(seed)
    # Rounded, so that pixels of exactly 0 and 1 are among them.
    x = torch.rand(3, 2, 4, 5, generator=generator).round(decimals=seed % 3)
    y = torch.randint(4, (3,), generator=generator)
    weight = torch.randn(40, 4, generator=generator) * 10.0 ** (seed % 5 - 2)

    def classify(images):
        return images.flatten(1) @ weight

    for loss in (robustness.cross_entropy, robustness.margin):
        attacked = robustness.pgd(
            classify, x, y, Ball(radius, norm), loss=loss, steps=steps, seed=seed
        )
        moves = (attacked - x).flatten(1)
        length = moves.abs().amax(1) if norm == "linf" else moves.norm(dim=1)
        assert (length <= radius + 1e-6).all()
        assert attacked.min() >= 0
        assert attacked.max() <= 1
    moves = robustness.fgsm(classify, x, y, radius) - x
    assert moves.abs().max() <= radius + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_finds_the_worst_move_against_a_linear_network(norm):
    """A plane separates two classes: the worst move is along its normal, or the normal's sign."""
    generator = torch.Generator().manual_seed(0)
    # Far enough from 0 and 1 for the whole ball to be among images.
    x = 0.3 + 0.4 * torch.rand(200, 1, 3, 3, generator=generator)
    normal = torch.randn(9, generator=generator)

    def side(images):
        return (images.flatten(1) - 0.5) @ normal

    def classify(images):
        return torch.stack([torch.zeros(len(images)), side(images)], 1)

    y = (side(x) > 0).long()
    furthest = 0.1 * (normal.abs().sum() if norm == "linf" else normal.norm())
    attacked = robustness.pgd(classify, x, y, Ball(0.1, norm), steps=20)
    moved = (side(x).abs() - side(attacked) * (2 * y - 1)) / furthest
    assert moved.max() <= 1 + 1e-5
    assert moved.min() > (0.99999 if norm == "linf" else 0.95)


def test_margin_and_cross_entropy_are_their_definitions():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    labels = torch.arange(6) % 5
    pairs = list(zip(logits.tolist(), labels.tolist(), strict=True))
    margins = [oracles.margin_loss(row, label) for row, label in pairs]
    assert robustness.margin(logits, labels).tolist() == pytest.approx(margins)
    losses = [math.log(sum(math.exp(z) for z in row)) - row[label] for row, label in pairs]
    assert robustness.cross_entropy(logits, labels).tolist() == pytest.approx(losses)


def test_masked_gradients_are_counted_and_the_margin_attack_succeeds(network):
    """Logits times a thousand have the same predictions, but the gradient of cross-entropy is 0."""
    model, x, y = network

    def sharp(images):
        return 1000 * model(images)

    is_hidden = robustness.zero_gradient(sharp, x, y)
    is_correct = sharp(x).argmax(1) == y
    assert is_hidden[is_correct].double().mean() > 0.8
    assert not robustness.zero_gradient(model, x, y).any()

    # The gradients of single images are those of the batch.
    one_by_one = [robustness.gradient(sharp, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    assert torch.equal(is_hidden, (torch.cat(one_by_one) == 0).all((1, 2, 3)))

    def attacked_accuracy(classify, loss):
        return accuracy(model, robustness.pgd(classify, x, y, LINF, loss=loss), y)

    unmasked = attacked_accuracy(model, robustness.cross_entropy)
    assert attacked_accuracy(sharp, robustness.cross_entropy) > unmasked + 0.2
    assert attacked_accuracy(sharp, robustness.margin) == pytest.approx(unmasked, abs=0.05)


def test_an_attack_is_repeatable_and_changes_neither_network_nor_images(network):
    model, x, y = network
    before = x.clone()
    first = robustness.pgd(model, x, y, LINF, seed=3)
    assert torch.equal(first, robustness.pgd(model, x, y, LINF, seed=3))
    assert not torch.equal(first, robustness.pgd(model, x, y, LINF, seed=4))
    assert torch.equal(x, before)
    assert first.isfinite().all()
    assert all(weight.grad is None for weight in model.parameters())
