"""WebDataset shards on a disk: indexed once, so that any image can be asked for by its number.

A stream of shards gives images in an order of its own; views, stored answers and resumed runs need them by number.
"""

import io
import re
import tarfile
from array import array
from pathlib import Path, PurePosixPath

import torch
from PIL import Image

from distill.data.folders import ENDINGS, SYNONYMS
from distill.data.image_dataset import ImageDataset
from distill.errors import UserError


def shards_of(root: Path, split: str) -> list[Path]:
    """The tar files below a folder whose names have the word of a split, as in ``imagenet1k-train-0001.tar``."""
    words = "|".join(map(re.escape, SYNONYMS.get(split, (split,))))
    named = re.compile(rf"(^|[^a-z])({words})([^a-z]|$)", re.IGNORECASE)
    return sorted(path for path in root.rglob("*.tar") if named.search(path.stem))


def open_shards(paths: list[Path]) -> ImageDataset:
    """The images of shards, in their order: ``KEY.jpg`` (or another kind of image) with its class in ``KEY.cls``.

    Headers are read, once, and the classes; images when they are asked for.

    Raises:
        UserError: if a shard is damaged, or an image is without a class.
    """
    shard, offset, size, labels, keys = array("H"), array("q"), array("q"), array("q"), []
    for number, path in enumerate(paths):
        images: dict[str, tarfile.TarInfo] = {}
        classes: dict[str, int] = {}
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    if not member.isfile():
                        continue
                    name = PurePosixPath(member.name)
                    if name.name.startswith("."):
                        continue
                    stem, _, ending = name.name.partition(
                        "."
                    )  # as WebDataset has it: at the first dot
                    key = str(name.with_name(stem))
                    if f".{ending.lower()}" in ENDINGS:
                        images[key] = member
                    elif ending == "cls":
                        classes[key] = int(tar.extractfile(member).read())
        except (tarfile.TarError, OSError, ValueError) as error:
            raise UserError(f"data: cannot read the shard {path}: {error}") from None
        bare = next((key for key in images if key not in classes), None)
        if bare is not None:
            raise UserError(f"data: in the shard {path} the image {bare} has no class ({bare}.cls)")
        for key, member in images.items():
            shard.append(number)
            offset.append(member.offset_data)
            size.append(member.size)
            labels.append(classes[key])
            keys.append(key)

    def read(i: int) -> Image.Image:
        with paths[shard[i]].open("rb") as file:
            file.seek(offset[i])
            image = Image.open(io.BytesIO(file.read(size[i])))
            image.load()
        return image

    return ImageDataset(
        torch.tensor(labels, dtype=torch.long),
        read,
        lambda i: f"{keys[i]} ({size[i]} bytes)",
        where=f" in {paths[0].parent}",
    )
