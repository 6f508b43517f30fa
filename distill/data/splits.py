"""One training, one validation and one test split of any source, the same ones each time."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from distill.data.datasets import SMALL, open_dataset
from distill.data.image_dataset import ImageDataset, checked
from distill.errors import UserError
from distill.recipe.schema import Data

TEST_FRACTION = {"digits": 1 / 3}  # held out where a source has no test split; 0.2 elsewhere


@dataclass
class Split:
    """Some images of a data set, numbered from 0: the number is the key of their views."""

    images: ImageDataset
    positions: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def labels(self) -> Tensor:
        """Classes ``[N]``."""
        return self.images.labels[self.positions]


@dataclass
class Splits:
    """The three splits of a study and what is common to them."""

    settings: Data
    train: Split
    validation: Split
    test: Split
    class_names: list[str]
    digest: str
    notes: list[str] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image as decoded."""
        return (self.train.images.channels, *self.train.images.size)

    @property
    def identity(self) -> dict[str, Any]:
        """All that the images of a study depend on, but for where they lie: part of a run's fingerprint."""
        same = self.settings.model_dump(
            include={"source", "train", "validation", "test", "mean", "std", "synthetic"}
        )
        more = self.settings.model_dump(
            include={"background", "crop_pct"}, exclude_defaults=True
        )  # ids stay
        return {**same, **more, "shape": self.shape, "digest": self.digest}

    @property
    def shares(self) -> list[float]:
        """Of each class in the training split."""
        return (
            self.train.labels.bincount(minlength=len(self.class_names)) / len(self.train)
        ).tolist()

    @cached_property
    def resident(self) -> bool:
        """Whether all splits fit into `resident_gb`; decodes them if so, once."""
        every = {id(s.images): s.images for s in (self.train, self.validation, self.test)}.values()
        fits = sum(images.nbytes for images in every) <= self.settings.resident_gb * 1e9
        for images in every if fits else ():
            images.make_resident(self.settings.workers)
        return fits

    @cached_property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel of pixels in [0, 1].

        As the recipe says, else measured on the training split: on at most 10,000 images, spread evenly
        (1,000 where decoding them takes long), whether they are resident or not.
        """
        channels = self.shape[0]
        if self.settings.mean and self.settings.std:
            for name, values in (("mean", self.settings.mean), ("std", self.settings.std)):
                if len(values) != channels:
                    raise UserError(
                        f"data.{name}: the images have {channels} channels, got {len(values)} values"
                    )
            return tuple(self.settings.mean), tuple(self.settings.std)
        count = min(len(self.train), 10_000 if max(self.shape) <= SMALL else 1_000)
        histogram = torch.zeros(channels, 256, dtype=torch.float64)
        for i in self.train.positions[torch.arange(count) * len(self.train) // count].tolist():
            image = checked(self.train.images[i]).flatten(1).cpu()
            histogram += torch.stack([torch.bincount(plane, minlength=256) for plane in image])
        values, weights = (
            torch.arange(256, dtype=torch.float64) / 255,
            histogram / histogram.sum(1, keepdim=True),
        )
        mean = weights @ values
        std = (weights @ values**2 - mean**2).clamp(min=1e-8).sqrt()
        return tuple(round(v, 4) for v in mean.tolist()), tuple(
            max(round(v, 4), 1e-4) for v in std.tolist()
        )


def load_splits(data: Data, native: tuple[int, str] | None = None) -> Splits:
    """Open a source and split it.

    Args:
        data: the source, its splits, the size of its images.
        native: the side that images are brought to where `data` says nothing, and for which network that is.

    Raises:
        UserError: if the source is missing, empty, or has fewer than two classes, or if the classes of its
            splits differ.
    """
    opened, names, notes = open_dataset(data, native or (224, ""))
    names = names or [str(i) for i in range(int(opened["train"].labels.max()) + 1)]
    if len(names) < 2:
        raise UserError(
            f"data.source {data.source}: found 1 class; images must lie in one folder for each class"
        )
    splits = _split(data, opened, names, notes)
    for name, split in (
        ("training", splits.train),
        ("validation", splits.validation),
        ("test", splits.test),
    ):
        if not len(split):
            few = f": of no class are there enough of the {len(opened['train'])} images to hold some out"
            raise UserError(
                f"data: the {name} split is empty{'' if name in ('training', *opened) else few}"
            )
        if int(split.labels.min()) < 0 or int(split.labels.max()) >= len(names):
            raise UserError(
                f"data: the {name} split has labels outside of the {len(names)} classes"
            )
    if data.background:
        _add_background(splits)
    return splits


def _add_background(splits: Splits) -> None:
    """Shift all labels by one and put a class without examples before them."""
    splits.class_names.insert(0, "background")
    for images in {
        id(s.images): s.images for s in (splits.train, splits.validation, splits.test)
    }.values():
        images.labels = images.labels + 1


def held_out(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Positions ``(kept, held out)``: the fraction of each class, the same ones each time.

    A class of three or more gives at least one, and every class keeps at least one.
    """
    generator = torch.Generator().manual_seed(0)
    out = []
    for label in labels.unique():
        positions = (labels == label).nonzero()[:, 0]
        least = 1 if len(positions) >= 3 else 0
        count = min(max(round(len(positions) * fraction), least), len(positions) - 1)
        out.append(positions[torch.randperm(len(positions), generator=generator)[:count]])
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[torch.cat(out)] = True
    return (~mask).nonzero()[:, 0], mask.nonzero()[:, 0]


def _split(
    data: Data, opened: dict[str, ImageDataset], names: list[str], notes: list[str]
) -> Splits:
    """The splits that were opened; those that were not are held out of training, the test split first."""
    train = opened["train"]
    kept = torch.arange(len(train))
    splits: dict[str, Split] = {}
    for role, usual in (("test", TEST_FRACTION.get(data.source, 0.2)), ("validation", 0.1)):
        wanted = getattr(data, role)
        if role in opened:
            splits[role] = Split(opened[role], torch.arange(len(opened[role])))
            continue
        fraction = wanted if isinstance(wanted, float) else usual
        rest, held = held_out(train.labels[kept], fraction)
        splits[role], kept = Split(train, kept[held]), kept[rest]
        if role == "test":
            notes.append(
                f"{fraction:.0%} of the images ({len(held)}) are held out as the test split"
            )
    splits["train"] = Split(train, kept)
    digest = hashlib.sha256(
        "".join(f"{role} {opened[role].digest} " for role in opened).encode()
    ).hexdigest()
    return Splits(data, splits["train"], splits["validation"], splits["test"], names, digest, notes)
