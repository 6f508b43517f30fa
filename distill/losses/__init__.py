"""Losses on labels and on teachers: plain functions, `Criterion` for a loop of one's own, and `TERMS`, their table."""

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
from distill.losses.terms import NEEDS, PARTS, TERMS, make_parts, needs_of, weighted_sum, with_shares

__all__ = [
    "IGNORED", "NEEDS", "PARTS", "TERMS", "Criterion", "OnlineTargets", "Outputs", "a_softmax", "am_softmax", "arcface",
    "attention_transfer", "confidence_penalty", "convert_smoothing", "cross_entropy", "dist", "dkd", "ensemble",
    "focal", "hard_label", "hint", "kd", "l1_penalty", "l2_penalty", "l_softmax", "logit_mse", "make_parts",
    "max_sup", "mbls", "needs_of", "nkd", "online_smoothing", "optimal_logit_gap", "poly1", "rkd", "sm_softmax",
    "smoothed_targets", "sparse_probabilities", "sparse_softmax", "weighted_sum",
    "with_shares", "zipf",
]
