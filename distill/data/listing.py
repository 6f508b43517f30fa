"""What the files of a folder are: images of a class, images of none, or something else."""

import os
import re
from collections import Counter
from dataclasses import dataclass, field

from distill.data.archives import StoredFile, is_archive_name
from distill.data.decoding import IMAGE_EXTENSIONS, OPTIONAL_EXTENSIONS
from distill.data.stored_files import Location, readable_name
from distill.errors import UserError, pluralize

MOST_NAMES = 5  # names that a note lists

# The folder of a run: `models/<id>`, and while it trains `models/<id>.partial`.
RUN_NAME = re.compile(r"[0-9a-f]{16}(\.\w+)?")


@dataclass
class Listing:
    """The files of a split.

    Attributes:
        classes: the images of each class, by the class's readable name.
        loose: paths of images outside all class folders.
        other: number of files that are not images, by extension (or by name, if they have none).
        empty: names of class folders without images.
        results: names of folders that hold results of distill.
        num_nested: number of images that are in subfolders of a class's folder.
        merged: names of classes that have several folders, such as composed and decomposed ones.
        same_inside: names of the subfolders of all classes, if they are the same in each.
    """

    classes: dict[str, list[StoredFile]] = field(default_factory=dict)
    loose: list[str] = field(default_factory=list)
    other: Counter = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    num_nested: int = 0
    merged: list[str] = field(default_factory=list)
    same_inside: list[str] = field(default_factory=list)

    @property
    def other_text(self) -> str:
        """Return the most frequent kinds of other files, such as ``3 .heic, 1 .mov``."""
        return ", ".join(f"{count} {name}" for name, count in self.other.most_common(MOST_NAMES))

    @property
    def package_hint(self) -> str:
        """Return which package reads kinds of images that are not readable now, or nothing."""
        hints = [f"; pip install {name}" for end, name in OPTIONAL_EXTENSIONS.items()
                 if end in self.other and end not in IMAGE_EXTENSIONS]  # fmt: skip
        return hints[0] + " to read them" if hints else ""


def list_files(location: Location) -> Listing:
    """Sort the files of a split into classes: each folder directly in it is one.

    Folders that distill writes its results to are left out, so that `runs/` can be in the folder of
    the photos.
    """
    listing = Listing()
    listing.results = result_folders(location)
    folders: dict[str, set[str]] = {}
    for file in location.files():
        folder, slash, below = file.path.partition("/")
        if slash and folder in listing.results:
            continue
        if file.problem and not is_image(file.path):
            listing.other["broken link"] += 1
        elif not is_image(file.path):
            extension = os.path.splitext(file.path)[1].lower()
            listing.other[extension or readable_name(os.path.basename(file.path))] += 1
        elif not slash:
            listing.loose.append(readable_name(file.path))
        else:
            name = readable_name(folder)
            listing.classes.setdefault(name, []).append(file)
            folders.setdefault(name, set()).add(folder)
            listing.num_nested += "/" in below
    _refuse_shards(location, listing)
    _compare_subfolders(location, listing)
    listing.merged = [name for name, same in folders.items() if len(same) > 1]
    known = {folder for same in folders.values() for folder in same}
    listing.empty = [
        readable_name(name) for name in location.folders if name not in {*known, *listing.results}
    ]
    return listing


def _refuse_shards(location: Location, listing: Listing) -> None:
    """Raise a UserError if the files are WebDataset shards, whose folders are not classes."""
    count = sum(map(len, listing.classes.values())) + len(listing.loose)
    if listing.other[".cls"] and listing.other[".cls"] >= count / 2:
        raise UserError(
            f"data: {location} has WebDataset shards (a .cls file for each image); write "
            "data.source=wds/NAME with the folder of the shards as data.root"
        )


def _compare_subfolders(location: Location, listing: Listing) -> None:
    """Keep the names of subfolders that all classes have alike, such as those of folds.

    Raises:
        UserError: if each class has folders such as `train` and `test` within it.
    """
    if len(listing.classes) < 2:
        return
    within = [
        {file.path.split("/")[1] for file in files if file.path.count("/") > 1}
        for files in listing.classes.values()
    ]
    shared = set.intersection(*within)
    splits = {name.lower() for name in shared} & {"train", "training"}
    if splits and len(shared) > 1:
        name = min(listing.classes)
        raise UserError(
            f"data: in {location}, each class has the folders {listed(sorted(shared))}; put the "
            f"classes into the splits ({min(splits)}/{name} instead of {name}/{min(splits)})"
        )
    if len(shared) > 1 and all(names == shared for names in within):
        listing.same_inside = sorted(shared)


def is_image(path: str) -> bool:
    """Return whether a file has the extension of an image that can be read."""
    return path.lower().endswith(IMAGE_EXTENSIONS)


def result_folders(location: Location) -> list[str]:
    """Return the names of the folders directly in a location that hold results of distill."""
    return [name for name in location.folders if _holds_results(location.child(name))]


def image_folders(location: Location) -> list[str]:
    """Return the names of the folders directly in a location that hold images, at any depth."""
    results = result_folders(location)
    return [
        name
        for name in location.folders
        if name not in results and any(is_image(path) for path in location.child(name).paths())
    ]


def _holds_results(folder: Location | None) -> bool:
    """Return whether a folder is that of a study, of all runs, or of both (as is `runs/`)."""
    if folder is None:
        return False
    names = folder.folders
    # A study that has just begun has no runs yet, but a lock beside its folder.
    is_new = any(name.startswith(".") and name.endswith(".lock") for name in folder.names)
    if "models" in names and is_new:
        return True
    if any(RUN_NAME.fullmatch(name) for name in names):
        return True
    if {"results.json", "report.html"} <= set(folder.names):
        return True
    models = folder.child("models") if "models" in names else None
    return models is not None and any(RUN_NAME.fullmatch(name) for name in models.names)


def left_out_notes(location: Location, listing: Listing) -> list[str]:
    """Return a sentence on each kind of file that is left out, and on merged classes."""
    notes = []
    if listing.loose:
        others = " and others" if len(listing.loose) > 1 else ""
        notes.append(
            f"left out {pluralize(len(listing.loose), 'image')} directly in {location}, outside "
            f"class folders: {listing.loose[0]}{others}"
        )
    if listing.other:
        notes.append(
            f"left out {pluralize(listing.other.total(), 'file')} of unsupported types in "
            f"{location}: {listing.other_text}{listing.package_hint}"
        )
    if listing.results:
        notes.append(f"left out results of distill in {location}: {listed(listing.results)}")
    if listing.empty:
        notes.append(
            f"left out {pluralize(len(listing.empty), 'folder')} without images in {location}: "
            f"{listed(listing.empty)}"
        )
    archives = [name for name in location.names if is_archive_name(name)]
    if location.archive is None and archives:
        notes.append(
            f"left out archives beside class folders in {location}: {listed(archives)}; unpack "
            "them if they are classes"
        )
    if listing.same_inside:
        notes.append(
            f"each class of {location} has the same subfolders ({listed(listing.same_inside)}); if "
            f"these are the classes, write data.root={location}/{min(listing.classes)}"
        )
    if listing.merged:
        notes.append(
            f"in {location}, folders whose names look the same are one class: "
            f"{listed(listing.merged)}"
        )
    return notes


def listed(names: list[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    shown = ", ".join(names[:MOST_NAMES])
    more = len(names) - MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
