"""The images of a split: labels at once, pixels when they are asked for, whatever their files look like."""

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as tvf

from distill.errors import UserError


@dataclass
class ImageDataset(Dataset):
    """One data set: labels at hand, images decoded on demand to uint8 ``[C, H, W]``.

    Attributes:
        labels: classes ``[N]``.
        read: image number -> PIL image.
        name: image number -> what to call it in a message.
        channels: 1 or 3.
        size: ``(height, width)`` that every image is brought to: short side first, then the centre.
        pixels: all images ``[N, C, H, W]`` once they are resident, else None.
        crop_pct: share of the resized image's side that the cut keeps, as timm's networks name it.
        reopen: forgets files that are open: a tar file's place in it is shared with a forked process.
        idle: the processes that decoded the last stream, for the next one.
        stamp: what tells this content from another of the same names and labels, where something cheap does.
        left_out: names of images that could not be read and are not among these.
        where: what a message adds to a name.
    """

    labels: Tensor
    read: Callable[[int], Image.Image] | None
    name: Callable[[int], str]
    channels: int = 3
    size: tuple[int, int] = (224, 224)
    pixels: Tensor | None = None
    crop_pct: float = 1.0
    stamp: str = ""
    reopen: Callable[[], None] | None = None
    left_out: list[str] = field(default_factory=list)
    where: str = ""
    idle: DataLoader | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, i: int) -> Image.Image:
        """The image as it is stored; UserError, with its name, if it cannot be read."""
        try:
            image = _upright(self.read(i))
            if image.mode == "F":
                raise ValueError("its pixels are floats, whose range is not known")
            if image.mode.startswith(
                "I"
            ):  # 16 bits a pixel (PIL says 32 of some), which it would cut off at 255
                pixels = np.asarray(image)
                few = image.mode == "I" and pixels.max() <= 255
                image = Image.fromarray(
                    (pixels if few else pixels >> 8).clip(0, 255).astype(np.uint8)
                )
            return _on_white(image)
        except Exception as error:  # of decoders there are many, and of what they raise
            raise UserError(
                f"cannot read the image {self.name(i)}{self.where}: {error or type(error).__name__} "
                "(data.on_error=skip leaves such images out)"
            ) from None

    @property
    def digest(self) -> str:
        """Of the pixels where they are in memory, else of names, file sizes and labels: cheap at any size."""
        content = hashlib.sha256(self.labels.numpy().tobytes() + self.stamp.encode())
        if self.pixels is not None:
            content.update(self.pixels.contiguous().numpy().tobytes())
        else:
            content.update(
                b"upright, on white"
            )  # how files are decoded, as far as that has changed
            for i in range(len(self)):
                content.update(self.name(i).encode())
        return content.hexdigest()

    def __getitem__(self, i: int) -> Tensor | str:
        """The image, or the sentence that says why there is none (exceptions of workers lose their words)."""
        if self.pixels is not None:
            return self.pixels[i]
        try:
            image = self.open(i).convert("L" if self.channels == 1 else "RGB")
        except UserError as error:
            return str(error)
        if (image.height, image.width) != self.size or self.crop_pct < 1:
            side = int(min(self.size) / self.crop_pct)
            image = tvf.center_crop(
                tvf.resize(image, side, tvf.InterpolationMode.BICUBIC), list(self.size)
            )
        return tvf.pil_to_tensor(image)

    def processes(self, workers: int) -> dict[str, Any]:
        """Arguments of a DataLoader that decodes in other processes; in this one where none can be forked."""
        if not workers or "fork" not in multiprocessing.get_all_start_methods():
            return {"num_workers": 0}
        return {
            "num_workers": workers,
            "multiprocessing_context": "fork",
            "worker_init_fn": lambda _: self.reopen() if self.reopen else None,
        }

    def stream(
        self, batches: list[list[int]], workers: int, pinned: bool
    ) -> Iterator[Tensor | str]:
        """Batches by the numbers of their images, each decoded by one of `workers` processes that stay for the next
        stream; no more than two batches a process wait.
        """
        loader, self.idle = (
            self.idle,
            None,
        )  # a second stream at the same time has processes of its own
        if loader is None:
            processes = self.processes(workers)
            loader = DataLoader(
                self,
                batch_sampler=[],
                collate_fn=stack,
                pin_memory=pinned,
                persistent_workers=processes["num_workers"] > 0,
                **processes,
            )
        loader.batch_sampler[:] = batches
        yield from loader
        self.idle = loader

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels."""
        return len(self) * self.channels * self.size[0] * self.size[1]

    def make_resident(self, workers: int) -> None:
        """Decode every image once, in `workers` processes."""
        if self.pixels is None:
            workers = (
                workers if len(self) > 2000 else 0
            )  # starting workers costs more than a few images
            loader = DataLoader(self, batch_size=256, collate_fn=stack, **self.processes(workers))
            self.pixels = torch.cat([checked(batch) for batch in loader])


def _upright(image: Image.Image) -> Image.Image:
    """An image turned as its camera noted."""
    with suppress(Exception):  # a note that cannot be read turns nothing
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _on_white(image: Image.Image) -> Image.Image:
    """An image as viewers show it where it is transparent."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def stack(items: list[Tensor | str]) -> Tensor | str:
    """A batch of images, or the first message among them."""
    message = next((item for item in items if isinstance(item, str)), None)
    return message if message is not None else torch.stack(items)


def checked(batch: Tensor | str) -> Tensor:
    """The batch; UserError if it is a message."""
    if isinstance(batch, str):
        raise UserError(batch)
    return batch


@dataclass
class _Check(Dataset):
    """Whether images can be read, by their numbers."""

    images: ImageDataset

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> bool:
        try:
            self.images.open(i).convert("RGB")
            return True
        except Exception:  # whatever a decoder raises
            return False


def readable(images: ImageDataset, workers: int) -> ImageDataset:
    """The images that can be read, as if there were no others; every one is read for that.

    Raises:
        UserError: if there is none.
    """
    processes = images.processes(workers if len(images) > 2000 else 0)
    good = torch.cat(list(DataLoader(_Check(images), batch_size=64, **processes)))
    kept = good.nonzero()[:, 0].tolist()
    if not kept:
        raise UserError(f"data: none of {len(images)} images can be read, {images.name(0)} for one")
    left_out = [images.name(i) for i in (~good).nonzero()[:, 0].tolist()]
    return replace(
        images,
        labels=images.labels[good],
        read=lambda i: images.read(kept[i]),
        name=lambda i: images.name(kept[i]),
        left_out=left_out,
    )
