"""Margins against pytorch-metric-learning, and what they need of the logits."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.loss_cases import LOGIT_SCALE, make_batch
from torch.testing import assert_close

from distill.losses import a_softmax, am_softmax, arcface, l_softmax


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # theirs, with numpy 2
def test_margins_are_those_of_pytorch_metric_learning():
    theirs = pytest.importorskip("pytorch_metric_learning.losses")
    batch = make_batch("a_softmax", 16, 10, 3)
    f, w, labels = batch.features, batch.templates, batch.labels
    unit = F.normalize(w, dim=1)

    def expected(loss):
        loss.W.data = w.T.clone()
        return loss.double()(f, labels)

    logits = LOGIT_SCALE * F.normalize(f, dim=1) @ unit.T
    assert_close(
        am_softmax(logits, labels, logit_scale=LOGIT_SCALE, margin=0.35).mean(),
        expected(theirs.CosFaceLoss(10, 4, margin=0.35, scale=LOGIT_SCALE)),
    )
    assert_close(
        arcface(logits, labels, logit_scale=LOGIT_SCALE, margin=0.5).mean(),
        expected(theirs.ArcFaceLoss(10, 4, margin=math.degrees(0.5), scale=LOGIT_SCALE)),
    )
    for m in (1, 2, 3, 4):
        assert_close(
            l_softmax(f @ w.T, labels, f, w, margin=m, share=1.0).mean(),
            expected(theirs.LargeMarginSoftmaxLoss(10, 4, margin=m)),
        )
        assert_close(
            a_softmax(f @ unit.T, labels, f, logit_scale=0.0, margin=m, share=1.0).mean(),
            expected(theirs.SphereFaceLoss(10, 4, margin=m)),
        )


def test_arcface_turns_the_angle_and_falls_without_end():
    angles = torch.linspace(0.01, 3.13, 50, dtype=torch.float64)
    logits = torch.stack([LOGIT_SCALE * angles.cos(), torch.zeros(50).double()], 1)
    loss = arcface(logits, torch.zeros(50).long(), logit_scale=LOGIT_SCALE, margin=0.5)
    near = angles + 0.5 < math.pi
    expected = F.softplus(-LOGIT_SCALE * (angles + 0.5).cos())
    assert_close(loss[near], expected[near])
    assert (loss.diff() > 0).all()  # also beyond π - margin


@pytest.mark.parametrize("name", ["l_softmax", "a_softmax"])
def test_an_angular_margin_grows_over_its_ramp(name):
    batch = make_batch(name, 6, 5, 1)
    for progress, grown in ((0.0, 0.0), (0.2, 0.5), (0.4, 1.0), (1.0, 1.0)):
        got = batch.call(name, share=0.8, ramp=0.4, progress=progress)
        assert_close(got, batch.call(name, share=0.8 * grown, ramp=0.0))
    assert_close(batch.call(name), batch.call(name, share=1 / 6))  # in full without a loop


def test_cosine_losses_need_the_scale_of_the_logits():
    batch = make_batch()
    for scale in (None, 0.0):
        for loss in (am_softmax, arcface):
            with pytest.raises(ValueError, match="logit_scale"):
                loss(batch.logits, batch.labels, logit_scale=scale)
    for scale in (None, 1.0):
        with pytest.raises(ValueError, match="logit_scale=0"):
            a_softmax(batch.logits, batch.labels, batch.features, logit_scale=scale)


def test_l_softmax_refuses_a_cosine_head():
    batch = make_batch("l_softmax", 3, 4)
    batch.logit_scale = 8.0
    with pytest.raises(ValueError, match="cosine head"):
        batch.call("l_softmax")
    batch.logit_scale = 0.0
    assert batch.call("l_softmax").isfinite().all()
