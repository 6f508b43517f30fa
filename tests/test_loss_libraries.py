"""Terms against other libraries that have them, and against published code."""

import math

import pytest
import timm.loss
import timm.task
import torch
import torch.nn.functional as F
from helpers.terms import SCALE, case, make
from torch.testing import assert_close
from torchvision.ops import sigmoid_focal_loss

from distill.losses import (
    IGNORED,
    LOSSES,
    Outputs,
    am_softmax,
    arcface,
    attention_transfer,
    confidence_penalty,
    cross_entropy,
    dist,
    dkd,
    focal,
    hard_label,
    kd,
    logit_mse,
    nkd,
    poly1,
    rkd,
)


def test_cross_entropy_is_that_of_torch_and_timm():
    student, labels, _ = case()
    z, w = student.logits, torch.rand(10, dtype=torch.float64) + 0.1
    assert_close(
        cross_entropy(student, labels, smoothing=0.1).mean(),
        F.cross_entropy(z, labels, label_smoothing=0.1),
    )
    timms = timm.loss.LabelSmoothingCrossEntropy(0.1)(z, labels)
    assert_close(cross_entropy(student, labels, smoothing=0.1).mean(), timms)
    soft = torch.softmax(torch.randn(16, 10, dtype=torch.float64), 1)
    assert_close(cross_entropy(student, soft).mean(), timm.loss.SoftTargetCrossEntropy()(z, soft))
    own = cross_entropy(student, labels, class_weights=w.tolist())
    assert_close(own, F.cross_entropy(z, labels, weight=w, reduction="none"))
    dense = torch.randn(3, 5, 4, 2, dtype=torch.float64)
    places = torch.randint(5, (3, 4, 2))
    places[0] = IGNORED
    expected = F.cross_entropy(dense, places, label_smoothing=0.2, reduction="none")
    assert_close(cross_entropy(Outputs(dense), places, smoothing=0.2), expected)


def test_focal_loss_of_two_classes_is_torchvisions_of_one():
    x, labels = torch.randn(20, dtype=torch.float64), torch.randint(2, (20,))
    for focus in (0.5, 2.0):
        expected = sigmoid_focal_loss(x, labels.double(), alpha=-1, gamma=focus)
        assert_close(
            focal(Outputs(torch.stack([torch.zeros_like(x), x], 1)), labels, focus=focus), expected
        )


def test_the_confidence_penalty_is_torchs_entropy():
    student, labels, _ = case()
    entropy = torch.distributions.Categorical(logits=student.logits).entropy()
    assert_close(confidence_penalty(student, labels), math.log(10) - entropy)


def test_a_hint_is_torchs_mse():
    batch = make("hint", 5, 4, 0)
    expected = F.mse_loss(batch.part(batch.student.features), batch.teacher.features) / 2
    assert_close(batch.call("hint").mean(), expected)


def test_poly1_is_timms():
    student, labels, _ = case()
    expected = timm.loss.PolyCrossEntropy(epsilon=1.5, smoothing=0.1, reduction="none")(
        student.logits, labels
    )
    assert_close(
        poly1(student, labels, epsilon=1.5, smoothing=0.1), expected.double(), atol=1e-5, rtol=1e-5
    )


def test_kd_is_hintons_in_torch_and_timms_task():
    student, labels, teacher = case()
    soft = F.kl_div(
        F.log_softmax(student.logits / 4, 1),
        F.softmax(teacher.logits / 4, 1),
        reduction="batchmean",
    )
    assert_close(kd(student, labels, teacher, temperature=4.0).mean(), 16 * soft)
    hard = F.cross_entropy(student.logits, teacher.logits.argmax(1), reduction="none")
    assert_close(hard_label(student, labels, teacher), hard)
    assert_close(logit_mse(student, labels, teacher, over_classes="mean").mean(),
                 F.mse_loss(student.logits, teacher.logits) / 2)  # fmt: skip


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # theirs, with numpy 2
def test_margins_are_those_of_pytorch_metric_learning():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    batch = make("a_softmax", 16, 10, 3)
    f, w, labels = batch.student.features, batch.templates, batch.labels
    cosines = F.normalize(f, dim=1) @ F.normalize(w, dim=1).T

    def theirs(loss, matrix):
        loss.W.data = matrix.T.clone()
        return loss.double()(f, labels)

    cosine = Outputs(SCALE * cosines, logit_scale=SCALE)
    expected = theirs(losses.CosFaceLoss(10, 4, margin=0.35, scale=SCALE), w)
    assert_close(am_softmax(cosine, labels, margin=0.35).mean(), expected)
    expected = theirs(losses.ArcFaceLoss(10, 4, margin=math.degrees(0.5), scale=SCALE), w)
    assert_close(arcface(cosine, labels, margin=0.5).mean(), expected)
    for m in (1, 2, 3, 4):
        plain, sphere = (
            Outputs(f @ w.T, f, w),
            Outputs(f @ F.normalize(w, dim=1).T, f, logit_scale=0.0),
        )
        expected = theirs(losses.LargeMarginSoftmaxLoss(10, 4, margin=m), w)
        assert_close(LOSSES["l_softmax"](plain, labels, margin=m, share=1.0).mean(), expected)
        expected = theirs(losses.SphereFaceLoss(10, 4, margin=m), w)
        assert_close(LOSSES["a_softmax"](sphere, labels, margin=m, share=1.0).mean(), expected)


def test_distillation_is_that_of_torchdistill():
    mid = pytest.importorskip("torchdistill.losses.mid_level")
    student, labels, teacher = case()
    places = ("s", "x", "t", "x")
    ours, theirs = {"s": {"x": student.logits}}, {"t": {"x": teacher.logits}}
    both = mid.KDLoss(*places, temperature=3.0, alpha=0.5, beta=1.0)(ours, theirs, labels)
    expected = both - 0.5 * F.cross_entropy(student.logits, labels)
    assert_close(kd(student, labels, teacher, temperature=3.0).mean(), expected)
    both = mid.LogitStdKDLoss(*places, temperature=2.0, alpha=0.5, beta=9.0)(ours, theirs, labels)
    expected = (both - 0.5 * F.cross_entropy(student.logits, labels)) / 9
    got = kd(student, labels, teacher, temperature=2.0, standardise=True).mean()
    assert_close(got, expected, atol=1e-6, rtol=1e-6)  # they add 1e-7 to the deviation
    for tau, inter, intra in ((1.0, 1.0, 1.0), (2.0, 3.0, 0.5)):
        expected = mid.DISTLoss(*places, beta=inter, gamma=intra, tau=tau)(ours, theirs)
        got = dist(
            student, labels, teacher, temperature=tau, inter_weight=inter, intra_weight=intra
        )
        assert_close(got.mean(), expected)
    features = make("rkd", 8, 10, 1)
    relational = mid.RKDLoss("s", "t", dist_factor=1.0, angle_factor=2.0, reduction="mean")
    expected = relational(
        {"s": {"output": features.student.features}}, {"t": {"output": features.teacher.features}}
    )
    assert_close(
        rkd(features.student, features.labels, features.teacher).mean(),
        expected,
        atol=1e-6,
        rtol=1e-5,
    )


def test_attention_transfer_is_the_published_code():
    """Zagoruyko and Komodakis: normalised means of squares, mean squared difference over batch and positions."""
    batch = make("attention_transfer", 4, 5, 0)

    def at(x):
        return F.normalize(x.pow(2).mean(1).view(x.size(0), -1))

    expected = sum(
        (at(a) - at(b)).pow(2).mean()
        for a, b in zip(batch.student.maps, batch.teacher.maps, strict=True)
    )
    assert_close(attention_transfer(batch.student, batch.labels, batch.teacher).mean(), expected)
    more = batch.teacher._replace(maps=[torch.randn(4, 1, 9, 9).double(), *batch.teacher.maps])
    assert_close(
        attention_transfer(batch.student, batch.labels, more).mean(), expected
    )  # stages pair from the last
    larger = batch.teacher._replace(
        maps=[F.interpolate(m, scale_factor=2) for m in batch.teacher.maps]
    )
    assert_close(
        attention_transfer(batch.student, batch.labels, larger).mean(), expected
    )  # pooled back


def test_dkd_and_nkd_are_the_published_formulas():
    """mdistiller's dkd_loss and cls_KD's NKDLoss, from what their papers print, with plain probabilities."""
    student, labels, teacher = case()
    t, one_hot = 4.0, F.one_hot(labels, 10).bool()
    ps, pt = ((o.logits / t).softmax(1) for o in (student, teacher))
    two = [torch.stack([p[one_hot], p[~one_hot].view(16, 9).sum(1)], 1) for p in (ps, pt)]
    tckd = F.kl_div(two[0].log(), two[1], reduction="batchmean") * t**2
    rest = [(o.logits / t)[~one_hot].view(16, 9) for o in (student, teacher)]
    nckd = F.kl_div(rest[0].log_softmax(1), rest[1].softmax(1), reduction="batchmean") * t**2
    assert_close(dkd(student, labels, teacher).mean(), tckd + 8 * nckd)
    own = -(teacher.logits.softmax(1)[one_hot] * student.logits.log_softmax(1)[one_hot]).mean()
    rest = [(o.logits)[~one_hot].view(16, 9) for o in (student, teacher)]
    others = -(rest[1].softmax(1) * rest[0].log_softmax(1)).sum(1).mean()
    assert_close(nkd(student, labels, teacher).mean(), own + 1.5 * others)
