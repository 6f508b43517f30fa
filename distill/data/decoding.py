"""Decode images of any kind into uint8 tensors of one shape."""

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms, ImageOps, features
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import functional as tvf

# pillow_heif is an optional package: with it, PIL opens the photos of iPhones.
try:
    from pillow_heif import register_heif_opener
except ImportError:
    READS_HEIF = False
else:
    register_heif_opener()
    READS_HEIF = True

# Image types that need a package, and its name for pip.
OPTIONAL_EXTENSIONS = {
    ".heic": "pillow-heif",
    ".heif": "pillow-heif",
    ".avif": "--upgrade pillow",
}


def _readable_extensions() -> tuple[str, ...]:
    extensions = [*IMG_EXTENSIONS, ".gif", ".jfif", ".jpe", ".jp2", ".tga", ".pnm", ".pbm", ".apng"]
    if READS_HEIF:
        extensions += [".heic", ".heif"]
    if features.check("avif"):
        extensions.append(".avif")
    return tuple(extensions)


IMAGE_EXTENSIONS = _readable_extensions()
"""File name extensions of images that can be read, in lower case."""

# By default, images of equal size keep their size if no side is longer than this.
SMALL_IMAGE_SIDE = 96

# An image that is longer than this many times its width is cut before it is resized: a line of
# 12,000×1 pixels would become one of gigabytes.
LONGEST_SHAPE = 16

# A colour profile is sRGB if it changes no colour by more than this.
SAME_COLOUR = 2

# This text is part of a data set's digest. Change it whenever decoding changes, so that runs are
# trained again.
DECODING_VERSION = b"upright, on white, in sRGB"


@dataclass(frozen=True)
class ImageFormat:
    """The number of channels and the size to which every image of a data set is converted.

    Attributes:
        channels: 1 (grey) or 3 (RGB).
        size: ``(height, width)``. The short side is resized, and then the centre is cropped.
        crop_pct: fraction of the resized image's side that the centre crop keeps, as in timm's
            configurations.
        bits: how many bits the pixels of 16-bit files use. Cameras and scanners write 10, 12 or 14.
    """

    channels: int = 3
    size: tuple[int, int] = (224, 224)
    crop_pct: float = 1.0
    bits: int = 16


def open_image(content: bytes) -> Image.Image:
    """Decode an image file.

    An image of three 16-bit channels, of which PIL keeps the upper 8 bits, has the note
    ``info["halved"]``.
    """
    image = Image.open(BytesIO(content))
    is_halved = image.mode in ("RGB", "RGBA") and any(";16" in str(tile) for tile in image.tile)
    image.load()
    if is_halved:
        image.info["halved"] = True
    return image


def as_displayed(image: Image.Image, bits: int = 16) -> Image.Image:
    """Return an image as a viewer shows it: upright, in sRGB with 8 bits, transparency on white.

    Args:
        image: an image that is loaded; of several pages or frames, the first.
        bits: how many bits the pixels of a 16-bit image use.

    Raises:
        ValueError: if the range of its pixels is unknown, or exceeds `bits`.
    """
    image = _upright(image)
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _to_eight_bits(image, bits)
    return _on_white(_to_srgb(image))


def to_tensor(image: Image.Image, image_format: ImageFormat) -> Tensor:
    """Convert a PIL image to a uint8 tensor ``[C, H, W]`` of the given format."""
    image = image.convert("L" if image_format.channels == 1 else "RGB")
    has_size = (image.height, image.width) == image_format.size
    if not has_size or image_format.crop_pct < 1:
        side = int(min(image_format.size) / image_format.crop_pct)
        image = _without_ends(image)
        image = tvf.resize(image, side, tvf.InterpolationMode.BICUBIC)
        image = tvf.center_crop(image, list(image_format.size))
    return tvf.pil_to_tensor(image)


def used_bits(image: Image.Image) -> int:
    """Return how many bits the pixels of a 16-bit image use: 8, 10, 12, 14 or 16; else 0."""
    if not image.mode.startswith("I"):
        return 0
    highest = int(np.asarray(image).max())
    return next((bits for bits in (8, 10, 12, 14) if highest < 1 << bits), 16)


def _upright(image: Image.Image) -> Image.Image:
    """Rotate a photograph according to its EXIF orientation."""
    # If the orientation cannot be read, the image is not rotated.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _to_eight_bits(image: Image.Image, bits: int) -> Image.Image:
    """Scale 16-bit pixels to 8 bits; PIL's own conversion would clip them at 255."""
    pixels = np.asarray(image)
    highest = int(pixels.max())
    if highest >= 1 << 16:
        raise ValueError(f"its pixels go up to {highest}; convert it to 8 or 16 bits")
    if highest >= 1 << bits:
        raise ValueError(
            f"its pixels go up to {highest}, but {bits} bits end at {(1 << bits) - 1}; set "
            f"data.bit_depth={used_bits(image)}"
        )
    if int(pixels.min()) < 0:
        raise ValueError("it has negative pixels, of unknown range; convert it to 8 or 16 bits")
    return Image.fromarray((pixels >> (bits - 8)).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    """Put a transparent image on a white background."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(background, image).convert("RGB")


def _without_ends(image: Image.Image) -> Image.Image:
    """Return the middle of a very long or very wide image, which the centre crop keeps."""
    longest = LONGEST_SHAPE * min(image.size)
    if max(image.size) <= longest:
        return image
    return tvf.center_crop(image, [min(image.height, longest), min(image.width, longest)])


# ------------------------------------------------------------------------------------------ colours


def _to_srgb(image: Image.Image) -> Image.Image:
    """Convert an image with a colour profile to sRGB, which all other images are taken to be."""
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    colours = image
    if alpha is not None or image.mode == "P":
        colours = image.convert("L" if image.mode == "LA" else "RGB")
    transform = _transform_to_srgb(profile, colours.mode)
    if transform is None:
        return image
    converted = ImageCms.applyTransform(colours, transform)
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


@lru_cache(maxsize=16)
def _transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from a profile to sRGB; None if it is sRGB, or cannot be used."""
    # Viewers ignore a profile that is damaged, or made for another kind of image.
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB"), mode, "RGB"
        )
        if mode == "CMYK":
            return transform
        ramp = np.arange(256, dtype=np.uint8)
        if mode == "L":
            examples = ramp[None]
        else:
            rng = np.random.default_rng(0)
            examples = rng.permuted(np.stack([ramp] * 3, axis=-1)[None], axis=1)
        picture = Image.fromarray(examples)
        before = np.asarray(picture.convert("RGB")).astype(int)
        after = np.asarray(ImageCms.applyTransform(picture, transform)).astype(int)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    return None if np.abs(after - before).max() <= SAME_COLOUR else transform
