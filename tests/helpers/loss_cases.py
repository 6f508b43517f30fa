"""Inputs for every loss, a strategy for its settings, and its oracle."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from helpers import oracles, oracles_features
from hypothesis import strategies as st
from torch import Tensor, nn

from distill.losses import LOSSES, OnlineTargets, Outputs

LOGIT_SCALE = 8.0
"""s of the logits s·cos θ that AM-Softmax and ArcFace get."""

LOGIT_SCALES = {"am_softmax": LOGIT_SCALE, "arcface": LOGIT_SCALE, "a_softmax": 0.0}

NUM_FEATURES = 4


@dataclass
class Batch:
    """All inputs that a loss can name as its parameters; the fields have the parameters' names."""

    logits: Tensor
    labels: Tensor
    features: Tensor
    templates: Tensor
    feature_maps: list[Tensor]
    weights: list[Tensor]
    teacher_logits: Tensor
    teacher_features: Tensor
    teacher_feature_maps: list[Tensor]
    logit_scale: float | None
    projector: nn.Linear
    targets: OnlineTargets

    def arguments(self, name: str) -> dict[str, Any]:
        """Return the arguments of a loss but for its settings."""
        parameters = inspect.signature(LOSSES[name]).parameters
        return {p: getattr(self, p) for p in parameters if p in self.__dataclass_fields__}

    def call(self, name: str, **settings: Any) -> Tensor:
        """Compute a loss."""
        return LOSSES[name](**self.arguments(name), **settings)

    def leaves(self, name: str, of: str = "student") -> list[Tensor]:
        """Return the tensors of the student or the teacher that a loss reads."""
        found: list[Tensor] = []
        for parameter, value in self.arguments(name).items():
            if parameter == "labels" or parameter.startswith("teacher_") != (of == "teacher"):
                continue
            if isinstance(value, list):
                found += value
            elif isinstance(value, Tensor):
                found.append(value)
        return found

    def require_grad(self, name: str, of: str = "student") -> list[Tensor]:
        """Make the tensors of the student or the teacher that a loss reads leaves of autograd."""
        found = self.leaves(name, of)
        for leaf in found:
            leaf.requires_grad_()
        return found

    def rows(self) -> list[tuple[list[float], int, list[float]]]:
        """Return (logits, label, teacher's logits) of each example."""
        values = (self.logits.tolist(), self.labels.tolist(), self.teacher_logits.tolist())
        return list(zip(*values, strict=True))

    @property
    def student(self) -> Outputs:
        """The student's outputs, for `compute_loss`."""
        return Outputs(
            self.logits,
            self.features,
            self.templates,
            self.feature_maps,
            self.weights,
            self.logit_scale,
        )

    @property
    def teacher(self) -> Outputs:
        """The teacher's outputs, for `compute_loss`."""
        return Outputs(
            self.teacher_logits, self.teacher_features, feature_maps=self.teacher_feature_maps
        )

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules of all terms that own one."""
        return {"hint": self.projector, "online_smoothing": self.targets}


def make_batch(
    name: str = "kd",
    size: int = 16,
    num_classes: int = 10,
    seed: int = 0,
    *,
    spread: float = 3.0,
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """Return random inputs for a loss; its logits follow from the features where they must.

    Args:
        name: The loss.
        size: B.
        num_classes: K.
        seed: All values follow from it.
        spread: Standard deviation of the logits.
        dtype: Of all inputs; values are drawn in float64 and rounded.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float = spread) -> Tensor:
        return std * torch.randn(*shape, generator=generator, dtype=torch.float64)

    logits = normal(size, num_classes)
    teacher_logits = normal(size, num_classes)
    features = normal(size, NUM_FEATURES, std=1.0)
    templates = normal(num_classes, NUM_FEATURES)
    if name in ("am_softmax", "arcface"):
        cosines = 2 * torch.rand(size, num_classes, generator=generator, dtype=torch.float64) - 1
        logits = LOGIT_SCALE * 0.995 * cosines
    if name == "a_softmax":
        logits = features @ nn.functional.normalize(templates, dim=1).T
    if name == "l_softmax":
        bias = normal(num_classes, std=1.0)
        logits = features @ templates.T + bias

    # A teacher's features may have another width only where there is a projector.
    teacher_width = 3 if name == "hint" else NUM_FEATURES
    module_dtype = torch.promote_types(dtype, torch.float32)
    projector = nn.Linear(NUM_FEATURES, 3).to(module_dtype)
    nn.init.normal_(projector.weight, generator=generator)
    nn.init.normal_(projector.bias, generator=generator)
    targets = OnlineTargets(num_classes).to(module_dtype)
    targets.targets.copy_(torch.softmax(normal(num_classes, num_classes), 1))
    targets.eval()

    def cast(tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.to(dtype) for tensor in tensors]

    return Batch(
        logits=logits.to(dtype),
        labels=torch.randint(num_classes, (size,), generator=generator),
        features=features.to(dtype),
        templates=templates.to(dtype),
        feature_maps=cast([normal(size, 2, 5, 5), normal(size, 3, 2, 3)]),
        weights=cast([normal(3, 2), normal(4, 3)]),
        teacher_logits=teacher_logits.to(dtype),
        teacher_features=normal(size, teacher_width).to(dtype),
        teacher_feature_maps=cast([normal(size, 1, 5, 5), normal(size, 4, 2, 3)]),
        logit_scale=LOGIT_SCALES.get(name),
        projector=projector,
        targets=targets,
    )


def gradient(function: Callable[..., Tensor], logits: Tensor, *inputs: Any, **settings: Any):
    """Return the gradient of the summed loss with respect to the logits."""
    logits = logits.detach().clone().requires_grad_()
    function(logits, *inputs, **settings).sum().backward()
    return logits.grad


# -------------------------------------------------------------------------------------------- cases


@dataclass
class Case:
    """How to draw the settings of a loss for K classes, and its oracle for a batch."""

    settings: Callable[[int], st.SearchStrategy]
    oracle: Callable[[Batch, dict[str, Any]], list[float]]


def _fixed(**settings: st.SearchStrategy) -> Callable[[int], st.SearchStrategy]:
    """Return settings that do not depend on the number of classes."""
    return lambda num_classes: st.fixed_dictionaries(settings)


def _each(oracle: Callable[..., float]) -> Callable[[Batch, dict], list[float]]:
    """Apply an oracle for one example's (logits, label, teacher's logits) to a batch."""
    return lambda batch, settings: [oracle(z, y, t, **settings) for z, y, t in batch.rows()]


def _hint(batch: Batch, settings: dict) -> list[float]:
    projected = batch.projector(batch.features.to(batch.projector.weight.dtype)).tolist()
    theirs = batch.teacher_features.tolist()
    return [oracles_features.hint(a, b, **settings) for a, b in zip(projected, theirs, strict=True)]


def _attention_transfer(batch: Batch, settings: dict) -> list[float]:
    ours = [feature_map.tolist() for feature_map in batch.feature_maps]
    theirs = [feature_map.tolist() for feature_map in batch.teacher_feature_maps]
    return [
        oracles_features.attention_transfer([m[i] for m in ours], [m[i] for m in theirs])
        for i in range(len(batch.labels))
    ]


def _l_softmax(batch: Batch, settings: dict) -> list[float]:
    templates = batch.templates.tolist()
    bias = (batch.logits - batch.features @ batch.templates.T)[0].tolist()
    examples = zip(batch.features.tolist(), batch.labels.tolist(), strict=True)
    return [oracles.l_softmax(f, templates, bias, y, **settings) for f, y in examples]


def _a_softmax(batch: Batch, settings: dict) -> list[float]:
    templates = batch.templates.tolist()
    examples = zip(batch.features.tolist(), batch.labels.tolist(), strict=True)
    return [oracles.a_softmax(f, templates, y, **settings) for f, y in examples]


def _online_smoothing(batch: Batch, settings: dict) -> list[float]:
    targets = batch.targets.targets.tolist()
    return [oracles.online_smoothing(z, y, targets) for z, y, _ in batch.rows()]


def _dist(batch: Batch, settings: dict) -> list[float]:
    return oracles.dist(batch.logits.tolist(), batch.teacher_logits.tolist(), **settings)


def _rkd(batch: Batch, settings: dict) -> list[float]:
    return oracles_features.rkd(
        batch.features.tolist(), batch.teacher_features.tolist(), **settings
    )


def _l1_penalty(batch: Batch, settings: dict) -> float:
    return oracles.l1_penalty([weight.tolist() for weight in batch.weights])


def _l2_penalty(batch: Batch, settings: dict) -> float:
    return oracles.l2_penalty([weight.tolist() for weight in batch.weights])


def _cross_entropy_settings(num_classes: int) -> st.SearchStrategy:
    weights = st.lists(st.floats(0.1, 5), min_size=num_classes, max_size=num_classes)
    prior = weights.map(lambda w: [v / sum(w) for v in w])
    common = {"class_weights": st.none() | weights, "subtract_entropy": st.booleans()}
    over_all = {"smoothing": st.floats(0, 1), **common}
    over_wrong = {
        "smoothing": st.floats(0, (num_classes - 1) / num_classes),
        "smooth_over": st.just("wrong"),
        **common,
    }
    over_prior = {"smoothing": st.floats(0, 1), "prior": prior, **common}
    return st.one_of(*(st.fixed_dictionaries(form) for form in (over_all, over_wrong, over_prior)))


TEMPERATURE = st.floats(0.5, 10)
UNIT = st.floats(0, 1)
MARGIN = _fixed(margin=st.floats(0, 2), smoothing=UNIT)
ANGLE = _fixed(margin=st.integers(1, 5), share=UNIT, smoothing=UNIT)
MEAN_OR_SUM = st.sampled_from(["mean", "sum"])

CASES: dict[str, Case] = {
    "cross_entropy": Case(
        _cross_entropy_settings, _each(lambda z, y, t, **h: oracles.cross_entropy(z, y, **h))
    ),
    "focal": Case(
        _fixed(focus=st.floats(0, 5)), _each(lambda z, y, t, **h: oracles.focal(z, y, **h))
    ),
    "poly1": Case(
        _fixed(epsilon=st.floats(-1, 5), smoothing=UNIT),
        _each(lambda z, y, t, **h: oracles.poly1(z, y, **h)),
    ),
    "sparse_softmax": Case(
        _fixed(k=st.integers(1, 12)), _each(lambda z, y, t, **h: oracles.sparse_softmax(z, y, **h))
    ),
    "confidence_penalty": Case(_fixed(), _each(lambda z, y, t: oracles.confidence_penalty(z))),
    "max_sup": Case(_fixed(), _each(lambda z, y, t: oracles.max_sup(z))),
    "mbls": Case(
        _fixed(margin=st.floats(0, 8), over_classes=MEAN_OR_SUM),
        _each(lambda z, y, t, **h: oracles.mbls(z, **h)),
    ),
    "zipf": Case(
        _fixed(power=st.floats(0.2, 3)), _each(lambda z, y, t, **h: oracles.zipf(z, y, **h))
    ),
    "online_smoothing": Case(_fixed(), _online_smoothing),
    "sm_softmax": Case(MARGIN, _each(lambda z, y, t, **h: oracles.sm_softmax(z, y, **h))),
    "am_softmax": Case(
        MARGIN, _each(lambda z, y, t, **h: oracles.am_softmax(z, y, scale=LOGIT_SCALE, **h))
    ),
    "arcface": Case(
        MARGIN, _each(lambda z, y, t, **h: oracles.arcface(z, y, scale=LOGIT_SCALE, **h))
    ),
    "l_softmax": Case(ANGLE, _l_softmax),
    "a_softmax": Case(ANGLE, _a_softmax),
    "kd": Case(
        _fixed(
            temperature=st.floats(0.25, 20),
            student_temperature=st.none() | st.floats(0.25, 20),
            standardise=st.booleans(),
            t_squared=st.booleans(),
        ),
        _each(lambda z, y, t, **h: oracles.kd(z, t, **h)),
    ),
    "logit_mse": Case(
        _fixed(over_classes=MEAN_OR_SUM, centre=st.booleans()),
        _each(lambda z, y, t, **h: oracles.logit_mse(z, t, **h)),
    ),
    "hard_label": Case(_fixed(), _each(lambda z, y, t: oracles.hard_label(z, t))),
    "dkd": Case(
        _fixed(
            temperature=TEMPERATURE, target_weight=st.floats(0, 3), others_weight=st.floats(0, 9)
        ),
        _each(lambda z, y, t, **h: oracles.dkd(z, t, y, **h)),
    ),
    "nkd": Case(
        _fixed(temperature=TEMPERATURE, others_weight=st.floats(0, 3)),
        _each(lambda z, y, t, **h: oracles.nkd(z, t, y, **h)),
    ),
    "dist": Case(
        _fixed(temperature=TEMPERATURE, inter_weight=st.floats(0, 3), intra_weight=st.floats(0, 3)),
        _dist,
    ),
    "hint": Case(_fixed(over_features=MEAN_OR_SUM), _hint),
    "attention_transfer": Case(_fixed(), _attention_transfer),
    "rkd": Case(_fixed(distance_weight=st.floats(0, 3), angle_weight=st.floats(0, 3)), _rkd),
    "l1_penalty": Case(_fixed(), _l1_penalty),
    "l2_penalty": Case(_fixed(), _l2_penalty),
}
