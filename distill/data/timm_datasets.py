"""Convert the data sets that `timm.data.create_dataset` opens to an `ImageDataset`.

timm opens tar files and the data sets of torchvision, Hugging Face, TensorFlow and WebDataset.
"""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_dataset
from torch.utils.data import IterableDataset

from distill.data.decoding import SMALL_IMAGE_SIDE, ImageFormat
from distill.data.image_dataset import ImageDataset, ImageReader
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
    tarfile.TarError,
)


def open_by_timm(
    data: Data, root: str | None, split: str, class_names: list[str] | None, *, download: bool
) -> tuple[ImageDataset, list[str] | None]:
    """Open one split with timm.

    Args:
        data: the recipe's data settings.
        root: the split's folder or tar file for local files, else the folder of the whole data set.
        split: the split's name.
        class_names: the classes of the training split, or None if they are unknown.
        download: whether timm may download the data set.

    Returns:
        The images, and the class names or None if timm does not know them.

    Raises:
        UserError: if the source cannot be opened, or is damaged.
    """
    is_local = data.source in ("folder", "tar")
    class_map = None
    if class_names and is_local:
        class_map = {name: number for number, name in enumerate(class_names)}
    try:
        if is_local and Path(str(root)).is_file():
            _check_tar(Path(str(root)))
        dataset = create_dataset(
            "" if is_local else data.source,
            root=root,
            split=split,
            search_split=not is_local,
            input_img_mode="L" if data.channels == 1 else "RGB",
            download=download,
            class_map=class_map,
        )
        if isinstance(dataset, IterableDataset):
            return _read_through(data, dataset, f"{data.source} {split}"), None
    except OPENING_ERRORS as error:
        raise UserError(_opening_message(data, root, split, error)) from None

    if hasattr(dataset, "reader"):
        location = str(root) if is_local else ""
        images = _from_reader(dataset.reader, data.source, location)
    else:
        images = _from_torchvision(dataset, data)
    return images, _class_names(dataset)


def _opening_message(data: Data, root: str | None, split: str, error: Exception) -> str:
    if data.source in ("folder", "tar"):
        where = str(root)
    else:
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


def _check_tar(path: Path) -> None:
    """Check that a tar file is not damaged.

    Readers mistake a damaged header for the end of the file, and ignore the rest of it.

    Raises:
        tarfile.ReadError: if there are data after the end that a reader finds.
    """
    with tarfile.open(path) as tar:
        for _ in tar:
            pass
        end = tar.offset
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(512)
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"it is damaged at byte {end}")


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
    return ImageDataset(
        labels,
        name=lambda i: f"{data.source} {i}",
        reader=ImageReader(read=lambda i: dataset[i][0]),
    )


def _from_reader(reader: Any, source: str, location: str) -> ImageDataset:
    """Convert a reader of timm.

    This avoids timm's own data set class, which replaces a damaged image by another one.
    """

    def read(i: int) -> Image.Image:
        with reader[i][0] as file:
            image = Image.open(file)
            image.load()
        return image

    root = Path(str(reader.root))
    if root.is_file():
        content_stamp = str(root.stat().st_size)
    else:
        # Data sets of Hugging Face have a fingerprint.
        content_stamp = str(getattr(getattr(reader, "dataset", None), "_fingerprint", ""))
    return ImageDataset(
        torch.tensor(_reader_labels(reader)).long(),
        name=_reader_names(reader, source),
        reader=ImageReader(read, location, content_stamp, reopen=lambda: _reopen_tar_files(reader)),
    )


def _reader_labels(reader: Any) -> list[int]:
    if hasattr(reader, "targets"):
        return list(reader.targets)
    if hasattr(reader, "samples"):
        return [target for _, target in reader.samples]
    return list(reader.iter_targets())


def _reader_names(reader: Any, source: str) -> Callable[[int], str]:
    """Return a function that names the images of a reader by their files and the files' sizes."""

    def name(i: int) -> str:
        # Readers whose images are not files raise different exceptions when asked for a file name.
        try:
            path = Path(reader.filename(i, absolute=True))
            file_name = reader.filename(i)
            if path.is_file():
                return f"{file_name} ({path.stat().st_size} bytes)"
            return file_name
        except (NotImplementedError, AssertionError, KeyError, OSError, TypeError):
            return f"{source} {i}"

    return name


def _reopen_tar_files(reader: Any) -> None:
    """Close the tar files that a timm reader keeps open, also those inside other tar files.

    The reader opens them again when it needs them.
    """
    state = getattr(reader, "tar_state", {})
    remaining = list(state.values()) if isinstance(state, dict) else [state]
    while remaining:
        tar = remaining.pop()
        tar.reset()
        remaining += tar.children.values()


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
    images: ImageDataset, data: Data, *, may_be_grey: bool, native_side: int = 224
) -> tuple[ImageFormat, bool]:
    """Choose the channels and the size of a data set from a sample of its images.

    Small images of equal size keep their size, unless the recipe sets one.

    Args:
        images: the training images.
        data: the recipe's data settings.
        may_be_grey: whether images stay grey if all are grey; otherwise they become RGB.
        native_side: the side for images that are large or of different sizes.

    Returns:
        The format, and whether `native_side` was used.

    Raises:
        UserError: if an image of the sample cannot be read.
    """
    sample = open_sample(images)
    all_grey = {image.mode for image in sample} == {"L"}
    channels = data.channels or (1 if all_grey and may_be_grey else 3)

    sizes = {(image.height, image.width) for image in sample}
    size = sizes.pop()
    keeps_size = not sizes and max(size) <= SMALL_IMAGE_SIDE
    uses_native_side = not data.image_size and not keeps_size
    if data.image_size:
        size = (data.image_size, data.image_size)
    elif uses_native_side:
        size = (native_side, native_side)
    return ImageFormat(channels, size, data.crop_pct), uses_native_side


def open_sample(images: ImageDataset) -> list[Image.Image]:
    """Open eight images that are spread evenly over a data set, or all if there are fewer.

    Raises:
        UserError: if one of them cannot be read.
    """
    last = len(images) - 1
    numbers = {round(k * last / 7) for k in range(8)}
    return [images.open(i) for i in sorted(numbers)]
