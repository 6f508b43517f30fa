"""`Criterion` for a loop of one's own, and what all terms refuse."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers.terms import case, gradient, make
from torch import nn
from torch.testing import assert_close

from distill.losses import (
    LOSSES,
    Criterion,
    OnlineTargets,
    Outputs,
    am_softmax,
    arcface,
    cross_entropy,
    hint,
    kd,
    rkd,
    smoothed_targets,
    zipf,
)

# --------------------------------------------------------------------------------------------------- misuse

BAD = [
    ("cross_entropy", {"smoothing": -0.1}, "must be in"),
    ("cross_entropy", {"smoothing": 1.1}, "must be in"),
    (
        "cross_entropy",
        {"smoothing": 0.95, "smooth_over": "wrong"},
        "the wrong classes are taught",
    ),  # (K-1)/K = 0.9
    ("cross_entropy", {"smoothing": 0.1, "prior": [0.5, 0.5]}, "one value for each of the 10"),
    ("cross_entropy", {"smoothing": 0.1, "prior": [0.2] * 10}, "add up to 2"),
    ("cross_entropy", {"smoothing": 0.1, "prior": [-0.8] + [0.2] * 9}, "not negative"),
    (
        "cross_entropy",
        {"smoothing": 0.1, "prior": [0.1] * 10, "smooth_over": "wrong"},
        "over must be left out",
    ),
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
        LOSSES["a_softmax"](Outputs(student.logits, torch.zeros(16, 4), logit_scale=1.0), labels)
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
        assert_close(
            batch.call(name), batch.call(name, share=1 / 6)
        )  # outside of a recipe, all of it


def test_a_cosine_head_is_not_for_l_softmax():
    batch = make("l_softmax", 3, 4, 0)
    batch.student = batch.student._replace(scale=8.0)
    with pytest.raises(ValueError, match="not those of a cosine head"):
        batch.call("l_softmax")


def test_l_softmax_needs_features_and_templates_both():
    batch = make("l_softmax", 3, 4, 0)
    for missing in ("features", "templates"):
        with pytest.raises(ValueError, match="features and templates"):
            LOSSES["l_softmax"](batch.student._replace(**{missing: None}), batch.labels)


def test_evaluation_before_training_leaves_nothing_behind():
    student, labels, _ = case(3, 4, 7)
    settings = {
        "zipf": {"power": 1.37},
        "cross_entropy": {"smoothing": 0.1, "prior": [0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]},
    }
    for name, own in settings.items():
        with torch.inference_mode():
            LOSSES[name](student, labels, **own)
        assert gradient(LOSSES[name], student, labels, **own).isfinite().all()


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
    assert (
        gradient(kd, zero, torch.zeros(2).long(), teacher, standardise=True, temperature=2.0).norm()
        < 1000
    )


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
        cross_entropy(
            Outputs(torch.zeros(2, 2)), torch.full((2, 2), 0.5), smoothing=0.1
        )  # mixup of two classes
        cross_entropy(student, smoothed)
        mixed = 0.5 * F.one_hot(labels, 10) + 0.5 * F.one_hot(labels.flip(0), 10)
        cross_entropy(student, mixed.double(), smoothing=0.1)


# ------------------------------------------------------------------------------------------------- Criterion


@pytest.mark.parametrize("name", LOSSES)
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
    assert_close(
        Criterion("kd", ignore_index=99)(batch.student.logits, batch.labels, batch.teacher.logits),
        expected,
    )


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
