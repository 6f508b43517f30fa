"""Terms against other libraries, against identities of the literature, and against misuse."""

import math
import warnings

import oracles
import pytest
import timm.loss
import timm.task
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from terms import SCALE, make
from torch import nn
from torch.testing import assert_close
from torchvision.ops import sigmoid_focal_loss

from distill.analysis.calibration import gamma
from distill.losses import (
    IGNORED,
    TERMS,
    Criterion,
    OnlineTargets,
    Outputs,
    am_softmax,
    arcface,
    attention_transfer,
    confidence_penalty,
    convert_smoothing,
    cross_entropy,
    dist,
    dkd,
    ensemble,
    focal,
    hard_label,
    hint,
    kd,
    l2_penalty,
    logit_mse,
    max_sup,
    mbls,
    nkd,
    optimal_logit_gap,
    poly1,
    rkd,
    smoothed_targets,
    sparse_probabilities,
    sparse_softmax,
    zipf,
)

SEEDS = st.integers(0, 2**31 - 1)
FORMS = [("all", 0.1), ("all", 0.6), ("others", 0.1), ("others", 0.6)]


def case(seed=0, size=16, classes=10, name="kd"):
    batch = make(name, size, classes, seed)
    return batch.student, batch.labels, batch.teacher


def gradient(term, student, labels, teacher=None, **settings):
    logits = student.logits.clone().requires_grad_()
    term(student._replace(logits=logits), labels, teacher, **settings).sum().backward()
    return logits.grad


# ------------------------------------------------------------------------------------------- other libraries


def test_cross_entropy_is_that_of_torch_and_timm():
    student, labels, _ = case()
    z, w = student.logits, torch.rand(10, dtype=torch.float64) + 0.1
    assert_close(cross_entropy(student, labels, smoothing=0.1).mean(), F.cross_entropy(z, labels, label_smoothing=0.1))
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
        assert_close(focal(Outputs(torch.stack([torch.zeros_like(x), x], 1)), labels, focus=focus), expected)


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
    expected = timm.loss.PolyCrossEntropy(epsilon=1.5, smoothing=0.1, reduction="none")(student.logits, labels)
    assert_close(poly1(student, labels, epsilon=1.5, smoothing=0.1), expected.double(), atol=1e-5, rtol=1e-5)


def test_kd_is_hintons_in_torch_and_timms_task():
    student, labels, teacher = case()
    soft = F.kl_div(F.log_softmax(student.logits / 4, 1), F.softmax(teacher.logits / 4, 1), reduction="batchmean")
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

    cosine = Outputs(SCALE * cosines, scale=SCALE)
    expected = theirs(losses.CosFaceLoss(10, 4, margin=0.35, scale=SCALE), w)
    assert_close(am_softmax(cosine, labels, margin=0.35).mean(), expected)
    expected = theirs(losses.ArcFaceLoss(10, 4, margin=math.degrees(0.5), scale=SCALE), w)
    assert_close(arcface(cosine, labels, margin=0.5).mean(), expected)
    for m in (1, 2, 3, 4):
        plain, sphere = Outputs(f @ w.T, f, w), Outputs(f @ F.normalize(w, dim=1).T, f, scale=0.0)
        expected = theirs(losses.LargeMarginSoftmaxLoss(10, 4, margin=m), w)
        assert_close(TERMS["l_softmax"](plain, labels, margin=m, share=1.0).mean(), expected)
        expected = theirs(losses.SphereFaceLoss(10, 4, margin=m), w)
        assert_close(TERMS["a_softmax"](sphere, labels, margin=m, share=1.0).mean(), expected)


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
        got = dist(student, labels, teacher, temperature=tau, inter_weight=inter, intra_weight=intra)
        assert_close(got.mean(), expected)
    features = make("rkd", 8, 10, 1)
    relational = mid.RKDLoss("s", "t", dist_factor=1.0, angle_factor=2.0, reduction="mean")
    expected = relational({"s": {"output": features.student.features}}, {"t": {"output": features.teacher.features}})
    assert_close(rkd(features.student, features.labels, features.teacher).mean(), expected, atol=1e-6, rtol=1e-5)


def test_attention_transfer_is_the_published_code():
    """Zagoruyko and Komodakis: normalised means of squares, mean squared difference over batch and positions."""
    batch = make("attention_transfer", 4, 5, 0)

    def at(x):
        return F.normalize(x.pow(2).mean(1).view(x.size(0), -1))

    expected = sum((at(a) - at(b)).pow(2).mean() for a, b in zip(batch.student.maps, batch.teacher.maps, strict=True))
    assert_close(attention_transfer(batch.student, batch.labels, batch.teacher).mean(), expected)
    more = batch.teacher._replace(maps=[torch.randn(4, 1, 9, 9).double(), *batch.teacher.maps])
    assert_close(attention_transfer(batch.student, batch.labels, more).mean(), expected)  # stages pair from the last
    larger = batch.teacher._replace(maps=[F.interpolate(m, scale_factor=2) for m in batch.teacher.maps])
    assert_close(attention_transfer(batch.student, batch.labels, larger).mean(), expected)  # pooled back


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


# ----------------------------------------------------------------------------------------------- smoothing


@pytest.mark.parametrize(("over", "mass"), FORMS)
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_minimising_gives_the_known_gap_and_gamma(over, mass, classes):
    if over == "others" and mass > (classes - 1) / classes:
        mass = 0.3
    logits = torch.zeros(1, classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=400, tolerance_grad=1e-13, tolerance_change=1e-16,
                                  line_search_fn="strong_wolfe")  # fmt: skip
    label = torch.tensor([1])

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(Outputs(logits), label, smoothing=mass, over=over).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    gaps = logits[0, 1] - logits[0, torch.arange(classes) != 1]
    expected = oracles.optimal_logit_gap(classes, mass, over)
    assert gaps.detach().sub(expected).abs().max() < 1e-6
    assert optimal_logit_gap(classes, mass, over) == pytest.approx(expected, abs=1e-12)
    index = gamma(logits.detach().numpy(), label.numpy())  # the smoothing over all that this amounts to
    assert index == pytest.approx(mass if over == "all" else mass * classes / (classes - 1), abs=1e-6)
    least = cross_entropy(Outputs(logits), label, smoothing=mass, over=over, subtract_entropy=True)
    assert abs(least.item()) < 1e-9


@given(SEEDS, st.integers(2, 12), st.floats(0, 1))
def test_the_two_forms_convert(seed, classes, mass):
    student, labels, _ = case(seed, 4, classes)
    others = convert_smoothing(mass, classes, "others")
    a = cross_entropy(student, labels, smoothing=mass)
    assert_close(a, cross_entropy(student, labels, smoothing=others, over="others"), atol=1e-9, rtol=1e-9)
    assert convert_smoothing(others, classes, "all") == pytest.approx(mass, abs=1e-12)
    targets = smoothed_targets(labels, classes, mass), smoothed_targets(labels, classes, others, "others")
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
    assert_close(twice, cross_entropy(student, labels, smoothing=1 - (1 - a) * (1 - b)), atol=1e-9, rtol=1e-9)


@given(SEEDS, st.sampled_from(FORMS), st.booleans())
def test_soft_labels_are_smoothed_once(seed, form, entropy):
    student, labels, _ = case(seed, 6, 5)
    over, mass = form
    one_hot = F.one_hot(labels, 5).double()
    plain = cross_entropy(student, labels, smoothing=mass, over=over, subtract_entropy=entropy)
    assert_close(cross_entropy(student, one_hot, smoothing=mass, over=over, subtract_entropy=entropy), plain)
    mixed, weights = 0.3 * one_hot + 0.7 * one_hot.flip(0), [0.5, 1, 2, 3, 4]
    got = cross_entropy(student, mixed, smoothing=mass, over=over, class_weights=weights, subtract_entropy=entropy)
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


@pytest.mark.parametrize("settings", [{}, {"over": "others"}, {"prior": [0.4, 0.3, 0.2, 0.1]}])
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
        Outputs(torch.zeros(3, 4).double()), given_, smoothing=0.3, subtract_entropy=True, **settings
    )
    assert_close(uniform, (q * (q * 4).log()).sum(1))  # KL(q ‖ 1/4)


def test_zipf_of_two_classes_has_nothing_to_say():
    student, labels, _ = case(0, 5, 2)
    assert_close(zipf(student, labels), torch.zeros(5).double())


def test_gradients_are_what_the_literature_says():
    student, labels, teacher = case()
    p, q = student.logits.softmax(1), smoothed_targets(F.one_hot(labels, 10).double(), 10, 0.1)
    assert_close(gradient(cross_entropy, student, labels, smoothing=0.1), p - q, atol=1e-12, rtol=1e-9)
    for t in (1.0, 4.0):  # T (p_s - p_t)
        expected = t * ((student.logits / t).softmax(1) - (teacher.logits / t).softmax(1))
        assert_close(gradient(kd, student, labels, teacher, temperature=t), expected)
        got = gradient(kd, student, labels, teacher, temperature=t, t_squared=False)
        assert_close(got, expected / t**2)
    expected = p - (teacher.logits / 4).softmax(1)  # the paper's: only the teacher softened, no factor
    assert_close(gradient(kd, student, labels, teacher, temperature=4.0, student_temperature=1.0), expected)
    assert_close(gradient(logit_mse, student, labels, teacher), student.logits - teacher.logits)
    entropy = -(p * p.log()).sum(1, keepdim=True)
    assert_close(gradient(confidence_penalty, student, labels), p * (p.log() + entropy))


def test_weights_move_no_optimum():
    """torch's `weight` moves it to w·q; here the gradient vanishes at q, whatever the weights."""
    q = smoothed_targets(torch.tensor([2]), 5, 0.1).double()
    got = gradient(cross_entropy, Outputs(q.log()), torch.tensor([2]), smoothing=0.1, class_weights=[1, 1, 1, 1, 50])
    assert got.abs().max() < 1e-7


# -------------------------------------------------------------------------------------------- its neighbours


@given(SEEDS, st.integers(2, 9))
def test_neighbours_meet_cross_entropy(seed, classes):
    student, labels, _ = case(seed, 5, classes)
    plain = cross_entropy(student, labels)
    for other in (
        focal(student, labels, focus=0.0), poly1(student, labels, epsilon=0.0),
        sparse_softmax(student, labels, k=classes), sparse_softmax(student, labels, k=classes + 5),
        TERMS["sm_softmax"](student, labels, margin=0.0),
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
    assert_close(got, torch.tensor([oracles.sparse_probabilities(z, 3) for z in student.logits.tolist()]).double())
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
    loss = arcface(Outputs(logits, scale=SCALE), torch.zeros(50).long(), margin=0.5)
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
    assert_close(target + share * others, kd(student, labels, teacher, temperature=t), atol=1e-7, rtol=1e-6)


@given(SEEDS, st.floats(0.1, 50), st.floats(-30, 30))
def test_standardised_kd_knows_no_scale_and_no_shift(seed, factor, shift):
    student, labels, teacher = case(seed, 4, 6)
    settings = {"temperature": 2.0, "standardise": True}
    plain = kd(student, labels, teacher, **settings)
    moved = Outputs(factor * student.logits + shift)
    assert_close(kd(moved, labels, teacher, **settings), plain, atol=1e-7, rtol=1e-6)
    assert kd(Outputs(factor * teacher.logits + shift), labels, teacher, **settings).abs().max() < 1e-7


def test_standardised_logits_of_two_classes_are_a_sign():
    """±√½, whatever the logits were: no information but which is larger."""
    student, labels, teacher = case(0, 6, 2)
    signs = [Outputs((o.logits - o.logits.mean(1, keepdim=True)).sign() * 0.5**0.5) for o in (student, teacher)]
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
    assert rkd(Outputs(batch.student.logits, turned), batch.labels, batch.teacher).abs().max() < 1e-9


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
    rows = [oracles.ensemble([a, b]) for a, b in zip(teacher.logits.tolist(), other.logits.tolist(), strict=True)]
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
        term, value = TERMS[name], 6.0 if name == "l1_penalty" else 3.0
        for logits, labels, shape in (
            ((4, 5), torch.zeros(4).long(), (4,)),
            ((4, 5), torch.full((4, 5), 0.2), (4,)),
            ((4, 5, 7), torch.zeros(4, 7).long(), (4, 7)),
            ((4, 5, 7), torch.full((4, 5, 7), 0.2), (4, 7)),
        ):
            assert_close(term(Outputs(torch.zeros(logits), weights=weights), labels), torch.full(shape, value))


# --------------------------------------------------------------------------------------------------- misuse

BAD = [
    ("cross_entropy", {"smoothing": -0.1}, "must be in"),
    ("cross_entropy", {"smoothing": 1.1}, "must be in"),
    ("cross_entropy", {"smoothing": 0.95, "over": "others"}, "the wrong classes are taught"),  # (K-1)/K = 0.9
    ("cross_entropy", {"smoothing": 0.1, "prior": [0.5, 0.5]}, "one value for each of the 10"),
    ("cross_entropy", {"smoothing": 0.1, "prior": [0.2] * 10}, "add up to 2"),
    ("cross_entropy", {"smoothing": 0.1, "prior": [-0.8] + [0.2] * 9}, "not negative"),
    ("cross_entropy", {"smoothing": 0.1, "prior": [0.1] * 10, "over": "others"}, "over must be left out"),
    ("cross_entropy", {"class_weights": [1.0] * 9}, "one value for each of the 10"),
    ("cross_entropy", {"class_weights": [-1.0] * 10}, "not negative"),
    ("focal", {"focus": -1.0}, "at least 0"),
    ("poly1", {"epsilon": -1.5}, "at least -1"),
    ("poly1", {"smoothing": 1.5}, "must be in"),
    ("sparse_softmax", {"k": 0}, "at least 1"),
    ("mbls", {"margin": -1.0}, "at least 0"),
    ("zipf", {"power": 0.0}, "positive"),
    ("sm_softmax", {"margin": -1.0}, "at least 0"),
    ("am_softmax", {"margin": -1.0}, "at least 0"),
    ("arcface", {"margin": -0.5}, "at least 0"),
    ("l_softmax", {"margin": 0}, "whole number from 1"),
    ("l_softmax", {"share": 1.5}, "share and ramp"),
    ("kd", {"final_temperature": 1.0}, "needs progress"),
    ("cross_entropy", {"smoothing": 0.1, "prior": "data"}, "known in a recipe only"),
    ("cross_entropy", {"class_weights": "balanced"}, "known in a recipe only"),
    ("a_softmax", {"margin": 1.5}, "whole number from 1"),
    ("kd", {"temperature": 0.0}, "must be positive"),
    ("kd", {"temperature": 2.0, "student_temperature": -1.0}, "must be positive"),
    ("kd", {"temperature": 2.0, "final_temperature": -1.0, "progress": 0.5}, "must be positive"),
    ("dkd", {"temperature": -1.0}, "must be positive"),
    ("nkd", {"temperature": 0.0}, "must be positive"),
    ("dist", {"temperature": math.inf}, "must be positive"),
]


@pytest.mark.parametrize(("name", "settings", "words"), BAD, ids=lambda v: str(v)[:40])
def test_senseless_settings_are_refused(name, settings, words):
    with pytest.raises(ValueError, match=words):
        make(name, 2, 10, 6).call(name, **settings)


def test_angles_need_a_scale_and_standard_deviations_two_classes():
    student, labels, _ = case()
    for term in (am_softmax, arcface):
        with pytest.raises(ValueError, match="cosine_head"):
            term(Outputs(student.logits), labels)
    with pytest.raises(ValueError, match="scale: 0"):
        TERMS["a_softmax"](Outputs(student.logits, torch.zeros(16, 4), scale=1.0), labels)
    one = Outputs(torch.zeros(2, 1))
    with pytest.raises(ValueError, match="2 classes"):
        kd(one, torch.zeros(2).long(), one, standardise=True)
    with pytest.raises(ValueError, match="2 classes"):
        zipf(one, torch.zeros(2).long())
    with pytest.raises(ValueError, match="features"):
        hint(Outputs(torch.zeros(2, 3)), labels, Outputs(torch.zeros(2, 3)), part=nn.Identity())


def test_an_angular_margin_grows_over_its_ramp():
    for name in ("l_softmax", "a_softmax"):
        batch = make(name, 6, 5, 1)
        for progress, part in ((0.0, 0.0), (0.2, 0.5), (0.4, 1.0), (1.0, 1.0)):
            grown = batch.call(name, share=0.8, ramp=0.4, progress=progress)
            assert_close(grown, batch.call(name, share=0.8 * part, ramp=0.0))
        assert_close(batch.call(name), batch.call(name, share=1 / 6))  # outside of a recipe, all of it


def test_a_cosine_head_is_not_for_l_softmax():
    batch = make("l_softmax", 3, 4, 0)
    batch.student = batch.student._replace(scale=8.0)
    with pytest.raises(ValueError, match="not those of a cosine head"):
        batch.call("l_softmax")


def test_l_softmax_needs_features_and_templates_both():
    batch = make("l_softmax", 3, 4, 0)
    for missing in ("features", "templates"):
        with pytest.raises(ValueError, match="features and templates"):
            TERMS["l_softmax"](batch.student._replace(**{missing: None}), batch.labels)


def test_evaluation_before_training_leaves_nothing_behind():
    student, labels, _ = case(3, 4, 7)
    settings = {
        "zipf": {"power": 1.37},
        "cross_entropy": {"smoothing": 0.1, "prior": [0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]},
    }
    for name, own in settings.items():
        with torch.inference_mode():
            TERMS[name](student, labels, **own)
        assert gradient(TERMS[name], student, labels, **own).isfinite().all()


def test_rows_that_coincide_have_small_gradients():
    """Dead units make equal features; a normalised zero must not multiply the gradient by 1e12."""
    batch = make("rkd", 8, 5, 0)
    ours = batch.student.features.clone()
    ours[:3] = 0
    ours.requires_grad_()
    rkd(Outputs(batch.student.logits, ours), batch.labels, batch.teacher).mean().backward()
    assert ours.grad.norm() < 10


def test_equal_logits_have_bounded_gradients_when_standardised():
    zero = Outputs(torch.zeros(2, 10, dtype=torch.float64))
    teacher = Outputs(torch.randn(2, 10, dtype=torch.float64))
    assert gradient(kd, zero, torch.zeros(2).long(), teacher, standardise=True, temperature=2.0).norm() < 1000


def test_a_steep_zipf_is_finite():
    student, labels, _ = case(0, 4, 200)
    assert zipf(Outputs(student.logits.float()), labels, power=25.0).isfinite().all()


def test_smoothing_twice_warns():
    student, labels, _ = case()
    smoothed = smoothed_targets(labels, 10, 0.1).double()
    with pytest.warns(UserWarning, match="smoothed already"):
        cross_entropy(student, smoothed, smoothing=0.1)
    with pytest.warns(UserWarning, match="smoothed already"):
        cross_entropy(Outputs(torch.zeros(2, 3)), torch.full((2, 3), 1 / 3), smoothing=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cross_entropy(Outputs(torch.zeros(2, 2)), torch.full((2, 2), 0.5), smoothing=0.1)  # mixup of two classes
        cross_entropy(student, smoothed)
        mixed = 0.5 * F.one_hot(labels, 10) + 0.5 * F.one_hot(labels.flip(0), 10)
        cross_entropy(student, mixed.double(), smoothing=0.1)


# ------------------------------------------------------------------------------------------------- Criterion


@pytest.mark.parametrize("name", TERMS)
def test_a_criterion_reduces_its_term(name):
    batch = make(name, 6, 5, 2)
    expected = batch.call(name)
    made = {r: Criterion(name, r, part=batch.part).eval() for r in ("none", "sum", "mean")}
    got = {r: c(batch.student, batch.labels, batch.teacher) for r, c in made.items()}
    assert_close(got["none"], expected)
    assert_close(got["sum"], expected.sum())
    assert_close(got["mean"], expected.mean())


def test_a_criterion_is_torchs_cross_entropy():
    z, labels = torch.randn(8, 5, requires_grad=True), torch.randint(5, (8,))
    labels[2] = 255
    ours, theirs = Criterion("cross_entropy", smoothing=0.1, ignore_index=255), nn.CrossEntropyLoss(
        label_smoothing=0.1, ignore_index=255)  # fmt: skip
    assert_close(ours(z, labels), theirs(z, labels))
    assert ours(z, torch.full((8,), 255)) == 0  # torch gives NaN
    dense, places = torch.randn(2, 5, 3, 3), torch.randint(5, (2, 3, 3))
    places[0, 0] = 255
    assert_close(ours(dense, places), theirs(dense, places))
    half = ours(z.half(), labels)
    assert half.dtype == torch.float32 and "smoothing=0.1" in repr(ours)


def test_a_criterion_ignores_examples_of_every_kind_of_term():
    batch = make("kd", 6, 5, 2)
    batch.labels[:2] = 99
    expected = kd(batch.student, batch.labels, batch.teacher)[2:].mean()
    assert_close(Criterion("kd", ignore_index=99)(batch.student.logits, batch.labels, batch.teacher.logits), expected)


def test_a_criterion_learns_what_its_part_learns():
    with pytest.raises(ValueError, match=r"OnlineTargets\(K\)"):
        Criterion("online_smoothing")
    hinted = Criterion("hint", part=nn.Linear(4, 3))
    assert len(list(hinted.parameters())) == 2
    online = Criterion("online_smoothing", part=OnlineTargets(5))
    z = torch.eye(5) * 4
    online(z, torch.arange(5))
    online.part.end_epoch()
    assert_close(online.part.targets, z.softmax(1))
    assert set(online.state_dict()) == {"part.targets", "part.sums", "part.counts"}
    online.eval()
    online(z.flip(0), torch.arange(5))
    assert online.part.counts[:-1].sum() == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("crossentropy",), "did you mean 'cross_entropy'"),
        (("kd", "average"), "mean, sum or none"),
        (("hint",), r"needs part=nn.Linear\(D_s, D_t\)"),
    ],
)
def test_a_criterion_says_what_is_wrong(arguments, words):
    with pytest.raises(ValueError, match=words):
        Criterion(*arguments)


def test_a_criterion_checks_its_settings_when_it_is_made():
    with pytest.raises(ValueError, match=r"Criterion\('kd'\): temperature: .*greater than 0"):
        Criterion("kd", temperature=-1.0)
    with pytest.raises(ValueError, match="did you mean 'smoothing'"):
        Criterion("cross_entropy", smothing=0.1)
    with pytest.raises(ValueError, match="teacher's logits"):
        Criterion("kd")(torch.zeros(2, 3), torch.zeros(2).long())
    with pytest.raises(ValueError, match="has no part"):
        Criterion("kd", part=nn.Identity())
    with pytest.raises(ValueError, match=r"\[4, 1\] do not go with logits of shape \[4, 3\]"):
        Criterion("max_sup")(torch.zeros(4, 3), torch.zeros(4, 1).long())
    with pytest.raises(TypeError):
        Criterion("cross_entropy")(torch.zeros(4, 3), torch.zeros(4).long(), smoothing=0.5)
    short = Criterion("cross_entropy")(torch.zeros(4, 3), torch.zeros(4, dtype=torch.uint8))
    assert short.item() == pytest.approx(math.log(3))
    hot = Criterion("kd", temperature=8.0, final_temperature=2.0)
    z, t = torch.randn(4, 3), torch.randn(4, 3)
    expected = Criterion("kd", temperature=5.0)(z, torch.zeros(4).long(), t)
    assert_close(hot(z, torch.zeros(4).long(), t, progress=0.5), expected)
    weights = Criterion("cross_entropy", class_weights=torch.tensor([1.0, 2.0]))
    assert weights(torch.zeros(1, 2), torch.tensor([1])).item() == pytest.approx(2 * math.log(2))
