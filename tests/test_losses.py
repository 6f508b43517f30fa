"""What holds for every term: its formula, its gradient, its edges, its contract; and how terms are summed."""

import inspect
import re

import pytest
import torch
import torch.nn.functional as F
from helpers import oracles
from helpers.recipes import ROOT
from helpers.terms import CASES, make, settings_of
from hypothesis import given
from hypothesis import strategies as st

from distill.losses import (
    IGNORED,
    LOSS_MODULES,
    LOSSES,
    REQUIRED_OUTPUTS,
    OnlineTargets,
    Outputs,
    compute_loss,
    cross_entropy,
    kd,
    make_loss_modules,
)
from distill.recipe.loss_terms import RUNTIME_ARGS, needs_teacher

READ_LABELS = [
    n
    for n in LOSSES
    if n not in ("dist", "hint", "rkd", "attention_transfer", "l1_penalty", "l2_penalty")
]
DENSE = [n for n in READ_LABELS if n not in ("l_softmax", "a_softmax")]
ON_CLASSES = [
    "focal",
    "poly1",
    "sparse_softmax",
    "zipf",
    "online_smoothing",
    "sm_softmax",
    "dkd",
    "nkd",
]


def test_every_term_has_a_case():
    assert list(CASES) == list(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
@given(
    data=st.data(),
    size=st.integers(2, 6),
    classes=st.integers(3, 9),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_term_is_its_formula(name, data, size, classes, seed):
    settings = data.draw(settings_of(name, classes))
    batch = make(name, size, classes, seed)
    got = batch.call(name, **settings)
    expected = torch.tensor(CASES[name][1](batch, settings), dtype=torch.float64)
    assert got.dtype == torch.float64 and got.shape == (size,)
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize("name", LOSSES)
@given(data=st.data(), seed=st.integers(0, 2**31 - 1))
def test_float32_is_close_to_it(name, data, seed):
    settings = data.draw(settings_of(name, 5))
    exact, batch = (make(name, 4, 5, seed, dtype=dtype) for dtype in (torch.float64, torch.float32))
    if batch.part is not None:
        batch.part.load_state_dict(exact.part.state_dict())
    expected, got = exact.call(name, **settings), batch.call(name, **settings)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", [1, 2])
def test_gradients_are_those_of_the_value(name, seed):
    batch = make(name, 3, 5, seed, spread=1.0)
    inputs = [
        batch.student.logits,
        *(getattr(batch.student, f) for f in sorted(REQUIRED_OUTPUTS.get(name, ()))),
    ]
    inputs = [t for value in inputs for t in (value if isinstance(value, list) else [value])]
    fields = ["logits", *sorted(REQUIRED_OUTPUTS.get(name, ()))]

    def value(*flat):
        flat, given_ = list(flat), {}
        for field in fields:
            old = getattr(batch.student, field)
            given_[field] = [flat.pop(0) for _ in old] if isinstance(old, list) else flat.pop(0)
        batch.student = batch.student._replace(**given_)
        return batch.call(name)

    inputs = [t.clone().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(value, inputs)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_values_and_gradients_are_finite_at_the_edges(name, dtype, autocast):
    patterns = torch.tensor(
        [[1e4, -1e4, 0, 0], [-1e4, 1e4, 1e4, 1e4], [0, 0, 0, 0], [1e4, 1e4, 1e4, 1e4], [0, 9, 0, 1]]
    )
    for theirs in (-patterns, patterns):
        batch = make(name, 5, 4, 0, spread=30.0, dtype=dtype)
        batch.labels = torch.tensor([1, 0, 1, 2, 3])
        fields = {
            f: getattr(batch.student, f) for f in REQUIRED_OUTPUTS.get(name, ()) if f != "weights"
        }
        for value in fields.values():
            for leaf in value if isinstance(value, list) else [value]:
                leaf.requires_grad_()
        logits = patterns.to(dtype).requires_grad_()
        batch.student = batch.student._replace(logits=logits)
        batch.teacher = batch.teacher._replace(logits=theirs.to(dtype))
        with torch.autocast(
            "cpu",
            dtype if autocast and dtype != torch.float32 else torch.bfloat16,
            enabled=autocast,
        ):
            loss = batch.call(name)
        assert loss.dtype == torch.float32 and loss.isfinite().all()
        if loss.requires_grad:
            loss.sum().backward()
        leaves = [
            logits,
            *(t for v in fields.values() for t in (v if isinstance(v, list) else [v])),
        ]
        assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize("name", ["hint", "rkd", "attention_transfer", "l_softmax", "a_softmax"])
def test_blank_features_and_maps_have_finite_gradients(name):
    batch = make(name, 3, 4, 0, dtype=torch.float32)
    fields = {}
    for field in REQUIRED_OUTPUTS[name]:
        value = getattr(batch.student, field)
        fields[field] = (
            [torch.zeros_like(m).requires_grad_() for m in value]
            if isinstance(value, list)
            else torch.zeros_like(value).requires_grad_()
        )
    batch.student = batch.student._replace(logits=torch.zeros(3, 4), **fields)
    loss = batch.call(name)
    loss.sum().backward()
    leaves = [t for v in fields.values() for t in (v if isinstance(v, list) else [v])]
    assert loss.isfinite().all() and all(t.grad is None or t.grad.isfinite().all() for t in leaves)


# ------------------------------------------------------------------------------------------------ the contract


@pytest.mark.parametrize("name", LOSSES)
def test_terms_keep_the_contract(name):
    parameters = list(inspect.signature(LOSSES[name]).parameters.values())
    assert [p.name for p in parameters[:3]] == ["student", "labels", "teacher"]
    for p in parameters[3:]:
        assert p.kind is p.KEYWORD_ONLY and (p.default is not p.empty or p.name == "part")
    assert ("part" in inspect.signature(LOSSES[name]).parameters) == (name in LOSS_MODULES)
    for section in ("Args:", "Returns:"):
        assert section in LOSSES[name].__doc__
    assert re.search(r"(19|20)\d\d|DeiT|weights", LOSSES[name].__doc__), "its source"


@pytest.mark.parametrize("name", [n for n in LOSSES if needs_teacher(LOSSES[n])])
def test_no_gradient_reaches_the_teacher(name):
    batch = make(name, 3, 5, 5)
    leaves = [batch.teacher.logits, *([batch.teacher.features] if "features" in REQUIRED_OUTPUTS.get(name, ()) else []),
              *(batch.teacher.maps or [])]  # fmt: skip
    for leaf in leaves:
        leaf.requires_grad_()
    for leaf in (batch.student.logits, batch.student.features, *(batch.student.maps or [])):
        if leaf is not None:
            leaf.requires_grad_()
    batch.call(name).sum().backward()
    assert all(leaf.grad is None for leaf in leaves)


@pytest.mark.parametrize(
    "name", [n for n in LOSSES if needs_teacher(LOSSES[n]) and not REQUIRED_OUTPUTS.get(n)]
)
def test_class_counts_must_match(name):
    batch = make(name, 2, 10, 7)
    batch.teacher = Outputs(torch.zeros(2, 9))
    with pytest.raises(ValueError, match=r"\[2, 10\] and \[2, 9\]"):
        batch.call(name)


@pytest.mark.parametrize("name", sorted(REQUIRED_OUTPUTS))
def test_what_a_term_needs_is_asked_for(name):
    batch = make(name, 3, 5, 0)
    batch.student = Outputs(batch.student.logits)
    with pytest.raises(ValueError, match=r"needs .*(features|maps|weights)"):
        batch.call(name)


@pytest.mark.parametrize("name", DENSE)
def test_dense_logits_are_their_positions(name):
    """``[B, K, d…]`` is the same as every position as an example of its own."""
    batch = make(name, 12, 5, 3)
    flat = batch.call(name)

    def dense(x):
        return x.view(2, 3, 2, 5).movedim(3, 1)

    batch.student = batch.student._replace(logits=dense(batch.student.logits))
    batch.teacher = batch.teacher._replace(logits=dense(batch.teacher.logits))
    batch.labels = batch.labels.view(2, 3, 2)
    torch.testing.assert_close(batch.call(name), flat.view(2, 3, 2))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"prior": [0.1, 0.2, 0.3, 0.1, 0.3]},
        {"class_weights": [1.0, 2.0, 3.0, 4.0, 5.0]},
        {"subtract_entropy": True},
        {"prior": [0.1, 0.2, 0.3, 0.1, 0.3], "subtract_entropy": True},
        {"smooth_over": "wrong"},
    ],
    ids=lambda s: "+".join(s),
)
def test_dense_cross_entropy_with_all_its_settings(settings, soft):
    batch = make("cross_entropy", 12, 5, 3)
    labels = F.one_hot(batch.labels, 5).double().roll(1, 0) * 0.3 + F.one_hot(batch.labels, 5) * 0.7
    labels = labels if soft else batch.labels
    flat = cross_entropy(batch.student, labels, smoothing=0.2, **settings)
    logits = batch.student.logits.view(2, 3, 2, 5).movedim(3, 1)
    labels = labels.view(2, 3, 2, 5).movedim(3, 1) if soft else labels.view(2, 3, 2)
    torch.testing.assert_close(
        cross_entropy(Outputs(logits), labels, smoothing=0.2, **settings), flat.view(2, 3, 2)
    )


@pytest.mark.parametrize("name", READ_LABELS)
def test_ignored_examples_give_nothing_and_change_nothing(name):
    batch = make(name, 6, 5, 4)
    whole = batch.call(name)
    batch.labels[::2] = IGNORED
    batch.student = batch.student._replace(logits=batch.student.logits.clone().requires_grad_())
    loss = batch.call(name)
    loss.sum().backward()
    assert (loss[::2] == 0).all() and (batch.student.logits.grad[::2] == 0).all()
    torch.testing.assert_close(loss[1::2].detach(), whole[1::2])
    batch.labels[:] = IGNORED
    assert (batch.call(name) == 0).all()


@pytest.mark.parametrize("name", ON_CLASSES)
def test_soft_labels_are_refused_where_they_have_no_meaning(name):
    batch = make(name, 3, 5, 0)
    batch.labels = torch.full((3, 5), 0.2)
    with pytest.raises(ValueError, match="mixup"):
        batch.call(name)


# --------------------------------------------------------------------------------------------------- the sum


@given(st.integers(1, 6), st.integers(2, 12), st.integers(0, 2**31 - 1), st.integers(1, 4))
def test_the_sum_of_a_batch_is_the_sum_of_its_parts(size, classes, seed, parts):
    batch = make("kd", size, classes, seed, dtype=torch.float32)
    student, labels, teacher = batch.student, batch.labels, batch.teacher
    loss = {"cross_entropy": {"weight": 0.25, "smoothing": 0.1}, "kd": {"temperature": 2.0}}
    whole, sums = compute_loss(loss, student, labels, teacher, size)
    expected = (
        0.25 * cross_entropy(student, labels, smoothing=0.1).mean()
        + kd(student, labels, teacher, temperature=2.0).mean()
    )
    torch.testing.assert_close(whole, expected)
    torch.testing.assert_close(
        sums["cross_entropy"], cross_entropy(student, labels, smoothing=0.1).sum()
    )
    pieces = [
        compute_loss(loss, Outputs(s), y, Outputs(t), size)[0]
        for s, y, t in zip(
            student.logits.chunk(parts),
            labels.chunk(parts),
            teacher.logits.chunk(parts),
            strict=True,
        )
    ]
    torch.testing.assert_close(sum(pieces), expected)


def test_a_weight_grows_over_its_warmup_and_a_temperature_over_training():
    batch = make("kd", 4, 5, 0)
    plain = kd(batch.student, batch.labels, batch.teacher, temperature=3.0).mean()
    for progress, share in ((0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.9, 1.0)):
        loss = {"kd": {"temperature": 3.0, "weight": 2.0, "warmup": 0.2}}
        total, sums = compute_loss(
            loss, batch.student, batch.labels, batch.teacher, 4, progress=progress
        )
        torch.testing.assert_close(total, 2 * share * plain)
        torch.testing.assert_close(sums["kd"], 4 * plain)  # logged before its weight
    loss = {"kd": {"temperature": 8.0, "final_temperature": 2.0}}
    for progress in (0.0, 0.25, 1.0):
        expected = [
            oracles.kd(z, t, oracles.kd_schedule(8.0, 2.0, progress)) for z, _, t in batch.rows()
        ]
        total, _ = compute_loss(
            loss, batch.student, batch.labels, batch.teacher, 4, progress=progress
        )
        assert total.item() == pytest.approx(sum(expected) / 4)


def test_parts_are_made_from_the_seed_and_leave_the_generator_alone():
    student, teacher = (
        Outputs(torch.zeros(1, 5), torch.zeros(1, 7)),
        Outputs(torch.zeros(1, 5), torch.zeros(1, 3)),
    )
    loss = {"cross_entropy": {}, "hint": {}, "online_smoothing": {}}
    before = torch.get_rng_state()
    a, b, c = (make_loss_modules(loss, student, teacher, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before) and set(a) == {"hint", "online_smoothing"}
    assert a["hint"].weight.shape == (3, 7) and a["online_smoothing"].targets.shape == (5, 5)
    assert torch.equal(a["hint"].weight, b["hint"].weight) and not torch.equal(
        a["hint"].weight, c["hint"].weight
    )
    with pytest.raises(ValueError, match="hint needs features"):
        make_loss_modules(loss, student, Outputs(torch.zeros(1, 5)), 0)


# ------------------------------------------------------------------------------------------- online smoothing


@given(st.integers(1, 40), st.integers(2, 5), st.integers(0, 2**31 - 1), st.integers(1, 3))
def test_online_targets_are_the_means_of_the_right_answers(size, classes, seed, steps):
    batch = make("cross_entropy", size, classes, seed)
    part = OnlineTargets(classes).double()
    uniform = F.cross_entropy(
        batch.student.logits, torch.full((size, classes), 1 / classes).double(), reduction="none"
    )
    got = []
    for z, y in zip(batch.student.logits.chunk(steps), batch.labels.chunk(steps), strict=True):
        got.append(LOSSES["online_smoothing"](Outputs(z), y, part=part))
    torch.testing.assert_close(torch.cat(got), uniform)  # nothing is known in the first epoch
    part.end_epoch()
    expected = oracles.online_targets([(z, y) for z, y, _ in batch.rows()], classes)
    torch.testing.assert_close(part.targets, torch.tensor(expected, dtype=torch.float64))
    assert part.sums.abs().sum() == 0 and part.counts.sum() == 0
    part.end_epoch()
    assert (part.targets == 1 / classes).all()  # an epoch without an answer


def test_online_targets_of_two_processes_are_those_of_one_and_ignored_examples_do_not_count():
    batch = make("cross_entropy", 60, 4, 1)
    one, first, second = (OnlineTargets(4).double() for _ in range(3))
    LOSSES["online_smoothing"](batch.student, batch.labels, part=one)
    for part, half in ((first, slice(0, 30)), (second, slice(30, 60))):
        LOSSES["online_smoothing"](
            Outputs(batch.student.logits[half]), batch.labels[half], part=part
        )
    other = {0: second.sums.clone(), 1: second.counts.clone()}
    calls = iter(range(2))
    first.end_epoch(lambda x: x + other[next(calls)])
    one.end_epoch()
    torch.testing.assert_close(first.targets, one.targets)

    ignoring = OnlineTargets(4)
    LOSSES["online_smoothing"](batch.student, torch.full((60,), IGNORED), part=ignoring)
    assert ignoring.counts[:-1].sum() == 0
    ignoring.eval()
    LOSSES["online_smoothing"](batch.student, batch.labels, part=ignoring)
    assert ignoring.counts[:-1].sum() == 0  # evaluation teaches nothing


# ------------------------------------------------------------------------------------------------- its table


def test_the_table_of_terms_is_complete():
    text = (ROOT / "distill" / "losses" / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|(.*)$", text, re.M)
    assert [name for name, _ in rows] == list(LOSSES)
    for name, rest in rows:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", rest)[:-1]]
        assert len(cells) == 4 and all(cells), f"{name}: formula, settings, when to use, source"
        settings = [
            p
            for p in inspect.signature(LOSSES[name]).parameters.values()
            if p.kind is p.KEYWORD_ONLY
        ]
        for p in settings:
            assert p.name in RUNTIME_ARGS or f"`{p.name}`" in cells[1], (
                f"{name}: {p.name} is not in the table"
            )
