"""Match the classes of a network with the classes of images, by name."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from distill.errors import UserError, suggest

MOST_NAMES = 10  # class names that a message lists


class ClassMatch(NamedTuple):
    """Which output of a network belongs to each class of the images.

    Attributes:
        outputs: for each class of the images, the number of the network's output.
        note: a sentence if classes are not matched by name, or if outputs are left out.
    """

    outputs: list[int]
    note: str = ""

    def is_identity(self, num_outputs: int) -> bool:
        """Return whether all outputs of the network are the classes, in the same order."""
        return self.outputs == list(range(num_outputs))


def match_classes(
    network_names: Sequence[str] | None, num_outputs: int, image_names: Sequence[str]
) -> ClassMatch:
    """Match the outputs of a network with the classes of images.

    Classes are matched by name. If the outputs have no names, or only one of both sides has names
    that are mere numbers, they are matched by position, and the note says so.

    Args:
        network_names: the names of the network's outputs, or None.
        num_outputs: the number of the network's outputs.
        image_names: the names of the images' classes; the network may have more classes.

    Raises:
        UserError: if the network lacks a class of the images, or if both have other numbers of
            classes and no names.
    """
    if network_names and len(network_names) != num_outputs:
        raise UserError(
            f"the network has {num_outputs} outputs, but its configuration names "
            f"{len(network_names)} classes: {_listed(network_names)}; correct label_names in its "
            "config.json"
        )
    if not network_names or _is_count(network_names, image_names):
        return _match_by_position(network_names, num_outputs, image_names)
    output_of = {standard_form(name): number for number, name in enumerate(network_names)}
    names = [standard_form(name) for name in image_names]
    missing = [name for name in names if name not in output_of]
    one_side_has_names = are_numbers(network_names) != are_numbers(image_names)
    if missing and one_side_has_names:
        return _match_by_position(network_names, num_outputs, image_names)
    if missing:
        raise UserError(
            f"the images have a class '{missing[0]}', which the network does not have "
            f"({suggest(missing[0], output_of)}); {_both_lists(network_names, image_names)}. Give "
            "the classes the same names: rename the folders, or change label_names in the "
            "network's config.json"
        )
    counts = Counter(map(standard_form, network_names))
    repeated = [name for name in names if counts[name] > 1]
    if repeated:
        raise UserError(f"the network has several classes named '{repeated[0]}'")
    note = ""
    if len(names) < num_outputs:
        note = (
            f"of the network's {num_outputs} classes, the {len(names)} of the images are used, by "
            "name"
        )
    return ClassMatch([output_of[name] for name in names], note)


def _match_by_position(
    network_names: Sequence[str] | None, num_outputs: int, image_names: Sequence[str]
) -> ClassMatch:
    if num_outputs != len(image_names):
        lists = f"; {_both_lists(network_names, image_names)}" if network_names else ""
        raise UserError(
            f"the network has {num_outputs} classes without names that match, so it fits only "
            f"images of {num_outputs} classes; these images have {len(image_names)}{lists}"
        )
    reason = "its outputs have no names"
    if network_names:
        side = "its outputs" if are_numbers(network_names) else "the classes of the images"
        reason = f"{side} have names that are only numbers"
    note = f"the network's classes are taken to be those of the images, in the same order: {reason}"
    return ClassMatch(list(range(num_outputs)), note)


def names_of_outputs(
    model: nn.Module, image_names: Sequence[str] | None = None
) -> list[str] | None:
    """Return the names of a network's outputs; None if they have none.

    The classes of an ImageNet network of timm have several names each. If the images' classes have
    English names, so have the outputs; else they have WordNet identifiers, which are the names of
    ImageNet's folders.

    Args:
        model: a network with timm's `pretrained_cfg`.
        image_names: the names of the images' classes, if known.
    """
    stored = stored_names(getattr(model, "pretrained_cfg", None) or {})
    if stored:
        return stored
    subset = infer_imagenet_subset(model)
    if not subset:
        return None
    info = ImageNetInfo(subset)
    identifiers = info.label_names()
    # The networks of TF-slim have a background class beside those of ImageNet.
    if len(identifiers) != model.num_classes:
        return None
    wanted = {standard_form(name) for name in image_names or ()}
    if wanted and not wanted <= set(identifiers):
        for detailed in (False, True):
            described = info.label_descriptions(detailed=detailed)
            english = [standard_form(text) for text in described]
            first_words = [text.split(",")[0] for text in english]
            for names in (english, first_words):
                if wanted <= set(names):
                    return names
    return identifiers


def stored_names(config: dict[str, Any]) -> list[str] | None:
    """Return the names of the classes in a network's configuration; None without names.

    They are a list, or a mapping from numbers to names (transformers call it `id2label`).
    """
    names = config.get("label_names") or config.get("id2label")
    if not names:
        return None
    if isinstance(names, dict):
        # timm also allows a mapping from names to descriptions.
        is_by_number = are_numbers(list(map(str, names)))
        names = [names[key] for key in sorted(names, key=int)] if is_by_number else list(names)
    return [str(name) for name in names]


def are_numbers(names: Sequence[str]) -> bool:
    """Return whether the names of classes are mere numbers, as those of classes without names."""
    return all(name.isdecimal() for name in names)


def _is_count(network_names: Sequence[str], image_names: Sequence[str]) -> bool:
    """Return whether both sides count their classes from 0, and to different numbers.

    This is how classes without names are named, so equal numbers do not mean equal classes.
    """
    counts = [list(map(str, range(len(names)))) for names in (network_names, image_names)]
    return counts == [list(network_names), list(image_names)] and counts[0] != counts[1]


def standard_form(name: str) -> str:
    """Return a name with composed letters, so that names that look the same are the same."""
    return unicodedata.normalize("NFC", str(name))


def _both_lists(network_names: Sequence[str] | None, image_names: Sequence[str]) -> str:
    return (
        f"the network's classes: {_listed(network_names or [])}; the images' classes: "
        f"{_listed(image_names)}"
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(str, names[:MOST_NAMES]))
    return f"{shown}, … ({len(names)} in all)" if len(names) > MOST_NAMES else shown
