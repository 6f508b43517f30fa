"""Each kind of source in the table of data sets is opened; wrong sources are refused."""

import gc
import gzip
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.photos import CLASSES, classes_by_brightness, read_pixels, write_photos, write_shard
from helpers.recipes import TINY, make_recipe, merge
from PIL import Image

from distill.data.datasets import DATASETS, find_source
from distill.data.image_dataset import ImageDataset
from distill.data.splits import load_splits
from distill.data.stored_datasets import match_classes
from distill.errors import UserError
from distill.recipe.schema import Data, Synthetic

# timm's and webdataset's readers leave files open.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)


@pytest.mark.parametrize("name", DATASETS)
def test_recipes_are_checked_by_what_the_table_states(name):
    """The recipe's checks cannot import the table, so this test compares them."""
    source = f"{name}x" if name.endswith("/") else name
    entry = find_source(source)
    assert entry is DATASETS[name]

    def problems(**settings):
        try:
            make_recipe(merge(TINY, {"data": {"source": source, **settings}}))
        except UserError as error:
            return str(error)
        return ""

    assert ("data.root" in problems()) == entry.needs_root
    assert bool(problems(root="x", image_size=8)) == entry.is_fixed
    assert bool(problems(root="x", test="held")) == entry.is_fixed


def test_an_unknown_prefix_is_left_to_timm():
    assert not find_source("new/cifar10").is_fixed
    with pytest.raises(UserError, match="new/cifar10"):
        load_splits(Data(source="new/cifar10"))


@pytest.mark.parametrize(
    ("data", "fact"),
    [
        ({"source": "torch/mnits"}, "mnits"),
        ({"source": "folder", "root": "/", "test": "nowhere"}, "'nowhere'"),
        ({"source": "synthetic", "synthetic": Synthetic(shape=(2, 8, 8))}, r"\[2, 8, 8\]"),
    ],
)
def test_sources_that_cannot_be_opened_are_named(data, fact):
    with pytest.raises(UserError, match=fact):
        load_splits(Data(**data))


def test_synthetic_images_have_the_shape_of_the_recipe():
    settings = Synthetic(shape=(1, 5, 7), classes=4, train=30, test=10)
    splits = load_splits(Data(source="synthetic", synthetic=settings))
    assert splits.shape == (1, 5, 7)
    assert len(splits.class_names) == 4
    assert len(splits.test) == 10
    assert not torch.equal(read_pixels(splits.test)[0], read_pixels(splits.train)[0])


def test_tar_files(tmp_path):
    write_photos(tmp_path / "photos")
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(tmp_path / "photos", arcname=".")
    splits = load_splits(Data(source="tar", root=str(tmp_path / "photos.tar")))
    assert splits.class_names == list(CLASSES)
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 18
    assert torch.equal(classes_by_brightness(splits.train), splits.train.labels)
    del splits
    gc.collect()


def write_mnist(root, images, labels, num_train):
    """Write the files of MNIST: the first images for training, all for test."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", num_train), ("t10k", len(images))):
        height, width = images.shape[1:]
        image_header = struct.pack(">4i", 2051, count, height, width)
        label_header = struct.pack(">2i", 2049, count)
        files = {
            f"{name}-images-idx3-ubyte": image_header + images[:count].tobytes(),
            f"{name}-labels-idx1-ubyte": label_header + labels[:count].tobytes(),
        }
        for file_name, content in files.items():
            (raw / file_name).write_bytes(content)
            (raw / f"{file_name}.gz").write_bytes(gzip.compress(content))


def test_mnist_of_torchvision(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28)).astype(np.uint8)
    labels = (np.arange(40) % 10).astype(np.uint8)
    write_mnist(tmp_path, images, labels, num_train=30)
    splits = load_splits(Data(source="torch/mnist", root=str(tmp_path)))
    assert splits.shape == (1, 28, 28)
    assert len(splits.test) == 40
    assert len(splits.train) + len(splits.validation) == 30
    assert np.array_equal(read_pixels(splits.test)[:, 0].numpy(), images)
    assert np.array_equal(splits.test.labels.numpy(), labels)

    resized = load_splits(Data(source="torch/mnist", root=str(tmp_path), channels=3, image_size=14))
    assert resized.shape == (3, 14, 14)
    assert read_pixels(resized.test).shape == (40, 3, 14, 14)


def test_a_source_that_can_only_be_streamed_is_read_into_memory(tmp_path):
    """The names of these shards do not contain their splits, which timm's own index lists."""
    pytest.importorskip("webdataset")
    write_photos(tmp_path / "photos")
    root = tmp_path / "set"
    root.mkdir()
    splits = {}
    for split, shard in (("train", "a-0.tar"), ("test", "b-0.tar")):
        write_shard(root / shard, tmp_path / "photos")
        splits[split] = {
            "name": split,
            "filenames": [shard],
            "num_samples": 18,
            "shard_lengths": [18],
        }
    (root / "_info.json").write_text(json.dumps({"splits": splits}))
    found = load_splits(Data(source="wds/photos", root=str(root)))
    assert len(found.test) == 18
    assert torch.equal(classes_by_brightness(found.test), found.test.labels)
    gc.collect()


def test_data_sets_of_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    write_photos(tmp_path / "photos")
    with_paths = datasets.load_dataset(
        "imagefolder",
        data_dir=str(tmp_path / "photos"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    for split in ("train", "test"):
        with_paths.to_parquet(tmp_path / "paths" / f"{split}.parquet")

    # The same images without file names.
    rows = []
    for row in with_paths.cast_column("image", datasets.Image(decode=False)):
        content = Path(row["image"]["path"]).read_bytes()
        rows.append({"image": {"bytes": content, "path": None}, "label": row["label"]})
    without_paths = datasets.Dataset.from_list(rows, features=with_paths.features)
    for split in ("train", "test"):
        without_paths.to_parquet(tmp_path / "bytes" / f"{split}.parquet")

    def load(name):
        return load_splits(Data(source=f"hfds/{tmp_path / name}", root=str(tmp_path / "cache")))

    splits = load("paths")
    assert len(splits.test) == 18
    assert torch.equal(classes_by_brightness(splits.test), splits.test.labels)
    assert torch.equal(read_pixels(load("bytes").test), read_pixels(splits.test))
    assert load("bytes").identity != splits.identity


def test_classes_of_a_split_are_matched_by_name():
    """Label 0 of a split whose names are c, a, b is class c of the training split."""

    def dataset(*labels):
        labels = torch.tensor(labels)
        return ImageDataset.from_pixels(torch.zeros(len(labels), 1, 2, 2).byte(), labels, "x")

    train = dataset(0, 1, 2)
    test = dataset(0, 1, 2, 1)
    match_classes(test, ["c", "a", "b"], train, ["a", "b", "c"], "test split")
    assert test.labels.tolist() == [2, 0, 1, 0]
    match_classes(test, None, train, None, "test split")
    match_classes(dataset(0, 1), ["a", "b", "unused"], train, ["a", "b", "c"], "test split")
    for names, class_names in ((["a", "d"], ["a", "b", "c"]), (["a", "b"], None)):
        with pytest.raises(UserError, match="test split"):
            match_classes(dataset(0, 1), names, train, class_names, "test split")
    with pytest.raises(UserError, match="'2'"):
        match_classes(dataset(0, 2), None, dataset(0, 1), None, "test split")


def test_files_of_a_data_set_of_torchvision_are_its_identity(tmp_path, monkeypatch):
    """Flowers102 keeps its files in `_image_files`, and ImageFolder with labels in `samples`."""
    photos = write_photos(tmp_path / "photos")
    paths = sorted(photos.rglob("*.png"))
    labels = [CLASSES.index(path.parent.name) for path in paths]

    class Flowers(list):
        _image_files = paths
        classes = CLASSES

    flowers = Flowers((Image.open(path), label) for path, label in zip(paths, labels, strict=True))
    monkeypatch.setattr(
        "distill.data.timm_datasets.create_dataset", lambda *_args, **_settings: flowers
    )

    def load():
        return load_splits(Data(source="torch/flowers", test=0.3))

    before = load()
    assert torch.equal(classes_by_brightness(before.train), before.train.labels)
    assert load().digest == before.digest
    content = paths[0].read_bytes()
    paths[0].write_bytes(paths[7].read_bytes())
    paths[7].write_bytes(content)
    assert load().digest != before.digest
