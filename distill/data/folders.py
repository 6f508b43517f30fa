"""Folders of images: which of them are splits, which are classes, and what is left out of them."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.utils.misc import natural_key
from torchvision.datasets.folder import IMG_EXTENSIONS

from distill.data.image_dataset import ImageDataset
from distill.errors import UserError, pluralize, suggest
from distill.recipe.schema import Data

SYNONYMS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "eval", "evaluation"),
    "test": ("test", "testing"),
}
ENDINGS = (*IMG_EXTENSIONS, ".gif")


def find_splits(data: Data, notes: list[str]) -> dict[str, str | None]:
    """The folder (or tar file) of each split; only `train` where the splits are to be held out of one."""
    root = Path(data.root or ".")
    if not root.exists():
        raise UserError(f"data.root: {root} does not exist")

    def find(name: str) -> str | None:
        names = SYNONYMS.get(name, (name,))
        found = [
            root / f"{n}{end}"
            for n in names
            for end in ("", ".tar")
            if (root / f"{n}{end}").exists()
        ]
        return str(found[0]) if found and root.is_dir() else None

    def named(value: str) -> str:
        path = find(value)
        if path is None:
            here = [p.name for p in root.iterdir()] if root.is_dir() else []
            raise UserError(f"data: {root} has no split '{value}'; {suggest(value, here)}")
        return path

    validation = named(data.validation) if isinstance(data.validation, str) else None
    test = named(data.test) if isinstance(data.test, str) else None
    asked = (
        "train" in data.model_fields_set or test or validation
    )  # else the folder may hold the classes themselves
    train = named(data.train) if asked else find(data.train)
    if train and data.test is None:
        own = find("validation")
        test = find("test") or (own if own != validation else None)
        if own and own != test and "validation" not in data.model_fields_set:
            validation = own
        if test:
            notes.append(f"test split: {test}")
    return {"train": train or str(root), "test": test, "validation": validation}


def open_folder(
    root: Path, split: str, known: list[str] | None, notes: list[str]
) -> tuple[ImageDataset, list[str]]:
    """One split: each folder directly in `root` is a class, and all images in it, however deep, are of this class.

    Args:
        root: the split's folder.
        split: what to call it.
        known: the classes of training, where they are known.
        notes: gets what is left out.

    Raises:
        UserError: if there are no images, or if they are of classes that training does not have.
    """
    found: dict[str, list[str]] = {}  # paths below root, by class
    other, deep = Counter(), 0
    for path in _files(root):
        ending, depth = os.path.splitext(path)[1].lower(), path.count(os.sep)
        if ending not in ENDINGS:
            other[ending or os.path.basename(path)] += 1
        else:
            found.setdefault(path.partition(os.sep)[0] if depth else "", []).append(path)
            deep += depth > 1
    loose = found.pop("", [])
    endings = ", ".join(f"{count} {name}" for name, count in other.most_common(5))
    if not found:
        lie = (
            f"; {pluralize(len(loose), 'image')}, as {loose[0]}, not in a class's folder"
            if loose
            else ""
        )
        lie += (
            f"; other files: {endings}, which are not read: convert them to JPEG" if other else ""
        )
        raise UserError(
            f"data: {root} has no images ({', '.join(ENDINGS)}) in folders{lie}. ImageDataset must lie in one "
            "folder for each class"
        )
    if loose:
        notes.append(
            f"{pluralize(len(loose), 'image')} not in a class's folder, but directly in {root}, left out: "
            f"{loose[0]}{' and others' if len(loose) > 1 else ''}"
        )
    if other:
        notes.append(
            f"{pluralize(other.total(), 'file')} of {root} not of the kinds of images that are read, left out: "
            f"{endings}"
        )
    names = known or sorted(found, key=natural_key)
    unknown = sorted(found.keys() - set(names))
    if unknown:
        raise UserError(
            f"data: the {split} split {root} has {len(found)} classes, training has {len(names)}: "
            f"'{unknown[0]}' is not among them; {suggest(unknown[0], names)}"
        )
    if deep and not known:
        notes.append(
            f"the classes are the {len(names)} folders directly in {root}; {deep} images in folders within "
            "them belong to these"
        )
        if len(names) == 1:
            raise UserError(
                f"data: {root} has one folder only, which would be the only class; if its folders are the "
                f"classes, write data.root={root / names[0]}"
            )
    numbers = {name: i for i, name in enumerate(names)}
    samples = sorted((path for paths in found.values() for path in paths), key=natural_key)
    labels = torch.tensor([numbers[path.partition(os.sep)[0]] for path in samples])
    packed = np.array(
        [os.fsencode(path) for path in samples]
    )  # one object: processes that decode do not copy it

    def path_of(i: int) -> str:
        return os.fsdecode(packed[i])

    def read(i: int) -> Image.Image:
        with (root / path_of(i)).open("rb") as file:
            image = Image.open(file)
            image.load()
        return image

    return ImageDataset(
        labels,
        read,
        lambda i: f"{path_of(i)} ({(root / path_of(i)).stat().st_size} bytes)",
        where=f" in {root}",
    ), names


def _files(root: Path) -> Iterator[str]:
    """All files below, as paths from there, but for hidden ones; links are followed, but not in circles.

    Raises:
        UserError: if a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"data: cannot list {error.filename}: {error.strerror}")

    above: dict[
        str, frozenset[str]
    ] = {}  # the folders that a folder lies in, and itself, without links
    for folder, inner, files in os.walk(root, followlinks=True, onerror=refuse):
        here, outer = os.path.realpath(folder), above.get(os.path.dirname(folder), frozenset())
        if here in outer:
            inner.clear()
            continue
        inner[:] = sorted(name for name in inner if not _is_hidden(name) and name != "__MACOSX")
        above[folder] = outer | {here} if inner else frozenset()
        below = os.path.relpath(folder, root)
        for name in sorted(files):
            if not _is_hidden(name):
                yield name if below == "." else os.path.join(below, name)


def _is_hidden(name: str) -> bool:
    """Whether a name begins with a dot, as those that programs keep for themselves do; "..." is a class's."""
    return name.startswith(".") and bool(name.strip("."))
