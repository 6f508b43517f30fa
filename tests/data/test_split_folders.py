"""Which folders are splits, which are classes, and which are neither."""

import os
import shutil
import unicodedata

import pytest
from helpers.photos import write_image, write_photos, write_shard

from distill.data.class_folders import natural_key
from distill.data.splits import load_splits
from distill.data.stored_files import Location, readable_name
from distill.errors import UserError
from distill.recipe.schema import Data


def splits_of(path, **settings):
    return load_splits(Data(source="folder", root=str(path), **settings))


def write_classes(root, *names, count=4):
    for name in names:
        for i in range(count):
            write_image(root / name / f"{i}.png", (40 * i, 0, 0))


@pytest.mark.parametrize("deep", [False, True])
def test_a_class_may_be_named_train(tmp_path, deep):
    write_classes(tmp_path, "bus", "car", *(["train/steam", "train/diesel"] if deep else ["train"]))
    splits = splits_of(tmp_path)
    assert splits.class_names == ["bus", "car", "train"]
    assert any("data.train=train" in note for note in splits.notes)
    if deep:
        assert splits_of(tmp_path, train="train").class_names == ["diesel", "steam"]


def test_folders_beside_two_splits_of_the_same_classes_are_left_out(tmp_path):
    write_classes(tmp_path, "train/a", "train/b", "test/a", "test/b", "unlabelled")
    splits = splits_of(tmp_path)
    assert splits.class_names == ["a", "b"]
    assert len(splits.test) == 8
    assert any("unlabelled" in note for note in splits.notes)


def test_results_in_the_folder_of_the_photos_are_no_class(tmp_path):
    write_classes(tmp_path, "cat", "dog")
    before = splits_of(tmp_path)
    run = tmp_path / "runs" / "models" / "0123456789abcdef"
    run.mkdir(parents=True)
    write_image(tmp_path / "runs" / "study" / "arms.png")
    splits = splits_of(tmp_path)
    assert splits.class_names == ["cat", "dog"]
    assert splits.identity == before.identity
    assert any("runs" in note for note in splits.notes)


def test_results_written_directly_into_the_folder_of_the_photos_are_no_class(tmp_path):
    write_classes(tmp_path, "cat", "dog")
    (tmp_path / "models" / "0123456789abcdef").mkdir(parents=True)
    write_image(tmp_path / "models" / "0123456789abcdef" / "x.png")
    write_image(tmp_path / "study" / "arms.png")
    for name in ("results.json", "report.html"):
        (tmp_path / "study" / name).write_text("{}")
    assert splits_of(tmp_path).class_names == ["cat", "dog"]


def test_a_class_with_a_file_of_results_stays_a_class(tmp_path):
    write_classes(tmp_path, "models", "study", "results")
    (tmp_path / "study" / "results.json").write_text("{}")
    assert splits_of(tmp_path).class_names == ["models", "results", "study"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_composed_and_decomposed_names_are_one_class(tmp_path, form):
    name = unicodedata.normalize("NFC", "épée")
    other = unicodedata.normalize("NFD", name)
    write_classes(tmp_path / "train", name, "sabre")
    write_classes(tmp_path / "test", unicodedata.normalize(form, name), "sabre")
    splits = splits_of(tmp_path)
    assert splits.class_names == ["sabre", name]
    assert len(splits.test) == 8

    write_classes(tmp_path / "train", other)
    splits = splits_of(tmp_path)
    assert splits.class_names == ["sabre", name]
    assert splits.train.images.labels.bincount().tolist() == [4, 8]
    assert any("look the same" in note for note in splits.notes)


def test_names_that_are_not_utf8_can_be_printed_and_stay_apart(tmp_path):
    names = [os.fsdecode(raw) for raw in (b"caf\xe9", b"caf\xe8", b"plain")]
    try:
        write_classes(tmp_path, *names)
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    splits = splits_of(tmp_path)
    assert splits.class_names == ["caf\\xe8", "caf\\xe9", "plain"]
    "".join([*splits.class_names, splits.train.images.name(0)]).encode("utf-8")


def test_a_folder_without_images_is_no_class_and_is_named(tmp_path):
    write_classes(tmp_path, "a", "b")
    (tmp_path / "emptied").mkdir()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "1.mov").write_bytes(b"x")
    splits = splits_of(tmp_path)
    assert splits.class_names == ["a", "b"]
    (note,) = [note for note in splits.notes if "without images" in note]
    assert "emptied" in note and "videos" in note


def test_a_test_folder_without_labels_has_a_next_step(tmp_path):
    write_classes(tmp_path / "train", "a", "b")
    write_image(tmp_path / "test" / "0.png")
    with pytest.raises(UserError, match=r"data\.test=0\.2"):
        splits_of(tmp_path)
    assert len(splits_of(tmp_path, test=0.25).test) == 2


def test_hidden_and_system_folders_are_no_classes(tmp_path):
    write_classes(tmp_path, "a", "b", ".git", "@eaDir", "#recycle", "a/@eaDir", "__MACOSX", "...")
    splits = splits_of(tmp_path)
    assert splits.class_names == ["...", "a", "b"]
    assert len(splits.train.images) == 12


def test_sorting_is_natural_and_total():
    names = ["b10", "b2", "B2", "a", "10", "9", "²", "b02"]
    ordered = sorted(names, key=natural_key)
    assert ordered == ["9", "10", "a", "B2", "b02", "b2", "b10", "²"]
    assert ordered == sorted(reversed(names), key=natural_key)


def test_locations_of_folders(tmp_path):
    write_photos(tmp_path / "a" / "b")
    location = Location(tmp_path).child("a")
    assert str(location).endswith("/a")
    assert location.folders == ["b"]
    assert location.child("c") is None
    assert readable_name(os.fsdecode(b"\xff")) == "\\xff"


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("TRAIN", "TEST"),
        ("train_set", "test_set"),
        ("train2017", "val2017"),
    ],
)
def test_splits_under_other_names(tmp_path, train, test):
    write_classes(tmp_path, f"{train}/a", f"{train}/b")
    write_classes(tmp_path, f"{test}/a", f"{test}/b", count=2)
    splits = splits_of(tmp_path)
    assert splits.class_names == ["a", "b"]
    assert len(splits.test) == 4
    assert any(test in note for note in splits.notes)


def test_of_two_similar_names_none_is_taken(tmp_path):
    write_classes(tmp_path, "train2014/a", "train2014/b", "train2017/a", "train2017/b")
    assert splits_of(tmp_path).class_names == ["train2014", "train2017"]
    assert splits_of(tmp_path, train="train2017").class_names == ["a", "b"]


def test_splits_within_classes_are_refused(tmp_path):
    write_classes(tmp_path, "a/train", "a/test", "b/train", "b/test")
    with pytest.raises(UserError, match="train/a instead of a/train"):
        splits_of(tmp_path)


def test_folds_with_the_same_classes_are_noted(tmp_path):
    write_classes(tmp_path, *(f"fold{k}/{name}" for k in (1, 2) for name in ("a", "b")))
    splits = splits_of(tmp_path)
    assert splits.class_names == ["fold1", "fold2"]
    assert any("data.root=" in note and "fold1" in note for note in splits.notes)


@pytest.mark.parametrize("kind", ["gztar", "zip"])
def test_archives_of_splits_may_contain_their_folder(tmp_path, kind):
    write_photos(tmp_path / "w" / "train")
    write_photos(tmp_path / "w" / "val", per_class=2)
    (tmp_path / "s").mkdir()
    for name in ("train", "val"):
        shutil.make_archive(str(tmp_path / "s" / name), kind, tmp_path / "w", name)
    splits = splits_of(tmp_path / "s")
    assert splits.class_names == ["ant", "bee", "cat"]
    assert len(splits.test) == 6


def test_splits_may_have_an_archive_for_each_class(tmp_path):
    photos = write_photos(tmp_path / "w")
    for split in ("train", "test"):
        (tmp_path / "s" / split).mkdir(parents=True)
        for name in ("ant", "bee"):
            shutil.make_archive(str(tmp_path / "s" / split / name), "tar", photos / name)
    splits = splits_of(tmp_path / "s")
    assert splits.class_names == ["ant", "bee"]
    assert len(splits.test) == 12


def test_an_archive_beside_class_folders_is_named(tmp_path):
    write_classes(tmp_path, "a", "b")
    shutil.make_archive(str(tmp_path / "c"), "tar", tmp_path / "a")
    splits = splits_of(tmp_path)
    assert splits.class_names == ["a", "b"]
    assert any("c.tar" in note for note in splits.notes)


def test_links_to_class_folders_count_on_a_disk_and_in_an_archive(tmp_path):
    write_classes(tmp_path / "d", "a", "_b")
    (tmp_path / "d" / "b").symlink_to("_b")
    shutil.make_archive(str(tmp_path / "d"), "tar", tmp_path / "d")
    for path in (tmp_path / "d", tmp_path / "d.tar"):
        assert splits_of(path).class_names == ["_b", "a", "b"]


def test_shards_are_no_classes(tmp_path):
    write_photos(tmp_path / "photos")
    (tmp_path / "s").mkdir()
    for split in ("train", "test"):
        write_shard(tmp_path / "s" / f"x-{split}-0.tar", tmp_path / "photos")
    with pytest.raises(UserError, match="source=wds/"):
        splits_of(tmp_path / "s")


def test_the_size_of_one_image_counts_wherever_it_is(tmp_path):
    """Small images of equal size keep it; a single larger one is not cut to it in silence."""
    write_classes(tmp_path, "a", "b", count=30)
    assert splits_of(tmp_path).shape == (3, 12, 12)
    for name in ("a/1.png", "b/17.png"):
        write_image(tmp_path / name, size=(300, 200))
        assert splits_of(tmp_path).shape == (3, 224, 224)
        write_image(tmp_path / name)
