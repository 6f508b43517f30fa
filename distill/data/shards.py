"""WebDataset shards on a local disk, indexed once, so that any image can be read by its number.

WebDataset streams shards in an order of its own. Augmentation, cached logits and resumed runs need
images by number.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import torch

from distill.data.archives import Archive, StoredFile, open_archives
from distill.data.class_folders import dataset_of_files, natural_key, refuse_unknown_classes
from distill.data.decoding import IMAGE_EXTENSIONS
from distill.data.image_dataset import ImageDataset
from distill.data.listing import listed
from distill.data.split_folders import SPLIT_SYNONYMS
from distill.data.stored_files import Location, is_ignored
from distill.errors import UserError
from distill.recipe.schema import Data

DEFAULT_LABEL = "cls"


def find_shards(root: Path, split: str) -> list[Path]:
    """Return the tar files below a folder that belong to a split.

    Their names contain the split as a word (``imagenet1k-train-0001.tar``) or begin with it.
    """
    synonyms = SPLIT_SYNONYMS.get(split, (split,))
    any_synonym = "|".join(re.escape(synonym) for synonym in synonyms)
    has_split = re.compile(rf"(^|[^a-z])({any_synonym})([^a-z]|$)", re.IGNORECASE)
    shards = all_shards(root)
    found = [path for path in shards if has_split.search(path.stem)]
    return found or [path for path in shards if path.stem.startswith(split)]


def all_shards(root: Path) -> list[Path]:
    """Return all tar files below a folder, sorted."""
    return sorted(path for path in root.rglob("*.tar") if not is_ignored(path.name))


def unknown_split_message(root: Path, split: str) -> str:
    """Return the error message if no shard belongs to a split."""
    names = [path.name for path in all_shards(root)]
    return (
        f"data: no shard in {root} has '{split}' in its name; it has {listed(names)}. Write the "
        "beginnings of their names, as in data.train=tr data.test=te"
    )


def open_shards(
    paths: list[Path], root: Path, data: Data, class_names: list[str] | None
) -> tuple[ImageDataset, list[str] | None]:
    """Open the images of shards, in the order of the shards.

    An image is ``KEY.jpg`` (or another image type) with its class in ``KEY.cls``, as a number or as
    text. This reads only headers and classes.

    Args:
        paths: the shards.
        root: the folder of all shards.
        data: the recipe's data settings, with the parts of an example that hold image and label.
        class_names: the classes of the training split if they are texts.

    Returns:
        The images, and the class names; None if classes are numbers.

    Raises:
        UserError: if a shard is damaged, or an example has no class or several images.
    """
    archive = open_archives(paths)
    examples = _examples(archive, paths, data)
    labels = [_read_file(archive, label).decode("utf-8", "replace") for _, label in examples]
    files = [image for image, _ in examples]
    location = Location(root, archive)
    if all(re.fullmatch(r"\s*-?\d+\s*", label) for label in labels) and class_names is None:
        numbers = torch.tensor([int(label) for label in labels], dtype=torch.long)
        return dataset_of_files(files, numbers, location), None

    texts = [label.strip() for label in labels]
    names = class_names or sorted(set(texts), key=natural_key)
    refuse_unknown_classes(set(texts) - set(names), names, f"shards {listed_paths(paths)}")
    number_of = {name: number for number, name in enumerate(names)}
    return dataset_of_files(files, torch.tensor([number_of[t] for t in texts]), location), names


def listed_paths(paths: Iterable[Path]) -> str:
    """Return the first names of some files."""
    return listed([path.name for path in paths])


def _read_file(archive: Archive, file: StoredFile) -> bytes:
    return archive.part_readers[file.part](file.number, file.size)


def _examples(
    archive: Archive, paths: list[Path], data: Data
) -> list[tuple[StoredFile, StoredFile]]:
    """Return the image and the label of every example, in the order of the shards."""
    label_part = data.label_key or DEFAULT_LABEL
    parts_of: dict[tuple[int, str], dict[str, StoredFile]] = {}
    for file in archive.files:
        folder, _, name = file.path.rpartition("/")
        if is_ignored(name):
            continue
        # WebDataset's rule: the key ends at the first dot of the file's name.
        stem, _, part = name.partition(".")
        parts_of.setdefault((file.part, f"{folder}/{stem}"), {})[part.lower()] = file

    examples = []
    for (number, key), parts in parts_of.items():
        images = [part for part in parts if f".{part}".endswith(IMAGE_EXTENSIONS)]
        if data.image_key:
            images = [part for part in images if part == data.image_key.lower()]
        if not images:
            continue
        name = key.rpartition("/")[2]
        where = f"{name} in the shard {paths[number]}"
        if len(images) > 1:
            raise UserError(
                f"data: the example {where} has {len(images)} images ({', '.join(images)}); choose "
                f"one, as in data.image_key={images[0]}"
            )
        if label_part not in parts:
            others = ", ".join(part for part in parts if part not in images) or "nothing else"
            raise UserError(
                f"data: the image {where} has no class file ({name}.{label_part}); it has "
                f"{others} (data.label_key names the file of the class)"
            )
        examples.append((parts[images[0]], parts[label_part]))
    if not examples:
        raise UserError(f"data: no images with classes in the shards {listed_paths(paths)}")
    return examples
