"""Splits do not overlap, are the same each time, and have an identity that follows the images."""

import shutil

import numpy as np
import pytest
import torch
from helpers.photos import read_pixels, write_image, write_photos
from sklearn.datasets import load_digits

from distill.data.splits import hold_out, load_splits
from distill.errors import UserError
from distill.recipe.schema import Data


def folder_splits(root, **settings):
    return load_splits(Data(source="folder", root=str(root), **settings))


def sizes(splits):
    return len(splits.train), len(splits.validation), len(splits.test)


def test_digits_are_scikit_learns_split_three_ways():
    splits = load_splits(Data(source="digits"))
    parts = [set(s.positions.tolist()) for s in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [1078, 120, 599]
    assert len(set.union(*parts)) == 1797

    bunch = load_digits()
    for split in (splits.train, splits.validation, splits.test):
        assert np.array_equal(split.labels.numpy(), bunch.target[split.positions])
        frequencies = torch.bincount(split.labels, minlength=10) / len(split)
        assert frequencies.min() > 0.08
        assert frequencies.max() < 0.12
    expected = np.round(bunch.images[splits.test.positions] * 255 / 16)
    assert np.array_equal(read_pixels(splits.test)[:, 0].numpy(), expected)

    mean, std = splits.normalisation
    train = bunch.images[splits.train.positions] / 16
    assert mean[0] == pytest.approx(train.mean(), abs=1e-3)
    assert std[0] == pytest.approx(train.std(), abs=1e-3)


def test_class_frequencies_are_those_of_the_training_split():
    splits = load_splits(Data(source="digits"))
    counts = np.bincount(load_digits().target[splits.train.positions])
    assert splits.class_frequencies == pytest.approx((counts / 1078).tolist())


def test_the_normalisation_of_the_recipe_needs_a_value_per_channel():
    assert load_splits(Data(source="digits", mean=[0.1], std=[2.0])).normalisation == (
        (0.1,),
        (2.0,),
    )
    with pytest.raises(UserError, match=r"data\.mean.* 1 .* 2 "):
        _ = load_splits(Data(source="digits", mean=[0.1, 0.2], std=[1.0, 1.0])).normalisation


def test_a_background_class_comes_before_the_others_and_has_no_images():
    splits = load_splits(Data(source="digits", background=True))
    assert splits.class_names == ["background", *"0123456789"]
    assert splits.class_frequencies[0] == 0
    assert torch.equal(splits.test.labels, load_splits(Data(source="digits")).test.labels + 1)


def test_hold_out_is_stratified_fixed_and_leaves_one_of_each_class():
    labels = torch.tensor([0] * 100 + [1] * 10 + [2] * 2 + [3])
    kept, held_out = hold_out(labels, 0.5)
    assert torch.bincount(labels[held_out], minlength=4).tolist() == [50, 5, 1, 0]
    assert torch.equal(torch.cat([kept, held_out]).sort().values, torch.arange(113))
    assert torch.equal(hold_out(labels, 0.5)[1], held_out)


def test_a_class_of_one_image_stays_in_the_training_split(tmp_path):
    for i in range(12):
        write_image(tmp_path / "many" / f"{i}.png", (i, 0, 0))
    write_image(tmp_path / "one" / "0.png", (0, 99, 0))
    write_image(tmp_path / "two" / "0.png", (0, 0, 99))
    write_image(tmp_path / "two" / "1.png", (0, 0, 98))
    splits = folder_splits(tmp_path)
    assert splits.class_names == ["many", "one", "two"]
    assert splits.train.labels.bincount(minlength=3).min() >= 1
    assert sum(sizes(splits)) == 15


def test_classes_that_are_too_small_to_hold_images_out_are_refused(tmp_path):
    for name in "ab":
        write_image(tmp_path / name / "0.png")
    with pytest.raises(UserError, match=r"test.* 2 images"):
        folder_splits(tmp_path)


def test_the_identity_follows_the_images_and_not_their_folder(tmp_path):
    write_photos(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    identity = folder_splits(tmp_path / "a").identity
    assert folder_splits(tmp_path / "b").identity == identity
    (tmp_path / "b" / "cat" / "0.png").unlink()
    assert folder_splits(tmp_path / "b").identity != identity


def test_no_image_is_in_two_splits(tmp_path):
    """A folder that is named for one split is not used for another, nor as a class of training."""
    write_photos(tmp_path / "a" / "train", 12)
    write_photos(tmp_path / "a" / "val")
    splits = folder_splits(tmp_path / "a", validation="val")
    train, test = (
        {split.images.name(i) for i in split.positions.tolist()}
        for split in (splits.train, splits.test)
    )
    assert splits.validation.images is not splits.test.images
    assert not train & test

    write_photos(tmp_path / "b")
    write_photos(tmp_path / "b" / "holdout")
    with pytest.raises(UserError, match="'train'"):
        folder_splits(tmp_path / "b", test="holdout")


@pytest.mark.parametrize(
    "names",
    [
        {"validation": "val", "test": "val"},
        {"validation": "validation", "test": "val"},
        {"test": "train"},
    ],
)
def test_two_splits_of_one_folder_are_refused(tmp_path, names):
    write_photos(tmp_path / "train")
    write_photos(tmp_path / "val")
    shared = "train" if names == {"test": "train"} else "val"
    with pytest.raises(UserError, match=f"test.*{tmp_path / shared}"):
        folder_splits(tmp_path, **names)


def test_splits_have_the_image_size_of_training(tmp_path):
    write_photos(tmp_path / "train", 6, (32, 32))
    write_photos(tmp_path / "test", 6, (48, 40))
    splits = folder_splits(tmp_path)
    assert splits.shape == (3, 32, 32)
    assert read_pixels(splits.test).shape[1:] == (3, 32, 32)


def test_images_take_the_size_of_the_pretrained_network(tmp_path):
    for number, name in enumerate("abc"):
        for i in range(4):
            write_image(tmp_path / name / f"{i}.png", (number, 0, 0), size=(300 + i, 200))

    def shape_and_notes(native=None, **settings):
        splits = load_splits(Data(source="folder", root=str(tmp_path), **settings), native)
        return splits.shape, " ".join(splits.notes)

    shape, notes = shape_and_notes((96, "some_net"))
    assert shape == (3, 96, 96)
    assert "96×96" in notes and "some_net" in notes
    shape, notes = shape_and_notes((96, "some_net"), image_size=32)
    assert shape == (3, 32, 32)
    assert "some_net" not in notes
    shape, notes = shape_and_notes()
    assert shape == (3, 224, 224)
    assert "224×224" in notes
