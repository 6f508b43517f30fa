"""Label smoothing: its two forms, its targets, and where smoothed cross-entropy ends."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import oracles
from helpers.loss_cases import make_batch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from distill.evaluation.calibration import effective_smoothing
from distill.losses import (
    convert_smoothing,
    cross_entropy,
    optimal_logit_gap,
    smoothed_targets,
)

SEEDS = st.integers(0, 2**31 - 1)
FORMS = [("all", 0.1), ("all", 0.6), ("wrong", 0.1), ("wrong", 0.6)]


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
@pytest.mark.parametrize(("smooth_over", "smoothing"), FORMS)
def test_minimising_gives_the_known_gap_and_effective_smoothing(
    smooth_over, smoothing, num_classes
):
    if smooth_over == "wrong" and smoothing > (num_classes - 1) / num_classes:
        smoothing = 0.3
    form = {"smoothing": smoothing, "smooth_over": smooth_over}
    logits = torch.zeros(1, num_classes, dtype=torch.float64, requires_grad=True)
    label = torch.tensor([1])
    optimizer = torch.optim.LBFGS(
        [logits],
        max_iter=400,
        tolerance_grad=1e-13,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(logits, label, **form).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    logits = logits.detach()
    gaps = logits[0, 1] - logits[0, torch.arange(num_classes) != 1]
    expected = oracles.optimal_logit_gap(num_classes, smoothing, smooth_over)
    assert (gaps - expected).abs().max() < 1e-6
    assert optimal_logit_gap(num_classes, smoothing, smooth_over) == pytest.approx(
        expected, abs=1e-12
    )
    over_all = smoothing if smooth_over == "all" else smoothing * num_classes / (num_classes - 1)
    index = effective_smoothing(logits.numpy(), label.numpy())
    assert index == pytest.approx(over_all, abs=1e-6)
    assert abs(cross_entropy(logits, label, **form, subtract_entropy=True).item()) < 1e-9


def test_without_smoothing_the_gap_is_infinite():
    assert optimal_logit_gap(10, 0.0) == math.inf
    assert optimal_logit_gap(10, 0.0, "wrong") == math.inf
    assert optimal_logit_gap(10, 1.0) == pytest.approx(0.0, abs=1e-12)


@given(SEEDS, st.integers(2, 12), st.floats(0, 1))
def test_the_two_forms_convert(seed, num_classes, mass):
    batch = make_batch(size=4, num_classes=num_classes, seed=seed)
    logits, labels = batch.logits, batch.labels
    over_wrong = convert_smoothing(mass, num_classes, "wrong")
    assert convert_smoothing(over_wrong, num_classes, "all") == pytest.approx(mass, abs=1e-12)

    loss = cross_entropy(logits, labels, smoothing=mass)
    converted = cross_entropy(logits, labels, smoothing=over_wrong, smooth_over="wrong")
    assert_close(loss, converted, atol=1e-9, rtol=1e-9)

    targets = smoothed_targets(labels, num_classes, mass)
    expected = [oracles.smoothed(y, num_classes, mass) for y in labels.tolist()]
    assert_close(targets, torch.tensor(expected))
    assert_close(targets, smoothed_targets(labels, num_classes, over_wrong, "wrong"))
    one_hot = F.one_hot(labels, num_classes).double()
    from_targets = cross_entropy(logits, smoothed_targets(one_hot, num_classes, mass))
    assert_close(from_targets, loss, atol=1e-9, rtol=1e-9)


@given(SEEDS, st.floats(0, 1), st.floats(0, 1))
def test_smoothing_twice_is_smoothing_once_by_more(seed, a, b):
    batch = make_batch(size=4, num_classes=6, seed=seed)
    once = smoothed_targets(F.one_hot(batch.labels, 6).double(), 6, a)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twice = cross_entropy(batch.logits, once, smoothing=b)
    more = cross_entropy(batch.logits, batch.labels, smoothing=1 - (1 - a) * (1 - b))
    assert_close(twice, more, atol=1e-9, rtol=1e-9)


@given(SEEDS, st.sampled_from(FORMS), st.booleans())
def test_soft_labels_are_smoothed_once(seed, form, subtract_entropy):
    batch = make_batch(size=6, num_classes=5, seed=seed)
    smooth_over, mass = form
    settings = {
        "smoothing": mass, "smooth_over": smooth_over, "subtract_entropy": subtract_entropy
    }  # fmt: skip
    one_hot = F.one_hot(batch.labels, 5).double()
    hard = cross_entropy(batch.logits, batch.labels, **settings)
    assert_close(cross_entropy(batch.logits, one_hot, **settings), hard)

    mixed = 0.3 * one_hot + 0.7 * one_hot.flip(0)
    weights = [0.5, 1, 2, 3, 4]
    got = cross_entropy(batch.logits, mixed, class_weights=weights, **settings)
    examples = zip(batch.logits.tolist(), mixed.tolist(), strict=True)
    expected = [
        oracles.cross_entropy(z, q, mass, smooth_over, None, weights, subtract_entropy)
        for z, q in examples
    ]
    assert_close(got, torch.tensor(expected, dtype=torch.float64))


def test_a_warning_where_soft_labels_are_smoothed_already():
    batch = make_batch()
    smoothed = smoothed_targets(batch.labels, 10, 0.1).double()
    with pytest.warns(UserWarning, match="0.1"):
        cross_entropy(batch.logits, smoothed, smoothing=0.1)
    with pytest.warns(UserWarning, match="0.1"):
        cross_entropy(torch.zeros(2, 3), torch.full((2, 3), 1 / 3), smoothing=0.1)


def test_no_warning_for_mixup_or_without_smoothing():
    batch = make_batch()
    one_hot = F.one_hot(batch.labels, 10).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cross_entropy(torch.zeros(2, 2), torch.full((2, 2), 0.5), smoothing=0.1)
        cross_entropy(batch.logits, smoothed_targets(batch.labels, 10, 0.1).double())
        cross_entropy(batch.logits, 0.5 * one_hot + 0.5 * one_hot.flip(0), smoothing=0.1)
        cross_entropy(torch.zeros(0, 3), torch.zeros(0, 3), smoothing=0.1)
