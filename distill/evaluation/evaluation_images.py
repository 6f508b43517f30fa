"""Open the images that `distill evaluate` evaluates a network on, at the network's own size."""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import torch

from distill.data.archives import StoredFile, is_archive_name
from distill.data.class_folders import dataset_of_files, natural_key
from distill.data.datasets import open_dataset
from distill.data.listing import is_image, list_files
from distill.data.splits import Split, Splits, load_splits, name_numbered_classes
from distill.data.stored_files import Location, stored_file
from distill.data.timm_datasets import choose_format
from distill.errors import UserError, pluralize
from distill.evaluation.evaluation_networks import EvalTarget
from distill.recipe.schema import Data

SPLITS = ("all", "train", "validation", "test")
EMBEDDED = ("digits", "synthetic")  # built-in data, without a folder or a "/" in the name
# Files that list images, with what separates a path from its class.
LIST_SEPARATORS = {".txt": "\t", ".csv": ",", ".tsv": "\t"}
LIST_FORMAT = "each line has a path and perhaps a class: PATH,CLASS"
NO_LABEL = -1


class EvaluationImages(NamedTuple):
    """Images to evaluate a network on.

    Attributes:
        splits: the data that they belong to.
        split: the images; labels are -1 if they have none.
        description: what they are, and what was chosen or left out.
    """

    splits: Splits
    split: Split
    description: str

    @property
    def have_labels(self) -> bool:
        """Return whether the classes of the images are known."""
        return bool((self.split.labels != NO_LABEL).all())


def open_evaluation_images(
    network: EvalTarget, source: str, settings: dict[str, Any], split: str | None
) -> EvaluationImages:
    """Open the images to evaluate a network on, at the size that it was trained with.

    Args:
        network: the network.
        source: a folder, an archive, an image, a list of images (a text file with a path and
            perhaps a class on each line), or a source as in a recipe's ``data.source``.
        settings: more keys of ``data``, as in a recipe.
        split: one of `SPLITS`; None for the test split, or for all images of a folder or file.

    Raises:
        UserError: if there are no such images.
    """
    if split not in (None, *SPLITS):
        raise UserError(f"--split {split}: expected one of {', '.join(SPLITS)}")
    files = _listed_files(source)
    if files is not None:
        return _open_files(network, source, settings, files)
    data = _data_settings(network, source, settings)
    if split == "all" or (split is None and Path(source).exists()):
        everything = _open_everything(data, source, must_be_one=split == "all")
        if everything:
            splits, description = everything
            return EvaluationImages(splits, splits.test, "; ".join([description, *splits.notes]))

    splits = load_splits(data)
    chosen = getattr(splits, split or "test")
    description = f"{len(chosen)} images, the {split or 'test'} split of {source}"
    return EvaluationImages(splits, chosen, "; ".join([description, *splits.notes]))


def _data_settings(network: EvalTarget, source: str, settings: dict[str, Any]) -> Data:
    """Return the data settings for a source; the caller's override the network's own."""
    where: dict[str, Any] = {"source": source}
    if Path(source).exists():
        where = {"source": "folder" if Path(source).is_dir() else "tar", "root": source}
    elif "/" not in source and source not in EMBEDDED:
        raise UserError(
            f"--data {source}: there is no such folder, file or source; write a source as in a "
            "recipe, for example torch/mnist"
        )
    combined: dict[str, Any] = {}
    if where["source"] == network.split_settings.get("source"):
        combined |= network.split_settings
    combined |= where
    if source not in EMBEDDED:
        combined |= network.image_settings
    combined |= settings
    return Data(**combined)


def _open_everything(data: Data, source: str, *, must_be_one: bool) -> tuple[Splits, str] | None:
    """Open a source that has no splits as one split, with a description.

    Returns:
        None if the source has splits.

    Raises:
        UserError: if the source has splits and `must_be_one`.
    """
    opened, class_names, notes = open_dataset(data)
    if len(opened) > 1:
        if must_be_one:
            raise UserError(f"--split all: {source} has splits; choose one of {', '.join(opened)}")
        return None
    class_names = class_names or name_numbered_classes(opened, notes)
    images = opened["train"]
    everything = Split(images, torch.arange(len(images)))
    description = (
        f"all {len(everything)} images of {source}; if the network was trained on some of them, "
        "use --split test for those that were held out"
    )
    return Splits(data, everything, everything, everything, class_names, "", notes), description


# ---------------------------------------------------------------- files without class folders


class _Listed(NamedTuple):
    """Image files with their classes, if they have any.

    Attributes:
        location: the folder that paths are relative to.
        files: the images.
        labels: the class of each image; None if they have none.
    """

    location: Location
    files: list[StoredFile]
    labels: list[str] | None


def _listed_files(source: str) -> _Listed | None:
    """Return the files of an image, of a list, or of a folder whose images have no class folders.

    Returns:
        None if the source is something else.

    Raises:
        UserError: if a file of a list does not exist.
    """
    path = Path(source).expanduser()
    if path.is_file() and is_image(path.name):
        return _Listed(Location(path.parent), [stored_file(path.parent, path.name)], None)
    if path.is_file() and path.suffix.lower() in LIST_SEPARATORS:
        return _read_list(path)
    if not path.is_dir() and not (path.is_file() and is_archive_name(path.name)):
        return None
    location = Location(path)
    listing = list_files(location)
    if listing.classes or not listing.loose:
        return None
    files = [file for file in location.files() if "/" not in file.path and is_image(file.path)]
    return _Listed(location, sorted(files, key=lambda file: natural_key(file.path)), None)


def _read_list(path: Path) -> _Listed:
    """Read a text file with the path of an image on each line, and perhaps its class after it."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"--data {path} is not UTF-8 ({error}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error}") from None
    rows = {number: _split_line(line, path) for number, line in enumerate(lines, 1) if line.strip()}
    first = next(iter(rows), None)
    # The first line may name the columns.
    if first is not None and not is_image(rows[first][0]):
        del rows[first]
    if not rows:
        raise UserError(f"--data {path}: the list has no image; {LIST_FORMAT}")
    unlabelled = [number for number, (_, label) in rows.items() if not label]
    if unlabelled and len(unlabelled) < len(rows):
        raise UserError(f"--data {path}, line {unlabelled[0]}: this image has no class; others do")
    files = [_file_of_list(path, number, name) for number, (name, _) in rows.items()]
    labels = [label for _, label in rows.values()]
    return _Listed(Location(Path("/")), files, None if unlabelled else labels)


def _split_line(line: str, path: Path) -> tuple[str, str]:
    """Return the image and the class in a line of a list; the class may be empty."""
    separators = [
        mark for mark in (LIST_SEPARATORS[path.suffix.lower()], "\t", ";") if mark in line
    ]
    if separators:
        cells = next(csv.reader([line], delimiter=separators[0]))
        return cells[0].strip(), cells[1].strip() if len(cells) > 1 else ""
    name, _, label = line.strip().rpartition(" ")
    # A path may have blanks, too.
    return (name, label) if is_image(name) and not is_image(label) else (line.strip(), "")


def _file_of_list(path: Path, number: int, name: str) -> StoredFile:
    """Return a file of a list, whose path is relative to the list or to the current folder."""
    for folder in (path.parent, Path()):
        whole = (folder / name).resolve()
        if whole.is_file():
            return stored_file(Path("/"), str(whole).lstrip("/"))
    raise UserError(
        f"--data {path}, line {number}: there is no image {name}, neither beside the list nor in "
        f"{Path.cwd()}; {LIST_FORMAT}"
    )


def _open_files(
    network: EvalTarget, source: str, settings: dict[str, Any], found: _Listed
) -> EvaluationImages:
    """Open listed files as one split."""
    names = sorted(set(found.labels), key=natural_key) if found.labels else network.class_names
    if not names:
        names = [str(i) for i in range(network.model.num_classes)]
    number_of = {name: number for number, name in enumerate(names)}
    numbers = [number_of[label] for label in found.labels or ()]
    labels = torch.tensor(numbers or [NO_LABEL] * len(found.files))
    images = dataset_of_files(found.files, labels, found.location)
    root = str(found.location.path)
    data = Data(**{"source": "folder", "root": root, **network.image_settings, **settings})
    images.format, _ = choose_format(images, data, may_be_grey=False)
    split = Split(images, torch.arange(len(images)))
    splits = Splits(data, split, split, split, list(names), "", [])
    return EvaluationImages(splits, split, f"{pluralize(len(images), 'image')} of {source}")
