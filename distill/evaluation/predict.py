"""Predictions of a network, in order and each example once; and every metric, from predictions alone."""

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from distill.data.augment import normalise
from distill.data.loaders import evaluation_batches
from distill.data.splits import Split, Splits
from distill.models.factory import input_config
from distill.recipe.schema import Augment

BATCH = 500
TRAIN_SAMPLE = (
    10_000  # training examples that are evaluated and stored, spread evenly over the split
)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of ``[N, K]`` logits whose largest is the label's ``[N]``, in [0, 1]."""
    return (logits.argmax(1) == labels).double().mean().item()


@torch.no_grad()
def predict(
    model: nn.Module,
    splits: Splits,
    split: Split,
    augment: Augment,
    device: torch.device,
    positions: Tensor | None = None,
    sharing: Accelerator | None = None,
) -> Tensor:
    """Logits ``[N, K]`` in float32 on the CPU, of a split or of some positions of it.

    With `sharing`, the processes take a part each and all get the whole; padding never counts.
    """
    positions = torch.arange(len(split)) if positions is None else positions
    world, rank = (sharing.num_processes, sharing.process_index) if sharing else (1, 0)
    own = positions.tensor_split(world)[rank]
    was_training = model.training
    model.eval()
    batches = evaluation_batches(splits, split, augment, BATCH, device, own)
    logits = [model(normalise(batch.views, *input_config(model))).float() for batch in batches]
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


def predict_all(
    model: nn.Module,
    splits: Splits,
    augment: Augment,
    device: torch.device,
    sharing: Accelerator | None = None,
) -> dict[str, Tensor]:
    """What a run stores: logits and labels of test, validation and (at most 10,000 of) train."""
    result = {}
    for name, split in (
        ("test", splits.test),
        ("validation", splits.validation),
        ("train", splits.train),
    ):
        count = min(len(split), TRAIN_SAMPLE) if name == "train" else len(split)
        positions = torch.arange(count) * len(split) // count
        result[f"{name}.logits"] = predict(
            model, splits, split, augment, device, positions, sharing
        )
        result[f"{name}.labels"] = split.labels[positions]
    return result
