"""WebDataset shards on a local disk, indexed once, so that any image can be read by its number.

WebDataset streams shards in an order of its own. Augmentation, cached logits and resumed runs need
images by number.
"""

import json
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

    Their paths contain the split as a word (``imagenet1k-train-0001.tar``, ``train/0001.tar``) or
    begin with it.
    """
    synonyms = SPLIT_SYNONYMS.get(split, (split,))
    any_synonym = "|".join(re.escape(synonym) for synonym in synonyms)
    has_split = re.compile(rf"(^|[^a-z])({any_synonym})([^a-z]|$)", re.IGNORECASE)
    names = {path: _name_below(path, root) for path in all_shards(root)}
    found = [path for path, name in names.items() if has_split.search(name)]
    return found or [path for path, name in names.items() if name.startswith(split)]


def _name_below(path: Path, root: Path) -> str:
    """Return the path of a shard below the folder of all shards, without its ending."""
    return path.relative_to(root).with_suffix("").as_posix()


def all_shards(root: Path) -> list[Path]:
    """Return all tar files below a folder, sorted."""
    return sorted(path for path in root.rglob("*.tar") if not is_ignored(path.name))


def unknown_split_message(root: Path, split: str) -> str:
    """Return the error message if no shard belongs to a split."""
    names = [f"{_name_below(path, root)}.tar" for path in all_shards(root)]
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
    labels = [_label(archive, label, data) for _, label in examples]
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


def _label(archive: Archive, file: StoredFile, data: Data) -> str:
    """Return the class of an example: a file's text, or a value of its JSON (``json.label``)."""
    text = _read_file(archive, file).decode("utf-8", "replace").strip()
    if not text.startswith("{"):
        return text
    try:
        values = json.loads(text)
    except ValueError:
        return text
    field = (data.label_key or "").partition(".")[2]
    if field not in values:
        part = file.path.rpartition(".")[2]
        raise UserError(
            f"data: {file.path} holds JSON with the keys {', '.join(values)}; name that of the "
            f"class, as in data.label_key={part}.{next(iter(values), 'label')}"
        )
    return str(values[field])


def _examples(
    archive: Archive, paths: list[Path], data: Data
) -> list[tuple[StoredFile, StoredFile]]:
    """Return the image and the label of every example, in the order of the shards."""
    label_part = data.label_key or DEFAULT_LABEL
    if label_part.startswith("json."):
        label_part = "json"
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
