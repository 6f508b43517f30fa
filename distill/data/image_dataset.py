"""A labelled image data set: labels in memory, images decoded on demand or kept in memory."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.data.content_index import FileFacts, StoredContent, Track, read_facts, untracked
from distill.data.decoding import (
    DECODING_VERSION,
    ImageFormat,
    as_displayed,
    open_image,
    to_tensor,
)
from distill.data.workers import (
    MIN_IMAGES_FOR_WORKERS,
    WorkerPool,
    stack_images,
    unwrap,
    worker_arguments,
)
from distill.errors import UserError


@dataclass(frozen=True)
class ImageReader:
    """Access to the stored images of a data set.

    Attributes:
        read: function that returns the PIL image with a given number.
        location: the folder or file with the images, for messages; empty if there is none.
        files: the images as they are stored, by which the data set is identified; None if the
            names of the images identify them.
    """

    read: Callable[[int], Image.Image]
    location: str = ""
    files: StoredContent | None = None

    @classmethod
    def of_files(cls, files: StoredContent, location: str) -> "ImageReader":
        """Return the reader of image files."""
        return cls(lambda i: open_image(files.read(i)), location, files)

    def select(self, kept: list[int]) -> "ImageReader":
        """Return a reader of some of the images, numbered anew."""
        files = self.files.select(kept) if self.files else None
        return ImageReader(lambda i: self.read(kept[i]), self.location, files)


@dataclass
class ImageDataset(Dataset):
    """Labelled images, as uint8 tensors ``[C, H, W]`` of one format.

    Attributes:
        labels: classes ``[N]``.
        name: function that returns the name of an image, for messages and for the digest.
        reader: reads stored images; None if the images exist only as `pixels`.
        format: channels and size of every image.
        pixels: all images ``[N, C, H, W]`` if they are in memory, else None.
        facts: what is known of the image files, once they were read.
        left_out: names of removed images, which cannot be read.
        with_more: numbers of images whose files have further pages or frames; `identify` finds
            them.
    """

    labels: Tensor
    name: Callable[[int], str]
    reader: ImageReader | None = None
    format: ImageFormat = field(default_factory=ImageFormat)
    pixels: Tensor | None = None
    left_out: list[str] = field(default_factory=list)
    with_more: list[int] = field(default_factory=list)
    facts: FileFacts | None = field(default=None, init=False, repr=False, compare=False)
    pool: WorkerPool = field(default_factory=WorkerPool, init=False, repr=False, compare=False)

    @classmethod
    def from_pixels(cls, pixels: Tensor, labels: Tensor, name_prefix: str) -> "ImageDataset":
        """Create a data set of images ``[N, C, H, W]`` (uint8) that are in memory already."""
        channels, height, width = pixels.shape[1:]
        image_format = ImageFormat(channels, (height, width))
        return cls(labels, lambda i: f"{name_prefix} {i}", format=image_format, pixels=pixels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Tensor | str:
        """Return an image, or the error message if it cannot be decoded (see `workers`)."""
        if self.pixels is not None:
            return self.pixels[i]
        try:
            return to_tensor(self.open(i), self.format)
        except UserError as error:
            return str(error)

    @property
    def channels(self) -> int:
        """Return the number of channels, 1 or 3."""
        return self.format.channels

    @property
    def size(self) -> tuple[int, int]:
        """Return the height and width of every image."""
        return self.format.size

    @property
    def nbytes(self) -> int:
        """Return the size of all decoded images in bytes."""
        height, width = self.size
        return len(self) * self.channels * height * width

    def identify(self, track: Track = untracked) -> str:
        """Return a SHA-256 digest of the data set's content.

        It covers the labels with the pixels in memory, or else with the names and the content of
        the image files. Files whose content is in an index of this machine are not read.

        Args:
            track: shows the progress of reading files.

        Raises:
            UserError: if a file cannot be read.
        """
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        if self.pixels is not None:
            digest.update(self.pixels.contiguous().numpy().tobytes())
            return digest.hexdigest()
        digest.update(DECODING_VERSION)
        for i in range(len(self)):
            digest.update(self.name(i).encode())
        if self.reader and self.reader.files:
            facts = self.file_facts(track)
            digest.update(facts.digests.tobytes())
            self.with_more = facts.has_more.nonzero()[0].tolist()
        return digest.hexdigest()

    def file_facts(self, track: Track = untracked) -> FileFacts:
        """Return what is known of the image files; they are read once at most.

        Raises:
            UserError: if a file cannot be read.
        """
        if self.facts is None:
            self.facts = read_facts(self.reader.files._replace(read=self._read_file), track)
        return self.facts

    def open(self, i: int) -> Image.Image:
        """Read an image as a viewer shows it, in its own size.

        Raises:
            UserError: if it cannot be read; the message contains its name.
        """
        image = self.read(i)
        try:
            return as_displayed(image, self.format.bits)
        except Exception as error:
            raise self._unreadable(i, error) from None

    def read(self, i: int) -> Image.Image:
        """Read an image as it is stored.

        Raises:
            UserError: if it cannot be read; the message contains its name.
        """
        # Different decoders raise different exceptions.
        try:
            return self.reader.read(i)
        except Exception as error:
            raise self._unreadable(i, error) from None

    def _read_file(self, i: int) -> bytes:
        """Return the content of an image's file."""
        # Archives raise different exceptions.
        try:
            return self.reader.files.read(i)
        except Exception as error:
            raise self._unreadable(i, error) from None

    def _unreadable(self, i: int, error: Exception) -> UserError:
        location = f" in {self.reader.location}" if self.reader and self.reader.location else ""
        return UserError(
            f"cannot read the image {self.name(i)}{location}: {error or type(error).__name__} "
            "(data.on_error=skip leaves such images out)"
        )

    def stream(
        self, batches: list[list[int]], workers: int, *, pinned: bool
    ) -> Iterator[Tensor | str]:
        """Decode batches in order, in worker processes that the next stream reuses.

        Args:
            batches: the image numbers of each batch.
            workers: number of processes.
            pinned: whether batches are put into page-locked memory, for copies to a GPU.

        Yields:
            Batches ``[B, C, H, W]``, or the message of the first error in a batch.
        """
        arguments = worker_arguments(workers)
        # The processes work on a copy without this pool. Otherwise data set, pool and loader would
        # form a reference cycle, and torch takes five seconds per process to free such a loader.
        dataset = replace(self)
        return self.pool.stream(dataset, batches, arguments, pinned=pinned)

    def make_resident(self, workers: int) -> None:
        """Decode every image once, in `workers` processes, and keep the pixels in memory.

        Raises:
            UserError: if an image cannot be read.
        """
        if self.pixels is not None:
            return
        if len(self) <= MIN_IMAGES_FOR_WORKERS:
            workers = 0
        arguments = worker_arguments(workers)
        loader = DataLoader(self, batch_size=256, collate_fn=stack_images, **arguments)
        self.pixels = torch.cat([unwrap(batch) for batch in loader])

    def without_unreadable(self, workers: int) -> "ImageDataset":
        """Return a data set of the images that can be read, numbered anew.

        This reads every image once, in `workers` processes.

        Raises:
            UserError: if no image can be read.
        """
        if len(self) <= MIN_IMAGES_FOR_WORKERS:
            workers = 0
        arguments = worker_arguments(workers)
        loader = DataLoader(_ReadabilityCheck(self), batch_size=64, **arguments)
        readable = torch.cat(list(loader))
        kept = readable.nonzero()[:, 0].tolist()
        if not kept:
            raise UserError(
                f"data: none of the {len(self)} images can be read, for example {self.name(0)}"
            )
        return replace(
            self,
            labels=self.labels[readable],
            name=lambda i: self.name(kept[i]),
            reader=self.reader.select(kept),
            left_out=[self.name(i) for i in (~readable).nonzero()[:, 0].tolist()],
        )


class OpenedDataset(NamedTuple):
    """A data set as its source provides it, before splits are held out.

    Attributes:
        splits: the data set of each split that the source has: "train", and maybe "test" and
            "validation".
        class_names: names of the classes in the order of their numbers, or None if they have no
            names.
        notes: sentences that tell the user about automatic choices.
    """

    splits: dict[str, ImageDataset]
    class_names: list[str] | None
    notes: list[str]


@dataclass
class _ReadabilityCheck(Dataset):
    """A data set that returns for each image whether it can be read."""

    images: ImageDataset

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> bool:
        # Different decoders raise different exceptions.
        try:
            self.images.open(i).convert("RGB")
        except Exception:
            return False
        return True
