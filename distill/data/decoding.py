"""Decode images of any kind into uint8 tensors of one shape."""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import functional as tvf

# By default, images of equal size keep their size if no side is longer than this.
SMALL_IMAGE_SIDE = 96

# This text is part of a data set's digest. Change it whenever decoding changes, so that runs are
# trained again.
DECODING_VERSION = b"upright, on white"


@dataclass(frozen=True)
class ImageFormat:
    """The number of channels and the size to which every image of a data set is converted.

    Attributes:
        channels: 1 (grey) or 3 (RGB).
        size: ``(height, width)``. The short side is resized, and then the centre is cropped.
        crop_pct: fraction of the resized image's side that the centre crop keeps, as in timm's
            configurations.
    """

    channels: int = 3
    size: tuple[int, int] = (224, 224)
    crop_pct: float = 1.0


def as_displayed(image: Image.Image) -> Image.Image:
    """Return an image as a viewer shows it: upright, 8 bits per channel, transparency on white.

    Raises:
        ValueError: if the pixels are floats, because their range is unknown.
    """
    image = _upright(image)
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _to_eight_bits(image)
    return _on_white(image)


def to_tensor(image: Image.Image, image_format: ImageFormat) -> Tensor:
    """Convert a PIL image to a uint8 tensor ``[C, H, W]`` of the given format."""
    image = image.convert("L" if image_format.channels == 1 else "RGB")
    has_size = (image.height, image.width) == image_format.size
    if not has_size or image_format.crop_pct < 1:
        side = int(min(image_format.size) / image_format.crop_pct)
        image = tvf.resize(image, side, tvf.InterpolationMode.BICUBIC)
        image = tvf.center_crop(image, list(image_format.size))
    return tvf.pil_to_tensor(image)


def _upright(image: Image.Image) -> Image.Image:
    """Rotate a photograph according to its EXIF orientation."""
    # If the orientation cannot be read, the image is not rotated.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit pixels to 8 bits; PIL's own conversion would clip them at 255."""
    pixels = np.asarray(image)
    # PIL opens some 16-bit files in the 32-bit mode "I", which also holds 8-bit values.
    is_eight_bits = image.mode == "I" and pixels.max() <= 255
    if not is_eight_bits:
        pixels = pixels >> 8
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    """Put a transparent image on a white background."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(background, image).convert("RGB")
