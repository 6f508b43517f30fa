"""Stored data sets: local folders, tar files and shards, and data sets that timm opens by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from distill.data.folders import SPLIT_SYNONYMS, find_splits, open_folder
from distill.data.image_dataset import ImageDataset, OpenedDataset
from distill.data.shards import find_shards, open_shards
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


class _Location(NamedTuple):
    """The location of one split.

    Attributes:
        root: the split's folder or tar file; for a data set by name, the folder of the whole set.
        split: the split's name.
    """

    root: str | None
    split: str


def open_stored(data: Data, native: NativeSize, options: StoredOptions) -> OpenedDataset:
    """Open every split of a stored data set; all get the format of the training split.

    Raises:
        UserError: if a split is missing, empty or damaged, if two splits are the same, or if a
            split has classes or an image size that the training split does not have.
    """
    notes: list[str] = []
    locations = _locate_splits(data, options, notes)
    _refuse_equal_splits(data, locations)

    train, class_names = _open_split(data, locations.pop("train"), None, options, notes)
    _set_training_format(train, data, native, options, notes)

    splits = {"train": train}
    for role, location in locations.items():
        images, _ = _open_split(data, location, class_names, options, notes)
        _set_format_of_training(role, images, train)
        splits[role] = images

    for role, images in splits.items():
        if images.left_out:
            notes.append(_left_out_note(role, images.left_out))
    return OpenedDataset(splits, class_names, notes)


def _locate_splits(data: Data, options: StoredOptions, notes: list[str]) -> dict[str, _Location]:
    """Return the location of each split that the source has, "train" first."""
    if data.source in ("folder", "tar"):
        paths = find_splits(data, notes)
        return {role: _Location(path, role) for role, path in paths.items() if path}

    test = data.test
    if test is None:
        test = options.test_split
        # Shards of ImageNet, for example, have a validation split but no labelled test split.
        has_validation_only = _local_shards(data, "validation") and not _local_shards(data, "test")
        if has_validation_only:
            test = "validation"
    locations = {"train": _Location(data.root, data.train)}
    for role, split in (("test", test), ("validation", data.validation)):
        # A number is a fraction that is held out of the training split.
        if isinstance(split, str):
            locations[role] = _Location(data.root, split)
    return locations


def _refuse_equal_splits(data: Data, locations: Mapping[str, _Location]) -> None:
    """Raise a UserError if two splits have the same images, also under synonyms of a name."""
    role_of: dict[str, str] = {}
    for role, (root, split) in locations.items():
        if data.source in ("folder", "tar"):
            identity = str(Path(str(root)).resolve())
        else:
            identity = _standard_name(split)
        if identity in role_of:
            raise UserError(
                f"data: the {role} split is the same as the {role_of[identity]} split "
                f"({identity}); name another split in data.{role}, or give a fraction"
            )
        role_of[identity] = role


def _standard_name(split: str) -> str:
    """Return "train", "validation" or "test" for a synonym of it, else the name itself."""
    for name, synonyms in SPLIT_SYNONYMS.items():
        if split in synonyms:
            return name
    return split


def _local_shards(data: Data, split: str) -> list[Path]:
    """Return a split's WebDataset shards on this machine; timm streams all others."""
    is_stored_here = data.root is not None and Path(data.root).is_dir()
    if not data.source.startswith("wds/") or not is_stored_here:
        return []
    return find_shards(Path(data.root), split)


def _open_split(
    data: Data,
    location: _Location,
    class_names: list[str] | None,
    options: StoredOptions,
    notes: list[str],
) -> tuple[ImageDataset, list[str] | None]:
    """Open one split, without unreadable images if ``data.on_error`` is skip.

    Args:
        data: the recipe's data settings.
        location: where the split is.
        class_names: the classes of the training split, or None if they are unknown.
        options: the properties of this kind of source.
        notes: receives sentences on files that are left out.

    Returns:
        The images, and the class names or None.
    """
    root, split = location
    shards = _local_shards(data, split)
    if data.source == "folder" and Path(str(root)).is_dir():
        images, class_names = open_folder(Path(str(root)), split, class_names, notes)
    elif shards:
        images = open_shards(shards)
    else:
        images, class_names = open_by_timm(
            data, root, split, class_names, download=options.download
        )
    if images.pixels is None and data.on_error == "skip":
        images = images.without_unreadable(data.workers)
    return images, class_names


def _set_training_format(
    train: ImageDataset,
    data: Data,
    native: NativeSize,
    options: StoredOptions,
    notes: list[str],
) -> None:
    """Choose the format of the training images; note if a network may expect another size."""
    if train.pixels is not None:
        return
    train.format, uses_native_side = choose_format(
        train, data, may_be_grey=options.may_be_grey, native_side=native.side
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
        # If the files of this split are damaged, fail before training and not after it.
        open_sample(images)
        images.format = train.format
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
