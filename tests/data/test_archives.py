"""The same files in a folder, a tar file and a zip file are the same data set."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.photos import CLASSES, read_pixels, write_image, write_photos
from PIL import Image

from distill.data.archives import archive_stem, is_archive_name, open_archive, open_archives
from distill.data.splits import load_splits
from distill.data.stored_files import Location
from distill.errors import UserError
from distill.recipe.schema import Data


def write_tar(path: Path, folder: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for entry in sorted(folder.iterdir()):
            tar.add(entry, arcname=entry.name)
    return path


def write_zip(path: Path, folder: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, prefix + str(file.relative_to(folder)))
    return path


def splits_of(path: Path, **settings):
    source = "folder" if path.is_dir() else "tar"
    return load_splits(Data(source=source, root=str(path), **settings))


def described(splits):
    """Return everything by which two data sets can differ, but not where they are."""
    return (
        splits.class_names,
        [images.name(i) for images in splits.datasets for i in range(len(images))],
        [split.labels.tolist() for split in (splits.train, splits.validation, splits.test)],
        splits.digest,
        sorted(note.replace("/", " ").split(" in ")[0] for note in splits.notes),
    )


def write_odd_photos(folder: Path) -> Path:
    """Write photos of every kind of layout that part_readers have disagreed on."""
    write_photos(folder)
    for name, kind in (("dog", "bmp"), ("elk", "webp"), ("fox", "GIF"), ("gnu", "tiff")):
        for i in range(5):
            write_image(folder / name / f"deep {i}" / f"{i}.{kind}", (20 * i, 0, 99))
    for junk in ("ant/._0.png", "@eaDir/t.png", "bee/@eaDir/t.png", ".hidden/x.png"):
        (folder / junk).parent.mkdir(parents=True, exist_ok=True)
        (folder / junk).write_bytes(b"\0\5\26\7")
    (folder / "hen").mkdir()
    (folder / "cat" / "film.mov").write_bytes(b"x")
    return folder


def test_every_kind_of_archive_is_the_folder_that_it_was_made_of(tmp_path):
    photos = write_odd_photos(tmp_path / "photos")
    expected = splits_of(photos)
    assert expected.class_names == [*CLASSES, "dog", "elk", "fox", "gnu"]
    archives = [
        write_tar(tmp_path / "a.tar", photos),
        write_tar(tmp_path / "b.tar.gz", photos, "w:gz"),
        write_tar(tmp_path / "c.tbz2", photos, "w:bz2"),
        write_tar(tmp_path / "d.tar.xz", photos, "w:xz"),
        write_zip(tmp_path / "e.zip", photos),
    ]
    for archive in archives:
        splits = splits_of(archive)
        assert described(splits) == described(expected), archive
        for one, other in zip(
            (splits.train, splits.test), (expected.train, expected.test), strict=True
        ):
            assert torch.equal(read_pixels(one), read_pixels(other))


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_splits_within_one_archive_and_below_one_folder(tmp_path, kind):
    write_photos(tmp_path / "set" / "photos" / "train")
    write_photos(tmp_path / "set" / "photos" / "test", per_class=2)
    write = {"tar": write_tar, "zip": write_zip}[kind]
    archive = write(tmp_path / f"set.{kind}", tmp_path / "set")
    for path in (archive, tmp_path / "set"):
        splits = splits_of(path)
        assert splits.class_names == list(CLASSES)
        assert len(splits.test) == 6
        assert len(splits.train) + len(splits.validation) == 18
    named = splits_of(archive, train="test", test="train", validation=0.5)
    assert len(named.test) == 18


def test_a_tar_file_of_tar_files_and_a_folder_of_them(tmp_path):
    """ImageNet's training images come as a tar file of one tar file for each class."""
    write_photos(tmp_path / "photos")
    (tmp_path / "classes").mkdir()
    for name in CLASSES:
        write_tar(tmp_path / "classes" / f"{name}.tar", tmp_path / "photos" / name)
    expected = splits_of(tmp_path / "photos")
    for path in (tmp_path / "classes", write_tar(tmp_path / "all.tar", tmp_path / "classes")):
        splits = splits_of(path)
        assert splits.class_names == list(CLASSES)
        assert torch.equal(read_pixels(splits.train), read_pixels(expected.train))


def test_links_in_a_tar_file_are_followed(tmp_path):
    write_photos(tmp_path / "photos", classes=("a", "b"))
    (tmp_path / "photos" / "a" / "same.png").symlink_to("0.png")
    (tmp_path / "photos" / "a" / "again.png").symlink_to("same.png")
    (tmp_path / "photos" / "b" / "hard.png").hardlink_to(tmp_path / "photos" / "b" / "1.png")
    (tmp_path / "photos" / "b" / "lost.png").symlink_to("/nowhere/x.png")
    write_tar(tmp_path / "t.tar", tmp_path / "photos")
    for path in (tmp_path / "photos", tmp_path / "t.tar"):
        with pytest.raises(UserError, match=r"b/lost\.png.*nowhere"):
            splits_of(path)
    skipping = [
        splits_of(path, on_error="skip") for path in (tmp_path / "photos", tmp_path / "t.tar")
    ]
    assert [len(splits.train.images) for splits in skipping] == [15, 15]
    assert torch.equal(read_pixels(skipping[0].train), read_pixels(skipping[1].train))


def test_the_last_file_of_a_name_counts(tmp_path):
    """As for `tar`, which appends the new version of a file."""
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for content in (b"old", b"newer"):
            info = tarfile.TarInfo("./a/x.png")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (file,) = open_archive(tmp_path / "t.tar").files
    read = Location(tmp_path / "t.tar").reader
    assert file.path == "a/x.png"
    assert read(file.path, file.part, file.number, file.size) == b"newer"


def test_names_of_windows_and_of_other_encodings(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        info = zipfile.ZipInfo("photos\\cat\\1.png")
        info.create_system = 0
        archive.writestr(info, b"x")
    assert [file.path for file in open_archive(tmp_path / "w.zip").files] == ["photos/cat/1.png"]

    name = os.fsdecode(b"caf\xe9/1.png")
    with tarfile.open(
        tmp_path / "l.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT
    ) as tar:
        tar.addfile(tarfile.TarInfo("café/1.png"))
    assert [file.path for file in open_archive(tmp_path / "l.tar").files] == [name]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.zip", b"PK\x03\x04" + b"x" * 100),
        ("a.tar.gz", b"\x1f\x8b\x08" + b"x" * 100),
        ("a.tar.xz", b"\xfd7zXZ\x00" + b"x" * 100),
        ("a.tar", b""),
        ("a.7z", b"7z\xbc\xaf\x27\x1c" + b"x" * 100),
        ("a.rar", b"Rar!\x1a\x07\x01" + b"x" * 100),
        ("photo.png", None),
    ],
)
def test_what_is_no_archive_is_refused_by_name(tmp_path, name, content):
    if content is None:
        Image.new("L", (9, 9)).save(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        splits_of(tmp_path / name)


def test_a_compressed_file_that_is_cut_off_is_refused(tmp_path):
    write_photos(tmp_path / "photos")
    path = write_tar(tmp_path / "t.tgz", tmp_path / "photos", "w:gz")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"t\.tgz"):
        splits_of(path)


def test_several_archives_keep_files_of_one_name_apart(tmp_path):
    for folder, colour in (("x", 10), ("y", 200)):
        write_image(tmp_path / folder / "one" / "0.png", (colour,) * 3)
        write_tar(tmp_path / folder / "s.tar", tmp_path / folder / "one")
    archive = open_archives([tmp_path / "x" / "s.tar", tmp_path / "y" / "s.tar"])
    assert sorted(file.path for file in archive.files) == ["x/s/0.png", "y/s/0.png"]
    values = [
        Image.open(io.BytesIO(archive.part_readers[file.part](file.number, file.size))).getpixel(
            (0, 0)
        )
        for file in archive.files
    ]
    assert values == [(10, 10, 10), (200, 200, 200)]


@pytest.mark.parametrize(
    ("name", "stem"), [("a.tar", "a"), ("a.b.TAR.GZ", "a.b"), ("a.tgz", "a"), ("a.zip", "a")]
)
def test_endings_of_archives(name, stem):
    assert is_archive_name(name)
    assert archive_stem(name) == stem
    assert not is_archive_name(f"{name}.part")


def test_a_damaged_header_in_the_middle_of_a_tar_file_is_refused(tmp_path):
    """Readers take it for the end of the file, and would leave out the rest in silence."""
    write_photos(tmp_path / "photos")
    path = write_tar(tmp_path / "t.tar", tmp_path / "photos")
    assert splits_of(path).class_names == list(CLASSES)
    with tarfile.open(path) as tar:
        middle = tar.getmembers()[15].offset
    content = bytearray(path.read_bytes())
    content[middle + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"t\.tar.*damaged at byte {middle}"):
        splits_of(path)
