"""Opening a source: its labels at once, its images one by one when they are asked for.

The embedded digits, noise of any shape, and whatever `timm.data.create_dataset` reads.
"""

import tarfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from distill.data.folders import SYNONYMS, find_splits, open_folder
from distill.data.image_dataset import ImageDataset, checked, readable
from distill.data.shards import open_shards, shards_of
from distill.errors import UserError
from distill.recipe.schema import Data, Synthetic

SMALL = 96  # equal images up to this side keep their size


def open_dataset(
    data: Data, native: tuple[int, str] = (224, "")
) -> tuple[dict[str, ImageDataset], list[str] | None, list[str]]:
    """What a source has: images by role (train, and test or validation where they are), class names, notes.

    Args:
        data: the source, and where it is.
        native: the side that images are brought to where `data` does not say and they are not small and equal, and
            the network that it comes from.

    Raises:
        UserError: if it is missing, empty or not readable, or if a split has classes that training has not.
    """
    if data.source == "digits":
        return {"train": _digits()}, None, []
    if data.source == "synthetic":
        return _synthetic(data), None, []
    opened, names, notes = _timm(data, native)
    for role, images in opened.items():
        if images.left_out:
            more = f" and {len(images.left_out) - 10} more" if len(images.left_out) > 10 else ""
            notes.append(
                f"{len(images.left_out)} images that cannot be read are left out of {role}: "
                f"{', '.join(images.left_out[:10])}{more}"
            )
    return opened, names, notes


def _digits() -> ImageDataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()  # 1,797 images of 8 x 8 with values 0 to 16
    pixels = (torch.from_numpy(bunch.images) * (255 / 16)).round().to(torch.uint8)[:, None]
    return _from_array(pixels, torch.from_numpy(bunch.target).long(), "digit")


def _from_array(pixels: Tensor, labels: Tensor, what: str) -> ImageDataset:
    return ImageDataset(
        labels, None, lambda i: f"{what} {i}", pixels.shape[1], tuple(pixels.shape[2:]), pixels
    )


def _synthetic(data: Data) -> dict[str, ImageDataset]:
    from torchvision.datasets import FakeData

    made = data.synthetic or Synthetic()
    channels, height, width = made.shape
    if channels not in (1, 3) or min(height, width) < 1:
        raise UserError(
            f"data.synthetic.shape: expected 1 or 3 channels and a positive size, got {list(made.shape)}"
        )

    def one(size: int, offset: int) -> ImageDataset:
        fake = FakeData(size, made.shape, made.classes, random_offset=offset)
        labels = torch.tensor([int(fake[i][1]) for i in range(size)])
        name = f"synthetic {made.shape} {made.classes} {offset}"
        return ImageDataset(
            labels, lambda i: fake[i][0], lambda i: f"{name} {i}", channels, (height, width)
        )

    return {"train": one(made.train, 0), "test": one(made.test, made.train)}


def _timm(
    data: Data, native: tuple[int, str]
) -> tuple[dict[str, ImageDataset], list[str] | None, list[str]]:
    notes: list[str] = []
    if data.source in ("folder", "tar"):
        places = {role: (root, role) for role, root in find_splits(data, notes).items() if root}
    else:
        wanted = {"test": data.test, "validation": data.validation}
        if (
            data.test is None
        ):  # what timm calls the test part of torchvision's sets, and their usual name elsewhere
            wanted["test"] = "validation" if data.source.startswith("torch/") else "test"
        if data.test is None and _shards(data, "validation") and not _shards(data, "test"):
            wanted["test"] = "validation"
        places = {"train": (data.root, data.train)}
        places |= {
            role: (data.root, split) for role, split in wanted.items() if isinstance(split, str)
        }
    seen: dict[Any, str] = {}
    for role, (root, split) in places.items():
        where = (
            str(Path(root).resolve())
            if data.source in ("folder", "tar")
            else next((name for name, same in SYNONYMS.items() if split in same), split)
        )
        if where in seen:
            raise UserError(
                f"data: the {role} split is the same as the {seen[where]} split ({where})"
            )
        seen[where] = role
    train, names = _open(data, *places["train"], None, native, notes)
    others = {
        role: _open(data, *place, names, native, notes)[0]
        for role, place in places.items()
        if role != "train"
    }
    for role, images in others.items():
        if images.pixels is None:
            images.channels, images.size, images.crop_pct = (
                train.channels,
                train.size,
                train.crop_pct,
            )
        elif images.pixels.shape[1:] != train.pixels.shape[1:]:
            raise UserError(
                f"data: images of the {role} split are not of the size of training's; set data.image_size"
            )
    return {"train": train, **others}, names, notes


def _open(
    data: Data,
    root: str | None,
    split: str,
    known: list[str] | None,
    native: tuple[int, str],
    notes: list[str],
) -> tuple[ImageDataset, list[str] | None]:
    """One split, with its class names (those of training, if given); all but folders through timm."""
    if data.source == "folder" and Path(str(root)).is_dir():
        images, names = open_folder(Path(str(root)), split, known, notes)
    elif _shards(data, split):
        images, names = open_shards(_shards(data, split)), known
    else:
        images, names = _by_timm(data, root, split, known)
    if images.pixels is None:
        images = readable(images, data.workers) if data.on_error == "skip" else images
        resized = _set_shape(images, data, 1 if data.source.startswith("torch/") else 3, native[0])
        if native[1] and not resized and not data.image_size and not known:
            notes.append(
                f"images keep their size, {images.size[0]}×{images.size[1]}; {native[1]} was trained with "
                f"{native[0]}×{native[0]} (data.image_size={native[0]} brings them to that)"
            )
        if resized and not known:
            origin = f", which {native[1]} was trained with" if native[1] else ""
            notes.append(
                f"images are brought to {native[0]}×{native[0]}{origin} (short side resized, centre cut out); "
                "data.image_size sets a size that no added arm changes"
            )
    return images, names


def _shards(data: Data, split: str) -> list[Path]:
    """Of a split of WebDataset shards that lie on this machine; timm streams those that do not."""
    here = data.source.startswith("wds/") and data.root is not None and Path(data.root).is_dir()
    return shards_of(Path(data.root), split) if here else []


def _by_timm(
    data: Data, root: str | None, split: str, names: list[str] | None
) -> tuple[ImageDataset, list[str] | None]:
    """What `timm.data.create_dataset` opens."""
    from timm.data import create_dataset

    local = data.source in ("folder", "tar")
    try:
        if local and Path(str(root)).is_file():
            _check_tar(Path(str(root)))
        dataset = create_dataset(
            "" if local else data.source,
            root=root,
            split=split,
            search_split=not local,
            input_img_mode="L" if data.channels == 1 else "RGB",
            download=data.source.startswith(("torch/", "tfds/")),
            class_map={name: i for i, name in enumerate(names)} if names and local else None,
        )
        if isinstance(dataset, IterableDataset):
            return _drain(data, dataset, f"{data.source} {split}"), None
    except (
        ImportError,
        OSError,
        RuntimeError,
        ValueError,
        AssertionError,
        KeyError,
        TypeError,
        tarfile.TarError,
    ) as error:
        advice = (
            "; `pip install datasets` or `webdataset` reads it"
            if isinstance(error, ImportError)
            else ""
        )
        where = (
            root if local else f"{data.source}, split '{split}'" + (f" in {root}" if root else "")
        )
        raise UserError(
            f"data: cannot open {where}: {error or type(error).__name__}{advice}"
        ) from None
    images = (
        _by_reader(dataset.reader, data.source)
        if hasattr(dataset, "reader")
        else _torchvision(dataset, data)
    )
    images.where = f" in {root}" if local else ""
    return images, _class_names(dataset)


def _check_tar(path: Path) -> None:
    """ReadError if a tar file goes on where its reader takes it to end, as it does at a damaged header."""
    with tarfile.open(path) as tar:
        for _ in tar:
            pass
        end = tar.offset
    with path.open("rb") as file:
        file.seek(end)
        if file.read(512).strip(b"\0"):
            raise tarfile.ReadError(f"it is damaged at byte {end}")


def _class_names(dataset: Any) -> list[str] | None:
    reader = getattr(dataset, "reader", dataset)
    mapping = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)
    if mapping:
        return [str(name) for name, _ in sorted(mapping.items(), key=lambda item: item[1])]
    return [str(name) for name in getattr(dataset, "classes", [])] or None


def _torchvision(dataset: Any, data: Data) -> ImageDataset:
    targets = getattr(dataset, "targets", None)
    labels = torch.as_tensor(
        targets if targets is not None else [dataset[i][1] for i in range(len(dataset))]
    ).long()
    array = torch.as_tensor(getattr(dataset, "data", 0))
    if (
        array.dtype == torch.uint8
        and array.ndim in (3, 4)
        and data.image_size is None
        and data.channels is None
    ):
        pixels = array[:, None] if array.ndim == 3 else array.permute(0, 3, 1, 2).contiguous()
        return _from_array(pixels, labels, data.source)
    return ImageDataset(labels, lambda i: dataset[i][0], lambda i: f"{data.source} {i}")


def _by_reader(reader: Any, source: str) -> ImageDataset:
    """By timm's reader: its data set skips a damaged image in silence."""
    if hasattr(reader, "targets"):
        labels = list(reader.targets)
    elif hasattr(reader, "samples"):
        labels = [target for _, target in reader.samples]
    else:
        labels = list(reader.iter_targets())

    def name(i: int) -> str:
        try:
            path = Path(reader.filename(i, absolute=True))
            return (
                f"{reader.filename(i)} ({path.stat().st_size} bytes)"
                if path.is_file()
                else reader.filename(i)
            )
        except (
            NotImplementedError,
            AssertionError,
            KeyError,
            OSError,
            TypeError,
        ):  # images that were never files
            return f"{source} {i}"

    def read(i: int) -> Image.Image:
        with reader[i][0] as file:
            image = Image.open(file)
            image.load()
        return image

    def reopen() -> None:
        state = getattr(reader, "tar_state", {})
        tars = list(state.values()) if isinstance(state, dict) else [state]
        while tars:
            tar = tars.pop()
            tar.reset()
            tars += tar.children.values()

    root = Path(str(reader.root))
    stamp = getattr(
        getattr(reader, "dataset", None), "_fingerprint", ""
    )  # of a Hugging Face data set
    return ImageDataset(
        torch.tensor(labels).long(),
        read,
        name,
        reopen=reopen,
        stamp=str(root.stat().st_size if root.is_file() else stamp),
    )


def _set_shape(images: ImageDataset, data: Data, fewest: int, side: int) -> bool:
    """Channels and size for all images, from eight of them spread over the set; whether `side` was taken."""
    chosen = [images.open(i) for i in sorted({round(k * (len(images) - 1) / 7) for k in range(8)})]
    sizes, modes = (
        {(image.height, image.width) for image in chosen},
        {image.mode for image in chosen},
    )
    images.crop_pct = data.crop_pct
    images.channels = data.channels or (1 if modes == {"L"} and fewest == 1 else 3)
    if data.image_size:
        images.size = data.image_size, data.image_size
    elif len(sizes) == 1 and max(max(size) for size in sizes) <= SMALL:
        images.size = sizes.pop()
    else:
        images.size = side, side
        return True
    return False


def _drain(data: Data, dataset: IterableDataset, what: str) -> ImageDataset:
    """An iterable source, read through once: its images have no numbers to ask for them by."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise UserError(
            f"data.source {data.source}: its reader gives each process another part; use one process"
        )
    pixels, labels, one = (
        [],
        [],
        ImageDataset(torch.zeros(1), None, lambda i: f"{what} {len(labels)}"),
    )
    for image, label in dataset:
        one.read = lambda _, image=image: image
        if not labels:
            _set_shape(one, data, 3, 224)
        pixels.append(checked(one[0]))
        labels.append(int(label))
        if len(pixels) * pixels[0].numel() > data.resident_gb * 1e9:
            raise UserError(
                f"data.source {data.source}: an iterable source must fit into data.resident_gb "
                f"({data.resident_gb:g}); a folder, a tar file or hfds/ can be larger"
            )
    if not pixels:
        raise UserError(f"data: {what} holds no images")
    return _from_array(torch.stack(pixels), torch.tensor(labels), what)
