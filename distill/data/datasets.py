"""The table of data sets that a recipe can name as ``data.source``.

To add a data set, write a function that returns an `OpenedDataset` and add a row to `DATASETS`. A
name without a slash is also needed in `distill/recipe/data_schema.py`, which checks recipes before
any data are opened: in `BUILT_IN_SOURCES` or in `FILE_SOURCES`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from distill.data.builtin_datasets import open_digits, open_synthetic
from distill.data.content_index import Track, untracked
from distill.data.image_dataset import OpenedDataset
from distill.data.stored_datasets import NativeSize, StoredOptions, open_stored
from distill.recipe.schema import Data


@dataclass(frozen=True)
class DatasetSource:
    """A kind of data source.

    Attributes:
        open: function that opens the data set, from the recipe's data settings, the image size of
            the study's pretrained networks, and a function that shows the progress of reading.
        test_fraction: fraction to hold out as the test split if neither the source nor the recipe
            has one.
        is_fixed: whether images have a fixed size and number of channels, and splits have no names.
        needs_root: whether ``data.root`` must be set.
    """

    open: Callable[[Data, NativeSize, Track], OpenedDataset]
    test_fraction: float = 0.2
    is_fixed: bool = False
    needs_root: bool = False


def _stored(options: StoredOptions | None = None, *, needs_root: bool = False) -> DatasetSource:
    """Return the entry of a source that is stored in files or that timm opens."""
    chosen = options or StoredOptions()
    return DatasetSource(
        open=lambda data, native, track: open_stored(data, native, chosen, track),
        needs_root=needs_root,
    )


# The keys are names, or prefixes for collections that timm opens ("torch/cifar10", "hfds/mnist").
DATASETS: dict[str, DatasetSource] = {
    "digits": DatasetSource(
        open=lambda data, native, track: open_digits(), test_fraction=1 / 3, is_fixed=True
    ),
    "synthetic": DatasetSource(
        open=lambda data, native, track: open_synthetic(data), is_fixed=True
    ),
    "folder": _stored(needs_root=True),
    "tar": _stored(needs_root=True),
    # timm calls the test part of torchvision's data sets "validation".
    "torch/": _stored(StoredOptions(test_split="validation", download=True, may_be_grey=True)),
    "tfds/": _stored(StoredOptions(download=True)),
    "hfds/": _stored(),
    "hfids/": _stored(),
    "wds/": _stored(),
}


def find_source(name: str) -> DatasetSource:
    """Return the entry of `DATASETS` for a ``data.source``; timm opens unknown prefixes."""
    if name in DATASETS:
        return DATASETS[name]
    prefix = name.partition("/")[0]
    return DATASETS.get(f"{prefix}/", _stored())


def open_dataset(
    data: Data, native: NativeSize | None = None, track: Track = untracked
) -> OpenedDataset:
    """Open the data set of a recipe.

    Args:
        data: the recipe's data settings.
        native: the size to resize images to if the recipe sets none and they are not all small
            and of equal size.
        track: shows the progress of reading files.

    Raises:
        UserError: if the data set is missing, empty or not readable, or if a split has classes that
            the training split does not have.
    """
    return find_source(data.source).open(data, native or NativeSize(), track)
