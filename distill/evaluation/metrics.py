"""Predictions of a network, in order and each example once; and every metric, from predictions alone."""

from typing import Any

import numpy as np
from torch import Tensor

from distill.evaluation import calibration, fidelity, geometry


def metrics(
    predictions: dict[str, Tensor],
    teacher: dict[str, Tensor] | None = None,
    temperature: float | None = None,
    control: dict[str, Tensor] | None = None,
) -> dict[str, dict[str, Any]]:
    """Every metric of a run on each split: fractions in [0, 1], nats; None where it does not apply.

    Args:
        predictions: of the run, as `predict_all` returns them.
        teacher: of its teacher, for fidelity.
        temperature: the teacher's in the run's loss, for `gamma` of what the student learned from. Without
            a teacher, gamma is the network's own at temperature 1.
        control: of a teacher that the student never saw, made like its own (another seed): as much fidelity as
            two such networks have anyway (Stanton et al. 2021).
    """
    fitted = fitted_temperature(predictions)
    result = {}
    for split in ("test", "validation", "train"):
        logits, labels = _arrays(predictions, split)
        result[split] = own_metrics(logits, labels, fitted) | {
            "effective_smoothing": calibration.effective_smoothing(logits, labels)
            if teacher is None
            else None,
            "agreement": None,
            "kl_to_teacher": None,
            "agreement_control": None,
            "kl_control": None,
        }
        if teacher is not None:
            theirs, _ = _arrays(teacher, split)
            result[split] |= {
                "agreement": fidelity.agreement(logits, theirs),
                "kl_to_teacher": fidelity.kl_to_teacher(logits, theirs),
                "effective_smoothing": calibration.effective_smoothing(theirs, labels, temperature)
                if temperature
                else None,
            }
        if control is not None:
            others, _ = _arrays(control, split)
            result[split] |= {
                "agreement_control": fidelity.agreement(logits, others),
                "kl_control": fidelity.kl_to_teacher(logits, others),
            }
    return result


def own_metrics(
    logits: np.ndarray, labels: np.ndarray, temperature: float | None
) -> dict[str, Any]:
    """What a network's logits ``[N, K]`` alone tell: fractions in [0, 1], nats; None where it does not apply.

    Args:
        logits: of N images.
        labels: ``[N]``.
        temperature: that was fitted on other images, if one was.
    """
    correct = calibration.top_k_correct(logits, labels)
    gap, gap_sd = geometry.logit_gap(logits, labels)
    return {
        "top1": float(correct.mean()),
        "top5": float(calibration.top_k_correct(logits, labels, 5).mean())
        if logits.shape[1] > 5
        else None,
        "errors": int((~correct).sum()),
        "count": len(labels),
        "nll": calibration.nll(logits, labels),
        "brier": calibration.brier(logits, labels),
        "ece": calibration.ece(logits, labels),
        "fitted_temperature": temperature,
        "ece_scaled": calibration.ece(logits, labels, temperature=temperature)
        if temperature
        else None,
        "ece_equal_mass": calibration.ece_equal_mass(logits, labels),
        "ece_classwise": calibration.ece_classwise(logits, labels),
        "nll_scaled": calibration.nll(logits, labels, temperature) if temperature else None,
        "logit_gap": gap,
        "logit_gap_sd": gap_sd,
        "stability": fidelity.stability(logits, labels),
    }


def fitted_temperature(predictions: dict[str, Tensor]) -> float:
    """The temperature that makes a run's answers on the validation split likeliest: its calibration."""
    return calibration.fit_temperature(*_arrays(predictions, "validation"))


def _arrays(predictions: dict[str, Tensor], split: str) -> tuple[np.ndarray, np.ndarray]:
    return predictions[f"{split}.logits"].numpy(), predictions[f"{split}.labels"].numpy()
