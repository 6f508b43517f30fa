"""An ensemble of teachers as one teacher."""

import torch
import torch.nn.functional as F
from helpers import oracles
from helpers.loss_cases import make_batch
from torch.testing import assert_close

from distill.losses import Outputs, ensemble, kd


def test_an_ensemble_has_the_mean_of_the_probabilities():
    batch = make_batch()
    first = batch.teacher
    second = Outputs(batch.teacher_logits.flip(0))
    both = ensemble([first, second])
    mean = (first.logits.softmax(1) + second.logits.softmax(1)) / 2
    assert_close(both.logits.softmax(1), mean)
    pairs = zip(first.logits.tolist(), second.logits.tolist(), strict=True)
    expected = torch.tensor([oracles.ensemble([a, b]) for a, b in pairs], dtype=torch.float64)
    assert_close(both.logits, expected)

    divergence = F.kl_div(batch.logits.log_softmax(1), mean, reduction="none").sum(1)
    assert_close(kd(batch.logits, both.logits, temperature=1.0), divergence)


def test_an_ensemble_has_only_logits_but_a_single_teacher_keeps_all():
    teacher = make_batch().teacher
    assert ensemble([teacher]) is teacher
    both = ensemble([teacher, teacher])
    assert both[1:] == (None,) * 5
    half = ensemble([Outputs(teacher.logits.half())] * 2)
    assert half.logits.dtype == torch.float32
