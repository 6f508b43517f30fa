"""Columns of data sets of Hugging Face are found or named, and classes are known by name."""

import pytest
import torch
from helpers.photos import CLASSES, classes_by_brightness, write_photos

from distill.data.splits import load_splits
from distill.errors import UserError
from distill.recipe.schema import Data

datasets = pytest.importorskip("datasets")
NUMBERS = {name: number for number, name in enumerate(CLASSES)}
CLASS_LABEL = datasets.ClassLabel(names=list(CLASSES))


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a data set with columns of these names and kinds."""
    photos = write_photos(tmp_path / "photos")
    paths = sorted(photos.glob("*/*.png"))

    def write_dataset(columns, values=None, split="train", skip=()):
        chosen = [path for path in paths if path.parent.name not in skip]
        cells = {}
        for name, kind in columns.items():
            if isinstance(kind, datasets.Image):
                cells[name] = [{"bytes": path.read_bytes(), "path": None} for path in chosen]
            else:
                cells[name] = [(values or NUMBERS)[path.parent.name] for path in chosen]
        table = datasets.Dataset.from_dict(cells, features=datasets.Features(columns))
        (tmp_path / "set").mkdir(exist_ok=True)
        table.to_parquet(tmp_path / "set" / f"{split}.parquet")

    return write_dataset


def open_set(tmp_path, **settings):
    source = f"hfds/{tmp_path / 'set'}"
    return load_splits(Data(source=source, root=str(tmp_path / "cache"), **settings))


def write_both(write, *arguments, **settings):
    for split in ("train", "test"):
        write(*arguments, split=split, **settings)


def assert_right(splits, names):
    assert splits.class_names == list(names)
    assert torch.equal(classes_by_brightness(splits.test), splits.test.labels)
    assert len(splits.test) == 18


@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "fine_label")])
def test_columns_are_found_by_kind_and_by_name(tmp_path, write, image, label):
    write_both(write, {image: datasets.Image(), label: CLASS_LABEL})
    assert_right(open_set(tmp_path), CLASSES)


def test_the_only_column_of_classes_is_found_under_any_name(tmp_path, write):
    write_both(write, {"photo": datasets.Image(), "species": CLASS_LABEL})
    assert_right(open_set(tmp_path), CLASSES)


def test_texts_are_classes_in_natural_order(tmp_path, write):
    texts = {"ant": "kind 1", "bee": "kind 2", "cat": "kind 10"}
    write_both(write, {"image": datasets.Image(), "label": datasets.Value("string")}, texts)
    assert_right(open_set(tmp_path), texts.values())


def test_numbers_from_one(tmp_path, write):
    numbers = {name: number + 1 for name, number in NUMBERS.items()}
    write_both(write, {"image": datasets.Image(), "label": datasets.Value("int64")}, numbers)
    assert_right(open_set(tmp_path), "123")


def test_columns_that_are_not_clear_are_asked_for(tmp_path, write):
    columns = {
        "left": datasets.Image(),
        "right": datasets.Image(),
        "coarse": CLASS_LABEL,
        "fine": CLASS_LABEL,
    }
    write_both(write, columns)
    with pytest.raises(UserError, match=r"left, right.*data\.image_key"):
        open_set(tmp_path)
    with pytest.raises(UserError, match=r"coarse, fine.*data\.label_key"):
        open_set(tmp_path, image_key="left")
    with pytest.raises(UserError, match=r"data\.label_key.*'fine'"):
        open_set(tmp_path, image_key="left", label_key="fnie")
    assert_right(open_set(tmp_path, image_key="left", label_key="fine"), CLASSES)


def test_a_test_split_without_labels_has_a_next_step(tmp_path, write):
    write({"image": datasets.Image(), "label": CLASS_LABEL})
    none = dict.fromkeys(CLASSES, -1)
    write({"image": datasets.Image(), "label": CLASS_LABEL}, none, split="test")
    with pytest.raises(UserError, match=r"data\.test=0\.2"):
        open_set(tmp_path)


def test_a_class_that_training_does_not_have_is_refused(tmp_path, write):
    write({"image": datasets.Image(), "label": CLASS_LABEL}, skip=("bee",))
    write({"image": datasets.Image(), "label": CLASS_LABEL}, split="test")
    with pytest.raises(UserError, match="'bee'"):
        open_set(tmp_path)


def test_other_images_of_the_same_names_are_other_data(tmp_path, write):
    columns = {"image": datasets.Image(), "label": datasets.Value("string")}
    write_both(write, columns, {name: name for name in CLASSES})
    before = open_set(tmp_path).digest
    write_both(write, columns, {"ant": "bee", "bee": "ant", "cat": "cat"})
    assert open_set(tmp_path).digest != before
