"""Convert the data sets that `timm.data.create_dataset` opens to an `ImageDataset`.

timm opens the data sets of torchvision and TensorFlow, and streams those of Hugging Face and
WebDataset.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset
from torch.utils.data import IterableDataset

from distill.data.class_folders import dataset_of_files
from distill.data.content_index import FileFacts, StoredContent, Track, untracked
from distill.data.decoding import SMALL_IMAGE_SIDE, ImageFormat, open_image, used_bits
from distill.data.image_dataset import ImageDataset, ImageReader
from distill.data.stored_files import Location, stored_file
from distill.data.workers import unwrap
from distill.errors import UserError
from distill.recipe.schema import Data

# The exceptions that timm and its libraries raise for a source that they cannot open.
OPENING_ERRORS = (
    ImportError,
    OSError,
    RuntimeError,
    ValueError,
    AssertionError,
    KeyError,
    TypeError,
)

# How many images are opened to find out their size and their kind, and how many 16-bit images to
# find out how many bits they use.
FEW = 8
MOST_MEASURED = 200

# Colours of 16 bits, of which PIL keeps the upper 8, are black if none reaches this value of 255.
DARKEST = 32


def open_by_timm(
    data: Data, root: str | None, split: str, *, download: bool
) -> tuple[ImageDataset, list[str] | None]:
    """Open one split with timm.

    Args:
        data: the recipe's data settings.
        root: the folder of the data set.
        split: the split's name.
        download: whether timm may download the data set.

    Returns:
        The images, and the class names or None if timm does not know them.

    Raises:
        UserError: if the source cannot be opened, or is damaged.
    """
    columns = {"input_key": data.image_key, "target_key": data.label_key}
    try:
        dataset = create_dataset(
            data.source,
            root=root,
            split=split,
            input_img_mode="L" if data.channels == 1 else "RGB",
            download=download,
            **{key: name for key, name in columns.items() if name},
        )
        if isinstance(dataset, IterableDataset):
            return _read_through(data, dataset, f"{data.source} {split}"), None
    except OPENING_ERRORS as error:
        raise UserError(_opening_message(data, root, split, error)) from None

    if hasattr(dataset, "reader"):
        images = _from_reader(dataset.reader, data.source)
    else:
        images = _from_torchvision(dataset, data)
    return images, _class_names(dataset)


def _opening_message(data: Data, root: str | None, split: str, error: Exception) -> str:
    where = f"{data.source}, split '{split}'"
    if root:
        where += f" in {root}"
    message = f"data: cannot open {where}: {error or type(error).__name__}"
    if isinstance(error, ImportError):
        message += (
            "; install the package that reads it: `pip install datasets` for hfds/ and hfids/, "
            "`pip install webdataset` for wds/"
        )
    return message


def _class_names(dataset: Any) -> list[str] | None:
    reader = getattr(dataset, "reader", dataset)
    mapping = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)
    if mapping:
        by_number = sorted(mapping.items(), key=lambda item: item[1])
        return [str(name) for name, _ in by_number]
    names = [str(name) for name in getattr(dataset, "classes", [])]
    return names or None


# ------------------------------------------------------------------------------- kinds of data sets


def _from_torchvision(dataset: Any, data: Data) -> ImageDataset:
    """Convert a data set of torchvision.

    This uses the data set's own pixel array, unless the recipe sets a size or a number of channels.
    """
    targets = getattr(dataset, "targets", None)
    if targets is None:
        targets = [dataset[i][1] for i in range(len(dataset))]
    labels = torch.as_tensor(targets).long()

    array = torch.as_tensor(getattr(dataset, "data", 0))
    holds_pixels = array.dtype == torch.uint8 and array.ndim in (3, 4)
    if holds_pixels and data.image_size is None and data.channels is None:
        is_grey = array.ndim == 3
        pixels = array[:, None] if is_grey else array.permute(0, 3, 1, 2).contiguous()
        return ImageDataset.from_pixels(pixels, labels, data.source)
    paths = _image_paths(dataset, len(labels))
    if paths is not None:
        root = Path(os.path.commonpath([path.parent for path in paths]))
        files = [stored_file(root, str(path.relative_to(root))) for path in paths]
        return dataset_of_files(files, labels, Location(root))
    return ImageDataset(
        labels,
        name=lambda i: f"{data.source} {i}",
        reader=ImageReader(
            read=lambda i: dataset[i][0],
            files=_decoded_content(lambda i: dataset[i][0], len(labels), data.source),
        ),
    )


def _image_paths(dataset: Any, count: int) -> list[Path] | None:
    """Return the image files of a data set of torchvision, or None if it has other images.

    Its classes keep the files under different names, some of them with the labels.
    """
    for attribute in ("samples", "_samples", "imgs", "_image_files", "_images"):
        values = getattr(dataset, attribute, None)
        if not isinstance(values, list) or len(values) != count:
            continue
        paths = [value[0] if isinstance(value, tuple) else value for value in values]
        if all(isinstance(path, str | Path) and os.path.isfile(path) for path in paths):
            return [Path(path).resolve() for path in paths]
    return None


def _from_reader(reader: Any, source: str) -> ImageDataset:
    """Convert a reader of timm.

    This avoids timm's own data set class, which replaces a damaged image by another one.
    """

    def read(i: int) -> Image.Image:
        with reader[i][0] as file:
            return open_image(file.read())

    labels = torch.tensor(_reader_labels(reader)).long()
    return ImageDataset(
        labels,
        name=lambda i: f"{source} {i}",
        reader=ImageReader(read, source, _decoded_content(read, len(labels), source)),
    )


def _decoded_content(read: Callable[[int], Image.Image], count: int, source: str) -> StoredContent:
    """Return images by their pixels, for data sets whose files are out of reach.

    They have no stamps, so that they are always read.
    """

    def read_bytes(i: int) -> bytes:
        image = read(i)
        return f"{image.mode} {image.size} ".encode() + image.tobytes()

    names = np.array([b"%d" % i for i in range(count)])
    never_kept = np.full((count, 4), np.iinfo(np.int64).max)
    return StoredContent(source, names, never_kept, read_bytes)


def _reader_labels(reader: Any) -> list[int]:
    if hasattr(reader, "targets"):
        return list(reader.targets)
    if hasattr(reader, "samples"):
        return [target for _, target in reader.samples]
    return list(reader.iter_targets())


def _read_through(data: Data, dataset: IterableDataset, name_prefix: str) -> ImageDataset:
    """Read an iterable data set into memory, because its images cannot be read by number.

    Raises:
        UserError: if it is empty or exceeds ``data.resident_gb``, or if there are several
            processes.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise UserError(
            f"data.source {data.source}: its reader gives each process different images; run it "
            "in one process"
        )
    pixels = []
    labels: list[int] = []
    image_format = ImageFormat()
    for number, (image, label) in enumerate(dataset):
        single = ImageDataset(
            torch.zeros(1),
            name=lambda _, number=number: f"{name_prefix} {number}",
            reader=ImageReader(read=lambda _, image=image: image),
        )
        if number == 0:
            image_format, _ = choose_format(single, data, may_be_grey=False)
        single.format = image_format
        pixels.append(unwrap(single[0]))
        labels.append(int(label))
        if len(pixels) * pixels[0].numel() > data.resident_gb * 1e9:
            raise UserError(
                f"data.source {data.source}: an iterable source must fit into memory, but it "
                f"exceeds data.resident_gb={data.resident_gb:g}; raise that value, or use a "
                "folder, a tar file or hfds/"
            )
    if not pixels:
        raise UserError(f"data: {name_prefix} has no images")
    return ImageDataset.from_pixels(torch.stack(pixels), torch.tensor(labels), name_prefix)


# ------------------------------------------------------------------------------------------- format


def choose_format(
    images: ImageDataset,
    data: Data,
    *,
    may_be_grey: bool,
    native_side: int = 224,
    track: Track = untracked,
) -> tuple[ImageFormat, bool]:
    """Choose the channels of a data set from a sample of its images, and the size from all.

    Small images of equal size keep their size, unless the recipe sets one.

    Args:
        images: the training images.
        data: the recipe's data settings.
        may_be_grey: whether images stay grey if all are grey; otherwise they become RGB.
        native_side: the side for images that are large or of different sizes.
        track: shows the progress of reading files.

    Returns:
        The format, and whether `native_side` was used.

    Raises:
        UserError: if an image of the sample cannot be read.
    """
    bits = data.bit_depth or _measure_bits(images)
    images.format = replace(images.format, bits=bits)
    sample = open_sample(images)
    all_grey = {image.mode for image in sample} == {"L"}
    channels = data.channels or (1 if all_grey and may_be_grey else 3)

    sizes = {(image.height, image.width) for image in sample}
    size = sizes.pop()
    keeps_size = not sizes and max(size) <= SMALL_IMAGE_SIDE
    if keeps_size and not data.image_size and images.reader and images.reader.files:
        keeps_size = _have_one_size(images.file_facts(track))
    uses_native_side = not data.image_size and not keeps_size
    if data.image_size:
        size = (data.image_size, data.image_size)
    elif uses_native_side:
        size = (native_side, native_side)
    return ImageFormat(channels, size, data.crop_pct, bits), uses_native_side


def _have_one_size(facts: FileFacts) -> bool:
    """Return whether all images are of one size; those that cannot be read do not count.

    A photograph that its camera has turned counts like one that it has not.
    """
    known = np.sort(facts.sizes[facts.sizes.all(axis=1)], axis=1)
    return len(np.unique(known, axis=0)) <= 1


def open_sample(images: ImageDataset) -> list[Image.Image]:
    """Open eight images that are spread evenly over a data set, or all if there are fewer.

    Raises:
        UserError: if one of them cannot be read.
    """
    return [images.open(i) for i in _spread(len(images), FEW)]


def _spread(length: int, count: int) -> list[int]:
    """Return at most `count` numbers from 0 to ``length - 1``, evenly spread."""
    last = length - 1
    return sorted({round(k * last / (count - 1)) for k in range(count)})


def _measure_bits(images: ImageDataset) -> int:
    """Return how many bits the 16-bit images of a data set use, by a sample; 16 if none has any.

    Raises:
        UserError: if an image of the sample cannot be read, or if colours of 16 bits use so few of
            them that the images are black.
    """
    first = [images.read(i) for i in _spread(len(images), FEW)]
    if not any(used_bits(image) or image.info.get("halved") for image in first):
        return 16
    sample = [images.read(i) for i in _spread(len(images), MOST_MEASURED)]
    halved = [image for image in sample if image.info.get("halved")]
    if halved and max(np.asarray(image).max() for image in halved) < DARKEST:
        raise UserError(
            "data: the images have three channels of 16 bits, but use so few of them that they are "
            f"black ({images.name(0)}); convert them to 8 bits"
        )
    return max((used_bits(image) for image in sample), default=16) or 16
