"""Targets that a network learns from its own correct predictions."""

import torch
import torch.nn.functional as F
from helpers import oracles
from helpers.loss_cases import make_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from distill.losses import IGNORED, OnlineTargets, online_smoothing


@given(st.integers(1, 40), st.integers(2, 5), st.integers(0, 2**31 - 1), st.integers(1, 3))
@settings(max_examples=50)
def test_targets_are_the_means_of_the_correct_predictions(size, num_classes, seed, steps):
    batch = make_batch("cross_entropy", size, num_classes, seed)
    targets = OnlineTargets(num_classes).double()
    steps = zip(batch.logits.chunk(steps), batch.labels.chunk(steps), strict=True)
    got = torch.cat([online_smoothing(z, y, targets=targets) for z, y in steps])
    uniform = torch.full((size, num_classes), 1 / num_classes).double()
    assert_close(got, F.cross_entropy(batch.logits, uniform, reduction="none"))

    targets.end_epoch()
    expected = oracles.online_targets([(z, y) for z, y, _ in batch.rows()], num_classes)
    assert_close(targets.targets, torch.tensor(expected, dtype=torch.float64))
    assert targets.sums.abs().sum() == 0
    assert targets.counts.sum() == 0

    targets.end_epoch()  # an epoch without a prediction
    assert (targets.targets == 1 / num_classes).all()


def test_the_targets_of_two_processes_are_those_of_one():
    batch = make_batch("cross_entropy", 60, 4, 1)
    one, first, second = (OnlineTargets(4).double() for _ in range(3))
    online_smoothing(batch.logits, batch.labels, targets=one)
    online_smoothing(batch.logits[:30], batch.labels[:30], targets=first)
    online_smoothing(batch.logits[30:], batch.labels[30:], targets=second)

    of_second = iter([second.sums.clone(), second.counts.clone()])
    first.end_epoch(lambda x: x + next(of_second))
    one.end_epoch()
    assert_close(first.targets, one.targets)


def test_ignored_examples_and_evaluation_do_not_count():
    batch = make_batch("cross_entropy", 60, 4, 1)
    targets = OnlineTargets(4)
    online_smoothing(batch.logits, torch.full((60,), IGNORED), targets=targets)
    assert targets.counts[:-1].sum() == 0
    targets.eval()
    online_smoothing(batch.logits, batch.labels, targets=targets)
    assert targets.counts[:-1].sum() == 0


def test_what_an_unfinished_epoch_has_seen_can_be_dropped():
    targets = OnlineTargets(3)
    online_smoothing(4 * torch.eye(3), torch.arange(3), targets=targets)
    assert targets.counts[:-1].tolist() == [1, 1, 1]
    targets.forget()
    assert targets.counts.sum() == 0
    assert targets.sums.sum() == 0
