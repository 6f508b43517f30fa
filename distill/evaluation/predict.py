"""Compute a network's outputs: logits in the order of a split, and penultimate features."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from distill.data.augment import normalise
from distill.data.loaders import evaluation_batches
from distill.data.splits import Split, Splits
from distill.devices.distributed import ONE_PROCESS, Distributed
from distill.evaluation.examples import BATCH_SIZE, evenly_spaced
from distill.models.cosine_head import CosineHead
from distill.models.factory import input_config
from distill.models.hooks import capture_features, last_layer
from distill.recipe.schema import Augment

MAX_TRAIN_EXAMPLES = 10_000  # largest number of training examples with stored predictions


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the fraction of logits ``[N, K]`` whose largest is that of their label, in [0, 1]."""
    return (logits.argmax(1) == labels).double().mean().item()


def forward_logits(model: nn.Module, pixels: Tensor) -> Tensor:
    """Return the logits ``[B, K]``, float32, of pixels in [0, 255].

    The pixels are normalised and resized as the network needs them.
    """
    return model(normalise(pixels, *input_config(model))).float()


@torch.no_grad()
def predict(
    model: nn.Module,
    splits: Splits,
    split: Split,
    augment: Augment,
    device: torch.device,
    positions: Tensor | None = None,
    dist: Distributed = ONE_PROCESS,
) -> Tensor:
    """Compute a network's logits on a split, without random augmentation and in eval mode.

    Args:
        model: the network, on the device; afterwards it is in train or eval mode as before.
        splits: the data that the split belongs to.
        split: the split.
        augment: the arm's augmentation, whose crop decides how images are cropped.
        device: where the network is.
        positions: positions in the split ``[N]``, on the CPU; by default all of it.
        dist: processes that share the work. Each predicts a part, without padding, and all get all
            logits.

    Returns:
        ``[N, K]``, float32, on the CPU.
    """
    if positions is None:
        positions = torch.arange(len(split))
    parts = positions.tensor_split(dist.world_size)
    batches = evaluation_batches(splits, split, augment, BATCH_SIZE, device, parts[dist.rank])

    was_training = model.training
    model.eval()
    logits = [forward_logits(model, batch.views) for batch in batches]
    model.train(was_training)

    own = torch.cat(logits) if logits else torch.zeros(0, len(splits.class_names), device=device)
    if dist.is_single:
        return own.cpu()
    whole = []
    for rank, part in enumerate(parts):
        sent = own if rank == dist.rank else own.new_zeros(len(part), own.shape[1])
        whole.append(dist.broadcast(sent.contiguous(), rank))
    return torch.cat(whole).cpu()


def predict_all(
    model: nn.Module,
    splits: Splits,
    augment: Augment,
    device: torch.device,
    dist: Distributed = ONE_PROCESS,
) -> dict[str, Tensor]:
    """Compute the predictions that a run stores.

    Args:
        model: the network, on the device.
        splits: the study's data.
        augment: the arm's augmentation.
        device: where the network is.
        dist: processes that share the work.

    Returns:
        ``SPLIT.logits [N, K]`` and ``SPLIT.labels [N]`` for test, validation and train; of train at
        most 10,000 examples, evenly spaced.
    """
    positions = {
        "test": torch.arange(len(splits.test)),
        "validation": torch.arange(len(splits.validation)),
        "train": evenly_spaced(len(splits.train), MAX_TRAIN_EXAMPLES),
    }
    result = {}
    for name, chosen in positions.items():
        split = getattr(splits, name)
        result[f"{name}.logits"] = predict(model, splits, split, augment, device, chosen, dist)
        result[f"{name}.labels"] = split.labels[chosen]
    return result


def features_and_logits(
    model: nn.Module,
    splits: Splits,
    split: Split,
    augment: Augment,
    device: torch.device,
    positions: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute penultimate features ``[N, D]`` and logits ``[N, K]`` of a split at some positions.

    Both are on the CPU. Features in front of a cosine head with a scale are returned with length 1:
    the head uses their direction only.

    Raises:
        UserError: if the network has no single last layer.
    """
    with capture_features(model) as captured:
        logits = predict(model, splits, split, augment, device, positions)
    features = torch.zeros(0, 1)
    if captured:
        features = torch.cat([batch.float().cpu() for batch in captured])
    head = last_layer(model)
    if isinstance(head, CosineHead) and head.scale:
        features = normalize(features, dim=1)
    return features, logits
