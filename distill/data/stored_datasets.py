"""Stored data sets: local folders, tar files and shards, and data sets that timm opens by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from distill.data.class_folders import open_classes, refuse_unknown_classes
from distill.data.content_index import Track, untracked
from distill.data.hf_datasets import open_hf_dataset
from distill.data.image_dataset import ImageDataset, OpenedDataset
from distill.data.shards import all_shards, find_shards, open_shards, unknown_split_message
from distill.data.split_folders import find_splits, standard_name
from distill.data.stored_files import Location
from distill.data.timm_datasets import choose_format, open_by_timm, open_sample
from distill.errors import UserError, pluralize
from distill.recipe.schema import Data


class NativeSize(NamedTuple):
    """The image size that a study's pretrained networks were trained with.

    Attributes:
        side: height and width in pixels.
        network: the name of the network with the largest side; empty if no network is pretrained.
    """

    side: int = 224
    network: str = ""


@dataclass(frozen=True)
class StoredOptions:
    """The properties in which kinds of stored sources differ.

    Attributes:
        test_split: name of the source's test split, unless the recipe names another one.
        download: whether timm may download the data set.
        may_be_grey: whether grey images stay grey; otherwise they become RGB.
    """

    test_split: str = "test"
    download: bool = False
    may_be_grey: bool = False


class _Origin(NamedTuple):
    """Where one split is.

    Attributes:
        name: the split's name.
        files: its folder or archive, for local files.
    """

    name: str
    files: Location | None = None


def open_stored(
    data: Data, native: NativeSize, options: StoredOptions, track: Track = untracked
) -> OpenedDataset:
    """Open every split of a stored data set; all get the format of the training split.

    Raises:
        UserError: if a split is missing, empty or damaged, if two splits are the same, or if a
            split has classes or an image size that the training split does not have.
    """
    notes: list[str] = []
    origins = _find_origins(data, options, notes)
    _refuse_equal_splits(origins)

    train, class_names = _open_split(data, origins.pop("train"), None, options, notes)
    _set_training_format(train, data, native, options, notes, track)

    splits = {"train": train}
    for role, origin in origins.items():
        images, names = _open_split(data, origin, class_names, options, notes)
        match_classes(images, names, train, class_names, f"{role} split of {data.source}")
        _set_format_of_training(role, images, train)
        splits[role] = images

    for role, images in splits.items():
        if images.left_out:
            notes.append(_left_out_note(role, images.left_out))
    return OpenedDataset(splits, class_names, notes)


def _find_origins(data: Data, options: StoredOptions, notes: list[str]) -> dict[str, _Origin]:
    """Return the origin of each split that the source has, "train" first."""
    if data.source in ("folder", "tar"):
        found = find_splits(data, notes)
        return {role: _Origin(role, files) for role, files in found.items() if files}

    test = data.test
    if test is None:
        test = options.test_split
        # Shards of ImageNet, for example, have a validation split but no labelled test split.
        has_validation_only = _local_shards(data, "validation") and not _local_shards(data, "test")
        if has_validation_only:
            test = "validation"
    origins = {"train": _Origin(data.train)}
    for role, split in (("test", test), ("validation", data.validation)):
        # A number is a fraction that is held out of the training split.
        if isinstance(split, str):
            origins[role] = _Origin(split)
    return origins


def _refuse_equal_splits(origins: Mapping[str, _Origin]) -> None:
    """Raise a UserError if two splits have the same images, also under synonyms of a name."""
    role_of: dict[tuple[str, ...], str] = {}
    for role, (name, files) in origins.items():
        identity = files.identity if files else (standard_name(name),)
        if identity in role_of:
            raise UserError(
                f"data: the {role} split is the same as the {role_of[identity]} split "
                f"({files or name}); name another split in data.{role}, or give a fraction"
            )
        role_of[identity] = role


def match_classes(
    images: ImageDataset,
    names: list[str] | None,
    train: ImageDataset,
    class_names: list[str] | None,
    where: str,
) -> None:
    """Give the classes of a split the numbers that they have in the training split, by name.

    Args:
        images: the split.
        names: the names of its classes, or None.
        train: the training split.
        class_names: the names of the training split's classes, or None.
        where: the split, for messages.

    Raises:
        UserError: if it has a class that the training split does not have.
    """
    if names is not None and class_names is None:
        raise UserError(
            f"data: the {where} names its classes ({names[0]}, …), but those of the training split "
            "are numbers; name them alike"
        )
    if names is not None and names != class_names:
        used = {names[number] for number in images.labels.unique().tolist()}
        refuse_unknown_classes(used - set(class_names), class_names, where)
        number_of = {name: number for number, name in enumerate(class_names)}
        images.labels = torch.tensor([number_of.get(name, -1) for name in names])[images.labels]

    numbers = train.labels.unique().tolist()
    known = [class_names[number] if class_names else str(number) for number in numbers]
    unknown = {number for number in images.labels.unique().tolist() if number >= 0} - set(numbers)
    in_range = [n for n in unknown if not class_names or n < len(class_names)]
    refuse_unknown_classes(
        {class_names[n] if class_names else str(n) for n in in_range}, known, where
    )


def _has_local_shards(data: Data) -> bool:
    """Return whether the source is WebDataset shards on this machine; timm streams all others.

    Raises:
        UserError: if the folder of shards does not exist.
    """
    is_stored_here = data.root is not None and Path(data.root).is_dir()
    is_address = data.root is not None and (":" in data.root or "{" in data.root)
    if data.source.startswith("wds/") and data.root and not is_stored_here and not is_address:
        raise UserError(f"data.root: {data.root} is no folder; expected a folder of shards (.tar)")
    return data.source.startswith("wds/") and is_stored_here and bool(all_shards(Path(data.root)))


def _local_shards(data: Data, split: str) -> list[Path]:
    return find_shards(Path(data.root), split) if _has_local_shards(data) else []


def _open_split(
    data: Data,
    origin: _Origin,
    class_names: list[str] | None,
    options: StoredOptions,
    notes: list[str],
) -> tuple[ImageDataset, list[str] | None]:
    """Open one split, without unreadable images if ``data.on_error`` is skip.

    Args:
        data: the recipe's data settings.
        origin: where the split is.
        class_names: the classes of the training split, or None if they are unknown.
        options: the properties of this kind of source.
        notes: receives sentences on files that are left out.

    Returns:
        The images, and the class names or None.
    """
    name, files = origin
    if files is not None:
        images, names = open_classes(files, name, class_names, notes)
    elif data.source.startswith("hfds/"):
        images, names = open_hf_dataset(data, data.root, name, class_names)
    elif _has_local_shards(data):
        root = Path(str(data.root))
        shards = find_shards(root, name)
        if not shards:
            raise UserError(unknown_split_message(root, name))
        images, names = open_shards(shards, root, data, class_names)
    else:
        images, names = open_by_timm(data, data.root, name, download=options.download)
    if images.pixels is None and data.on_error == "skip":
        images = images.without_unreadable(data.workers)
    return images, names


def _set_training_format(
    train: ImageDataset,
    data: Data,
    native: NativeSize,
    options: StoredOptions,
    notes: list[str],
    track: Track,
) -> None:
    """Choose the format of the training images; note if a network may expect another size."""
    if train.pixels is not None:
        return
    train.format, uses_native_side = choose_format(
        train, data, may_be_grey=options.may_be_grey, native_side=native.side, track=track
    )
    if train.format.bits < 16:
        notes.append(
            f"the 16-bit images use {train.format.bits} bits, by a sample of them "
            "(data.bit_depth sets another number)"
        )
    native_size = f"{native.side}×{native.side}"
    if uses_native_side:
        reason = f", the size that {native.network} was trained with" if native.network else ""
        notes.append(
            f"images are resized to {native_size}{reason} (first the short side, then a centre "
            "crop); set data.image_size so that arms added later do not change the size"
        )
    elif native.network and not data.image_size:
        height, width = train.size
        notes.append(
            f"images keep their size, {height}×{width}; {native.network} was trained with "
            f"{native_size} (set data.image_size={native.side} to resize the images)"
        )


def _set_format_of_training(role: str, images: ImageDataset, train: ImageDataset) -> None:
    """Give the images of another split the format of the training split.

    Raises:
        UserError: if they are in memory and have another format, or if an image of a sample
            cannot be read.
    """
    if images.pixels is None:
        images.format = train.format
        # If the files of this split are damaged, fail before training and not after it.
        open_sample(images)
        return
    if images.pixels.shape[1:] != (train.channels, *train.size):
        raise UserError(
            f"data: images of the {role} split have the shape {list(images.pixels.shape[1:])}, but "
            f"those of the training split have {[train.channels, *train.size]} (channels, height, "
            "width); set data.image_size and data.channels"
        )


def _left_out_note(role: str, names: list[str]) -> str:
    shown = ", ".join(names[:10])
    if len(names) > 10:
        shown += f" and {len(names) - 10} more"
    return f"left out {pluralize(len(names), 'unreadable image')} of the {role} split: {shown}"
