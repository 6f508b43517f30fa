"""Distillation from logits against libraries, published code and the identities of the papers."""

import pytest
import torch
import torch.nn.functional as F
from helpers.loss_cases import gradient, make_batch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from distill.losses import dist, dkd, hard_label, kd, logit_mse, nkd

SEEDS = st.integers(0, 2**31 - 1)


# --------------------------------------------------------------------------------------------- kd


def test_kd_is_hintons_in_torch():
    batch = make_batch()
    soft = F.kl_div(
        F.log_softmax(batch.logits / 4, 1),
        F.softmax(batch.teacher_logits / 4, 1),
        reduction="batchmean",
    )
    assert_close(kd(batch.logits, batch.teacher_logits, temperature=4.0).mean(), 16 * soft)


@pytest.mark.parametrize("loss", [kd, dkd])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_teacher_may_mask_classes(loss, temperature):
    """Its logits of -inf have the probability 0, and 0 · log 0 is 0."""
    batch = make_batch()
    masked = batch.teacher_logits.clone()
    # The last class, but not where it is the label.
    masked[batch.labels != masked.shape[1] - 1, -1] = -torch.inf
    labels = {"labels": batch.labels} if loss is dkd else {}
    nearly = masked.clamp(min=-1e4)
    settings = labels | {"temperature": temperature}
    found = loss(batch.logits, teacher_logits=masked, **settings)
    assert_close(found, loss(batch.logits, teacher_logits=nearly, **settings))
    assert torch.isfinite(found).all()
    if loss is kd:
        oracle = F.kl_div(
            (batch.logits / temperature).log_softmax(1),
            (masked / temperature).softmax(1),
            reduction="none",
        ).sum(1)
        assert_close(found, temperature**2 * oracle)


def test_gradients_are_those_of_the_literature():
    batch = make_batch()
    logits, teacher_logits = batch.logits, batch.teacher_logits
    for t in (1.0, 4.0):
        expected = t * ((logits / t).softmax(1) - (teacher_logits / t).softmax(1))
        assert_close(gradient(kd, logits, teacher_logits, temperature=t), expected)
        got = gradient(kd, logits, teacher_logits, temperature=t, t_squared=False)
        assert_close(got, expected / t**2)

    # The setting of Müller et al.: only the teacher is softened, and there is no factor.
    got = gradient(kd, logits, teacher_logits, temperature=4.0, student_temperature=1.0)
    assert_close(got, logits.softmax(1) - (teacher_logits / 4).softmax(1))
    assert_close(gradient(logit_mse, logits, teacher_logits), logits - teacher_logits)


def test_kd_at_a_high_temperature_is_logit_matching():
    """Hinton et al. 2015, section 2.1: for T → ∞ the gradient is (centred z_s - z_t) / K."""
    batch = make_batch()
    logits, teacher_logits = batch.logits, batch.teacher_logits
    difference = logits - teacher_logits
    difference = difference - difference.mean(1, keepdim=True)
    got = gradient(kd, logits, teacher_logits, temperature=1e5)
    assert_close(got, difference / 10, atol=1e-4, rtol=1e-3)


def test_a_final_temperature_is_reached_linearly():
    batch = make_batch()
    logits, teacher_logits = batch.logits, batch.teacher_logits
    for progress, temperature in ((0.0, 8.0), (0.5, 5.0), (1.0, 2.0)):
        got = kd(logits, teacher_logits, temperature=8.0, final_temperature=2.0, progress=progress)
        assert_close(got, kd(logits, teacher_logits, temperature=temperature))


@given(SEEDS, st.floats(0.1, 50), st.floats(-30, 30))
def test_standardised_kd_depends_on_no_scale_and_no_shift(seed, factor, shift):
    batch = make_batch(size=4, num_classes=6, seed=seed)
    settings = {"temperature": 2.0, "standardise": True}
    plain = kd(batch.logits, batch.teacher_logits, **settings)
    moved = kd(factor * batch.logits + shift, batch.teacher_logits, **settings)
    assert_close(moved, plain, atol=1e-7, rtol=1e-6)
    agreeing = kd(factor * batch.teacher_logits + shift, batch.teacher_logits, **settings)
    assert agreeing.abs().max() < 1e-7


def test_standardised_logits_of_two_classes_are_a_sign():
    """They are ±√½: of two logits only the order is left."""
    batch = make_batch(size=6, num_classes=2)
    signs = [
        (z - z.mean(1, keepdim=True)).sign() * 0.5**0.5
        for z in (batch.logits, batch.teacher_logits)
    ]
    got = kd(batch.logits, batch.teacher_logits, temperature=2.0, standardise=True)
    assert_close(got, kd(*signs, temperature=2.0))


def test_standardisation_needs_two_classes():
    with pytest.raises(ValueError, match="2 classes"):
        kd(torch.zeros(2, 1), torch.zeros(2, 1), standardise=True)


def test_equal_logits_have_bounded_gradients_when_standardised():
    zero = torch.zeros(2, 10, dtype=torch.float64)
    teacher_logits = torch.randn(2, 10, dtype=torch.float64)
    got = gradient(kd, zero, teacher_logits, standardise=True, temperature=2.0)
    assert got.norm() < 1000


# --------------------------------------------------------------------------------------- the others


def test_hard_labels_and_logit_matching_are_those_of_torch():
    batch = make_batch()
    logits, teacher_logits = batch.logits, batch.teacher_logits
    expected = F.cross_entropy(logits, teacher_logits.argmax(1), reduction="none")
    assert_close(hard_label(logits, teacher_logits), expected)
    half_mse = F.mse_loss(logits, teacher_logits) / 2
    assert_close(logit_mse(logits, teacher_logits, over_classes="mean").mean(), half_mse)


def test_losses_are_those_of_torchdistill():
    theirs = pytest.importorskip("torchdistill.losses.mid_level")
    batch = make_batch()
    logits, labels, teacher_logits = batch.logits, batch.labels, batch.teacher_logits
    paths = ("student", "x", "teacher", "x")
    outputs = ({"student": {"x": logits}}, {"teacher": {"x": teacher_logits}})
    hard = 0.5 * F.cross_entropy(logits, labels)

    both = theirs.KDLoss(*paths, temperature=3.0, alpha=0.5, beta=1.0)(*outputs, labels)
    assert_close(kd(logits, teacher_logits, temperature=3.0).mean(), both - hard)

    both = theirs.LogitStdKDLoss(*paths, temperature=2.0, alpha=0.5, beta=9.0)(*outputs, labels)
    got = kd(logits, teacher_logits, temperature=2.0, standardise=True).mean()
    # They add 1e-7 to the standard deviation.
    assert_close(got, (both - hard) / 9, atol=1e-6, rtol=1e-6)

    for tau, inter, intra in ((1.0, 1.0, 1.0), (2.0, 3.0, 0.5)):
        expected = theirs.DISTLoss(*paths, beta=inter, gamma=intra, tau=tau)(*outputs)
        got = dist(logits, teacher_logits, temperature=tau, inter_weight=inter, intra_weight=intra)
        assert_close(got.mean(), expected)


def test_dkd_and_nkd_are_the_published_formulas():
    """mdistiller's dkd_loss and cls_KD's NKDLoss as their papers print them, with probabilities."""
    batch = make_batch()
    logits, labels, teacher_logits = batch.logits, batch.labels, batch.teacher_logits
    one_hot = F.one_hot(labels, 10).bool()

    def of_label(values):
        return values[one_hot]

    def of_others(values):
        return values[~one_hot].view(16, 9)

    t = 4.0
    binary, others = [], []
    for z in (logits / t, teacher_logits / t):
        p = z.softmax(1)
        binary.append(torch.stack([of_label(p), of_others(p).sum(1)], 1))
        others.append(of_others(z))
    tckd = F.kl_div(binary[0].log(), binary[1], reduction="batchmean")
    nckd = F.kl_div(others[0].log_softmax(1), others[1].softmax(1), reduction="batchmean")
    got = dkd(logits, labels, teacher_logits).mean()
    assert_close(got, t**2 * (tckd + 8 * nckd))

    target = -(of_label(teacher_logits.softmax(1)) * of_label(logits.log_softmax(1))).mean()
    cross = of_others(teacher_logits).softmax(1) * of_others(logits).log_softmax(1)
    got = nkd(logits, labels, teacher_logits).mean()
    assert_close(got, target - 1.5 * cross.sum(1).mean())


@given(SEEDS, st.floats(0.5, 8), st.integers(2, 9))
def test_kd_is_dkd_at_its_own_weights(seed, t, num_classes):
    batch = make_batch(size=5, num_classes=num_classes, seed=seed)
    inputs = (batch.logits, batch.labels, batch.teacher_logits)
    target = dkd(*inputs, temperature=t, target_weight=1.0, others_weight=0.0)
    others = dkd(*inputs, temperature=t, target_weight=0.0, others_weight=1.0)
    teacher_p = (batch.teacher_logits / t).softmax(1)
    share = 1 - teacher_p.gather(1, batch.labels[:, None])[:, 0]
    expected = kd(batch.logits, batch.teacher_logits, temperature=t)
    assert_close(target + share * others, expected, atol=1e-7, rtol=1e-6)


def test_agreement_costs_nothing():
    batch = make_batch()
    teacher_logits = batch.teacher_logits
    shifted = teacher_logits + 7
    assert kd(shifted, teacher_logits).abs().max() < 1e-9
    assert dkd(shifted, batch.labels, teacher_logits).abs().max() < 1e-9
    assert dist(shifted, teacher_logits).abs().max() < 1e-9
    assert logit_mse(shifted, teacher_logits, centre=True).abs().max() < 1e-9
    assert_close(logit_mse(shifted, teacher_logits), torch.full((16,), 245.0).double())


def test_a_single_example_has_only_its_own_correlation():
    batch = make_batch()
    inter = dist(batch.logits, batch.teacher_logits, intra_weight=0.0)
    examples = zip(batch.logits, batch.teacher_logits, strict=True)
    alone = torch.cat([dist(s[None], t[None]) for s, t in examples])
    assert_close(alone, inter)
