"""What holds for every loss: its formula, its gradient, its edges, and what it refuses."""

import math

import pytest
import torch
from helpers.loss_cases import CASES, gradient, make_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from distill.losses import IGNORED, LOSSES
from distill.recipe.loss_terms import input_names, needs_teacher

SEEDS = st.integers(0, 2**31 - 1)
ON_LABELS = [name for name in LOSSES if "labels" in input_names(LOSSES[name])]
ON_LOGITS = [
    name
    for name in LOSSES
    if set(input_names(LOSSES[name])) <= {"logits", "labels", "teacher_logits"}
]
ON_TEACHER_LOGITS = [name for name in LOSSES if "teacher_logits" in input_names(LOSSES[name])]
WITH_TEACHER = [name for name in LOSSES if needs_teacher(LOSSES[name])]
PENALTIES_ON_WEIGHTS = ("l1_penalty", "l2_penalty")


def test_every_loss_has_a_case():
    assert list(CASES) == list(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
@given(data=st.data(), size=st.integers(2, 6), num_classes=st.integers(3, 9), seed=SEEDS)
@settings(max_examples=100)
def test_a_loss_is_its_formula(name, data, size, num_classes, seed):
    drawn = data.draw(CASES[name].settings(num_classes))
    batch = make_batch(name, size, num_classes, seed)
    got = batch.call(name, **drawn)
    expected = torch.tensor(CASES[name].oracle(batch, drawn), dtype=torch.float64)
    assert got.dtype == torch.float64
    assert got.shape == (() if name in PENALTIES_ON_WEIGHTS else (size,))
    assert_close(got, expected, atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize("name", LOSSES)
@given(data=st.data(), seed=SEEDS)
@settings(max_examples=50)
def test_float32_is_close_to_float64(name, data, seed):
    drawn = data.draw(CASES[name].settings(5))
    expected = make_batch(name, 4, 5, seed).call(name, **drawn)
    got = make_batch(name, 4, 5, seed, dtype=torch.float32).call(name, **drawn)
    assert got.dtype == torch.float32
    assert_close(got.double(), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_value(name):
    for seed in (1, 2):
        batch = make_batch(name, 3, 5, seed, spread=1.0)
        leaves = batch.require_grad(name)
        # gradcheck changes the leaves in place, so the function need not use its arguments.
        assert torch.autograd.gradcheck(lambda *_, b=batch: b.call(name), leaves)


EDGES = torch.tensor(
    [[1e4, -1e4, 0, 0], [-1e4, 1e4, 1e4, 1e4], [0, 0, 0, 0], [1e4, 1e4, 1e4, 1e4], [0, 9, 0, 1]]
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_are_finite_at_the_edges(name, dtype):
    half = torch.bfloat16 if dtype == torch.float32 else dtype
    for teacher_logits in (-EDGES, EDGES):
        for autocast in (False, True):
            batch = make_batch(name, 5, 4, 0, spread=30.0, dtype=dtype)
            batch.labels = torch.tensor([1, 0, 1, 2, 3])
            batch.logits = EDGES.to(dtype, copy=True)
            batch.teacher_logits = teacher_logits.to(dtype, copy=True)
            leaves = batch.require_grad(name)
            with torch.autocast("cpu", half, enabled=autocast):
                loss = batch.call(name)
            loss.sum().backward()
            assert loss.dtype == torch.float32
            assert loss.isfinite().all()
            assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize("name", ["hint", "rkd", "attention_transfer", "l_softmax", "a_softmax"])
def test_blank_features_and_maps_have_finite_gradients(name):
    batch = make_batch(name, 3, 4, dtype=torch.float32)
    batch.logits = torch.zeros(3, 4)
    batch.features = torch.zeros_like(batch.features)
    batch.templates = torch.zeros_like(batch.templates)
    batch.feature_maps = [torch.zeros_like(m) for m in batch.feature_maps]
    leaves = batch.require_grad(name)
    loss = batch.call(name)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_no_gradient_reaches_the_teacher(name):
    batch = make_batch(name, 3, 5, 5)
    student = batch.require_grad(name)
    teacher = batch.require_grad(name, of="teacher")
    assert teacher
    batch.call(name).sum().backward()
    assert all(leaf.grad is None for leaf in teacher)
    assert any(leaf.grad is not None for leaf in student)


@pytest.mark.parametrize("name", ON_TEACHER_LOGITS)
def test_student_and_teacher_need_equal_shapes(name):
    batch = make_batch(name, 2, 10)
    batch.teacher_logits = torch.zeros(2, 9)
    with pytest.raises(ValueError, match=r"\[2, 10\] and \[2, 9\]"):
        batch.call(name)


@pytest.mark.parametrize("name", [n for n in ON_LOGITS if n != "dist"])
def test_dense_logits_are_their_positions(name):
    """``[B, K, d…]`` gives the same as every position as an example of its own."""
    batch = make_batch(name, 12, 5, 3)
    flat = batch.call(name)
    batch.logits = batch.logits.view(2, 3, 2, 5).movedim(3, 1)
    batch.teacher_logits = batch.teacher_logits.view(2, 3, 2, 5).movedim(3, 1)
    batch.labels = batch.labels.view(2, 3, 2)
    assert_close(batch.call(name), flat.view(2, 3, 2))


def test_dist_refuses_dense_logits():
    batch = make_batch("dist", 12, 5)
    batch.logits = batch.teacher_logits = batch.logits.view(2, 5, 3, 2)
    with pytest.raises(ValueError, match=r"\[2, 5, 3, 2\]"):
        batch.call("dist")


@pytest.mark.parametrize("name", ON_LABELS)
def test_ignored_examples_give_nothing_and_change_nothing(name):
    batch = make_batch(name, 6, 5, 4)
    whole = batch.call(name)
    batch.labels[::2] = IGNORED
    batch.logits.requires_grad_()
    loss = batch.call(name)
    loss.sum().backward()
    assert (loss[::2] == 0).all()
    assert (batch.logits.grad[::2] == 0).all()
    assert_close(loss[1::2].detach(), whole[1::2])
    batch.labels[:] = IGNORED
    assert (batch.call(name) == 0).all()


@pytest.mark.parametrize("name", [n for n in ON_LABELS if n != "cross_entropy"])
def test_soft_labels_are_refused_where_they_have_no_meaning(name):
    batch = make_batch(name, 3, 5)
    batch.labels = torch.full((3, 5), 0.2)
    with pytest.raises(ValueError, match="mixup"):
        batch.call(name)


PRIOR = [0.1] * 10
REFUSED = [
    ("cross_entropy", {"smoothing": -0.1}, r"smoothing.*-0\.1"),
    ("cross_entropy", {"smoothing": 1.1}, r"smoothing.*1\.1"),
    ("cross_entropy", {"smoothing": 0.95, "smooth_over": "wrong"}, r"\[0, 0\.9\].*0\.95"),
    ("cross_entropy", {"smoothing": 0.1, "prior": [0.5, 0.5]}, "prior.* 10 .* 2"),
    ("cross_entropy", {"smoothing": 0.1, "prior": [0.2] * 10}, "prior.* 2"),
    ("cross_entropy", {"smoothing": 0.1, "prior": [-0.8] + [0.2] * 9}, "prior"),
    ("cross_entropy", {"smoothing": 0.1, "prior": PRIOR, "smooth_over": "wrong"}, "smooth_over"),
    ("cross_entropy", {"smoothing": 0.1, "prior": "data"}, "prior.*data"),
    ("cross_entropy", {"class_weights": [1.0] * 9}, "class_weights.* 10 .* 9"),
    ("cross_entropy", {"class_weights": [-1.0] * 10}, "class_weights"),
    ("cross_entropy", {"class_weights": "balanced"}, "class_weights.*balanced"),
    ("focal", {"focus": -1.0}, "focus.*-1"),
    ("poly1", {"epsilon": -1.5}, r"epsilon.*-1\.5"),
    ("poly1", {"smoothing": 1.5}, r"smoothing.*1\.5"),
    ("sparse_softmax", {"k": 0}, "k must.* 0"),
    ("mbls", {"margin": -1.0}, "margin.*-1"),
    ("zipf", {"power": 0.0}, "power.* 0"),
    ("sm_softmax", {"margin": -1.0}, "margin.*-1"),
    ("am_softmax", {"margin": -1.0}, "margin.*-1"),
    ("arcface", {"margin": -0.5}, r"margin.*-0\.5"),
    ("l_softmax", {"margin": 0}, "margin.* 0"),
    ("l_softmax", {"share": 1.5}, r"share.*1\.5"),
    ("a_softmax", {"margin": 1.5}, r"margin.*1\.5"),
    ("kd", {"temperature": 0.0}, "temperature.* 0"),
    ("kd", {"temperature": 2.0, "student_temperature": -1.0}, "temperature.*-1"),
    ("kd", {"temperature": 2.0, "final_temperature": -1.0, "progress": 0.5}, "temperature.*-1"),
    ("kd", {"final_temperature": 1.0}, "progress"),
    ("dkd", {"temperature": -1.0}, "temperature.*-1"),
    ("nkd", {"temperature": 0.0}, "temperature.* 0"),
    ("dist", {"temperature": math.inf}, "temperature.*inf"),
]


@pytest.mark.parametrize(
    ("name", "refused", "facts"), REFUSED, ids=[f"{n}-{s}"[:50] for n, s, _ in REFUSED]
)
def test_values_out_of_range_are_refused(name, refused, facts):
    with pytest.raises(ValueError, match=facts):
        make_batch(name, 2, 10, 6).call(name, **refused)


def test_evaluation_before_training_leaves_nothing_behind():
    """Constants that are cached in inference mode could not be used by autograd."""
    batch = make_batch(size=4, num_classes=7, seed=3)
    prior = [0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    for name, own in (
        ("zipf", {"power": 1.37}),
        ("cross_entropy", {"smoothing": 0.1, "prior": prior}),
    ):
        with torch.inference_mode():
            batch.call(name, **own)
        assert gradient(LOSSES[name], batch.logits, batch.labels, **own).isfinite().all()
