"""WebDataset shards on a disk are read by number."""

import io
import tarfile

import pytest
import torch
from helpers.photos import classes_by_brightness, write_photos, write_shard

from distill.data.splits import load_splits
from distill.errors import UserError
from distill.recipe.schema import Data


def test_shards_are_found_by_the_split_in_their_names(tmp_path):
    write_photos(tmp_path / "photos")
    write_shard(tmp_path / "set-train-0000.tar", tmp_path / "photos")
    write_shard(tmp_path / "set-val-0000.tar", tmp_path / "photos")
    splits = load_splits(Data(source="wds/photos", root=str(tmp_path)))
    assert len(splits.test) == 18
    assert len(splits.train) + len(splits.validation) == 18
    assert torch.equal(classes_by_brightness(splits.test), splits.test.labels)
    assert splits.test.images.name(12).startswith("set-val-0000/cat0.png (")


def test_an_image_without_a_class_is_refused(tmp_path):
    write_photos(tmp_path / "photos")
    write_shard(tmp_path / "set-train-0000.tar", tmp_path / "photos")
    with tarfile.open(tmp_path / "set-train-0001.tar", "w") as tar:
        tar.add(tmp_path / "photos" / "cat" / "0.png", arcname="alone.png")
    with pytest.raises(UserError, match=r"alone .*set-train-0001\.tar.* \(alone\.cls\)"):
        load_splits(Data(source="wds/photos", root=str(tmp_path), test=0.2))


def test_a_damaged_shard_is_refused(tmp_path):
    (tmp_path / "set-train-0000.tar").write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match=r"set-train-0000\.tar"):
        load_splits(Data(source="wds/photos", root=str(tmp_path), test=0.2))


def write_examples(path, examples):
    """Write a shard of (key, part, content) triples."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, part, content in examples:
            info = tarfile.TarInfo(f"{key}.{part}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def examples_of(photos, classes, parts=("png",), label="cls", count=6):
    """Return the files of `count` examples of each class; `classes` are their labels."""
    for name, text in classes.items():
        for i in range(count):
            content = (photos / name / f"{i}.png").read_bytes()
            yield from ((f"{name}{i}", part, content) for part in parts)
            yield f"{name}{i}", label, text.encode()


def open_root(root, **settings):
    return load_splits(Data(source="wds/photos", root=str(root), **settings))


def test_classes_that_count_from_one(tmp_path):
    photos = write_photos(tmp_path / "photos")
    classes = {"ant": "1", "bee": "2", "cat": "3"}
    for split in ("train", "test"):
        write_examples(tmp_path / "s" / f"{split}-0.tar", examples_of(photos, classes))
    splits = open_root(tmp_path / "s")
    assert splits.class_names == ["1", "2", "3"]
    assert torch.equal(classes_by_brightness(splits.test), splits.test.labels)


def test_classes_may_be_texts(tmp_path):
    photos = write_photos(tmp_path / "photos")
    names = {"ant": "zebra", "bee": "ape", "cat": "ant 10"}
    write_examples(tmp_path / "s" / "train-0.tar", examples_of(photos, names))
    write_examples(tmp_path / "s" / "test-0.tar", examples_of(photos, {"ant": "zebra"}))
    splits = open_root(tmp_path / "s")
    assert splits.class_names == ["ant 10", "ape", "zebra"]
    assert splits.test.labels.unique().tolist() == [2]
    write_examples(tmp_path / "s" / "test-0.tar", examples_of(photos, {"ant": "zebu"}))
    with pytest.raises(UserError, match=r"'zebu'.*'zebra'"):
        open_root(tmp_path / "s")
    write_examples(tmp_path / "s" / "train-0.tar", examples_of(photos, {"ant": "0", "bee": "1"}))
    with pytest.raises(UserError, match="zebu"):
        open_root(tmp_path / "s")


def test_two_images_in_an_example_are_refused_until_one_is_named(tmp_path):
    photos = write_photos(tmp_path / "photos")
    classes = {"ant": "0", "bee": "1", "cat": "2"}
    for split in ("train", "test"):
        parts = ("left.png", "right.png")
        write_examples(tmp_path / "s" / f"{split}-0.tar", examples_of(photos, classes, parts))
    with pytest.raises(UserError, match=r"data\.image_key=left\.png"):
        open_root(tmp_path / "s")
    splits = open_root(tmp_path / "s", image_key="right.png")
    assert torch.equal(classes_by_brightness(splits.test), splits.test.labels)
    assert splits.test.images.name(0).startswith("test-0/ant0.right.png")


def test_the_part_of_the_class_can_be_named(tmp_path):
    photos = write_photos(tmp_path / "photos")
    classes = {"ant": "0", "bee": "1", "cat": "2"}
    examples = list(examples_of(photos, classes, label="y"))
    write_examples(tmp_path / "s" / "train-0.tar", examples)
    with pytest.raises(UserError, match=r"ant0\.cls\).*it has y .*data\.label_key"):
        open_root(tmp_path / "s", test=0.2)
    splits = open_root(tmp_path / "s", test=0.2, label_key="y")
    assert torch.equal(classes_by_brightness(splits.train), splits.train.labels)


def test_shards_without_the_word_of_their_split(tmp_path):
    photos = write_photos(tmp_path / "photos")
    classes = {"ant": "0", "bee": "1", "cat": "2"}
    for name in ("tr0000", "te0000"):
        write_examples(tmp_path / "s" / f"{name}.tar", examples_of(photos, classes))
    with pytest.raises(UserError, match=r"te0000\.tar, tr0000\.tar.*data\.train=tr"):
        open_root(tmp_path / "s")
    assert len(open_root(tmp_path / "s", train="tr", test="te").test) == 18


def test_a_class_that_training_does_not_have_is_refused(tmp_path):
    photos = write_photos(tmp_path / "photos")
    write_examples(tmp_path / "s" / "train-0.tar", examples_of(photos, {"ant": "0", "bee": "2"}))
    write_examples(tmp_path / "s" / "test-0.tar", examples_of(photos, {"cat": "1"}))
    with pytest.raises(UserError, match="'1'"):
        open_root(tmp_path / "s")


def test_the_folder_of_a_shard_may_be_its_split(tmp_path):
    photos = write_photos(tmp_path / "photos")
    classes = {"ant": "0", "bee": "1", "cat": "2"}
    for split in ("train", "val"):
        (tmp_path / "s").mkdir(exist_ok=True)
        write_examples(tmp_path / "s" / split / "000000.tar", examples_of(photos, classes))
    splits = open_root(tmp_path / "s")
    assert len(splits.test) == 18
    assert len(splits.train) + len(splits.validation) == 18


def test_classes_within_json_are_named_by_their_key(tmp_path):
    photos = write_photos(tmp_path / "photos")
    classes = {name: f'{{"id": 7, "label": "{name}"}}' for name in ("ant", "bee", "cat")}
    examples = list(examples_of(photos, classes, label="json"))
    write_examples(tmp_path / "s" / "train-0.tar", examples)
    with pytest.raises(UserError, match=r"id, label.*data\.label_key=json\.id"):
        open_root(tmp_path / "s", test=0.2, label_key="json")
    splits = open_root(tmp_path / "s", test=0.2, label_key="json.label")
    assert splits.class_names == ["ant", "bee", "cat"]
    assert torch.equal(classes_by_brightness(splits.train), splits.train.labels)


def test_a_folder_of_shards_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        open_root(tmp_path / "nowhere")
