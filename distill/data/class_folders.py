"""Open a split of a folder or an archive: each folder directly in it is a class.

The same rules hold on a disk, in a tar file and in a zip file.
"""

import os
import re

import numpy as np
import torch

from distill.data.archives import StoredFile
from distill.data.content_index import StoredContent
from distill.data.decoding import IMAGE_EXTENSIONS
from distill.data.image_dataset import ImageDataset, ImageReader
from distill.data.listing import MOST_NAMES, Listing, left_out_notes, list_files
from distill.data.stored_files import Location, readable_name
from distill.errors import UserError, pluralize, suggest


def open_classes(
    location: Location, split: str, class_names: list[str] | None, notes: list[str]
) -> tuple[ImageDataset, list[str]]:
    """Open one split: each folder directly in it is a class, with all images below it.

    Args:
        location: the split's folder or archive.
        split: the split's name, for messages.
        class_names: the classes of the training split; None if this is the training split.
        notes: receives sentences on files that are left out.

    Returns:
        The images in natural order of their paths, and the class names.

    Raises:
        UserError: if there are no images, or if a class is missing in the training split.
    """
    listing = list_files(location)
    if not listing.classes:
        raise UserError(_no_images_message(location, split, listing))
    notes.extend(left_out_notes(location, listing))

    names = class_names or sorted(listing.classes, key=natural_key)
    refuse_unknown_classes(listing.classes.keys() - set(names), names, f"{split} split {location}")
    if listing.num_nested and class_names is None:
        notes.append(
            f"the classes are the {len(names)} folders directly in {location}; "
            f"images in their subfolders ({listing.num_nested}) belong to these classes"
        )
    return _dataset_of_files(location, listing, names), names


def refuse_unknown_classes(unknown: set[str], names: list[str], where: str) -> None:
    """Raise a UserError if a split has classes that the training split does not have.

    Args:
        unknown: the classes that only this split has.
        names: the classes of the training split.
        where: the split, for the message.
    """
    if unknown:
        first = min(unknown)
        count = "1 class" if len(unknown) == 1 else f"{len(unknown):,} classes"
        raise UserError(
            f"data: the {where} has {count} that the training split "
            f"(with {len(names)}) does not have, for example '{first}'; {suggest(first, names)}"
        )


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Return a sorting key by which ``b2`` is before ``b10``, without regard to case.

    Names that differ only in case or in leading zeros are in the order of their letters.
    """
    parts = [part for part in re.split("([0-9]+)", name.lower()) if part]
    key = [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]
    return key, name


def _no_images_message(location: Location, split: str, listing: Listing) -> str:
    kinds = ", ".join(IMAGE_EXTENSIONS[:MOST_NAMES])
    message = f"data: {location} has no images ({kinds} and others) in class folders"
    if listing.loose:
        message += (
            f"; outside class folders it has {pluralize(len(listing.loose), 'image')}, "
            f"for example {listing.loose[0]}"
        )
    if listing.other:
        message += (
            f"; it has unsupported files ({listing.other_text}): convert images to JPEG"
            f"{listing.package_hint.replace('; ', ', or ')}"
        )
    message += ". Put the images of each class into a folder of their own"
    if split != "train":
        message += (
            f"; if these images have no labels, hold out labelled ones instead: data.{split}=0.2"
        )
    return message


def _dataset_of_files(location: Location, listing: Listing, names: list[str]) -> ImageDataset:
    """Return the data set of all images of a listing, in natural order of their paths."""
    number_of = {name: number for number, name in enumerate(names)}
    labelled = [
        (file, number_of[name]) for name, files in listing.classes.items() for file in files
    ]
    labelled.sort(key=lambda item: natural_key(readable_name(item[0].path)))
    labels = torch.tensor([label for _, label in labelled])
    return dataset_of_files([file for file, _ in labelled], labels, location)


def dataset_of_files(
    files: list[StoredFile], labels: torch.Tensor, location: Location
) -> ImageDataset:
    """Return the data set of files with these labels.

    Args:
        files: the images' files.
        labels: their classes ``[N]``.
        location: where the files are.
    """
    # Keep arrays instead of many objects: a forked worker changes the reference count of each
    # object that it reads, and this copies the object's memory page.
    paths = np.array([os.fsencode(file.path) for file in files])
    places = np.array([(file.part, file.number, file.size) for file in files], np.int64)
    stamps = np.array([(file.size, *file.stamp) for file in files], np.int64)
    problems = {i: file.problem for i, file in enumerate(files) if file.problem}
    read_file = location.reader

    def name(i: int) -> str:
        return f"{readable_name(os.fsdecode(paths[i]))} ({places[i][2]} bytes)"

    def read_bytes(i: int) -> bytes:
        if i in problems:
            raise OSError(problems[i])
        part, number, size = places[i].tolist()
        return read_file(os.fsdecode(paths[i]), part, number, size)

    content = StoredContent("\n".join(location.identity), paths, stamps, read_bytes)
    return ImageDataset(labels, name, ImageReader.of_files(content, str(location)))
