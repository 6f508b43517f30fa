"""Folders of images: find the splits, the classes and the image files."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.utils.misc import natural_key
from torchvision.datasets.folder import IMG_EXTENSIONS

from distill.data.image_dataset import ImageDataset, ImageReader
from distill.errors import UserError, pluralize, suggest
from distill.recipe.schema import Data

SPLIT_SYNONYMS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "eval", "evaluation"),
    "test": ("test", "testing"),
}
IMAGE_EXTENSIONS = (*IMG_EXTENSIONS, ".gif")


# ------------------------------------------------------------------------------------------- splits


def find_splits(data: Data, notes: list[str]) -> dict[str, str | None]:
    """Find the folder or tar file of each split below ``data.root``.

    If there is a validation folder and no test folder, the validation folder becomes the test
    split, as in ImageNet.

    Args:
        data: the recipe's data settings.
        notes: receives a sentence if a test split was found that the recipe does not name.

    Returns:
        The path of each split, or None if it must be held out of the training split.

    Raises:
        UserError: if the root or a named split does not exist.
    """
    root = Path(data.root or ".")
    if not root.exists():
        raise UserError(f"data.root: {root} does not exist")

    validation = _named_split(root, data.validation) if isinstance(data.validation, str) else None
    test = _named_split(root, data.test) if isinstance(data.test, str) else None

    # If the recipe names no split, the root may contain the classes themselves.
    names_a_split = "train" in data.model_fields_set or test or validation
    train = _named_split(root, data.train) if names_a_split else _find_split(root, data.train)

    if train and data.test is None:
        validation_folder = _find_split(root, "validation")
        test = _find_split(root, "test")
        if test is None and validation_folder != validation:
            test = validation_folder
        is_free = validation_folder and validation_folder != test
        if is_free and "validation" not in data.model_fields_set:
            validation = validation_folder
        if test:
            notes.append(f"the test split is {test}")
    return {"train": train or str(root), "test": test, "validation": validation}


def _find_split(root: Path, name: str) -> str | None:
    """Return the folder or tar file of a split, under its name or a synonym of it, or None."""
    if not root.is_dir():
        return None
    for synonym in SPLIT_SYNONYMS.get(name, (name,)):
        for path in (root / synonym, root / f"{synonym}.tar"):
            if path.exists():
                return str(path)
    return None


def _named_split(root: Path, name: str) -> str:
    """Return the folder or tar file of a split that the recipe names.

    Raises:
        UserError: if there is none.
    """
    path = _find_split(root, name)
    if path is None:
        existing = [entry.name for entry in root.iterdir()] if root.is_dir() else []
        raise UserError(f"data: {root} has no split '{name}'; {suggest(name, existing)}")
    return path


# ------------------------------------------------------------------------------------------ classes


def open_folder(
    root: Path, split: str, class_names: list[str] | None, notes: list[str]
) -> tuple[ImageDataset, list[str]]:
    """Open one split: each folder directly in `root` is a class, with all images below it.

    Args:
        root: the split's folder.
        split: the split's name, for messages.
        class_names: the classes of the training split; None if this is the training split.
        notes: receives sentences on files that are left out.

    Returns:
        The images in natural order of their paths, and the class names.

    Raises:
        UserError: if there are no images, or if a class is missing in the training split.
    """
    listing = _list_images(root)
    if not listing.classes:
        raise UserError(_no_images_message(root, listing))
    notes.extend(_left_out_notes(root, listing))

    names = class_names or sorted(listing.classes, key=natural_key)
    unknown = sorted(listing.classes.keys() - set(names))
    if unknown:
        raise UserError(
            f"data: the {split} split {root} ({pluralize(len(listing.classes), 'class folder')}) "
            f"has the class '{unknown[0]}', but the training split "
            f"({pluralize(len(names), 'class folder')}) does not; {suggest(unknown[0], names)}"
        )
    if listing.num_nested and class_names is None:
        notes.append(
            f"the classes are the {len(names)} folders directly in {root}; "
            f"images in their subfolders ({listing.num_nested}) belong to these classes"
        )
        if len(names) == 1:
            raise UserError(
                f"data: {root} contains only one folder, so there would be only one class; if the "
                f"folders in it are the classes, write data.root={root / names[0]}"
            )
    return _dataset_of_files(root, listing, names), names


@dataclass
class _Listing:
    """The files below a split's folder, as paths relative to it.

    Attributes:
        classes: paths of the images of each class.
        loose: paths of images outside all class folders.
        other: number of files that are not images, by extension (or by name, if they have none).
        num_nested: number of images that are in subfolders of a class's folder.
    """

    classes: dict[str, list[str]] = field(default_factory=dict)
    loose: list[str] = field(default_factory=list)
    other: Counter = field(default_factory=Counter)
    num_nested: int = 0

    @property
    def other_text(self) -> str:
        """Return the most frequent kinds of other files, such as ``3 .heic, 1 .mov``."""
        return ", ".join(f"{count} {name}" for name, count in self.other.most_common(5))


def _list_images(root: Path) -> _Listing:
    listing = _Listing()
    for path in _walk_files(root):
        extension = os.path.splitext(path)[1].lower()
        if extension not in IMAGE_EXTENSIONS:
            listing.other[extension or os.path.basename(path)] += 1
            continue
        depth = path.count(os.sep)
        if depth == 0:
            listing.loose.append(path)
        else:
            listing.classes.setdefault(_class_of(path), []).append(path)
        if depth > 1:
            listing.num_nested += 1
    return listing


def _class_of(path: str) -> str:
    """Return the first folder of a relative path."""
    return path.partition(os.sep)[0]


def _no_images_message(root: Path, listing: _Listing) -> str:
    message = f"data: {root} has no images ({', '.join(IMAGE_EXTENSIONS)}) in class folders"
    if listing.loose:
        message += (
            f"; outside class folders it has {pluralize(len(listing.loose), 'image')}, "
            f"for example {listing.loose[0]}"
        )
    if listing.other:
        message += f"; it has unsupported files ({listing.other_text}): convert images to JPEG"
    return f"{message}. Put the images of each class into a folder of their own"


def _left_out_notes(root: Path, listing: _Listing) -> list[str]:
    notes = []
    if listing.loose:
        others = " and others" if len(listing.loose) > 1 else ""
        notes.append(
            f"left out {pluralize(len(listing.loose), 'image')} directly in {root}, outside class "
            f"folders: {listing.loose[0]}{others}"
        )
    if listing.other:
        notes.append(
            f"left out {pluralize(listing.other.total(), 'file')} of unsupported types in {root}: "
            f"{listing.other_text}"
        )
    return notes


def _dataset_of_files(root: Path, listing: _Listing, names: list[str]) -> ImageDataset:
    numbers = {name: number for number, name in enumerate(names)}
    paths: list[str] = []
    for class_paths in listing.classes.values():
        paths += class_paths
    paths.sort(key=natural_key)
    labels = torch.tensor([numbers[_class_of(path)] for path in paths])

    # Keep one array instead of many strings: a forked worker changes the reference count of each
    # string that it reads, and this copies the string's memory page.
    encoded_paths = np.array([os.fsencode(path) for path in paths])

    def relative_path(i: int) -> str:
        return os.fsdecode(encoded_paths[i])

    def name(i: int) -> str:
        path = relative_path(i)
        return f"{path} ({(root / path).stat().st_size} bytes)"

    def read(i: int) -> Image.Image:
        with (root / relative_path(i)).open("rb") as file:
            image = Image.open(file)
            image.load()
        return image

    return ImageDataset(labels, name, ImageReader(read, location=str(root)))


# -------------------------------------------------------------------------------------------- files


def _walk_files(root: Path) -> Iterator[str]:
    """Yield the paths of all files below `root`, relative to it, without hidden ones.

    Symbolic links are followed, except into a folder that contains the link.

    Raises:
        UserError: if a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"data: cannot list {error.filename}: {error.strerror}")

    # For each folder that is still to be entered: the real paths of the folders that contain it.
    parents_of: dict[str, frozenset[str]] = {}
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=refuse):
        real_path = os.path.realpath(folder)
        parents = parents_of.get(os.path.dirname(folder), frozenset())
        if real_path in parents:
            # A link to a folder that contains it would be followed forever.
            subfolders.clear()
            continue
        subfolders[:] = sorted(name for name in subfolders if not _is_hidden_folder(name))
        parents_of[folder] = parents | {real_path} if subfolders else frozenset()
        relative_folder = os.path.relpath(folder, root)
        for name in sorted(files):
            if not _is_hidden(name):
                yield name if relative_folder == "." else os.path.join(relative_folder, name)


def _is_hidden_folder(name: str) -> bool:
    """Return whether a folder is hidden; macOS puts copies of metadata into ``__MACOSX``."""
    return _is_hidden(name) or name == "__MACOSX"


def _is_hidden(name: str) -> bool:
    """Return whether a name begins with a dot; a name of dots alone ("...") may be a class."""
    return name.startswith(".") and bool(name.strip("."))
