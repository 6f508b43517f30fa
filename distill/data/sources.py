"""Where images come from: one training, one validation and one test split of any source.

The embedded digits, noise of any shape, and whatever `timm.data.create_dataset` reads. Opening a source
lists its files and labels; pixels are decoded only when they are asked for.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as tvf

from distill.recipe import Data, UserError, nearest

SYNONYMS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "eval", "evaluation"),
    "test": ("test", "testing"),
}
SMALL = 96  # equal images up to this side keep their size
TEST_FRACTION = {"digits": 1 / 3}  # held out where a source has no test split; 0.2 elsewhere
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Images(Dataset):
    """One data set: labels at hand, images decoded on demand to uint8 ``[C, H, W]``.

    Attributes:
        labels: classes ``[N]``.
        read: image number -> PIL image.
        name: image number -> what to call it in a message.
        channels: 1 or 3.
        size: ``(height, width)`` that every image is brought to: short side first, then the centre.
        pixels: all images ``[N, C, H, W]`` once they are resident, else None.
    """

    labels: Tensor
    read: Callable[[int], Image.Image] | None
    name: Callable[[int], str]
    channels: int
    size: tuple[int, int]
    pixels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Tensor | str:
        """The image, or the sentence that says why there is none (exceptions of workers lose their words)."""
        if self.pixels is not None:
            return self.pixels[i]
        try:
            image = self.read(i).convert("L" if self.channels == 1 else "RGB")
        except Exception as error:
            return f"cannot read the image {self.name(i)}: {error}"
        if (image.height, image.width) != self.size:
            image = tvf.center_crop(tvf.resize(image, min(self.size), tvf.InterpolationMode.BICUBIC), list(self.size))
        return tvf.pil_to_tensor(image)

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels."""
        return len(self) * self.channels * self.size[0] * self.size[1]

    def make_resident(self, workers: int) -> None:
        """Decode every image once, in `workers` processes."""
        if self.pixels is None:
            workers = workers if len(self) > 2000 else 0  # starting workers costs more than a few images
            loader = DataLoader(self, batch_size=256, num_workers=workers, collate_fn=stack)
            self.pixels = torch.cat([checked(batch) for batch in loader])


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
class Split:
    """Some images of a data set, numbered from 0: the number is the key of their views."""

    images: Images
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
        same = self.settings.model_dump(include={"source", "train", "validation", "test", "mean", "std", "synthetic"})
        return {**same, "shape": self.shape, "digest": self.digest}

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

        As the recipe says; else measured on the training split if it is resident; else ImageNet's.
        """
        channels = self.shape[0]
        if self.settings.mean and self.settings.std:
            for name, values in (("mean", self.settings.mean), ("std", self.settings.std)):
                if len(values) != channels:
                    raise UserError(f"data.{name}: the images have {channels} channels, got {len(values)} values")
            return tuple(self.settings.mean), tuple(self.settings.std)
        if not self.resident:
            return IMAGENET_MEAN[:channels], IMAGENET_STD[:channels]
        histogram = torch.zeros(channels, 256, dtype=torch.float64)
        for part in self.train.positions.split(4096):
            pixels = self.train.images.pixels[part].transpose(0, 1).reshape(channels, -1).cpu()
            histogram += torch.stack([torch.bincount(p, minlength=256) for p in pixels])
        values, weights = torch.arange(256, dtype=torch.float64) / 255, histogram / histogram.sum(1, keepdim=True)
        mean = weights @ values
        std = (weights @ values**2 - mean**2).clamp(min=1e-8).sqrt()
        return tuple(round(v, 4) for v in mean.tolist()), tuple(max(round(v, 4), 1e-4) for v in std.tolist())


def load_splits(data: Data) -> Splits:
    """Open a source and split it.

    Raises:
        UserError: if the source is missing, empty, or has fewer than two classes, or if the classes of its
            splits differ.
    """
    notes: list[str] = []
    names = None
    if data.source == "digits":
        opened = {"train": _digits()}
    elif data.source == "synthetic":
        opened = _synthetic(data)
    else:
        opened, names = _timm(data, notes)
    names = names or [str(i) for i in range(int(opened["train"].labels.max()) + 1)]
    if len(names) < 2:
        raise UserError(f"data.source {data.source}: found 1 class; images must lie in one folder for each class")
    splits = _split(data, opened, names, notes)
    for name, split in (("training", splits.train), ("validation", splits.validation), ("test", splits.test)):
        if not len(split):
            raise UserError(f"data: the {name} split is empty")
        if int(split.labels.min()) < 0 or int(split.labels.max()) >= len(names):
            raise UserError(f"data: the {name} split has labels outside of the {len(names)} classes")
    return splits


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


def _split(data: Data, opened: dict[str, Images], names: list[str], notes: list[str]) -> Splits:
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
            notes.append(f"{fraction:.0%} of the images ({len(held)}) are held out as the test split")
    splits["train"] = Split(train, kept)
    every = {id(images): images for images in opened.values()}.values()
    digest = hashlib.sha256("".join(map(_digest, every)).encode()).hexdigest()
    return Splits(data, splits["train"], splits["validation"], splits["test"], names, digest, notes)


def _digest(images: Images) -> str:
    """Of the pixels where they are in memory, else of names, file sizes and labels: cheap at any size."""
    content = hashlib.sha256(images.labels.numpy().tobytes())
    if images.pixels is not None:
        content.update(images.pixels.contiguous().numpy().tobytes())
    else:
        for i in range(len(images)):
            content.update(images.name(i).encode())
    return content.hexdigest()


# ------------------------------------------------------------------------------------------------ the sources


def _digits() -> Images:
    from sklearn.datasets import load_digits

    bunch = load_digits()  # 1,797 images of 8 x 8 with values 0 to 16
    pixels = (torch.from_numpy(bunch.images) * (255 / 16)).round().to(torch.uint8)[:, None]
    return _from_array(pixels, torch.from_numpy(bunch.target).long(), "digit")


def _from_array(pixels: Tensor, labels: Tensor, what: str) -> Images:
    return Images(labels, None, lambda i: f"{what} {i}", pixels.shape[1], tuple(pixels.shape[2:]), pixels)


def _synthetic(data: Data) -> dict[str, Images]:
    from torchvision.datasets import FakeData

    from distill.recipe import Synthetic

    made = data.synthetic or Synthetic()
    channels, height, width = made.shape
    if channels not in (1, 3) or min(height, width) < 1:
        raise UserError(f"data.synthetic.shape: expected 1 or 3 channels and a positive size, got {list(made.shape)}")

    def one(size: int, offset: int) -> Images:
        fake = FakeData(size, made.shape, made.classes, random_offset=offset)
        labels = torch.tensor([int(fake[i][1]) for i in range(size)])
        name = f"synthetic {made.shape} {made.classes} {offset}"
        return Images(labels, lambda i: fake[i][0], lambda i: f"{name} {i}", channels, (height, width))

    return {"train": one(made.train, 0), "test": one(made.test, made.train)}


def _timm(data: Data, notes: list[str]) -> tuple[dict[str, Images], list[str] | None]:
    """What timm reads: training images, those of other splits that exist or are asked for, class names."""
    if data.source in ("folder", "tar"):
        places = {role: (root, role) for role, root in _find_folders(data, notes).items() if root}
    else:
        wanted = {"test": _default_test_split(data) if data.test is None else data.test, "validation": data.validation}
        places = {"train": (data.root, data.train)}
        places |= {role: (data.root, split) for role, split in wanted.items() if isinstance(split, str)}
    train, names = _open(data, *places["train"], None)
    others = {role: _open(data, *place, names)[0] for role, place in places.items() if role != "train"}
    return {"train": train, **others}, names


def _default_test_split(data: Data) -> str:
    if data.source.startswith("torch/"):
        return "validation"  # what timm calls the data set's test part
    if data.source.startswith("hfds/"):
        from datasets import get_dataset_split_names

        try:
            found = get_dataset_split_names(data.source.split("/", 1)[1], cache_dir=data.root)
        except Exception:
            return "test"
        return next((name for name in ("test", "validation", "valid", "val") if name in found), "test")
    return "test"


def _find_folders(data: Data, notes: list[str]) -> dict[str, str | None]:
    """The folder (or tar file) of each split; only `train` where the splits are to be held out of one."""
    root = Path(data.root or ".")
    if not root.exists():
        raise UserError(f"data.root: {root} does not exist")

    def find(name: str) -> str | None:
        names = SYNONYMS.get(name, (name,))
        found = [root / f"{n}{end}" for n in names for end in ("", ".tar") if (root / f"{n}{end}").exists()]
        return str(found[0]) if found and root.is_dir() else None

    def named(value: str) -> str:
        path = find(value)
        if path is None:
            here = [p.name for p in root.iterdir()] if root.is_dir() else []
            raise UserError(f"data: {root} has no split '{value}'; {nearest(value, here)}")
        return path

    train = find(data.train)
    if train is None and "train" in data.model_fields_set:
        named(data.train)
    validation = named(data.validation) if isinstance(data.validation, str) else None
    test = named(data.test) if isinstance(data.test, str) else None
    if train and data.test is None:
        test = find("test") or find("validation")
        own = find("validation")
        if own and own != test and "validation" not in data.model_fields_set:
            validation = own
        notes.append(f"test split: {test}" if test else f"{root} has no test folder")
    return {"train": train or str(root), "test": test, "validation": validation}


def _open(data: Data, root: str | None, split: str, names: list[str] | None) -> tuple[Images, list[str] | None]:
    """One split through `timm.data.create_dataset`, with its class names (those of training, if given)."""
    from timm.data import create_dataset

    mode = None if data.channels is None and data.source.startswith("torch/") else \
        ("L" if data.channels == 1 else "RGB")
    local = data.source in ("folder", "tar")
    try:
        dataset = create_dataset(
            "" if local else data.source, root=root, split=split, search_split=not local, input_img_mode=mode,
            download=data.source.startswith(("torch/", "tfds/")),
            class_map={n: i for i, n in enumerate(names)} if names and local else None)
        if isinstance(dataset, torch.utils.data.IterableDataset):
            return _drain(data, dataset, f"{data.source} {split}"), None
    except (ImportError, OSError, RuntimeError, ValueError, AssertionError, KeyError, TypeError) as error:
        advice = "; `pip install datasets` or `webdataset` reads it" if isinstance(error, ImportError) else ""
        where = root if local else f"{data.source}, split '{split}'" + (f" in {root}" if root else "")
        raise UserError(f"data: cannot open {where}: {error or type(error).__name__}{advice}") from None
    found = _class_names(dataset)
    if local and names:
        _check_same_classes(root, split, names)
    labels, read, name = _accessors(dataset, data)
    array = getattr(dataset, "data", None)
    if array is not None and data.image_size is None and data.channels is None:
        pixels = torch.as_tensor(array)
        if pixels.dtype == torch.uint8 and pixels.ndim in (3, 4):  # torchvision's small sets
            pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
            return _from_array(pixels, labels, data.source), found
    channels, size = _probe(data, read, name, len(labels))
    return Images(labels, read, name, channels, size), found


def _class_names(dataset: Any) -> list[str] | None:
    reader = getattr(dataset, "reader", dataset)
    mapping = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)
    if mapping:
        return [str(name) for name, _ in sorted(mapping.items(), key=lambda item: item[1])]
    return [str(name) for name in getattr(dataset, "classes", [])] or None


def _check_same_classes(root: str, split: str, names: list[str]) -> None:
    """Classes that training does not know would be dropped in silence by the reader."""
    if Path(root).is_dir():
        leaves = {p.name for p in Path(root).rglob("*") if p.is_dir() and any(c.is_file() for c in p.iterdir())}
        unknown = sorted(leaves - set(names))
        if unknown:
            raise UserError(f"data: the {split} split {root} has {len(leaves)} classes, training has {len(names)}: "
                            f"'{unknown[0]}' is not among them; {nearest(unknown[0], names)}")


def _accessors(dataset: Any, data: Data) -> tuple[Tensor, Callable[[int], Image.Image], Callable[[int], str]]:
    """Labels, reading and naming. timm's data set skips a damaged image in silence, its reader does not."""
    reader = getattr(dataset, "reader", None)
    if reader is None:
        targets = getattr(dataset, "targets", None)
        labels = torch.as_tensor(targets if targets is not None else [dataset[i][1] for i in range(len(dataset))])
        return labels.long(), lambda i: dataset[i][0], lambda i: f"{data.source} {i}"
    if hasattr(reader, "targets"):
        labels = list(reader.targets)
    elif hasattr(reader, "samples"):
        labels = [target for _, target in reader.samples]
    else:
        labels = list(reader.iter_targets()) if hasattr(reader, "iter_targets") else \
            [reader[i][1] for i in range(len(reader))]

    def name(i: int) -> str:
        try:
            path = reader.filename(i)
            full = Path(reader.filename(i, absolute=True))
            return f"{path} ({full.stat().st_size} bytes)" if full.is_file() else str(path)
        except (NotImplementedError, AssertionError, KeyError, OSError):
            return f"{data.source} {i}"

    def read(i: int) -> Image.Image:
        with reader[i][0] as file:
            image = Image.open(file)
            image.load()
        return image

    return torch.tensor(labels).long(), read, name


def _probe(data: Data, read: Callable[[int], Image.Image], name: Callable[[int], str],
           count: int) -> tuple[int, tuple[int, int]]:
    """Channels and size for all images, from eight of them spread over the set."""
    sizes, modes = set(), set()
    for i in {round(k * (count - 1) / 7) for k in range(8)}:
        try:
            image = read(i)
        except Exception as error:
            raise UserError(f"cannot read the image {name(i)}: {error}") from None
        sizes.add((image.height, image.width))
        modes.add(image.mode)
    channels = data.channels or (1 if modes == {"L"} and data.source.startswith("torch/") else 3)
    if data.image_size:
        return channels, (data.image_size, data.image_size)
    return channels, sizes.pop() if len(sizes) == 1 and max(max(s) for s in sizes) <= SMALL else (224, 224)


def _drain(data: Data, dataset: Any, what: str) -> Images:
    """An iterable source, read through once: its images have no numbers to ask for them by."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise UserError(f"data.source {data.source}: its reader gives each process another part; use one process")
    pixels, labels, images = [], [], None
    for image, label in dataset:
        if images is None:
            channels, size = _probe(data, lambda _: image, lambda _: what, 1)  # noqa: B023
            images = Images(torch.zeros(1), None, lambda i: f"{what} {i}", channels, size)
        images.read = lambda _: image  # noqa: B023
        pixels.append(checked(images[0]))
        labels.append(int(label))
        if len(pixels) * pixels[0].numel() > data.resident_gb * 1e9:
            raise UserError(f"data.source {data.source}: an iterable source must fit into data.resident_gb "
                            f"({data.resident_gb:g}); a folder, a tar file or hfds/ can be larger")
    if not pixels:
        raise UserError(f"data: {what} holds no images")
    return _from_array(torch.stack(pixels), torch.tensor(labels), what)
