"""Folders of images: which of them are splits, which are classes, and what is left out of them."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from timm.utils.misc import natural_key
from torchvision.datasets.folder import IMG_EXTENSIONS

from distill.data.images import Images
from distill.document import UserError, nearest
from distill.recipe import Data

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
        found = [root / f"{n}{end}" for n in names for end in ("", ".tar") if (root / f"{n}{end}").exists()]
        return str(found[0]) if found and root.is_dir() else None

    def named(value: str) -> str:
        path = find(value)
        if path is None:
            here = [p.name for p in root.iterdir()] if root.is_dir() else []
            raise UserError(f"data: {root} has no split '{value}'; {nearest(value, here)}")
        return path

    validation = named(data.validation) if isinstance(data.validation, str) else None
    test = named(data.test) if isinstance(data.test, str) else None
    asked = "train" in data.model_fields_set or test or validation  # else the folder may hold the classes themselves
    train = named(data.train) if asked else find(data.train)
    if train and data.test is None:
        own = find("validation")
        test = find("test") or (own if own != validation else None)
        if own and own != test and "validation" not in data.model_fields_set:
            validation = own
        if test:
            notes.append(f"test split: {test}")
    return {"train": train or str(root), "test": test, "validation": validation}


def open_folder(root: Path, split: str, known: list[str] | None, notes: list[str]) -> tuple[Images, list[str]]:
    """One split: each folder directly in `root` is a class, and all images in it, however deep, are of this class.

    Args:
        root: the split's folder.
        split: what to call it.
        known: the classes of training, where they are known.
        notes: gets what is left out.

    Raises:
        UserError: if there are no images, or if they are of classes that training does not have.
    """
    found: dict[str, list[Path]] = {}
    other, deep = Counter(), 0
    for path in _files(root):
        parts = path.relative_to(root).parts
        if path.suffix.lower() not in ENDINGS:
            other[path.suffix.lower() or path.name] += 1
        else:
            found.setdefault(parts[0] if len(parts) > 1 else "", []).append(path)
            deep += len(parts) > 2
    loose = found.pop("", [])
    if not found:
        lie = f"; {len(loose)} images, as {loose[0].name}, lie directly in it, in no class's folder" if loose else ""
        raise UserError(f"data: {root} has no images ({', '.join(ENDINGS)}) in folders{lie}. Images must lie in one "
                        "folder for each class")
    if loose:
        notes.append(f"{len(loose)} images lie directly in {root}, in no class's folder, and are left out: "
                     f"{loose[0].name}{' and others' if len(loose) > 1 else ''}")
    if other:
        endings = ", ".join(f"{count} {name}" for name, count in other.most_common(5))
        notes.append(f"{other.total()} files in {root} are not of the kinds of images that are read, and are left out: "
                     f"{endings}")
    names = known or sorted(found, key=natural_key)
    unknown = sorted(found.keys() - set(names))
    if unknown:
        raise UserError(f"data: the {split} split {root} has {len(found)} classes, training has {len(names)}: "
                        f"'{unknown[0]}' is not among them; {nearest(unknown[0], names)}")
    if deep and not known:
        notes.append(f"the classes are the {len(names)} folders directly in {root}; {deep} images in folders within "
                     "them belong to these")
        if len(names) == 1:
            raise UserError(f"data: {root} has one folder only, which would be the only class; if its folders are the "
                            f"classes, write data.root={root / names[0]}")
    samples = sorted(((path, names.index(name)) for name, paths in found.items() for path in paths),
                     key=lambda sample: natural_key(str(sample[0])))

    def read(i: int) -> Image.Image:
        with Image.open(samples[i][0]) as image:
            image.load()
        return image

    def name(i: int) -> str:
        return f"{samples[i][0].relative_to(root)} ({samples[i][0].stat().st_size} bytes)"

    return Images(torch.tensor([label for _, label in samples]), read, name, where=f" in {root}"), names


def _files(root: Path) -> Iterator[Path]:
    """All files below, but for hidden ones; links are followed, each folder once."""
    seen = set()
    for folder, inner, files in os.walk(root, followlinks=True):
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name != "__MACOSX")
        here = os.path.realpath(folder)
        if here in seen:
            inner.clear()
            continue
        seen.add(here)
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))
