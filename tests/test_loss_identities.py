"""Terms against the identities of the literature."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import oracles
from helpers.terms import SCALE, case, gradient, make
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from distill.evaluation.calibration import effective_smoothing
from distill.losses import (
    LOSSES,
    Outputs,
    arcface,
    confidence_penalty,
    convert_smoothing,
    cross_entropy,
    dist,
    dkd,
    ensemble,
    focal,
    kd,
    l2_penalty,
    logit_mse,
    max_sup,
    mbls,
    optimal_logit_gap,
    poly1,
    rkd,
    smoothed_targets,
    sparse_probabilities,
    sparse_softmax,
    zipf,
)

SEEDS = st.integers(0, 2**31 - 1)
FORMS = [("all", 0.1), ("all", 0.6), ("wrong", 0.1), ("wrong", 0.6)]


# ----------------------------------------------------------------------------------------------- smoothing


@pytest.mark.parametrize(("over", "mass"), FORMS)
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_minimising_gives_the_known_gap_and_gamma(over, mass, classes):
    if over == "wrong" and mass > (classes - 1) / classes:
        mass = 0.3
    logits = torch.zeros(1, classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=400, tolerance_grad=1e-13, tolerance_change=1e-16,
                                  line_search_fn="strong_wolfe")  # fmt: skip
    label = torch.tensor([1])

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(Outputs(logits), label, smoothing=mass, smooth_over=over).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    gaps = logits[0, 1] - logits[0, torch.arange(classes) != 1]
    expected = oracles.optimal_logit_gap(classes, mass, over)
    assert gaps.detach().sub(expected).abs().max() < 1e-6
    assert optimal_logit_gap(classes, mass, over) == pytest.approx(expected, abs=1e-12)
    index = effective_smoothing(
        logits.detach().numpy(), label.numpy()
    )  # the smoothing over all that this amounts to
    assert index == pytest.approx(
        mass if over == "all" else mass * classes / (classes - 1), abs=1e-6
    )
    least = cross_entropy(
        Outputs(logits), label, smoothing=mass, smooth_over=over, subtract_entropy=True
    )
    assert abs(least.item()) < 1e-9


@given(SEEDS, st.integers(2, 12), st.floats(0, 1))
def test_the_two_forms_convert(seed, classes, mass):
    student, labels, _ = case(seed, 4, classes)
    others = convert_smoothing(mass, classes, "wrong")
    a = cross_entropy(student, labels, smoothing=mass)
    assert_close(
        a, cross_entropy(student, labels, smoothing=others, over="wrong"), atol=1e-9, rtol=1e-9
    )
    assert convert_smoothing(others, classes, "all") == pytest.approx(mass, abs=1e-12)
    targets = (
        smoothed_targets(labels, classes, mass),
        smoothed_targets(labels, classes, others, "wrong"),
    )
    assert_close(*targets)
    expected = torch.tensor([oracles.smoothed(y, classes, mass) for y in labels.tolist()])
    assert_close(targets[0], expected)
    exact = smoothed_targets(F.one_hot(labels, classes).double(), classes, mass)
    assert_close(cross_entropy(student, exact), a, atol=1e-9, rtol=1e-9)


@given(SEEDS, st.floats(0, 1), st.floats(0, 1))
def test_smoothing_twice_is_smoothing_once_by_more(seed, a, b):
    student, labels, _ = case(seed, 4, 6)
    once = smoothed_targets(F.one_hot(labels, 6).double(), 6, a)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twice = cross_entropy(student, once, smoothing=b)
    assert_close(
        twice, cross_entropy(student, labels, smoothing=1 - (1 - a) * (1 - b)), atol=1e-9, rtol=1e-9
    )


@given(SEEDS, st.sampled_from(FORMS), st.booleans())
def test_soft_labels_are_smoothed_once(seed, form, entropy):
    student, labels, _ = case(seed, 6, 5)
    over, mass = form
    one_hot = F.one_hot(labels, 5).double()
    plain = cross_entropy(
        student, labels, smoothing=mass, smooth_over=over, subtract_entropy=entropy
    )
    assert_close(
        cross_entropy(student, one_hot, smoothing=mass, smooth_over=over, subtract_entropy=entropy),
        plain,
    )
    mixed, weights = 0.3 * one_hot + 0.7 * one_hot.flip(0), [0.5, 1, 2, 3, 4]
    got = cross_entropy(
        student,
        mixed,
        smoothing=mass,
        smooth_over=over,
        class_weights=weights,
        subtract_entropy=entropy,
    )
    expected = [oracles.cross_entropy(z, q, mass, over, None, weights, entropy)
                for z, q in zip(student.logits.tolist(), mixed.tolist(), strict=True)]  # fmt: skip
    assert_close(got, torch.tensor(expected, dtype=torch.float64))


def test_a_prior_and_its_uniform_case():
    student, labels, _ = case()
    uniform = cross_entropy(student, labels, smoothing=0.2, prior=[0.1] * 10)
    assert_close(uniform, cross_entropy(student, labels, smoothing=0.2))
    prior = torch.arange(1, 11, dtype=torch.float64) / 55
    soft = smoothed_targets(F.one_hot(labels, 10).double(), 10, 0.2, prior=prior)
    assert_close(cross_entropy(student, labels, smoothing=0.2, prior=prior.tolist()), F.cross_entropy(
        student.logits, soft, reduction="none"))  # fmt: skip


@pytest.mark.parametrize(
    "settings", [{}, {"smooth_over": "wrong"}, {"prior": [0.4, 0.3, 0.2, 0.1]}]
)
@pytest.mark.parametrize("soft", [False, True])
def test_without_its_entropy_the_loss_is_a_divergence_that_ends_at_0(settings, soft):
    labels = torch.tensor([0, 2, 3])
    target = F.one_hot(labels, 4).double()
    target = 0.7 * target + 0.3 * target.roll(1, 1) if soft else target
    q = smoothed_targets(target, 4, 0.3, **settings)
    given_ = target if soft else labels
    at_q = cross_entropy(Outputs(q.log()), given_, smoothing=0.3, subtract_entropy=True, **settings)
    assert_close(at_q, torch.zeros(3).double())
    uniform = cross_entropy(
        Outputs(torch.zeros(3, 4).double()),
        given_,
        smoothing=0.3,
        subtract_entropy=True,
        **settings,
    )
    assert_close(uniform, (q * (q * 4).log()).sum(1))  # KL(q ‖ 1/4)


def test_zipf_of_two_classes_has_nothing_to_say():
    student, labels, _ = case(0, 5, 2)
    assert_close(zipf(student, labels), torch.zeros(5).double())


def test_gradients_are_what_the_literature_says():
    student, labels, teacher = case()
    p, q = student.logits.softmax(1), smoothed_targets(F.one_hot(labels, 10).double(), 10, 0.1)
    assert_close(
        gradient(cross_entropy, student, labels, smoothing=0.1), p - q, atol=1e-12, rtol=1e-9
    )
    for t in (1.0, 4.0):  # T (p_s - p_t)
        expected = t * ((student.logits / t).softmax(1) - (teacher.logits / t).softmax(1))
        assert_close(gradient(kd, student, labels, teacher, temperature=t), expected)
        got = gradient(kd, student, labels, teacher, temperature=t, t_squared=False)
        assert_close(got, expected / t**2)
    expected = p - (teacher.logits / 4).softmax(
        1
    )  # the paper's: only the teacher softened, no factor
    assert_close(
        gradient(kd, student, labels, teacher, temperature=4.0, student_temperature=1.0), expected
    )
    assert_close(gradient(logit_mse, student, labels, teacher), student.logits - teacher.logits)
    entropy = -(p * p.log()).sum(1, keepdim=True)
    assert_close(gradient(confidence_penalty, student, labels), p * (p.log() + entropy))


def test_weights_move_no_optimum():
    """torch's `weight` moves it to w·q; here the gradient vanishes at q, whatever the weights."""
    q = smoothed_targets(torch.tensor([2]), 5, 0.1).double()
    got = gradient(
        cross_entropy,
        Outputs(q.log()),
        torch.tensor([2]),
        smoothing=0.1,
        class_weights=[1, 1, 1, 1, 50],
    )
    assert got.abs().max() < 1e-7


# -------------------------------------------------------------------------------------------- its neighbours


@given(SEEDS, st.integers(2, 9))
def test_neighbours_meet_cross_entropy(seed, classes):
    student, labels, _ = case(seed, 5, classes)
    plain = cross_entropy(student, labels)
    for other in (
        focal(student, labels, focus=0.0), poly1(student, labels, epsilon=0.0),
        sparse_softmax(student, labels, k=classes), sparse_softmax(student, labels, k=classes + 5),
        LOSSES["sm_softmax"](student, labels, margin=0.0),
    ):  # fmt: skip
        assert_close(other, plain, atol=1e-9, rtol=1e-9)
    sparse = sparse_softmax(student, labels, k=2)
    assert (sparse >= -1e-12).all() and (sparse <= plain + 1e-12).all()
    first = sparse_softmax(student, labels, k=1)
    assert (first[student.logits.argmax(1) == labels] == 0).all()


def test_maxsup_and_the_margin_penalty_are_smoothing_where_the_answer_is_right():
    student, _, _ = case()
    right = student.logits.argmax(1)
    smoothed = cross_entropy(student, right, smoothing=0.3)
    assert_close(cross_entropy(student, right) + 0.3 * max_sup(student, right), smoothed)
    assert_close(cross_entropy(student, right) + 0.3 * mbls(student, right, margin=0.0), smoothed)


def test_sparse_probabilities_and_gradient():
    student, labels, _ = case()
    got = sparse_probabilities(student.logits, 3)
    assert_close(
        got,
        torch.tensor(
            [oracles.sparse_probabilities(z, 3) for z in student.logits.tolist()]
        ).double(),
    )
    grad = gradient(sparse_softmax, student, labels, k=3)
    assert_close(grad, got - F.one_hot(labels, 10))  # on 3 or 4 entries; its rows add up to 0
    assert set((grad != 0).sum(1).tolist()) <= {3, 4} and grad.sum(1).abs().max() < 1e-12
    assert_close(sparse_probabilities(student.logits, 99), student.logits.softmax(1))


def test_zipf_knows_no_target_logit_and_only_right_answers_where_asked():
    student, labels, _ = case()
    assert gradient(zipf, student, labels).gather(1, labels[:, None]).abs().max() == 0
    right = student.logits.argmax(1) == labels
    only = zipf(student, labels, only_correct=True)
    assert_close(only[right], zipf(student, labels)[right])
    assert (only[~right] == 0).all() and (~right).any()
    harmonic = -torch.arange(1, 10).double().log()  # logits whose distribution is Zipf's already
    agreed = Outputs(torch.cat([torch.tensor([5.0]).double(), harmonic])[None])
    assert zipf(agreed, torch.tensor([0])).abs().max() < 1e-12


def test_arcface_turns_the_angle_and_falls_without_end():
    angles = torch.linspace(0.01, 3.13, 50, dtype=torch.float64)
    logits = torch.stack([SCALE * angles.cos(), torch.zeros(50).double()], 1)
    loss = arcface(Outputs(logits, logit_scale=SCALE), torch.zeros(50).long(), margin=0.5)
    near = angles + 0.5 < math.pi
    expected = F.softplus(-SCALE * (angles + 0.5).cos())
    assert_close(loss[near], expected[near])
    assert (loss.diff() > 0).all()  # also beyond π - margin


# --------------------------------------------------------------------------------------------- distillation


def test_hot_kd_is_logit_matching():
    """Hinton et al. 2015, section 2.1: for T → ∞ the gradient is (centred z_s - centred z_t) / K."""
    student, labels, teacher = case()
    centred = [o.logits - o.logits.mean(1, keepdim=True) for o in (student, teacher)]
    got = gradient(kd, student, labels, teacher, temperature=1e5)
    assert_close(got, (centred[0] - centred[1]) / 10, atol=1e-4, rtol=1e-3)


@given(SEEDS, st.floats(0.5, 8), st.integers(2, 9))
def test_kd_is_dkd_at_its_own_weights(seed, t, classes):
    student, labels, teacher = case(seed, 5, classes)
    target = dkd(student, labels, teacher, temperature=t, target_weight=1.0, others_weight=0.0)
    others = dkd(student, labels, teacher, temperature=t, target_weight=0.0, others_weight=1.0)
    share = 1 - (teacher.logits / t).softmax(1).gather(1, labels[:, None])[:, 0]
    assert_close(
        target + share * others, kd(student, labels, teacher, temperature=t), atol=1e-7, rtol=1e-6
    )


@given(SEEDS, st.floats(0.1, 50), st.floats(-30, 30))
def test_standardised_kd_knows_no_scale_and_no_shift(seed, factor, shift):
    student, labels, teacher = case(seed, 4, 6)
    settings = {"temperature": 2.0, "standardise": True}
    plain = kd(student, labels, teacher, **settings)
    moved = Outputs(factor * student.logits + shift)
    assert_close(kd(moved, labels, teacher, **settings), plain, atol=1e-7, rtol=1e-6)
    assert (
        kd(Outputs(factor * teacher.logits + shift), labels, teacher, **settings).abs().max() < 1e-7
    )


def test_standardised_logits_of_two_classes_are_a_sign():
    """±√½, whatever the logits were: no information but which is larger."""
    student, labels, teacher = case(0, 6, 2)
    signs = [
        Outputs((o.logits - o.logits.mean(1, keepdim=True)).sign() * 0.5**0.5)
        for o in (student, teacher)
    ]
    expected = kd(signs[0], labels, signs[1], temperature=2.0)
    assert_close(kd(student, labels, teacher, temperature=2.0, standardise=True), expected)


def test_autocast_takes_no_digits_from_relations_and_hints():
    batch = make("rkd", 6, 4, 0, dtype=torch.float32)
    exact = rkd(batch.student, batch.labels, batch.teacher)
    assert_close(exact.double(), make("rkd", 6, 4, 0).call("rkd"), atol=1e-5, rtol=1e-5)
    hinted = make("hint", 6, 4, 0, dtype=torch.float32)
    plain = hinted.call("hint")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rkd(batch.student, batch.labels, batch.teacher), exact)
        assert torch.equal(hinted.call("hint"), plain)


def test_agreement_costs_nothing():
    _student, labels, teacher = case()
    shifted = Outputs(teacher.logits + 7)
    for term in (kd, dkd):
        assert term(shifted, labels, teacher).abs().max() < 1e-9
    assert dist(shifted, labels, teacher).abs().max() < 1e-9
    assert logit_mse(shifted, labels, teacher, centre=True).abs().max() < 1e-9
    assert_close(logit_mse(shifted, labels, teacher), torch.full((16,), 245.0).double())
    batch = make("rkd", 6, 5, 0)
    turned = batch.teacher.features @ torch.linalg.qr(torch.randn(4, 4).double())[0] * 3 + 1
    assert (
        rkd(Outputs(batch.student.logits, turned), batch.labels, batch.teacher).abs().max() < 1e-9
    )


def test_a_correlation_needs_no_scale_and_one_example_has_no_intra():
    student, labels, teacher = case()
    inter = dist(student, labels, teacher, intra_weight=0.0)
    alone = torch.cat([dist(Outputs(s[None]), labels[:1], Outputs(t[None])) for s, t in zip(
        student.logits, teacher.logits, strict=True)])  # fmt: skip
    assert_close(alone, inter)


def test_an_ensemble_is_its_mean_probability():
    student, labels, teacher = case()
    other = Outputs(teacher.logits.flip(0))
    both = ensemble([teacher, other])
    mean = (teacher.logits.softmax(1) + other.logits.softmax(1)) / 2
    assert_close(both.logits.softmax(1), mean)
    rows = [
        oracles.ensemble([a, b])
        for a, b in zip(teacher.logits.tolist(), other.logits.tolist(), strict=True)
    ]
    assert_close(both.logits, torch.tensor(rows).double())
    expected = F.kl_div(student.logits.log_softmax(1), mean, reduction="none").sum(1)
    assert_close(kd(student, labels, both, temperature=1.0), expected)
    assert ensemble([teacher]) is teacher and both.features is None


def test_the_gradient_of_a_penalty_is_the_weight():
    weights = [torch.randn(3, 2, dtype=torch.float64, requires_grad=True)]
    l2_penalty(Outputs(torch.zeros(4, 2), weights=weights), torch.zeros(4).long()).mean().backward()
    assert_close(weights[0].grad, weights[0].detach())


def test_a_penalty_has_the_shape_of_the_labels():
    weights = [torch.ones(2, 3)]
    for name in ("l1_penalty", "l2_penalty"):
        term, value = LOSSES[name], 6.0 if name == "l1_penalty" else 3.0
        for logits, labels, shape in (
            ((4, 5), torch.zeros(4).long(), (4,)),
            ((4, 5), torch.full((4, 5), 0.2), (4,)),
            ((4, 5, 7), torch.zeros(4, 7).long(), (4, 7)),
            ((4, 5, 7), torch.full((4, 5, 7), 0.2), (4, 7)),
        ):
            assert_close(
                term(Outputs(torch.zeros(logits), weights=weights), labels),
                torch.full(shape, value),
            )
