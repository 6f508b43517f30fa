"""Data sets of Hugging Face, with the columns of the image and of the class found or named.

They are read with the `datasets` package, as tables whose cells hold image files.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.data.class_folders import natural_key, refuse_unknown_classes
from distill.data.content_index import StoredContent
from distill.data.image_dataset import ImageDataset, ImageReader
from distill.errors import UserError, suggest
from distill.recipe.schema import Data

# Names of the column of the class, the likeliest first.
LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "category")


def open_hf_dataset(
    data: Data, root: str | None, split: str, class_names: list[str] | None
) -> tuple[ImageDataset, list[str] | None]:
    """Open one split of a data set of Hugging Face (``hfds/NAME``).

    Args:
        data: the recipe's data settings, with the names of the columns if they are set.
        root: the folder to download to; None for the default of Hugging Face.
        split: the split's name.
        class_names: the classes of the training split, or None if they are unknown.

    Returns:
        The images, and the class names; None if classes are numbers without names.

    Raises:
        UserError: if the data set cannot be opened, or its columns are not clear.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"data: {data.source} needs the package datasets: pip install datasets"
        ) from None
    name = data.source.removeprefix("hfds/")
    where = f"{data.source}, split '{split}'"
    # Data sets are opened by code of their own kind, which may raise any exception.
    try:
        table = datasets.load_dataset(name, split=split, cache_dir=root)
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        raise UserError(f"data: cannot open {where}: {reason}") from None

    image_column = _image_column(table.features, data, datasets.Image, where)
    label_column = _label_column(table.features, data, datasets.ClassLabel, where)
    labels, names = _labels(table, label_column, datasets.ClassLabel, class_names, where)
    undecoded = table.cast_column(image_column, datasets.Image(decode=False))
    return _dataset_of_table(undecoded, image_column, labels, data.source), names


def _image_column(features: dict[str, Any], data: Data, image_type: type, where: str) -> str:
    """Return the column of the images: the one that is named, or the only one of that type."""
    found = [name for name, kind in features.items() if isinstance(kind, image_type)]
    if data.image_key:
        return _named_column(features, data.image_key, "image_key", where)
    if len(found) == 1:
        return found[0]
    raise UserError(
        f"data: {where} has {len(found)} columns of images ({', '.join(found) or 'none'}) among "
        f"{', '.join(features)}; name one in data.image_key"
    )


def _label_column(features: dict[str, Any], data: Data, label_type: type, where: str) -> str:
    """Return the column of the classes: one that is named, has a usual name, or is the only one."""
    if data.label_key:
        return _named_column(features, data.label_key, "label_key", where)
    for name in LABEL_NAMES:
        if name in features:
            return name
    found = [name for name, kind in features.items() if isinstance(kind, label_type)]
    if len(found) == 1:
        return found[0]
    raise UserError(
        f"data: {where} has no column of classes that is clear among {', '.join(features)}; name "
        "one in data.label_key"
    )


def _named_column(features: dict[str, Any], name: str, key: str, where: str) -> str:
    if name not in features:
        raise UserError(f"data.{key}: {where} has no column '{name}'; {suggest(name, features)}")
    return name


def _labels(
    table: Any, column: str, label_type: type, class_names: list[str] | None, where: str
) -> tuple[torch.Tensor, list[str] | None]:
    """Return the classes ``[N]`` of a table's rows, and their names or None."""
    values = table[column][:]
    if any(isinstance(value, list | dict) for value in values[:1]):
        raise UserError(f"data: the column '{column}' of {where} has several labels an image")
    kind = table.features[column]
    if isinstance(kind, label_type):
        missing = [number for number, value in enumerate(values) if value is None]
        if missing:
            raise UserError(f"data: row {missing[0]} of {where} has no class in '{column}'")
        return torch.tensor(values, dtype=torch.long), list(kind.names)
    if all(isinstance(value, int) for value in values) and class_names is None:
        return torch.tensor(values, dtype=torch.long), None
    texts = [str(value) for value in values]
    names = class_names or sorted(set(texts), key=natural_key)
    refuse_unknown_classes(set(texts) - set(names), names, where)
    number_of = {name: number for number, name in enumerate(names)}
    return torch.tensor([number_of[text] for text in texts]), names


def _dataset_of_table(table: Any, column: str, labels: torch.Tensor, source: str) -> ImageDataset:
    """Return the data set of a table whose image column is not decoded."""

    def read_bytes(i: int) -> bytes:
        cell = table[i][column]
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()

    # The fingerprint of the table changes with its rows, so it can stand for their times.
    stamp = int(str(table._fingerprint)[:15], 16)
    numbers = np.arange(len(labels))
    content = StoredContent(
        key=f"{source}\n{table._fingerprint}",
        names=np.array([b"%d" % number for number in numbers]),
        stamps=np.stack([numbers * 0, numbers * 0, numbers * 0, numbers * 0 + stamp], axis=1),
        read=read_bytes,
    )
    return ImageDataset(labels, _namer(source), ImageReader.of_files(content, source))


def _namer(source: str) -> Callable[[int], str]:
    return lambda i: f"{source} {i}"
