"""One case for every loss term: how to draw its settings, how to call it, and its oracle, example by example."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from helpers import oracles
from hypothesis import strategies as st
from torch import nn

from distill.losses import LOSSES, REQUIRED_OUTPUTS, OnlineTargets, Outputs

SCALE = 8.0  # of the cosine logits


@dataclass
class Batch:
    """What a term is called with; everything is drawn from one seed."""

    student: Outputs
    labels: torch.Tensor
    teacher: Outputs
    part: nn.Module | None
    templates: torch.Tensor  # that the logits of some terms are made with

    def call(self, name: str, **settings: Any) -> torch.Tensor:
        part = {} if self.part is None else {"part": self.part}
        return LOSSES[name](self.student, self.labels, self.teacher, **part, **settings)

    def rows(self) -> list[tuple[list[float], int, list[float]]]:
        return list(
            zip(
                self.student.logits.tolist(),
                self.labels.tolist(),
                self.teacher.logits.tolist(),
                strict=True,
            )
        )


def make(
    name: str,
    size: int,
    classes: int,
    seed: int,
    spread: float = 3.0,
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """A batch that has all that the term looks at; its logits follow from features where they must."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return spread * torch.randn(*shape, generator=generator, dtype=torch.float64)

    logits, theirs, depth = normal(size, classes), normal(size, classes), 4
    features, templates = normal(size, depth) / spread, normal(classes, depth)
    if name in ("am_softmax", "arcface"):
        logits = (
            SCALE * torch.rand(size, classes, generator=generator, dtype=torch.float64) * 1.99
            - SCALE * 0.995
        )
    if name == "a_softmax":
        logits = features @ nn.functional.normalize(templates, dim=1).T
    if name == "l_softmax":
        logits = features @ templates.T + normal(classes) / spread
    fields = {
        "features": features,
        "templates": templates,
        "feature_maps": [normal(size, 2, 5, 5), normal(size, 3, 2, 3)],
        "weights": [normal(3, 2), normal(4, 3)],
    }
    needs = REQUIRED_OUTPUTS.get(name, frozenset())
    student = {key: value for key, value in fields.items() if key in needs}
    teacher = {
        "features": normal(size, 3) if name == "hint" else normal(size, depth),
        "feature_maps": [normal(size, 1, 5, 5), normal(size, 4, 2, 3)],
    }
    labels = torch.randint(classes, (size,), generator=generator)
    part = None
    if name == "hint":
        part = nn.Linear(depth, 3)
    if name == "online_smoothing":
        part = OnlineTargets(classes)
        part.targets.copy_(torch.softmax(normal(classes, classes), 1))
        part.eval()

    def cast(value: Any) -> Any:
        if isinstance(value, list):
            return [cast(v) for v in value]
        return value.to(dtype)

    ours = Outputs(
        cast(logits),
        **{k: cast(v) for k, v in student.items()},
        scale={"am_softmax": SCALE, "arcface": SCALE, "a_softmax": 0.0}.get(name),
    )
    other = Outputs(cast(theirs), **{k: cast(v) for k, v in teacher.items() if k in needs})
    return Batch(
        ours,
        labels,
        other,
        part.to(torch.promote_types(dtype, torch.float32)) if part else None,
        templates,
    )


# ------------------------------------------------------------------------------------------------ the cases


def each(oracle: Callable[..., float]) -> Callable[[Batch, dict], list[float]]:
    """An oracle of one example's (student, label, teacher) and the settings, over the batch."""
    return lambda batch, settings: [oracle(z, y, t, **settings) for z, y, t in batch.rows()]


def _projected(b: Batch, **h: Any) -> list[float]:
    ours, theirs = (
        b.part(b.student.features.to(b.part.weight.dtype)).tolist(),
        b.teacher.features.tolist(),
    )
    return [oracles.hint(o, t, **h) for o, t in zip(ours, theirs, strict=True)]


def _attention(b: Batch) -> list[float]:
    sides = [[m.tolist() for m in side.maps] for side in (b.student, b.teacher)]
    return [
        oracles.attention_transfer(*([m[i] for m in side] for side in sides))
        for i in range(len(b.labels))
    ]


def _l_softmax(b: Batch, **h: Any) -> list[float]:
    w, f = b.student.templates.tolist(), b.student.features.tolist()
    bias = (b.student.logits - b.student.features @ b.student.templates.T)[0].tolist()
    return [
        oracles.l_softmax(f_i, w, bias, y, **h) for f_i, y in zip(f, b.labels.tolist(), strict=True)
    ]


def _a_softmax(b: Batch, **h: Any) -> list[float]:
    w, f = b.templates.tolist(), b.student.features.tolist()
    return [oracles.a_softmax(f_i, w, y, **h) for f_i, y in zip(f, b.labels.tolist(), strict=True)]


def _cross_entropy(classes: int) -> st.SearchStrategy:
    weights = st.lists(st.floats(0.1, 5), min_size=classes, max_size=classes)
    prior = weights.map(lambda w: [v / sum(w) for v in w])
    common = {"class_weights": st.none() | weights, "subtract_entropy": st.booleans()}
    return st.one_of(
        st.fixed_dictionaries({"smoothing": st.floats(0, 1), **common}),
        st.fixed_dictionaries(
            {
                "smoothing": st.floats(0, (classes - 1) / classes),
                "smooth_over": st.just("wrong"),
                **common,
            }
        ),
        st.fixed_dictionaries({"smoothing": st.floats(0, 1), "prior": prior, **common}),
    )


def _kd(classes: int) -> st.SearchStrategy:
    temperature = st.floats(0.25, 20)
    return st.fixed_dictionaries(
        {
            "temperature": temperature,
            "student_temperature": st.none() | temperature,
            "standardise": st.booleans(),
            "t_squared": st.booleans(),
        }
    )


T = st.floats(0.5, 10)
MARGIN = {"margin": st.floats(0, 2), "smoothing": st.floats(0, 1)}
ANGLE = {"margin": st.integers(1, 5), "share": st.floats(0, 1), "smoothing": st.floats(0, 1)}
OVER = st.sampled_from(["mean", "sum"])

# name: (settings for K classes, oracle of a batch)
CASES: dict[
    str, tuple[Callable[[int], Any] | dict[str, Any], Callable[[Batch, dict], list[float]]]
] = {
    "cross_entropy": (_cross_entropy, each(lambda z, y, t, **h: oracles.cross_entropy(z, y, **h))),
    "focal": ({"focus": st.floats(0, 5)}, each(lambda z, y, t, **h: oracles.focal(z, y, **h))),
    "poly1": (
        {"epsilon": st.floats(-1, 5), "smoothing": st.floats(0, 1)},
        each(lambda z, y, t, **h: oracles.poly1(z, y, **h)),
    ),
    "sparse_softmax": (
        {"k": st.integers(1, 12)},
        each(lambda z, y, t, **h: oracles.sparse_softmax(z, y, **h)),
    ),
    "confidence_penalty": ({}, each(lambda z, y, t: oracles.confidence_penalty(z))),
    "max_sup": ({}, each(lambda z, y, t: oracles.max_sup(z))),
    "mbls": (
        {"margin": st.floats(0, 8), "over_classes": OVER},
        each(lambda z, y, t, **h: oracles.mbls(z, **h)),
    ),
    "zipf": ({"power": st.floats(0.2, 3)}, each(lambda z, y, t, **h: oracles.zipf(z, y, **h))),
    "online_smoothing": (
        {},
        lambda b, h: [
            oracles.online_smoothing(z, y, b.part.targets.tolist()) for z, y, _ in b.rows()
        ],
    ),
    "sm_softmax": (MARGIN, each(lambda z, y, t, **h: oracles.sm_softmax(z, y, **h))),
    "am_softmax": (MARGIN, each(lambda z, y, t, **h: oracles.am_softmax(z, y, scale=SCALE, **h))),
    "arcface": (MARGIN, each(lambda z, y, t, **h: oracles.arcface(z, y, scale=SCALE, **h))),
    "l_softmax": (ANGLE, lambda b, h: _l_softmax(b, **h)),
    "a_softmax": (ANGLE, lambda b, h: _a_softmax(b, **h)),
    "kd": (_kd, each(lambda z, y, t, **h: oracles.kd(z, t, **h))),
    "logit_mse": (
        {"over_classes": OVER, "centre": st.booleans()},
        each(lambda z, y, t, **h: oracles.logit_mse(z, t, **h)),
    ),
    "hard_label": ({}, each(lambda z, y, t: oracles.hard_label(z, t))),
    "dkd": (
        {"temperature": T, "target_weight": st.floats(0, 3), "others_weight": st.floats(0, 9)},
        each(lambda z, y, t, **h: oracles.dkd(z, t, y, **h)),
    ),
    "nkd": (
        {"temperature": T, "others_weight": st.floats(0, 3)},
        each(lambda z, y, t, **h: oracles.nkd(z, t, y, **h)),
    ),
    "dist": (
        {"temperature": T, "inter_weight": st.floats(0, 3), "intra_weight": st.floats(0, 3)},
        lambda b, h: oracles.dist(b.student.logits.tolist(), b.teacher.logits.tolist(), **h),
    ),
    "hint": ({"over_features": OVER}, lambda b, h: _projected(b, **h)),
    "attention_transfer": ({}, lambda b, h: _attention(b)),
    "rkd": (
        {"distance_weight": st.floats(0, 3), "angle_weight": st.floats(0, 3)},
        lambda b, h: oracles.rkd(b.student.features.tolist(), b.teacher.features.tolist(), **h),
    ),
    "l1_penalty": (
        {},
        lambda b, h: [oracles.l1_penalty([w.tolist() for w in b.student.weights])] * len(b.labels),
    ),
    "l2_penalty": (
        {},
        lambda b, h: [oracles.l2_penalty([w.tolist() for w in b.student.weights])] * len(b.labels),
    ),
}


def settings_of(name: str, classes: int) -> st.SearchStrategy:
    """A strategy for the settings of a term on K classes."""
    drawn = CASES[name][0]
    return drawn(classes) if callable(drawn) else st.fixed_dictionaries(drawn)


# --------------------------------------------------------------------------------------------- short forms


def case(seed=0, size=16, classes=10, name="kd"):
    batch = make(name, size, classes, seed)
    return batch.student, batch.labels, batch.teacher


def gradient(term, student, labels, teacher=None, **settings):
    logits = student.logits.clone().requires_grad_()
    term(student._replace(logits=logits), labels, teacher, **settings).sum().backward()
    return logits.grad
