"""The weighted sum of terms: inputs by name, weights, parts of a batch, ignored labels."""

import pytest
import torch
from helpers import oracles
from helpers.loss_cases import Batch, make_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from distill.losses import IGNORED, LOSSES, Outputs, compute_loss, cross_entropy, kd
from distill.recipe.loss_terms import loss_settings_model


def compute(terms, batch: Batch, **arguments):
    arguments = {"batch_size": len(batch.labels), "modules": batch.modules} | arguments
    return compute_loss(terms, batch.student, batch.labels, batch.teacher, **arguments)


@pytest.mark.parametrize("name", LOSSES)
def test_a_term_gets_its_inputs_by_name(name):
    batch = make_batch(name, 4, 5, 2)
    expected = batch.call(name, **({"progress": 0.3} if name in ("l_softmax", "a_softmax") else {}))
    partial, sums = compute({name: {}}, batch, progress=0.3)
    assert_close(partial, expected.mean())
    assert_close(sums[name], expected.expand(4).sum())
    complete, _ = compute(
        {name: loss_settings_model(LOSSES[name])().model_dump()}, batch, progress=0.3
    )
    assert torch.equal(partial, complete)


@given(st.integers(1, 6), st.integers(2, 12), st.integers(0, 2**31 - 1), st.integers(1, 4))
@settings(max_examples=30)
def test_the_sum_of_a_batch_is_the_sum_of_its_parts(size, num_classes, seed, num_parts):
    batch = make_batch("kd", size, num_classes, seed, dtype=torch.float32)
    terms = {"cross_entropy": {"weight": 0.25, "smoothing": 0.1}, "kd": {"temperature": 2.0}}
    whole, sums = compute(terms, batch)
    smoothed = cross_entropy(batch.logits, batch.labels, smoothing=0.1)
    distilled = kd(batch.logits, batch.teacher_logits, temperature=2.0)
    assert_close(whole, 0.25 * smoothed.mean() + distilled.mean())
    assert_close(sums["cross_entropy"], smoothed.sum())
    assert not sums["kd"].requires_grad

    chunks = zip(
        batch.logits.chunk(num_parts),
        batch.labels.chunk(num_parts),
        batch.teacher_logits.chunk(num_parts),
        strict=True,
    )
    parts = [
        compute_loss(terms, Outputs(z), y, Outputs(t), batch_size=size)[0] for z, y, t in chunks
    ]
    assert_close(sum(parts), whole)


def test_a_weight_grows_over_its_warmup():
    batch = make_batch("kd", 4, 5)
    plain = kd(batch.logits, batch.teacher_logits, temperature=3.0).mean()
    terms = {"kd": {"temperature": 3.0, "weight": 2.0, "warmup": 0.2}}
    for progress, grown in ((0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.9, 1.0)):
        total, sums = compute(terms, batch, progress=progress)
        assert_close(total, 2 * grown * plain)
        assert_close(sums["kd"], 4 * plain)


def test_a_temperature_changes_over_training():
    batch = make_batch("kd", 4, 5)
    terms = {"kd": {"temperature": 8.0, "final_temperature": 2.0}}
    for progress in (0.0, 0.25, 1.0):
        temperature = oracles.kd_schedule(8.0, 2.0, progress)
        expected = [oracles.kd(z, t, temperature) for z, _, t in batch.rows()]
        total, _ = compute(terms, batch, progress=progress)
        assert total.item() == pytest.approx(sum(expected) / 4)


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_labels_mask_every_loss_but_penalties_on_weights(name):
    batch = make_batch(name, 6, 5, 2)
    _, whole = compute({name: {}}, batch)
    per_example = batch.call(
        name, **({"progress": 0.0} if name in ("l_softmax", "a_softmax") else {})
    )
    batch.labels[:2] = IGNORED
    batch.logits.requires_grad_()
    total, sums = compute({name: {}}, batch)
    if name in ("l1_penalty", "l2_penalty"):
        assert_close(sums[name], whole[name])
        return
    assert_close(sums[name], per_example[2:].sum())
    assert_close(total, per_example[2:].sum() / 6)


@pytest.mark.parametrize(
    ("labels", "examples"),
    [
        (torch.zeros(4).long(), 4),
        (torch.full((4, 5), 0.2), 4),
        (torch.zeros(4, 7).long(), 28),
        (torch.full((4, 5, 7), 0.2), 28),
    ],
)
def test_a_penalty_on_weights_counts_for_every_example(labels, examples):
    outputs = Outputs(torch.zeros(4, 5), weights=[torch.ones(2, 3)])
    total, sums = compute_loss({"l1_penalty": {}}, outputs, labels, None, batch_size=4)
    assert sums["l1_penalty"].item() == 6 * examples
    assert total.item() == 6 * examples / 4


def test_no_terms_give_a_loss_of_0():
    total, sums = compute({}, make_batch())
    assert total.item() == 0
    assert sums == {}


@pytest.mark.parametrize(
    ("terms", "student", "facts"),
    [
        ({"rkd": {}}, {"features": None}, "^rkd: .*features.*student"),
        ({"hint": {}}, {"features": None}, "^hint: .*features"),
        ({"attention_transfer": {}}, {"feature_maps": None}, "^attention_transfer: .*feature_maps"),
        ({"attention_transfer": {}}, {"feature_maps": []}, "^attention_transfer: "),
        ({"l_softmax": {}}, {"templates": None}, "^l_softmax: .*templates"),
        ({"l2_penalty": {}}, {"weights": None}, "^l2_penalty: .*weights"),
        ({"l1_penalty": {}}, {"weights": []}, "^l1_penalty: "),
        ({"arcface": {}}, {"logit_scale": 0.0}, "^arcface: .*logit_scale"),
        ({"focal": {"focus": -1.0}}, {}, "^focal: .*-1"),
        ({"crossentropy": {}}, {}, "cross_entropy"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_the_term_that_is_wrong_is_named(terms, student, facts):
    batch = make_batch(next(iter(terms)))
    outputs = batch.student._replace(**student)
    with pytest.raises(ValueError, match=facts):
        compute_loss(
            terms, outputs, batch.labels, batch.teacher, batch_size=16, modules=batch.modules
        )


def test_a_missing_teacher_or_module_is_named():
    batch = make_batch("hint")
    student, labels = batch.student, batch.labels
    ensemble = Outputs(batch.teacher_logits)
    with pytest.raises(ValueError, match=r"^kd: .*teacher"):
        compute_loss({"kd": {}}, student, labels, None, batch_size=16)
    with pytest.raises(ValueError, match=r"^rkd: .*features.*teacher"):
        compute_loss({"rkd": {}}, student, labels, ensemble, batch_size=16)
    with pytest.raises(ValueError, match=r"^hint: .*projector.*make_loss_modules"):
        compute_loss({"hint": {}}, student, labels, batch.teacher, batch_size=16)
