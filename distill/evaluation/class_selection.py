"""Which images and classes are looked at, and what a network says of them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from distill.data.augment import normalise
from distill.data.loaders import evaluation_batches
from distill.data.splits import Split, Splits
from distill.errors import UserError, suggest
from distill.evaluation.geometry import confused_and_far, most_confused, shared_probability
from distill.evaluation.predict import predict
from distill.models.cosine_head import CosineHead
from distill.models.factory import input_config
from distill.models.hooks import capture_features, last_layer
from distill.recipe.schema import Analysis, Augment

AT_ONCE = 2**22  # values of images that go through a network together where gradients reach them


class SelectedClasses(NamedTuple):
    """The classes that a study's pictures and its information are about.

    Attributes:
        triples: three classes each, for planes; empty where there are fewer than three classes with examples.
        pair: two classes, or none.
    """

    triples: list[list[int]]
    pair: list[int]


def select_classes(
    settings: Analysis, names: list[str], predictions: dict[str, Tensor]
) -> SelectedClasses:
    """The classes that the recipe names, else those that a network confuses most on the validation split, and far ones.

    Classes without training or validation examples (`data.background` makes one) are chosen by name alone.

    Raises:
        UserError: if the data have no class of a name, or one is named twice.
    """
    labels = [predictions[f"{split}.labels"] for split in ("train", "validation")]
    there = (
        torch.stack([own.bincount(minlength=len(names)) > 0 for own in labels])
        .all(0)
        .nonzero()[:, 0]
        .tolist()
    )
    shared = shared_probability(
        predictions["validation.logits"].numpy(), predictions["validation.labels"].numpy()
    )
    shared = shared[there][:, there]
    triples = (
        [[there[i] for i in chosen(shared)] for chosen in (most_confused, confused_and_far)]
        if len(there) > 2
        else []
    )
    pair = [triples[1][0], triples[1][2]] if triples else there if len(there) == 2 else []
    if triples and sorted(triples[0]) == sorted(triples[1]):
        del triples[1]  # of three classes, say
    if settings.classes:
        triples = [class_indices(settings.classes, names)]
    return SelectedClasses(triples, class_indices(settings.pair, names) if settings.pair else pair)


def check_class_names(settings: Analysis, splits: Splits) -> None:
    """UserError, before any training, if a recipe names classes that cannot be looked at."""
    for key, wanted in (("classes", settings.classes), ("pair", settings.pair)):
        try:
            numbers = class_indices(wanted or [], splits.class_names)
        except UserError as error:
            raise UserError(f"analysis.{key}: {error}") from None
        for k in numbers if key == "pair" else ():
            if not (splits.train.labels == k).any():
                raise UserError(
                    f"analysis.pair: there is no training image of class '{splits.class_names[k]}'"
                )


def class_indices(wanted: list[str], names: list[str]) -> list[int]:
    """The numbers of classes by their names; UserError if there is none of a name, or one is named twice."""
    for name in wanted:
        if name not in names:
            raise UserError(f"there is no class '{name}'; {suggest(name, names)}")
    if len(set(wanted)) != len(wanted):
        raise UserError(f"name {len(wanted)} different classes, got {', '.join(wanted)}")
    return [names.index(name) for name in wanted]


def first_per_class(labels: Tensor, classes: list[int], count: int) -> Tensor:
    """Positions of the first `count` examples of each of some classes, in order."""
    found = [(labels == k).nonzero()[:count, 0] for k in classes]
    return torch.cat(found).sort().values if found else torch.zeros(0, dtype=torch.long)


def spread(count: int, wanted: int) -> Tensor:
    """At most `wanted` of so many positions, evenly spread."""
    wanted = min(count, wanted)
    return torch.arange(wanted) * count // max(wanted, 1)


def features_and_logits(
    model: nn.Module,
    splits: Splits,
    split: Split,
    augment: Augment,
    device: torch.device,
    positions: Tensor,
) -> tuple[Tensor, Tensor]:
    """Penultimate features ``[N, D]`` and logits ``[N, K]`` of some positions of a split, on the CPU.

    Features that go into a cosine head with a scale have length 1: it sees their direction alone.

    Raises:
        UserError: if the network has no single last layer.
    """
    with capture_features(model) as seen:
        logits = predict(model, splits, split, augment, device, positions)
    features = torch.cat([part.float().cpu() for part in seen]) if seen else torch.zeros(0, 1)
    head = last_layer(model)
    return normalize(features, dim=1) if isinstance(
        head, CosineHead
    ) and head.scale else features, logits


def images_of(
    splits: Splits, split: Split, augment: Augment, device: torch.device, positions: Tensor
) -> Tensor:
    """ImageDataset ``[N, C, H, W]`` as they are judged, uint8."""
    return torch.cat(
        [
            batch.views
            for batch in evaluation_batches(splits, split, augment, 500, device, positions)
        ]
    )


def answers(model: nn.Module, pixels: Tensor) -> Tensor:
    """Logits ``[B, K]`` in float32 of pixels in [0, 255] that the network itself normalises."""
    return model(normalise(pixels, *input_config(model))).float()


def in_parts(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Tensors of N examples, cut alike into parts that fit a device with their gradients."""
    size = max(1, min(500, AT_ONCE // max(1, tensors[0][0].numel()))) if len(tensors[0]) else 1
    return list(zip(*(tensor.split(size) for tensor in tensors), strict=True))
