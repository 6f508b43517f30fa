"""Small image files as a user would have them, and how to read splits of them."""

import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distill.data.splits import Split
from distill.data.workers import unwrap

CLASSES = ("ant", "bee", "cat")


def write_photos(
    folder: Path,
    per_class: int = 6,
    size: tuple[int, int] = (20, 16),
    classes: Sequence[str] = CLASSES,
) -> Path:
    """Write `per_class` PNG files (width, height = `size`) of each class; classes differ in
    brightness.
    """
    generator = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = generator.integers(0, 60, (size[1], size[0], 3)) + 60 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


def write_image(
    path: Path, colour: tuple[int, int, int] = (0, 0, 0), size: tuple[int, int] = (12, 12)
) -> None:
    """Write an image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def write_shard(path: Path, photos: Path, per_class: int = 6, first: int = 0) -> None:
    """Write a WebDataset shard of the photos in a folder: KEY.png, KEY.cls and KEY.json.

    Classes are numbers from `first`.
    """
    path.parent.mkdir(exist_ok=True)
    label = path.parent / "label"
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(CLASSES):
            label.write_text(str(number + first))
            for i in range(per_class):
                tar.add(photos / name / f"{i}.png", arcname=f"{name}{i}.png")
                tar.add(label, arcname=f"{name}{i}.cls")
                tar.add(label, arcname=f"{name}{i}.json")


def read_pixels(split: Split) -> Tensor:
    """Return all images of a split, ``[N, C, H, W]``."""
    return torch.stack([unwrap(split.images[i]) for i in split.positions.tolist()])


def classes_by_brightness(split: Split) -> Tensor:
    """Return the classes of `write_photos` that the pixels of a split have."""
    return (read_pixels(split).float().mean((1, 2, 3)) / 60).floor().long()
