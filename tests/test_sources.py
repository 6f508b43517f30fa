"""Sources: splits that do not overlap, the same ones each time, from every kind of source; and their faults."""

import gc
import gzip
import io
import json
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from distill.data.image_dataset import ImageDataset, checked
from distill.data.loaders import read_batches
from distill.data.splits import Split, held_out, load_splits
from distill.errors import UserError
from distill.recipe.schema import Data, Synthetic

CLASSES = ("cat", "dog", "owl")
generator = np.random.default_rng(0)


def photos(folder, per_class=6, size=(20, 16), classes=CLASSES):
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = generator.integers(0, 60, (size[1], size[0], 3)) + 60 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


def pixels_of(split):
    parts = torch.arange(len(split)).split(7)
    return torch.stack(
        [checked(split.images[i]) for part in parts for i in split.positions[part].tolist()]
    )


def test_digits_are_scikit_learns_split_three_ways():
    splits = load_splits(Data(source="digits"))
    parts = [set(s.positions.tolist()) for s in (splits.train, splits.validation, splits.test)]
    assert [len(p) for p in parts] == [1078, 120, 599] and len(set.union(*parts)) == 1797
    bunch = load_digits()
    for split in (splits.train, splits.validation, splits.test):
        assert np.array_equal(split.labels.numpy(), bunch.target[split.positions])
        share = torch.bincount(split.labels, minlength=10) / len(split)
        assert share.min() > 0.08 and share.max() < 0.12
    expected = np.round(bunch.images[splits.test.positions] * 255 / 16)
    assert np.array_equal(pixels_of(splits.test)[:, 0].numpy(), expected)
    mean, std = splits.normalisation
    train = bunch.images[splits.train.positions] / 16
    assert mean[0] == pytest.approx(train.mean(), abs=1e-3) and std[0] == pytest.approx(
        train.std(), abs=1e-3
    )


def test_held_out_is_stratified_fixed_and_leaves_one_of_each_class():
    labels = torch.tensor([0] * 100 + [1] * 10 + [2] * 2 + [3])
    kept, out = held_out(labels, 0.5)
    assert torch.bincount(labels[out], minlength=4).tolist() == [50, 5, 1, 0]
    assert torch.equal(torch.cat([kept, out]).sort().values, torch.arange(113))
    assert torch.equal(held_out(labels, 0.5)[1], out)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("train", "test"), (15, 3, 18)),  # a tenth of training, but one of each class at least
        (("train", "val"), (15, 3, 18)),  # ImageNet's memory_format_of: val is what is reported
        (("train", "val", "test"), (18, 18, 18)),
        ((), (12, 3, 3)),
    ],
)
def test_image_folders_in_every_layout(tmp_path, folders, expected):
    for name in folders or ("",):
        photos(tmp_path / name)
    splits = load_splits(Data(source="folder", root=str(tmp_path)))
    assert splits.class_names == list(CLASSES)
    assert tuple(len(s) for s in (splits.train, splits.validation, splits.test)) == expected
    pixels = pixels_of(splits.test)
    assert pixels.dtype == torch.uint8 and pixels.shape[1:] == (3, 16, 20)
    brightness = pixels.float().mean((1, 2, 3)) / 60
    assert torch.equal(
        brightness.floor().long(), splits.test.labels
    )  # images and labels belong together


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # timm's reader keeps its file open
def test_tar_files(tmp_path):
    photos(tmp_path / "photos")
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(tmp_path / "photos", arcname=".")
    splits = load_splits(Data(source="tar", root=str(tmp_path / "photos.tar")))
    assert (
        splits.class_names == list(CLASSES)
        and len(splits.train) + len(splits.validation) + len(splits.test) == 18
    )
    brightness = pixels_of(splits.train).float().mean((1, 2, 3)) / 60
    assert torch.equal(brightness.floor().long(), splits.train.labels)
    del splits
    gc.collect()


def test_torchvisions_mnist(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = generator.integers(0, 256, (40, 28, 28)).astype(np.uint8)
    labels = (np.arange(40) % 10).astype(np.uint8)
    for name, count in (("train", 30), ("t10k", 40)):
        content = {
            "images-idx3": struct.pack(">4i", 2051, count, 28, 28) + images[:count].tobytes(),
            "labels-idx1": struct.pack(">2i", 2049, count) + labels[:count].tobytes(),
        }
        for kind, data in content.items():
            (raw / f"{name}-{kind}-ubyte").write_bytes(data)
            (raw / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(data))
    splits = load_splits(Data(source="torch/mnist", root=str(tmp_path)))
    assert (
        splits.shape == (1, 28, 28)
        and len(splits.test) == 40
        and len(splits.train) + len(splits.validation) == 30
    )
    assert np.array_equal(pixels_of(splits.test)[:, 0].numpy(), images)
    assert np.array_equal(splits.test.labels.numpy(), labels)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
def test_webdataset(tmp_path):
    """On a disk, named as people name them; the first dot ends the key."""
    photos(tmp_path / "photos")
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"set-{split}-0000.tar", "w") as tar:
            for number, name in enumerate(CLASSES):
                for i in range(6):
                    (tmp_path / "label").write_text(str(number))
                    tar.add(tmp_path / "photos" / name / f"{i}.png", arcname=f"{name}{i}.png")
                    tar.add(tmp_path / "label", arcname=f"{name}{i}.cls")
                    tar.add(tmp_path / "label", arcname=f"{name}{i}.json")
    splits = load_splits(Data(source="wds/photos", root=str(tmp_path)))
    brightness = pixels_of(splits.test).float().mean((1, 2, 3)) / 60
    assert len(splits.test) == 18 and torch.equal(brightness.floor().long(), splits.test.labels)
    assert len(splits.train) + len(splits.validation) == 18 and "owl0 (" in splits.test.images.name(
        12
    )
    with tarfile.open(tmp_path / "set-train-0001.tar", "w") as tar:
        tar.add(tmp_path / "photos" / "cat" / "0.png", arcname="alone.png")
    with pytest.raises(UserError, match=r"the image alone has no class"):
        load_splits(Data(source="wds/photos", root=str(tmp_path)))


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
def test_a_source_that_can_only_be_streamed_is_read_through_once(tmp_path):
    """Shards whose names say nothing, listed in timm's own index."""
    pytest.importorskip("webdataset")
    photos(tmp_path / "photos")
    (tmp_path / "set").mkdir()
    splits = {}
    for split, shard in (("train", "a-0.tar"), ("test", "b-0.tar")):
        with tarfile.open(tmp_path / "set" / shard, "w") as tar:
            for number, name in enumerate(CLASSES):
                (tmp_path / "label").write_text(str(number))
                for i in range(6):
                    tar.add(tmp_path / "photos" / name / f"{i}.png", arcname=f"{name}{i}.png")
                    tar.add(tmp_path / "label", arcname=f"{name}{i}.cls")
        splits[split] = {
            "name": split,
            "filenames": [shard],
            "num_samples": 18,
            "shard_lengths": [18],
        }
    (tmp_path / "set" / "_info.json").write_text(json.dumps({"splits": splits}))
    found = load_splits(Data(source="wds/photos", root=str(tmp_path / "set")))
    brightness = pixels_of(found.test).float().mean((1, 2, 3)) / 60
    assert len(found.test) == 18 and torch.equal(brightness.floor().long(), found.test.labels)
    gc.collect()


def test_hugging_face_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    photos(tmp_path / "photos")
    made = datasets.load_dataset(
        "imagefolder",
        data_dir=str(tmp_path / "photos"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    made.to_parquet(tmp_path / "set" / "train.parquet")
    made.to_parquet(tmp_path / "set" / "test.parquet")
    splits = load_splits(Data(source=f"hfds/{tmp_path / 'set'}", root=str(tmp_path / "cache")))
    brightness = pixels_of(splits.test).float().mean((1, 2, 3)) / 60
    assert len(splits.test) == 18 and torch.equal(brightness.floor().long(), splits.test.labels)
    files = made.cast_column("image", datasets.Image(decode=False))
    contents = [Path(row["image"]["path"]).read_bytes() for row in files]
    rows = [{"image": {"bytes": content, "path": None}, "label": row["label"]}
            for content, row in zip(contents, files, strict=True)]  # fmt: skip
    bare = datasets.Dataset.from_list(rows, features=made.features)
    bare.to_parquet(tmp_path / "bare" / "train.parquet")
    bare.to_parquet(tmp_path / "bare" / "test.parquet")
    bare = load_splits(Data(source=f"hfds/{tmp_path / 'bare'}", root=str(tmp_path / "cache")))
    assert (
        torch.equal(pixels_of(bare.test), pixels_of(splits.test))
        and bare.identity != splits.identity
    )


def test_streamed_and_resident_give_the_same_pixels(tmp_path):
    photos(tmp_path)
    resident = load_splits(Data(source="folder", root=str(tmp_path), image_size=8))
    streamed = load_splits(Data(source="folder", root=str(tmp_path), image_size=8, resident_gb=0.0))
    assert resident.resident and not streamed.resident
    parts = [torch.tensor([3, 1]), torch.tensor([0])]
    for workers in (0, 2):
        streamed.settings = streamed.settings.model_copy(update={"workers": workers})
        a, b = (
            [images for _, images in read_batches(s, s.train, parts, torch.device("cpu"))]
            for s in (resident, streamed)
        )
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)) and a[0].shape == (
            2,
            3,
            8,
            8,
        )
    assert resident.identity == streamed.identity


def test_the_identity_follows_the_images_and_not_their_place(tmp_path):
    import shutil

    photos(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    one, two = (load_splits(Data(source="folder", root=str(tmp_path / name))) for name in "ab")
    assert one.identity == two.identity
    (tmp_path / "b" / "cat" / "0.png").unlink()
    assert load_splits(Data(source="folder", root=str(tmp_path / "b"))).identity != one.identity


def test_synthetic_images_have_the_asked_shape():
    data = Data(
        source="synthetic", synthetic=Synthetic(shape=(1, 5, 7), classes=4, train=30, test=10)
    )
    splits = load_splits(data)
    assert splits.shape == (1, 5, 7) and len(splits.class_names) == 4 and len(splits.test) == 10
    assert not torch.equal(pixels_of(splits.test)[0], pixels_of(splits.train)[0])


def test_processes_that_decode_stay_for_the_next_stream_and_streams_do_not_meet():
    def image(i):
        return Image.fromarray(
            np.array([[os.getpid() // 256 % 256, os.getpid() % 256, i]], np.uint8)
        )

    images = ImageDataset(torch.arange(10), image, str, 1, (1, 3))
    evens, odds = [[0, 2], [4, 6], [8]], [[1], [3, 5], [7, 9]]

    def run(stream):
        seen = [batch.flatten(1) for batch in stream]
        return {tuple(row[:2].tolist()) for b in seen for row in b}, [
            b[:, 2].tolist() for b in seen
        ]

    (first, numbers), (second, _) = (run(images.stream(evens, 2, False)) for _ in range(2))
    own = (os.getpid() // 256 % 256, os.getpid() % 256)
    assert numbers == evens and first == second and len(first) == 2 and own not in first
    one, other = images.stream(evens, 2, False), images.stream(odds, 2, False)
    together = [
        (a[:, 0, 0, 2].tolist(), b[:, 0, 0, 2].tolist()) for a, b in zip(one, other, strict=True)
    ]
    assert together == list(zip(evens, odds, strict=True))


def test_a_damaged_image_is_named(tmp_path):
    photos(tmp_path)
    path = tmp_path / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"dog/3\.png"):
        _ = load_splits(Data(source="folder", root=str(tmp_path))).resident
    splits = load_splits(Data(source="folder", root=str(tmp_path), resident_gb=0.0))
    everything = Split(splits.train.images, torch.arange(18))
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"dog/3\.png"):
            splits.settings = splits.settings.model_copy(update={"workers": workers})
            list(read_batches(splits, everything, [torch.arange(18)], torch.device("cpu")))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, "does not exist"),
        (lambda root: root.mkdir(), "has no images"),
        (lambda root: photos(root, classes=("one",)), "1 class"),
        (
            lambda root: (photos(root / "train"), photos(root / "test", classes=(*CLASSES, "emu"))),
            "'emu'",
        ),
    ],
)
def test_folders_that_are_no_data_are_told(tmp_path, make, words):
    make(tmp_path / "x")
    with pytest.raises(UserError, match=words):
        load_splits(Data(source="folder", root=str(tmp_path / "x")))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"source": "torch/mnits"}, "mnits"),
        ({"source": "folder", "root": "/", "test": "nowhere"}, "no split 'nowhere'"),
        ({"source": "synthetic", "synthetic": Synthetic(shape=(2, 8, 8))}, "1 or 3 channels"),
    ],
)
def test_sources_that_cannot_be_are_told(data, words):
    with pytest.raises(UserError, match=words):
        load_splits(Data(**data))


def test_no_image_stands_in_two_splits(tmp_path):
    """Where a folder is named for one split, it is not taken for another, nor as a class of training."""
    photos(tmp_path / "a" / "train", 12)
    photos(tmp_path / "a" / "val")
    splits = load_splits(Data(source="folder", root=str(tmp_path / "a"), validation="val"))
    names = [{s.images.name(i) for i in s.positions.tolist()} for s in (splits.train, splits.test)]
    assert splits.validation.images is not splits.test.images and not names[0] & names[1]
    photos(tmp_path / "b")
    photos(tmp_path / "b" / "holdout")
    with pytest.raises(UserError, match="no split 'train'"):
        load_splits(Data(source="folder", root=str(tmp_path / "b"), test="holdout"))


def test_splits_share_the_size_of_training(tmp_path):
    photos(tmp_path / "train", 6, (32, 32))
    photos(tmp_path / "test", 6, (48, 40))
    splits = load_splits(Data(source="folder", root=str(tmp_path)))
    assert splits.shape == (3, 32, 32) and pixels_of(splits.test).shape[1:] == (3, 32, 32)


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path):
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(np.full((8, 8), 256 * 40 * i, dtype=np.uint16)).save(
                tmp_path / name / f"{i}.png"
            )
    splits = load_splits(Data(source="folder", root=str(tmp_path)))
    assert set(pixels_of(Split(splits.train.images, torch.arange(12))).unique().tolist()) == {
        0,
        40,
        80,
        120,
    }


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
def test_processes_that_share_a_tar_file_read_the_right_images(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for i in range(2400):
            buffer = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), (i % 200, i // 200, 7), dtype=np.uint8)).save(
                buffer, "png"
            )
            entry = tarfile.TarInfo(f"{'ab'[i % 2]}/{i}.png")
            entry.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(entry, buffer)
    splits = load_splits(Data(source="tar", root=str(tmp_path / "t.tar"), workers=2))
    images = splits.train.images
    assert splits.resident and images.pixels is not None  # decoded by two processes
    numbers = [int(Path(images.name(i)).stem) for i in range(2400)]
    expected = torch.tensor([[n % 200, n // 200, 7] for n in numbers])
    assert torch.equal(images.pixels[:, :, 4, 4].long(), expected)
    del splits, images
    gc.collect()


@pytest.mark.parametrize(
    "names",
    [
        {"validation": "val", "test": "val"},
        {"validation": "validation", "test": "val"},
        {"test": "train"},
    ],
)
def test_two_splits_of_one_folder_are_refused(tmp_path, names):
    photos(tmp_path / "train")
    photos(tmp_path / "val")
    with pytest.raises(UserError, match="is the same as the"):
        load_splits(Data(source="folder", root=str(tmp_path), **names))
