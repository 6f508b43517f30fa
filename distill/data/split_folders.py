"""Find the training, validation and test images of a folder or an archive."""

import re
from pathlib import Path

from distill.data.archives import archive_stem, is_archive_name
from distill.data.listing import image_folders, listed
from distill.data.stored_files import Location, archives_in
from distill.errors import UserError, suggest
from distill.recipe.schema import Data

SPLIT_SYNONYMS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "eval", "evaluation"),
    "test": ("test", "testing"),
}

# People write Training, TRAIN, train_set and train2017, too.
SPLIT_NAME = re.compile(
    r"(train|training|validation|val|valid|eval|evaluation|test|testing)"
    r"([ _-]?(set|data|images|split))?[ _-]?\d*",
    re.IGNORECASE,
)


def find_splits(data: Data, notes: list[str]) -> dict[str, Location | None]:
    """Find the folder or archive of each split in ``data.root``.

    If there is a validation folder and no test folder, the validation folder becomes the test
    split, as in ImageNet.

    Args:
        data: the recipe's data settings.
        notes: receives sentences on automatic choices.

    Returns:
        The location of each split, or None if it must be held out of the training split.

    Raises:
        UserError: if the root or a named split does not exist.
    """
    path = Path(data.root or ".")
    if not path.exists():
        raise UserError(
            f"data.root: {path} does not exist; it is looked for in {Path.cwd()}, and then beside "
            "the recipe"
        )
    has_train = "train" in data.model_fields_set
    named = [
        name for name in (data.train if has_train else None, data.validation, data.test)
        if isinstance(name, str)
    ]  # fmt: skip
    # If the recipe names no split, the root may contain the classes themselves.
    if named:
        root = _root_of_named_splits(path, named)
    else:
        root = _root_of_classes(path, notes)
        train = _find_split(root, data.train) if _has_splits(root, notes) else None
        if train is None:
            return {"train": root, "test": None, "validation": None}
        if train.name.lower() not in SPLIT_SYNONYMS["train"]:
            notes.append(f"the training split is {train}")
    validation = _named_split(root, data.validation) if isinstance(data.validation, str) else None
    test = _named_split(root, data.test) if isinstance(data.test, str) else None
    if named:
        train = _named_split(root, data.train)

    if data.test is None:
        validation_folder = _find_split(root, "validation")
        test = _find_split(root, "test")
        if test is None and not _are_same(validation_folder, validation):
            test = validation_folder
        is_free = validation_folder and not _are_same(validation_folder, test)
        if is_free and "validation" not in data.model_fields_set:
            validation = validation_folder
        if test:
            notes.append(f"the test split is {test}")
    found = {"train": train, "test": test, "validation": validation}
    return {role: _opened(split) for role, split in found.items()}


def standard_name(split: str) -> str:
    """Return "train", "validation" or "test" for a synonym of it, else the name itself."""
    for name, synonyms in SPLIT_SYNONYMS.items():
        if split in synonyms:
            return name
    return split


def _root_of_named_splits(path: Path, names: list[str]) -> Location:
    """Return the location of splits that the recipe names: the root, or the only folder in it."""
    root = Location(path)
    while len(root.folders) == 1 and not any(_find_split(root, name) for name in names):
        root = root.child(root.folders[0])
    return root


def _root_of_classes(path: Path, notes: list[str]) -> Location:
    """Return the location of the splits or of the classes.

    A folder that contains nothing but one other folder, as in most downloads, is that folder. A
    folder that contains only archives is their content: each is a class, or a split.
    """
    root = Location(path)
    folders = image_folders(root)
    if root.archive is None and not folders and archives_in(path) and not _split_names(root):
        root = Location.of_archives(path)
        folders = image_folders(root)
    while len(folders) == 1 and not SPLIT_NAME.fullmatch(folders[0]):
        inner = root.child(folders[0])
        inner_folders = image_folders(inner)
        if len(inner_folders) < 2 and not _split_names(inner):
            break
        notes.append(f"{root} contains only one folder; the classes are those in {inner}")
        root, folders = inner, inner_folders
    return root


def _opened(split: Location | None) -> Location | None:
    """Return the location of a split's classes.

    The archive of a folder contains that folder, and the folder of a split may contain an archive
    for each class.
    """
    if split is None:
        return None
    folders = image_folders(split)
    if split.archive is None and not folders and archives_in(split.path):
        return Location.of_archives(split.path)
    inner = split.child(folders[0]) if split.archive is not None and len(folders) == 1 else None
    return inner if inner is not None and image_folders(inner) else split


def _split_names(root: Location) -> list[str]:
    """Return the names of splits ("train", "test", …) that a location has."""
    return [name for name in SPLIT_SYNONYMS if _find_split(root, name)]


def _has_splits(root: Location, notes: list[str]) -> bool:
    """Return whether the folder `train` is a split, and not a class among others."""
    train = _find_split(root, "train")
    if train is None:
        return False
    folders = image_folders(root)
    others = [name for name in folders if not SPLIT_NAME.fullmatch(name)]
    if not others:
        return True
    classes = set(image_folders(train))
    evaluation = [_find_split(root, name) for name in ("test", "validation")]
    if any(split and classes & set(image_folders(split)) for split in evaluation):
        notes.append(f"left out folders beside the splits of {root}: {listed(others)}")
        return True
    notes.append(
        f"'{train.name}' in {root} is taken as a class, because it is beside {listed(others)}; if "
        f"it is the training split, write data.train={train.name}"
    )
    return False


def _are_same(one: Location | None, other: Location | None) -> bool:
    return one is not None and other is not None and one.identity == other.identity


def _find_split(root: Location, name: str) -> Location | None:
    """Return the location of a split, under its name or a synonym of it, or None."""
    for synonym in SPLIT_SYNONYMS.get(name, (name,)):
        found = root.child(synonym)
        if found is not None:
            return found
    if name not in SPLIT_SYNONYMS:
        return None
    similar = [
        other
        for other in [*root.folders, *map(archive_stem, filter(is_archive_name, root.names))]
        if SPLIT_NAME.fullmatch(other) and standard_name(_word(other)) == name
    ]
    # Of train2014 and train2017, neither is meant.
    return root.child(similar[0]) if len(set(similar)) == 1 else None


def _word(name: str) -> str:
    """Return the word for a split in the name of a folder: "train" for ``Train_set2``."""
    return SPLIT_NAME.fullmatch(name)[1].lower()


def _named_split(root: Location, name: str) -> Location:
    """Return the location of a split that the recipe names.

    Raises:
        UserError: if there is none.
    """
    found = _find_split(root, name)
    if found is None:
        raise UserError(f"data: {root} has no split '{name}'; {suggest(name, root.names)}")
    return found
