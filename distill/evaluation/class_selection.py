"""Select the classes for a study's feature plots and for its information estimate."""

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.data.splits import Splits
from distill.errors import UserError, suggest
from distill.evaluation.geometry import confused_and_far, most_confused, shared_probability
from distill.recipe.schema import Analysis


@dataclass(frozen=True)
class SelectedClasses:
    """Classes by their index.

    Attributes:
        triples: three classes each, for planes; empty where fewer than three classes have examples.
        pair: two classes, for the information estimate; empty where fewer than two classes have
            examples.
    """

    triples: list[list[int]]
    pair: list[int]


def select_classes(
    settings: Analysis, class_names: list[str], predictions: dict[str, Tensor]
) -> SelectedClasses:
    """Select the classes that a recipe names, or those that a network confuses most.

    Confusion is measured on the validation split. By default there are two triples. The first has
    the three most confused classes. The second has the two most confused classes and the class that
    is confused least with them. The default pair is the first and the last class of the second
    triple. Classes without training or validation examples (`data.background` adds one) are
    selected only by name.

    Args:
        settings: the recipe's analysis settings, with `classes` and `pair`.
        class_names: the names of all K classes.
        predictions: the predictions of one run, as `predict_all` returns them.

    Raises:
        UserError: if the data have no class of that name, or a class is named twice.
    """
    occurring = _occurring_classes(predictions, len(class_names))
    shared = shared_probability(
        predictions["validation.logits"].numpy(), predictions["validation.labels"].numpy()
    )
    shared = shared[occurring][:, occurring]

    triples: list[list[int]] = []
    pair: list[int] = []
    if len(occurring) > 2:
        confused = [occurring[i] for i in most_confused(shared)]
        with_far = [occurring[i] for i in confused_and_far(shared)]
        triples = [confused, with_far]
        if sorted(confused) == sorted(with_far):  # always so with three classes
            triples = [confused]
        pair = [with_far[0], with_far[2]]
    elif len(occurring) == 2:
        pair = occurring

    if settings.classes:
        triples = [class_indices(settings.classes, class_names)]
    if settings.pair:
        pair = class_indices(settings.pair, class_names)
    return SelectedClasses(triples, pair)


def _occurring_classes(predictions: dict[str, Tensor], classes: int) -> list[int]:
    """Return the classes that have both training and validation examples."""
    occurs = torch.ones(classes, dtype=torch.bool)
    for split in ("train", "validation"):
        occurs &= predictions[f"{split}.labels"].bincount(minlength=classes) > 0
    return occurs.nonzero()[:, 0].tolist()


def check_class_names(settings: Analysis, splits: Splits) -> None:
    """Check, before any training, that a recipe names classes that can be analysed.

    Raises:
        UserError: naming the key, if there is no such class, if one is named twice, or if a class
            of the pair has no training images.
    """
    for key in ("classes", "pair"):
        try:
            indices = class_indices(getattr(settings, key) or [], splits.class_names)
        except UserError as error:
            raise UserError(f"analysis.{key}: {error}") from None
        if key == "classes":
            continue
        for index in indices:
            if not (splits.train.labels == index).any():
                raise UserError(
                    "analysis.pair: there is no training image of class "
                    f"'{splits.class_names[index]}'; name another class"
                )


def class_indices(names: list[str], class_names: list[str]) -> list[int]:
    """Return the indices of classes by name.

    Raises:
        UserError: if there is no class of that name, or a class is named twice.
    """
    for name in names:
        if name not in class_names:
            raise UserError(f"there is no class '{name}'; {suggest(name, class_names)}")
    if len(set(names)) != len(names):
        raise UserError(f"expected {len(names)} different classes, got {', '.join(names)}")
    return [class_names.index(name) for name in names]
