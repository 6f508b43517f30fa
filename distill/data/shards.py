"""WebDataset shards on a local disk, indexed once, so that any image can be read by its number.

WebDataset streams shards in an order of its own. Augmentation, cached logits and resumed runs need
images by number.
"""

import io
import re
import tarfile
from array import array
from pathlib import Path, PurePosixPath

import torch
from PIL import Image

from distill.data.folders import IMAGE_EXTENSIONS, SPLIT_SYNONYMS
from distill.data.image_dataset import ImageDataset, ImageReader
from distill.errors import UserError


def find_shards(root: Path, split: str) -> list[Path]:
    """Return the tar files below a folder whose names contain the name of a split.

    An example is ``imagenet1k-train-0001.tar``.
    """
    synonyms = SPLIT_SYNONYMS.get(split, (split,))
    any_synonym = "|".join(re.escape(synonym) for synonym in synonyms)
    has_split = re.compile(rf"(^|[^a-z])({any_synonym})([^a-z]|$)", re.IGNORECASE)
    return sorted(path for path in root.rglob("*.tar") if has_split.search(path.stem))


def open_shards(paths: list[Path]) -> ImageDataset:
    """Open the images of shards, in the order of the shards.

    An image is ``KEY.jpg`` (or another image type) with its class in ``KEY.cls``. This reads only
    headers and classes.

    Raises:
        UserError: if a shard is damaged, or an image has no class.
    """
    # Compact arrays: a data set may have millions of images.
    shard_numbers = array("H")
    offsets = array("q")
    sizes = array("q")
    labels = array("q")
    keys: list[str] = []
    for number, path in enumerate(paths):
        images, classes = _index_shard(path)
        for key, member in images.items():
            shard_numbers.append(number)
            offsets.append(member.offset_data)
            sizes.append(member.size)
            labels.append(classes[key])
            keys.append(key)

    def read(i: int) -> Image.Image:
        with paths[shard_numbers[i]].open("rb") as file:
            file.seek(offsets[i])
            content = file.read(sizes[i])
        image = Image.open(io.BytesIO(content))
        image.load()
        return image

    return ImageDataset(
        torch.tensor(labels, dtype=torch.long),
        name=lambda i: f"{keys[i]} ({sizes[i]} bytes)",
        reader=ImageReader(read, location=str(paths[0].parent)),
    )


def _index_shard(path: Path) -> tuple[dict[str, tarfile.TarInfo], dict[str, int]]:
    """Return the image files and the classes of one shard, by key."""
    images: dict[str, tarfile.TarInfo] = {}
    classes: dict[str, int] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if not member.isfile() or name.name.startswith("."):
                    continue
                # WebDataset's rule: the key ends at the first dot of the file's name.
                stem, _, extension = name.name.partition(".")
                key = str(name.with_name(stem))
                if f".{extension.lower()}" in IMAGE_EXTENSIONS:
                    images[key] = member
                elif extension == "cls":
                    classes[key] = int(tar.extractfile(member).read())
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(f"data: cannot read the shard {path}: {error}") from None

    for key in images:
        if key not in classes:
            raise UserError(
                f"data: the image {key} in the shard {path} has no class file ({key}.cls)"
            )
    return images, classes
