"""Compute all metrics of a run from its stored predictions."""

from typing import Any

import numpy as np
from torch import Tensor

from distill.evaluation import calibration, fidelity, geometry

SPLITS = ("test", "validation", "train")


def metrics(
    predictions: dict[str, Tensor],
    teacher: dict[str, Tensor] | None = None,
    temperature: float | None = None,
    control: dict[str, Tensor] | None = None,
) -> dict[str, dict[str, Any]]:
    """Compute all metrics of a run on each split.

    Metrics are fractions in [0, 1] or in nats, and None where they do not apply.

    Args:
        predictions: the run's predictions, as `predict_all` returns them.
        teacher: the predictions of its teacher, for fidelity.
        temperature: the distillation temperature of the run's loss. The effective smoothing γ is
            that of the teacher's outputs at this temperature. Without a teacher, γ is that of the
            network itself at temperature 1.
        control: predictions of a control teacher: trained like the student's own but with another
            seed, and never seen by the student. The fidelity to it is what any two such networks
            have (Stanton et al. 2021).

    Returns:
        by split (test, validation, train), the metrics by name.
    """
    fitted = fitted_temperature(predictions)
    result = {}
    for split in SPLITS:
        logits, labels = _arrays(predictions, split)
        values = own_metrics(logits, labels, fitted)
        values["effective_smoothing"] = None
        values |= {"agreement": None, "kl_to_teacher": None}
        values |= {"agreement_control": None, "kl_control": None}

        if teacher is None:
            values["effective_smoothing"] = calibration.effective_smoothing(logits, labels)
        else:
            teacher_logits, _ = _arrays(teacher, split)
            values["agreement"] = fidelity.agreement(logits, teacher_logits)
            values["kl_to_teacher"] = fidelity.kl_to_teacher(logits, teacher_logits)
            if temperature:
                values["effective_smoothing"] = calibration.effective_smoothing(
                    teacher_logits, labels, temperature
                )

        if control is not None:
            control_logits, _ = _arrays(control, split)
            values["agreement_control"] = fidelity.agreement(logits, control_logits)
            values["kl_control"] = fidelity.kl_to_teacher(logits, control_logits)

        result[split] = values
    return result


def own_metrics(
    logits: np.ndarray, labels: np.ndarray, temperature: float | None
) -> dict[str, Any]:
    """Compute the metrics that need only a network's own logits: fractions in [0, 1], nats.

    Args:
        logits: ``[N, K]``.
        labels: ``[N]``.
        temperature: calibration temperature, fitted on other images; None if there is none.

    Returns:
        the metrics by name, None where one does not apply.
    """
    correct = calibration.top_k_correct(logits, labels)
    top5 = None
    if logits.shape[1] > 5:
        top5 = float(calibration.top_k_correct(logits, labels, 5).mean())

    ece_scaled = None
    nll_scaled = None
    if temperature:
        ece_scaled = calibration.ece(logits, labels, temperature=temperature)
        nll_scaled = calibration.nll(logits, labels, temperature)

    gap, gap_sd = geometry.logit_gap(logits, labels)
    return {
        "top1": float(correct.mean()),
        "top5": top5,
        "errors": int((~correct).sum()),
        "count": len(labels),
        "nll": calibration.nll(logits, labels),
        "brier": calibration.brier(logits, labels),
        "ece": calibration.ece(logits, labels),
        "fitted_temperature": temperature,
        "ece_scaled": ece_scaled,
        "ece_equal_mass": calibration.ece_equal_mass(logits, labels),
        "ece_classwise": calibration.ece_classwise(logits, labels),
        "nll_scaled": nll_scaled,
        "logit_gap": gap,
        "logit_gap_sd": gap_sd,
        "stability": fidelity.stability(logits, labels),
    }


def fitted_temperature(predictions: dict[str, Tensor]) -> float:
    """Return a run's calibration temperature, from its validation split; 1 if none is better."""
    logits, labels = _arrays(predictions, "validation")
    return calibration.choose_temperature(logits, labels)


def _arrays(predictions: dict[str, Tensor], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits ``[N, K]`` and labels ``[N]`` of one split."""
    return predictions[f"{split}.logits"].numpy(), predictions[f"{split}.labels"].numpy()
