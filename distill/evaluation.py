"""Predictions of a network, in order and each example once; and every metric, from predictions alone."""

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from distill.analysis import calibration, clusters, fidelity
from distill.data.loaders import evaluation_batches
from distill.data.sources import Split, Splits
from distill.data.views import normalise
from distill.models.build import input_of
from distill.recipe import Augment

BATCH = 500
TRAIN_SAMPLE = 10_000  # training examples that are evaluated and stored, spread evenly over the split


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of ``[N, K]`` logits whose largest is the label's ``[N]``, in [0, 1]."""
    return (logits.argmax(1) == labels).double().mean().item()


@torch.no_grad()
def predict(model: nn.Module, splits: Splits, split: Split, augment: Augment, device: torch.device,
            positions: Tensor | None = None, sharing: Accelerator | None = None) -> Tensor:
    """Logits ``[N, K]`` in float32 on the CPU, of a split or of some positions of it.

    With `sharing`, the processes take a part each and all get the whole; padding never counts.
    """
    positions = torch.arange(len(split)) if positions is None else positions
    world, rank = (sharing.num_processes, sharing.process_index) if sharing else (1, 0)
    own = positions.tensor_split(world)[rank]
    was_training = model.training
    model.eval()
    batches = evaluation_batches(splits, split, augment, BATCH, device, own)
    logits = [model(normalise(batch.views, *input_of(model))).float() for batch in batches]
    model.train(was_training)
    part = torch.cat(logits) if logits else torch.zeros(0, len(splits.class_names), device=device)
    if not sharing or world == 1:
        return part.cpu()
    sizes = [len(p) for p in positions.tensor_split(world)]
    whole = []
    for source, size in enumerate(sizes):
        sent = part if source == rank else part.new_zeros(size, part.shape[1])
        whole.append(broadcast(sent.contiguous(), from_process=source))
    return torch.cat(whole).cpu()


def predict_all(model: nn.Module, splits: Splits, augment: Augment, device: torch.device,
                sharing: Accelerator | None = None) -> dict[str, Tensor]:
    """What a run stores: logits and labels of test, validation and (at most 10,000 of) train."""
    result = {}
    for name, split in (("test", splits.test), ("validation", splits.validation), ("train", splits.train)):
        count = min(len(split), TRAIN_SAMPLE) if name == "train" else len(split)
        positions = torch.arange(count) * len(split) // count
        result[f"{name}.logits"] = predict(model, splits, split, augment, device, positions, sharing)
        result[f"{name}.labels"] = split.labels[positions]
    return result


def metrics(predictions: dict[str, Tensor], teacher: dict[str, Tensor] | None = None,
            temperature: float | None = None, control: dict[str, Tensor] | None = None) -> dict[str, dict[str, Any]]:
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
            "gamma": calibration.gamma(logits, labels) if teacher is None else None,
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
                "gamma": calibration.gamma(theirs, labels, temperature) if temperature else None,
            }
        if control is not None:
            others, _ = _arrays(control, split)
            result[split] |= {"agreement_control": fidelity.agreement(logits, others),
                              "kl_control": fidelity.kl_to_teacher(logits, others)}
    return result


def own_metrics(logits: np.ndarray, labels: np.ndarray, temperature: float | None) -> dict[str, Any]:
    """What a network's logits ``[N, K]`` alone tell: fractions in [0, 1], nats; None where it does not apply.

    Args:
        logits: of N images.
        labels: ``[N]``.
        temperature: that was fitted on other images, if one was.
    """
    correct = calibration.top_k_correct(logits, labels)
    gap, gap_sd = clusters.logit_gap(logits, labels)
    return {
        "top1": float(correct.mean()),
        "top5": float(calibration.top_k_correct(logits, labels, 5).mean()) if logits.shape[1] > 5 else None,
        "errors": int((~correct).sum()),
        "count": len(labels),
        "nll": calibration.nll(logits, labels),
        "brier": calibration.brier(logits, labels),
        "ece": calibration.ece(logits, labels),
        "fitted_temperature": temperature,
        "ece_scaled": calibration.ece(logits, labels, temperature=temperature) if temperature else None,
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
