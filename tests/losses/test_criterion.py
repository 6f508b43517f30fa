"""`Criterion`: a loss as a module, for a training loop of one's own."""

import copy
import math

import numpy as np
import pytest
import torch
from helpers.loss_cases import make_batch
from torch import nn
from torch.testing import assert_close

from distill.losses import LOSSES, Criterion, OnlineTargets, kd
from distill.recipe.loss_terms import RUNTIME_ARGS, input_names


@pytest.mark.parametrize("name", LOSSES)
def test_a_criterion_reduces_its_loss(name):
    batch = make_batch(name, 6, 5, 2)
    expected = batch.call(name)
    arguments = batch.arguments(name)
    fixed = {key: arguments[key] for key in RUNTIME_ARGS & arguments.keys()}
    named = {key: arguments[key] for key in input_names(LOSSES[name])}
    for reduction, reduced in (
        ("none", expected),
        ("sum", expected.sum()),
        ("mean", expected.mean()),
    ):
        criterion = Criterion(name, reduction, **fixed).eval()
        assert_close(criterion(*named.values()), reduced)
        assert_close(criterion(**named), reduced)
        assert_close(criterion(**named | {"labels": batch.labels}), reduced)


def test_a_criterion_is_torchs_cross_entropy():
    logits = torch.randn(8, 5, requires_grad=True)
    labels = torch.randint(5, (8,))
    labels[2] = 255
    ours = Criterion("cross_entropy", smoothing=0.1, ignore_index=255)
    theirs = nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=255)
    assert_close(ours(logits, labels), theirs(logits, labels))
    assert ours(logits, torch.full((8,), 255)) == 0  # where PyTorch's is NaN

    dense_logits = torch.randn(2, 5, 3, 3)
    dense_labels = torch.randint(5, (2, 3, 3))
    dense_labels[0, 0] = 255
    assert_close(ours(dense_logits, dense_labels), theirs(dense_logits, dense_labels))
    assert ours(logits.half(), labels).dtype == torch.float32
    assert "smoothing=0.1" in repr(ours)


def test_a_criterion_takes_labels_of_any_integer_type():
    loss = Criterion("cross_entropy")(torch.zeros(4, 3), torch.zeros(4, dtype=torch.uint8))
    assert loss.item() == pytest.approx(math.log(3))


def test_class_weights_may_be_a_tensor():
    criterion = Criterion("cross_entropy", class_weights=torch.tensor([1.0, 2.0]))
    assert criterion(torch.zeros(1, 2), torch.tensor([1])).item() == pytest.approx(2 * math.log(2))


def test_labels_mark_ignored_examples_of_losses_that_do_not_read_them():
    batch = make_batch(size=6, num_classes=5, seed=2)
    batch.labels[:2] = 99
    values = kd(batch.logits, batch.teacher_logits)
    inputs = (batch.logits, batch.teacher_logits)
    mean = Criterion("kd", ignore_index=99)
    assert_close(mean(*inputs, labels=batch.labels), values[2:].mean())
    assert_close(mean(*inputs), values.mean())
    each = Criterion("kd", "none", ignore_index=99)(*inputs, labels=batch.labels)
    assert (each[:2] == 0).all()
    assert_close(each[2:], values[2:])
    hint = Criterion("rkd", "sum", ignore_index=99)
    features = (batch.features, batch.teacher_features)
    expected = LOSSES["rkd"](*features)[2:].sum()
    assert_close(hint(*features, labels=batch.labels), expected)


def test_a_criterion_owns_the_module_of_its_loss():
    hint = Criterion("hint", projector=nn.Linear(4, 3))
    assert set(hint.state_dict()) == {"projector.weight", "projector.bias"}
    assert len(list(hint.parameters())) == 2

    online = Criterion("online_smoothing", targets=OnlineTargets(5))
    logits = torch.eye(5) * 4
    online(logits, torch.arange(5))
    online.targets.end_epoch()
    assert_close(online.targets.targets, logits.softmax(1))
    assert set(online.state_dict()) == {"targets.targets", "targets.sums", "targets.counts"}
    online.eval()
    online(logits.flip(0), torch.arange(5))
    assert online.targets.counts[:-1].sum() == 0


def test_a_criterion_can_be_copied():
    online = Criterion("online_smoothing", targets=OnlineTargets(5))
    copied = copy.deepcopy(online)
    copied(torch.eye(5), torch.arange(5))
    assert copied.targets.counts.sum() == 5
    assert online.targets.counts.sum() == 0


def test_progress_changes_a_temperature_and_nothing_else():
    logits, teacher_logits = torch.randn(4, 3), torch.randn(4, 3)
    falling = Criterion("kd", temperature=8.0, final_temperature=2.0)
    expected = Criterion("kd", temperature=5.0)(logits, teacher_logits)
    assert_close(falling(logits, teacher_logits, progress=0.5), expected)
    max_sup = Criterion("max_sup")
    assert max_sup(logits, progress=0.5) == max_sup(logits)


@pytest.mark.parametrize(
    ("arguments", "settings", "facts"),
    [
        (("crossentropy",), {}, "cross_entropy"),
        (("kd", "average"), {}, "average"),
        (("kd",), {"temperature": -1.0}, r"'kd'.*temperature.*-1\.0"),
        (("kd",), {"temperature": "4"}, "'kd'.*temperature.*'4'"),
        (("kd",), {"projector": nn.Identity()}, "'kd'.*projector"),
        (("kd",), {"weight": 1.0}, "'kd'.*weight"),
        (("cross_entropy",), {"smothing": 0.1}, "smothing.*smoothing"),
        (("hint",), {}, "'hint'.*projector"),
        (("online_smoothing",), {"targets": torch.eye(3)}, "'online_smoothing'.*targets"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_mistakes_are_found_when_a_criterion_is_made(arguments, settings, facts):
    with pytest.raises(ValueError, match=facts):
        Criterion(*arguments, **settings)


def test_every_wrong_setting_is_listed():
    with pytest.raises(ValueError, match="temperature") as error:
        Criterion("kd", temperature=-1.0, standardise=1, t_sqared=True)
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert type(error.value) is ValueError


def test_wrong_inputs_are_refused():
    logits = torch.zeros(4, 3)
    with pytest.raises(TypeError, match="teacher_logits"):
        Criterion("kd")(logits)
    with pytest.raises(TypeError, match="smoothing"):
        Criterion("cross_entropy")(logits, torch.zeros(4).long(), smoothing=0.5)
    with pytest.raises(ValueError, match=r"\[4, 1\].*\[4, 3\]"):
        Criterion("cross_entropy")(logits, torch.zeros(4, 1).long())
    with pytest.raises(ValueError, match=r"\[5\].*\[4\]"):
        Criterion("rkd")(logits, logits, labels=torch.zeros(5).long())
    with pytest.raises(ValueError, match="logit_scale"):
        Criterion("arcface")(logits, torch.zeros(4).long())


def test_one_hot_integers_are_distributions():
    logits = torch.randn(6, 5)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    criterion = Criterion("cross_entropy", smoothing=0.1)
    assert_close(criterion(logits, nn.functional.one_hot(labels, 5)), criterion(logits, labels))


def test_class_weights_may_be_an_array():
    logits, labels = torch.randn(6, 5), torch.arange(6) % 5
    weights = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    expected = Criterion("cross_entropy", class_weights=weights.tolist())(logits, labels)
    assert_close(Criterion("cross_entropy", class_weights=weights)(logits, labels), expected)


def test_too_many_inputs_are_refused_with_the_names_of_those_expected():
    logits = torch.randn(6, 5)
    with pytest.raises(TypeError, match=r"logits, teacher_logits.*labels"):
        Criterion("kd")(logits, torch.zeros(6).long(), logits)
