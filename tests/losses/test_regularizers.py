"""Penalties on outputs and weights against the identities of their papers."""

import math

import pytest
import torch
from helpers.loss_cases import gradient, make_batch
from torch.testing import assert_close

from distill.losses import (
    confidence_penalty,
    cross_entropy,
    l1_penalty,
    l2_penalty,
    max_sup,
    mbls,
    zipf,
)


def test_the_confidence_penalty_is_torchs_entropy_and_its_gradient_that_of_the_literature():
    logits = make_batch().logits
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert_close(confidence_penalty(logits), math.log(10) - entropy)
    p = logits.softmax(1)
    assert_close(gradient(confidence_penalty, logits), p * (p.log() + entropy[:, None]))


def test_maxsup_and_the_margin_penalty_are_smoothing_where_the_prediction_is_correct():
    logits = make_batch().logits
    labels = logits.argmax(1)
    plain = cross_entropy(logits, labels)
    smoothed = cross_entropy(logits, labels, smoothing=0.3)
    assert_close(plain + 0.3 * max_sup(logits), smoothed)
    assert_close(plain + 0.3 * mbls(logits, margin=0.0), smoothed)


def test_zipf_of_two_classes_is_0_and_of_one_is_refused():
    batch = make_batch(size=5, num_classes=2)
    assert_close(zipf(batch.logits, batch.labels), torch.zeros(5).double())
    with pytest.raises(ValueError, match="2 classes"):
        zipf(torch.zeros(2, 1), torch.zeros(2).long())


def test_zipf_has_no_gradient_at_the_label():
    batch = make_batch()
    grad = gradient(zipf, batch.logits, batch.labels)
    assert grad.gather(1, batch.labels[:, None]).abs().max() == 0


def test_zipf_leaves_out_wrong_predictions_if_asked_to():
    batch = make_batch()
    is_correct = batch.logits.argmax(1) == batch.labels
    assert 0 < is_correct.sum() < len(is_correct)
    only = zipf(batch.logits, batch.labels, only_correct=True)
    assert_close(only[is_correct], zipf(batch.logits, batch.labels)[is_correct])
    assert (only[~is_correct] == 0).all()


def test_zipf_is_0_for_logits_with_its_distribution():
    harmonic = -torch.arange(1, 10).double().log()
    logits = torch.cat([torch.tensor([5.0]).double(), harmonic])[None]
    assert zipf(logits, torch.tensor([0])).abs().max() < 1e-12


def test_a_steep_zipf_is_finite():
    batch = make_batch(size=4, num_classes=200)
    assert zipf(batch.logits.float(), batch.labels, power=25.0).isfinite().all()


def test_penalties_on_weights_are_scalars_with_known_gradients():
    weight = torch.tensor([[3.0, -4.0], [0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    assert l1_penalty([weight, weight]).item() == 16
    assert l2_penalty([weight]).item() == 13
    (grad,) = torch.autograd.grad(l2_penalty([weight]), weight)
    assert_close(grad, weight.detach())
    (grad,) = torch.autograd.grad(l1_penalty([weight]), weight)
    assert_close(grad, weight.detach().sign())


def test_penalties_refuse_no_weights():
    for penalty in (l1_penalty, l2_penalty):
        with pytest.raises(ValueError, match="weight"):
            penalty([])
