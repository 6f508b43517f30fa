"""Folders of images: splits, classes, and what is left out of them."""

import os

import pytest
import torch
from helpers.photos import CLASSES, classes_by_brightness, read_pixels, write_image, write_photos

from distill.data.splits import load_splits
from distill.errors import UserError
from distill.recipe.schema import Data

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def folder_splits(root, **settings):
    return load_splits(Data(source="folder", root=str(root), **settings))


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        # A tenth of training is held out, but one of each class at least.
        (("train", "test"), (15, 3, 18)),
        # As in ImageNet, results are reported for val.
        (("train", "val"), (15, 3, 18)),
        (("train", "val", "test"), (18, 18, 18)),
        ((), (12, 3, 3)),
    ],
)
def test_splits_are_found_in_every_layout(tmp_path, folders, expected):
    for name in folders or ("",):
        write_photos(tmp_path / name)
    splits = folder_splits(tmp_path)
    assert splits.class_names == list(CLASSES)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == expected
    pixels = read_pixels(splits.test)
    assert pixels.dtype == torch.uint8
    assert pixels.shape[1:] == (3, 16, 20)
    assert torch.equal(classes_by_brightness(splits.test), splits.test.labels)


def test_classes_are_the_first_folders_and_what_is_left_out_is_noted(tmp_path):
    for name, colour in COLOURS.items():
        for year in ("2020", "2021/spring"):
            for i in range(3):
                write_image(tmp_path / name / year / f"{i}.png", colour)
    write_image(tmp_path / "cover.png")
    write_image(tmp_path / ".thumbnails" / "t.png")
    write_image(tmp_path / "red" / "._0.png")
    (tmp_path / "red" / "clip.mov").write_bytes(b"x")
    (tmp_path / "green" / "photo.ARW").write_bytes(b"x")
    # A link that would be followed forever.
    (tmp_path / "blue" / "again").symlink_to(tmp_path / "blue")

    splits = folder_splits(tmp_path)
    images = splits.train.images
    assert splits.class_names == ["blue", "green", "red"]
    assert len(images) == 18
    for i in range(18):
        colour = tuple(images[i][:, 0, 0].tolist())
        assert colour == COLOURS[splits.class_names[images.labels[i]]]
    notes = " ".join(splits.notes)
    for fact in ("cover.png", "1 .mov", "1 .arw", "(18)"):
        assert fact in notes


@pytest.mark.parametrize(
    ("files", "fact"),
    [
        (["a.png"], r"1 image, .*a\.png"),
        (["all/cats/a.png"], r"1 class"),
        (["cats/"], r"\.jpg"),
        (["cats/a.png"], "1 class"),
        (["a/IMG_1.ARW"], r"1 \.arw.* JPEG"),
    ],
)
def test_folders_without_classes_are_refused(tmp_path, files, fact):
    for name in files:
        path = tmp_path / name
        if name.endswith("/"):
            path.mkdir()
        elif name.endswith(".png"):
            write_image(path)
        else:
            path.parent.mkdir()
            path.write_bytes(b"x")
    with pytest.raises(UserError, match=fact):
        folder_splits(tmp_path)


def test_a_root_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path / "x")):
        folder_splits(tmp_path / "x")


def test_a_class_that_training_does_not_have_is_refused(tmp_path):
    write_photos(tmp_path / "train")
    write_photos(tmp_path / "test", classes=(*CLASSES, "emu"))
    with pytest.raises(UserError, match=r"'emu'"):
        folder_splits(tmp_path)


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    """It is not left out; and a link to another class is a class of its own."""
    write_image(tmp_path / "a" / "0.png")
    (tmp_path / "alias").symlink_to(tmp_path / "z")
    for i in range(10):
        write_image(tmp_path / "z" / f"{i}.png", (0, 0, i))
    assert folder_splits(tmp_path).class_names == ["a", "alias", "z"]
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("z"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(UserError, match=r"/z: Permission denied"):
        folder_splits(tmp_path)
