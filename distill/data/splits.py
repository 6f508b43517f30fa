"""Split any data set into training, validation and test images, always in the same way."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from distill.data.content_index import Track, untracked
from distill.data.datasets import find_source, open_dataset
from distill.data.decoding import SMALL_IMAGE_SIDE
from distill.data.image_dataset import ImageDataset
from distill.data.stored_datasets import NativeSize
from distill.data.workers import unwrap
from distill.errors import UserError, pluralize
from distill.recipe.schema import Data

VALIDATION_FRACTION = 0.1

# Settings that determine the images, and that the fingerprints of older runs do not contain.
NEWER_SETTINGS = {"background", "crop_pct", "bit_depth", "image_key", "label_key"}


@dataclass
class Split:
    """Some images of a data set, numbered from 0. Augmentation depends on these numbers.

    Attributes:
        images: the data set.
        positions: the images' numbers ``[N]`` in the data set.
    """

    images: ImageDataset
    positions: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def labels(self) -> Tensor:
        """Return the classes ``[N]``."""
        return self.images.labels[self.positions]


@dataclass
class Splits:
    """The three splits of a study, and the properties that they share.

    Attributes:
        settings: the recipe's data settings.
        train: the training split.
        validation: the validation split.
        test: the test split.
        class_names: names of the classes, in the order of their numbers.
        digest: SHA-256 digest of the images that the splits are taken from.
        notes: sentences that tell the user about automatic choices.
    """

    settings: Data
    train: Split
    validation: Split
    test: Split
    class_names: list[str]
    digest: str
    notes: list[str] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the channels, height and width of a decoded image."""
        return (self.train.images.channels, *self.train.images.size)

    @property
    def identity(self) -> dict[str, Any]:
        """Return everything that determines the decoded images, except their location.

        It is part of a run's fingerprint.
        """
        always = self.settings.model_dump(
            include={"source", "train", "validation", "test", "mean", "std", "synthetic"}
        )
        if_set = self.settings.model_dump(include=NEWER_SETTINGS, exclude_defaults=True)
        return {**always, **if_set, "shape": self.shape, "digest": self.digest}

    @property
    def datasets(self) -> list[ImageDataset]:
        """Return the data sets of the splits, each once."""
        by_id = {id(s.images): s.images for s in (self.train, self.validation, self.test)}
        return list(by_id.values())

    @property
    def class_frequencies(self) -> list[float]:
        """Return the fraction of training images in each class."""
        counts = self.train.labels.bincount(minlength=len(self.class_names))
        return (counts / len(self.train)).tolist()

    @property
    def fits_in_memory(self) -> bool:
        """Return whether the decoded images of all splits take at most ``data.resident_gb``."""
        total = sum(images.nbytes for images in self.datasets)
        return total <= self.settings.resident_gb * 1e9

    def load_into_memory(self) -> None:
        """Decode the images of all splits and keep them in memory; later calls do nothing.

        Raises:
            UserError: if an image cannot be read.
        """
        for images in self.datasets:
            images.make_resident(self.settings.workers)

    @cached_property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and standard deviation per channel, of pixels in [0, 1].

        The recipe sets them, or they are measured on the training split.

        Raises:
            UserError: if the recipe does not set one value for each channel.
        """
        mean = self.settings.mean
        std = self.settings.std
        if not mean or not std:
            return _measure_normalisation(self.train)
        channels = self.train.images.channels
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise UserError(
                    f"data.{name}: expected one value for each channel of the images, "
                    f"so {channels} in all, got {len(values)} values"
                )
        return tuple(mean), tuple(std)


def load_splits(
    data: Data, native: tuple[int, str] | None = None, track: Track = untracked
) -> Splits:
    """Open the data set of a recipe and split it.

    Args:
        data: the recipe's data settings.
        native: the largest image side that the study's pretrained networks were trained with, and
            the name of that network. Images are resized to it if the recipe sets no size and they
            are not all small and of equal size.
        track: shows the progress of reading files whose content is not known yet.

    Raises:
        UserError: if the data set is missing, empty or has fewer than two classes, or if the
            classes of its splits differ.
    """
    opened = open_dataset(data, NativeSize(*native) if native else None, track)
    notes = list(opened.notes)
    class_names = opened.class_names or name_numbered_classes(opened.splits, notes)
    if len(class_names) < 2:
        raise UserError(
            f"data.source {data.source}: found 1 class ({class_names[0]}), but at least 2 are "
            "needed; put the images of each class into a folder of their own"
        )
    by_role = _hold_out_missing_splits(data, opened.splits, notes)
    for role, split in by_role.items():
        _check_split(role, split, opened.splits, len(class_names))
    splits = Splits(
        data,
        by_role["train"],
        by_role["validation"],
        by_role["test"],
        class_names,
        _identify(opened.splits, opened.class_names, notes, track),
        notes,
    )
    if data.background:
        _add_background(splits)
    return splits


def hold_out(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Hold out a fraction of each class, always the same examples.

    At least one example of each class with three or more is held out. Every class keeps one.

    Args:
        labels: classes ``[N]``.
        fraction: in (0, 1).

    Returns:
        The positions to keep and the positions to hold out, each in ascending order.
    """
    generator = torch.Generator().manual_seed(0)
    is_held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        positions = (labels == label).nonzero()[:, 0]
        fewest = 1 if len(positions) >= 3 else 0
        most = len(positions) - 1
        count = min(max(round(len(positions) * fraction), fewest), most)
        order = torch.randperm(len(positions), generator=generator)
        is_held_out[positions[order[:count]]] = True
    return (~is_held_out).nonzero()[:, 0], is_held_out.nonzero()[:, 0]


def _hold_out_missing_splits(
    data: Data, opened: Mapping[str, ImageDataset], notes: list[str]
) -> dict[str, Split]:
    """Return all three splits; hold out those that the data set does not have.

    They are held out of the training images, the test split first.
    """
    train = opened["train"]
    remaining = torch.arange(len(train))
    splits: dict[str, Split] = {}
    default_fractions = {
        "test": find_source(data.source).test_fraction,
        "validation": VALIDATION_FRACTION,
    }
    for role, default_fraction in default_fractions.items():
        if role in opened:
            splits[role] = Split(opened[role], torch.arange(len(opened[role])))
            continue
        setting = getattr(data, role)
        fraction = setting if isinstance(setting, float) else default_fraction
        kept, held_out = hold_out(train.labels[remaining], fraction)
        splits[role] = Split(train, remaining[held_out])
        remaining = remaining[kept]
        if role == "test":
            notes.append(
                f"{fraction:.0%} of the images ({len(held_out)}) are held out as the test split"
            )
    return {"train": Split(train, remaining), **splits}


def _check_split(
    role: str, split: Split, opened: Mapping[str, ImageDataset], num_classes: int
) -> None:
    """Raise a UserError if a split is empty, or has labels that are not classes."""
    name = "training" if role == "train" else role
    if not len(split):
        reason = ""
        if role not in opened:
            reason = (
                f": among the {len(opened['train'])} images, no class has enough to hold one out; "
                f"add images, or give data.{role} a split of its own"
            )
        raise UserError(f"data: the {name} split is empty{reason}")
    if int(split.labels.min()) < 0:
        raise UserError(
            f"data: the {name} split has images without a label ({int(split.labels.min())}); hold "
            f"out labelled images instead, as in data.{role}=0.2"
        )
    if int(split.labels.max()) >= num_classes:
        raise UserError(
            f"data: the {name} split has labels outside the range 0 to {num_classes - 1} "
            f"of the {num_classes} classes"
        )


def name_numbered_classes(opened: Mapping[str, ImageDataset], notes: list[str]) -> list[str]:
    """Return names for classes that are numbers, from 0 or, if no image has class 0, from 1."""
    lowest = min(int(images.labels.min()) for images in opened.values())
    highest = int(opened["train"].labels.max())
    first = 1 if lowest == 1 else 0
    for images in opened.values():
        images.labels = images.labels - first
    if first:
        notes.append(f"the classes are the numbers from 1 to {highest}")
    return [str(number) for number in range(first, highest + 1)]


def _identify(
    opened: Mapping[str, ImageDataset],
    class_names: list[str] | None,
    notes: list[str],
    track: Track,
) -> str:
    """Return a digest of all images; note those that have further pages or frames."""
    digest = hashlib.sha256()
    for role, images in opened.items():
        digest.update(f"{role} {images.identify(track)} ".encode())
        if images.with_more:
            example = images.name(images.with_more[0])
            notes.append(
                f"of {pluralize(len(images.with_more), 'image')} with several pages or frames, "
                f"only the first is used: {example}{' and others' * (len(images.with_more) > 1)}"
            )
    has_files = any(images.reader and images.reader.files for images in opened.values())
    if class_names and has_files:
        digest.update("\n".join(class_names).encode())
    return digest.hexdigest()


def _add_background(splits: Splits) -> None:
    """Add a class without images as class 0, and raise all labels by one."""
    splits.class_names.insert(0, "background")
    for images in splits.datasets:
        images.labels = images.labels + 1


def _measure_normalisation(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure the mean and the standard deviation of each channel, rounded to four digits.

    This decodes a sample of images, spread evenly over the split: at most 10,000 small images, or
    1,000 large ones, which take longer. The sample is the same whether or not images are in memory.
    """
    images = split.images
    longest = max(images.channels, *images.size)
    count = min(len(split), 10_000 if longest <= SMALL_IMAGE_SIDE else 1_000)
    sample = split.positions[torch.arange(count) * len(split) // count]

    histogram = torch.zeros(images.channels, 256, dtype=torch.float64)
    for i in sample.tolist():
        image = unwrap(images[i]).flatten(1).cpu()
        histogram += torch.stack([torch.bincount(channel, minlength=256) for channel in image])

    frequencies = histogram / histogram.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = frequencies @ values
    variance = frequencies @ values**2 - mean**2
    std = variance.clamp(min=1e-8).sqrt()
    rounded_mean = tuple(round(value, 4) for value in mean.tolist())
    # A constant channel must not divide by zero.
    rounded_std = tuple(max(round(value, 4), 1e-4) for value in std.tolist())
    return rounded_mean, rounded_std
