"""The history of a run: one entry for each epoch."""

from typing import Any

from torch import Tensor, nn

from distill.evaluation.predict import accuracy
from distill.evaluation.weight_norms import norms, template_spread, total
from distill.models.heads import last_linear
from distill.models.hooks import templates, weight_decay_params
from distill.training.meters import EpochMeans
from distill.training.state import TrainState


def history_entry(
    student: TrainState, means: EpochMeans, logits: Tensor, labels: Tensor
) -> dict[str, Any]:
    """Return one epoch's entry for `history.jsonl`.

    Args:
        student: its state after the epoch.
        means: loss and accuracy over the epoch's training images.
        logits: `[N, K]`, on the validation split.
        labels: `[N]`.
    """
    entry = {
        "epoch": student.epoch,
        "lr": student.lr,
        "loss": means.loss,
        "train": {"top1": means.top1},
        "terms": means.terms,
        "validation": {
            "top1": accuracy(logits, labels),
            "nll": nn.functional.cross_entropy(logits.double(), labels).item(),
        },
    }
    if student.initial_weights is not None:
        entry["weights"] = weight_norm_entry(student.eval_model, student.initial_weights)
    return entry


def weight_norm_entry(model: nn.Module, initial: dict[str, Tensor]) -> dict[str, Any]:
    """Return weight norms and distances from the initial weights, by layer and in total."""
    weights = {name: weight.detach() for name, weight in weight_decay_params(model).items()}
    spread = None
    if last_linear(model) is not None:
        spread = template_spread(templates(model).detach())
    return {
        "total": total(weights, initial),
        "template_spread": spread,
        "layers": {name: norms(weight, initial[name]) for name, weight in weights.items()},
    }
