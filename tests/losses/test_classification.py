"""Cross-entropy and its relatives against libraries and against the identities of their papers."""

import pytest
import timm.loss
import torch
import torch.nn.functional as F
from helpers import oracles
from helpers.loss_cases import gradient, make_batch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from torchvision.ops import sigmoid_focal_loss

from distill.losses import (
    IGNORED,
    cross_entropy,
    focal,
    poly1,
    sm_softmax,
    smoothed_targets,
    sparse_probabilities,
    sparse_softmax,
)

# ---------------------------------------------------------------------------------- cross-entropy


def test_cross_entropy_is_that_of_torch_and_timm():
    batch = make_batch()
    logits, labels = batch.logits, batch.labels
    smoothed = cross_entropy(logits, labels, smoothing=0.1).mean()
    assert_close(smoothed, F.cross_entropy(logits, labels, label_smoothing=0.1))
    assert_close(smoothed, timm.loss.LabelSmoothingCrossEntropy(0.1)(logits, labels))

    soft = torch.softmax(torch.randn(16, 10, dtype=torch.float64), 1)
    expected = timm.loss.SoftTargetCrossEntropy()(logits, soft)
    assert_close(cross_entropy(logits, soft).mean(), expected)

    weights = torch.rand(10, dtype=torch.float64) + 0.1
    expected = F.cross_entropy(logits, labels, weight=weights, reduction="none")
    assert_close(cross_entropy(logits, labels, class_weights=weights.tolist()), expected)
    assert_close(cross_entropy(logits, labels, class_weights=weights), expected)


def test_dense_cross_entropy_is_that_of_torch():
    logits = torch.randn(3, 5, 4, 2, dtype=torch.float64)
    labels = torch.randint(5, (3, 4, 2))
    labels[0] = IGNORED
    expected = F.cross_entropy(logits, labels, label_smoothing=0.2, reduction="none")
    assert_close(cross_entropy(logits, labels, smoothing=0.2), expected)


PRIOR = [0.1, 0.2, 0.3, 0.1, 0.3]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"prior": PRIOR},
        {"class_weights": [1.0, 2.0, 3.0, 4.0, 5.0]},
        {"subtract_entropy": True},
        {"prior": PRIOR, "subtract_entropy": True},
        {"smooth_over": "wrong"},
    ],
    ids=lambda settings: "+".join(settings),
)
def test_dense_cross_entropy_with_all_its_settings(settings, soft):
    batch = make_batch("cross_entropy", 12, 5, 3)
    labels = batch.labels
    if soft:
        one_hot = F.one_hot(labels, 5).double()
        labels = 0.3 * one_hot.roll(1, 0) + 0.7 * one_hot
    flat = cross_entropy(batch.logits, labels, smoothing=0.2, **settings)

    logits = batch.logits.view(2, 3, 2, 5).movedim(3, 1)
    labels = labels.view(2, 3, 2, 5).movedim(3, 1) if soft else labels.view(2, 3, 2)
    dense = cross_entropy(logits, labels, smoothing=0.2, **settings)
    assert_close(dense, flat.view(2, 3, 2))


def test_a_prior_and_its_uniform_case():
    batch = make_batch()
    logits, labels = batch.logits, batch.labels
    uniform = cross_entropy(logits, labels, smoothing=0.2, prior=[0.1] * 10)
    assert_close(uniform, cross_entropy(logits, labels, smoothing=0.2))

    prior = torch.arange(1, 11, dtype=torch.float64) / 55
    soft = smoothed_targets(F.one_hot(labels, 10).double(), 10, 0.2, prior=prior)
    expected = F.cross_entropy(logits, soft, reduction="none")
    assert_close(cross_entropy(logits, labels, smoothing=0.2, prior=prior.tolist()), expected)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    "settings", [{}, {"smooth_over": "wrong"}, {"prior": [0.4, 0.3, 0.2, 0.1]}]
)
def test_without_its_entropy_the_loss_is_a_divergence_with_minimum_0(settings, soft):
    labels = torch.tensor([0, 2, 3])
    target = F.one_hot(labels, 4).double()
    if soft:
        target = 0.7 * target + 0.3 * target.roll(1, 1)
        labels = target
    q = smoothed_targets(target, 4, 0.3, **settings)
    settings = {"smoothing": 0.3, "subtract_entropy": True, **settings}
    assert_close(cross_entropy(q.log(), labels, **settings), torch.zeros(3).double())
    kl_to_uniform = (q * (q * 4).log()).sum(1)
    assert_close(cross_entropy(torch.zeros(3, 4).double(), labels, **settings), kl_to_uniform)


def test_the_gradient_is_the_difference_of_probabilities():
    batch = make_batch()
    q = smoothed_targets(F.one_hot(batch.labels, 10).double(), 10, 0.1)
    got = gradient(cross_entropy, batch.logits, batch.labels, smoothing=0.1)
    assert_close(got, batch.logits.softmax(1) - q, atol=1e-12, rtol=1e-9)


def test_class_weights_move_no_optimum():
    """PyTorch's `weight` moves it to w·q; here the gradient vanishes at q, whatever the weights."""
    label = torch.tensor([2])
    q = smoothed_targets(label, 5, 0.1).double()
    weights = [1, 1, 1, 1, 50]
    got = gradient(cross_entropy, q.log(), label, smoothing=0.1, class_weights=weights)
    assert got.abs().max() < 1e-7


# --------------------------------------------------------------------------------- its relatives


@given(st.integers(0, 2**31 - 1), st.integers(2, 9))
def test_the_relatives_have_cross_entropy_as_a_special_case(seed, num_classes):
    batch = make_batch(size=5, num_classes=num_classes, seed=seed)
    logits, labels = batch.logits, batch.labels
    plain = cross_entropy(logits, labels)
    for same in (
        focal(logits, labels, focus=0.0),
        poly1(logits, labels, epsilon=0.0),
        sparse_softmax(logits, labels, k=num_classes),
        sparse_softmax(logits, labels, k=num_classes + 5),
        sm_softmax(logits, labels, margin=0.0),
    ):
        assert_close(same, plain, atol=1e-9, rtol=1e-9)

    sparse = sparse_softmax(logits, labels, k=2)
    assert (sparse >= -1e-12).all()
    assert (sparse <= plain + 1e-12).all()
    is_correct = logits.argmax(1) == labels
    assert (sparse_softmax(logits, labels, k=1)[is_correct] == 0).all()


def test_focal_loss_of_two_classes_is_torchvisions():
    logits = torch.randn(20, dtype=torch.float64)
    labels = torch.randint(2, (20,))
    both = torch.stack([torch.zeros_like(logits), logits], 1)
    for focus in (0.5, 2.0):
        expected = sigmoid_focal_loss(logits, labels.double(), alpha=-1, gamma=focus)
        assert_close(focal(both, labels, focus=focus), expected)


def test_poly1_is_timms():
    batch = make_batch()
    timms = timm.loss.PolyCrossEntropy(epsilon=1.5, smoothing=0.1, reduction="none")
    expected = timms(batch.logits, batch.labels).double()
    got = poly1(batch.logits, batch.labels, epsilon=1.5, smoothing=0.1)
    assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_sparse_probabilities_are_the_gradient_of_sparse_softmax():
    batch = make_batch()
    logits, labels = batch.logits, batch.labels
    got = sparse_probabilities(logits, 3)
    expected = [oracles.sparse_probabilities(z, 3) for z in logits.tolist()]
    assert_close(got, torch.tensor(expected).double())
    assert_close(sparse_probabilities(logits, 99), logits.softmax(1))

    grad = gradient(sparse_softmax, logits, labels, k=3)
    assert_close(grad, got - F.one_hot(labels, 10))
    assert set((grad != 0).sum(1).tolist()) <= {3, 4}
    assert grad.sum(1).abs().max() < 1e-12
