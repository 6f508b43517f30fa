"""Folders of small images, as a person would have them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")


def write_photos(
    folder: Path,
    per_class: int = 6,
    size: tuple[int, int] = (20, 16),
    classes: Sequence[str] = CLASSES,
) -> Path:
    """Write `per_class` PNG files (width, height = `size`) of each class; classes differ in brightness."""
    generator = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = generator.integers(0, 60, (size[1], size[0], 3)) + 60 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder
