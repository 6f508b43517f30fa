"""Terms against float64 oracles, torch and timm; their gradients against identities; and at the edges."""

import inspect
import math

import oracles
import pytest
import timm.loss
import timm.task
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from distill.losses import TERMS, Outputs, cross_entropy, hard_label, kd, logit_mse, weighted_sum

SHAPES = st.tuples(st.integers(1, 6), st.integers(2, 12), st.integers(0, 2**31 - 1))


def case(batch, classes, seed, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(batch, classes, generator=generator) for _ in range(2))
    return Outputs(student), torch.randint(classes, (batch,), generator=generator), Outputs(teacher)


def by_example(oracle, *rows):
    return torch.tensor([oracle(*(r.tolist() if r.ndim else r.item() for r in row)) for row in zip(*rows, strict=True)])


@given(SHAPES, st.floats(0, 1), st.sampled_from(["all", "others"]))
def test_cross_entropy_is_its_formula(shape, smoothing, over):
    student, labels, _ = case(*shape)
    if over == "others":
        smoothing *= (shape[1] - 1) / shape[1]
    expected = by_example(lambda z, y: oracles.cross_entropy(z, y, smoothing, over), student.logits.double(), labels)
    torch.testing.assert_close(
        cross_entropy(student, labels, smoothing=smoothing, over=over).double(), expected.double(), atol=2e-5, rtol=1e-5
    )


@given(SHAPES, st.floats(0.25, 20), st.one_of(st.none(), st.floats(0.25, 20)))
def test_kd_is_its_formula(shape, temperature, own):
    student, labels, teacher = case(*shape)
    expected = by_example(
        lambda s, t: oracles.kd(s, t, temperature, own), student.logits.double(), teacher.logits.double()
    )
    got = kd(student, labels, teacher, temperature=temperature, student_temperature=own)
    torch.testing.assert_close(
        got.double(), expected.double(), atol=1e-5 * max(1, (own or temperature) ** 2), rtol=1e-4
    )


@given(SHAPES, st.sampled_from(["sum", "mean"]))
def test_logit_mse_is_its_formula(shape, over_classes):
    student, labels, teacher = case(*shape)
    expected = by_example(
        lambda s, t: oracles.logit_mse(s, t, over_classes), student.logits.double(), teacher.logits.double()
    )
    torch.testing.assert_close(
        logit_mse(student, labels, teacher, over_classes=over_classes).double(), expected.double(), atol=1e-5, rtol=1e-5
    )


def test_agreement_with_torch_and_timm():
    student, labels, teacher = case(16, 10, 0)
    close = torch.testing.assert_close
    close(
        cross_entropy(student, labels, smoothing=0.1).mean(),
        F.cross_entropy(student.logits, labels, label_smoothing=0.1),
    )
    close(
        cross_entropy(student, labels, smoothing=0.1).mean(),
        timm.loss.LabelSmoothingCrossEntropy(0.1)(student.logits, labels),
    )
    hinton = (
        F.kl_div(F.log_softmax(student.logits / 4, 1), F.softmax(teacher.logits / 4, 1), reduction="batchmean") * 16
    )
    close(kd(student, labels, teacher, temperature=4.0).mean(), hinton)
    close(
        hard_label(student, labels, teacher),
        F.cross_entropy(student.logits, teacher.logits.argmax(1), reduction="none"),
    )


def test_soft_labels_are_smoothed_once_and_one_hot_ones_are_the_classes():
    student, labels, _ = case(8, 5, 1)
    one_hot = F.one_hot(labels, 5).float()
    mixed = 0.3 * one_hot + 0.7 * one_hot.flip(0)
    for over in ("all", "others"):
        a = cross_entropy(student, labels, smoothing=0.2, over=over)
        torch.testing.assert_close(cross_entropy(student, one_hot, smoothing=0.2, over=over), a)
        expected = 0.3 * a + 0.7 * cross_entropy(student, labels.flip(0), smoothing=0.2, over=over)
        torch.testing.assert_close(cross_entropy(student, mixed, smoothing=0.2, over=over), expected)


@pytest.mark.parametrize(
    ("over", "gap"),
    [("all", lambda k, a: math.log((k - (k - 1) * a) / a)), ("others", lambda k, a: math.log((1 - a) * (k - 1) / a))],
)
def test_the_optimum_has_the_known_gap(over, gap):
    """losses.md §1 and §2, by minimising the term itself: p_y - p_j gap log q_y - log q_j."""
    classes, mass = 10, 0.1
    q_label = 1 - mass + mass / classes if over == "all" else 1 - mass
    q_other = mass / classes if over == "all" else mass / (classes - 1)
    logits = torch.full((1, classes), math.log(q_other))
    logits[0, 3] = math.log(q_label)
    assert logits[0, 3] - logits[0, 0] == pytest.approx(gap(classes, mass), abs=1e-5)
    logits.requires_grad_()
    cross_entropy(Outputs(logits), torch.tensor([3]), smoothing=mass, over=over).sum().backward()
    assert logits.grad.abs().max() < 1e-6  # the gradient vanishes there, and the loss is convex


def gradient(term, student, labels, teacher, **hyperparameters):
    logits = student.logits.clone().requires_grad_()
    term(Outputs(logits), labels, teacher, **hyperparameters).sum().backward()
    return logits.grad


def test_gradients_are_what_the_literature_says():
    student, labels, teacher = case(8, 7, 2)
    q = 0.9 * F.one_hot(labels, 7) + 0.1 / 7
    p = student.logits.softmax(1)
    torch.testing.assert_close(gradient(cross_entropy, student, labels, None, smoothing=0.1), p - q)
    for t in (1.0, 4.0):  # T (p_s - p_t)
        expected = t * ((student.logits / t).softmax(1) - (teacher.logits / t).softmax(1))
        torch.testing.assert_close(gradient(kd, student, labels, teacher, temperature=t), expected)
    expected = p - (teacher.logits / 4).softmax(1)  # the paper's: only the teacher softened, no factor
    got = gradient(kd, student, labels, teacher, temperature=4.0, student_temperature=1.0)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradient(logit_mse, student, labels, teacher), student.logits - teacher.logits)


def test_hot_kd_is_logit_matching():
    """Hinton et al. 2015, section 2.1: for T → ∞ the gradient is (centred z_s - centred z_t) / K."""
    student, labels, teacher = case(4, 10, 3, scale=1.0)
    centred = [o.logits.double() - o.logits.double().mean(1, keepdim=True) for o in (student, teacher)]
    got = gradient(kd, student, labels, teacher, temperature=300.0)
    torch.testing.assert_close(got.double(), (centred[0] - centred[1]) / 10, atol=2e-3, rtol=0.02)


def test_kd_is_zero_where_the_student_agrees_and_knows_no_shift():
    student, labels, _ = case(4, 10, 4)
    shifted = Outputs(student.logits + 7)
    assert kd(student, labels, shifted, temperature=3.0).abs().max() < 1e-5
    assert cross_entropy(shifted, labels).sub(cross_entropy(student, labels)).abs().max() < 1e-5


def test_no_gradient_reaches_the_teacher():
    student, labels, teacher = case(4, 5, 5)
    theirs = teacher.logits.requires_grad_()
    for term in (kd, logit_mse, hard_label):
        ours = student.logits.clone().requires_grad_()
        term(Outputs(ours), labels, Outputs(theirs)).sum().backward()
        assert theirs.grad is None and ours.grad.isfinite().all()


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_terms_are_finite_and_float32_at_the_edges(name, dtype):
    for logits in (torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([[-1e4, 1e4, 1e4]]), torch.zeros(1, 3)):
        student = logits.to(dtype).requires_grad_()
        loss = TERMS[name](Outputs(student), torch.tensor([1]), Outputs(-logits.to(dtype)))
        loss.sum().backward()
        assert loss.shape == (1,) and loss.dtype == torch.float32
        assert loss.isfinite().all() and student.grad.isfinite().all()


@pytest.mark.parametrize("name", TERMS)
def test_terms_keep_the_contract(name):
    parameters = list(inspect.signature(TERMS[name]).parameters.values())
    assert [p.name for p in parameters[:3]] == ["student", "labels", "teacher"]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters[3:])
    assert "Returns:" in TERMS[name].__doc__ and "Args:" in TERMS[name].__doc__


@pytest.mark.parametrize(
    ("term", "bad"),
    [
        (cross_entropy, {"smoothing": -0.1}),
        (cross_entropy, {"smoothing": 1.1}),
        (cross_entropy, {"smoothing": 0.95, "over": "others"}),  # past uniform, (K-1)/K = 0.9
        (kd, {"temperature": 0.0}),
        (kd, {"temperature": 2.0, "student_temperature": -1.0}),
    ],
)
def test_senseless_hyperparameters_are_refused(term, bad):
    student, labels, teacher = case(2, 10, 6)
    with pytest.raises(ValueError, match="must be"):
        term(student, labels, teacher, **bad)


@pytest.mark.parametrize("term", [kd, logit_mse, hard_label])
def test_class_counts_must_match(term):
    student, labels, _ = case(2, 10, 7)
    with pytest.raises(ValueError, match=r"\[2, 10\] and \[2, 9\]"):
        term(student, labels, Outputs(torch.zeros(2, 9)))


@given(SHAPES, st.integers(1, 4))
def test_the_sum_of_a_batch_is_the_sum_of_its_parts(shape, parts):
    student, labels, teacher = case(*shape)
    loss = {"cross_entropy": {"weight": 0.25, "smoothing": 0.1}, "kd": {"temperature": 2.0}}
    whole, sums = weighted_sum(loss, student, labels, teacher, len(labels))
    expected = (
        0.25 * cross_entropy(student, labels, smoothing=0.1).mean()
        + kd(student, labels, teacher, temperature=2.0).mean()
    )
    torch.testing.assert_close(whole, expected)
    torch.testing.assert_close(sums["cross_entropy"], cross_entropy(student, labels, smoothing=0.1).sum())
    pieces = [
        weighted_sum(loss, Outputs(s), y, Outputs(t), len(labels))[0]
        for s, y, t in zip(student.logits.chunk(parts), labels.chunk(parts), teacher.logits.chunk(parts), strict=True)
    ]
    torch.testing.assert_close(sum(pieces), expected)
