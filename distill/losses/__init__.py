"""Losses on labels and on teachers: plain functions, `Criterion` for a loop of one's own, and `LOSSES`, their table."""

from distill.losses.common import IGNORED, Outputs
from distill.losses.criterion import Criterion
from distill.losses.distillation import dist, dkd, ensemble, hard_label, kd, logit_mse, nkd
from distill.losses.features import attention_transfer, hint, rkd
from distill.losses.labels import (
    confidence_penalty,
    convert_smoothing,
    cross_entropy,
    focal,
    max_sup,
    mbls,
    optimal_logit_gap,
    poly1,
    smoothed_targets,
    sparse_probabilities,
    sparse_softmax,
    zipf,
)
from distill.losses.margins import a_softmax, am_softmax, arcface, l_softmax, sm_softmax
from distill.losses.online import OnlineTargets, online_smoothing
from distill.losses.penalties import l1_penalty, l2_penalty
from distill.losses.registry import (
    LOSS_MODULES,
    LOSSES,
    REQUIRED_OUTPUTS,
    compute_loss,
    make_loss_modules,
    required_outputs,
    resolve_priors,
)

__all__ = [
    "IGNORED",
    "REQUIRED_OUTPUTS",
    "LOSS_MODULES",
    "LOSSES",
    "Criterion",
    "OnlineTargets",
    "Outputs",
    "a_softmax",
    "am_softmax",
    "arcface",
    "attention_transfer",
    "confidence_penalty",
    "convert_smoothing",
    "cross_entropy",
    "dist",
    "dkd",
    "ensemble",
    "focal",
    "hard_label",
    "hint",
    "kd",
    "l1_penalty",
    "l2_penalty",
    "l_softmax",
    "logit_mse",
    "make_loss_modules",
    "max_sup",
    "mbls",
    "required_outputs",
    "nkd",
    "online_smoothing",
    "optimal_logit_gap",
    "poly1",
    "rkd",
    "sm_softmax",
    "smoothed_targets",
    "sparse_probabilities",
    "sparse_softmax",
    "compute_loss",
    "resolve_priors",
    "zipf",
]
