"""WebDataset shards on a disk are read by number."""

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
    assert splits.test.images.name(12).startswith("cat0 (")


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
