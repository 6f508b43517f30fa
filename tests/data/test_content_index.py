"""The identity of a data set is the content of its files, and unchanged files are not read."""

import hashlib
import os
import shutil
import tarfile

import numpy as np
import pytest
from helpers.photos import write_photos
from PIL import Image

from distill.data import content_index
from distill.data.content_index import StoredContent, read_facts
from distill.data.splits import load_splits
from distill.errors import UserError
from distill.recipe.schema import Data

LONG_AGO = 1_000_000_000_000_000_000


@pytest.fixture
def reads(monkeypatch, tmp_path):
    """Return the list of the files that were read, with an index of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return []


def stored(contents, stamps, reads, key="k"):
    names = np.array([f"{i}.png".encode() for i in range(len(contents))])

    def read(i):
        reads.append(i)
        return contents[i]

    return StoredContent(key, names, np.array(stamps, np.int64), read)


def old_stamps(count):
    return [(1, LONG_AGO, LONG_AGO, i) for i in range(count)]


def test_digests_are_those_of_the_content(reads):
    contents = [b"a", b"b", b"a"]
    facts = read_facts(stored(contents, old_stamps(3), reads))
    expected = [hashlib.blake2b(content, digest_size=16).digest() for content in contents]
    assert [row.tobytes() for row in facts.digests] == expected
    assert not facts.has_more.any()


@pytest.mark.parametrize("changed", range(4))
def test_only_files_with_another_stamp_are_read_again(reads, changed):
    stamps = old_stamps(3)
    read_facts(stored([b"a", b"b", b"c"], stamps, reads))
    assert sorted(reads) == [0, 1, 2]
    reads.clear()
    stamps[1] = tuple(
        value + (1 if place == changed else 0) for place, value in enumerate(stamps[1])
    )
    facts = read_facts(stored([b"a", b"x", b"c"], stamps, reads))
    assert reads == [1]
    assert facts.digests[1].tobytes() == hashlib.blake2b(b"x", digest_size=16).digest()
    assert facts.digests[2].tobytes() == hashlib.blake2b(b"c", digest_size=16).digest()


def test_a_file_that_has_just_changed_is_read_again(reads, monkeypatch):
    """It may change once more within the resolution of the file system's clock."""
    monkeypatch.setattr("distill.data.content_index.time.time_ns", lambda: LONG_AGO + 10**9)
    for _ in range(2):
        read_facts(stored([b"a"], old_stamps(1), reads))
    assert reads == [0, 0]


def test_files_of_other_splits_stay_known(reads):
    read_facts(stored([b"a", b"b"], old_stamps(2), reads))
    read_facts(stored([b"a", b"b", b"c"], old_stamps(3), reads))
    assert sorted(reads) == [0, 1, 2]
    read_facts(stored([b"a"], old_stamps(1), reads))
    read_facts(stored([b"a"], old_stamps(1), reads, key="another folder"))
    assert sorted(reads) == [0, 0, 1, 2]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut off", b"nothing"])
def test_a_damaged_index_is_made_anew(reads, tmp_path, damage):
    read_facts(stored([b"a"], old_stamps(1), reads))
    (path,) = (tmp_path / "cache").rglob("*.npz")
    path.write_bytes(damage)
    read_facts(stored([b"a"], old_stamps(1), reads))
    read_facts(stored([b"a"], old_stamps(1), reads))
    assert reads == [0, 0]


def test_without_a_folder_for_the_index_everything_is_read(reads, monkeypatch):
    monkeypatch.setattr(content_index, "cache_folder", lambda: None)
    for _ in range(2):
        read_facts(stored([b"a"], old_stamps(1), reads))
    assert reads == [0, 0]


def exchange(one, other):
    one.rename(one.with_name("x"))
    other.rename(one)
    one.with_name("x").rename(other)


def same_time(folder):
    """Give all files one modification time, as unpacked archives may have."""
    for path in folder.rglob("*"):
        os.utime(path, ns=(LONG_AGO, LONG_AGO))


def write_bitmaps(folder):
    """Write images of equal size in bytes; classes differ in colour."""
    for number, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (9, 9), (100 * number, i, 0)).save(folder / name / f"{i}.bmp")
    same_time(folder)


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_exchanged_classes_are_other_data(tmp_path, kind):
    folder = tmp_path / "d"
    write_bitmaps(folder)

    def identity():
        if kind == "folder":
            return load_splits(Data(source="folder", root=str(folder))).identity
        with tarfile.open(tmp_path / "t.tar", "w") as tar:
            tar.add(folder, arcname=".")
        os.utime(tmp_path / "t.tar", ns=(LONG_AGO, LONG_AGO))
        return load_splits(Data(source="tar", root=str(tmp_path / "t.tar"))).identity

    before = identity()
    assert identity() == before
    exchange(folder / "cat", folder / "dog")
    assert identity() != before
    exchange(folder / "cat", folder / "dog")
    assert identity() == before


def test_a_copy_elsewhere_is_the_same_data(tmp_path):
    write_photos(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    one, other = (load_splits(Data(source="folder", root=str(tmp_path / n))) for n in "ab")
    assert one.identity == other.identity


def test_a_renamed_class_is_other_data(tmp_path):
    write_photos(tmp_path)
    before = load_splits(Data(source="folder", root=str(tmp_path))).identity
    (tmp_path / "cat").rename(tmp_path / "dog")
    assert load_splits(Data(source="folder", root=str(tmp_path))).identity != before


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write_photos(tmp_path)
    (tmp_path / "bee" / "4.png").unlink()
    (tmp_path / "bee" / "4.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"bee/4\.png.*nowhere\.png.*on_error=skip"):
        load_splits(Data(source="folder", root=str(tmp_path)))


@pytest.mark.parametrize("kind", ["tif", "gif", "webp", "png"])
def test_further_pages_and_frames_are_noted(tmp_path, kind):
    write_photos(tmp_path, classes=("a", "b"))
    first, *others = [Image.new("RGB", (20, 16), (i, 9, 9)) for i in (0, 80, 160)]
    first.save(tmp_path / "a" / f"many.{kind}", save_all=True, append_images=others)
    notes = load_splits(Data(source="folder", root=str(tmp_path))).notes
    (note,) = [note for note in notes if f"many.{kind}" in note]
    assert "1 image" in note
