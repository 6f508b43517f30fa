"""Files are complete or absent, and their damage is noticed."""

import os
import subprocess
import sys

import pytest
import torch
from helpers.damage import folder_content

from distill.errors import UserError
from distill.storage import files


def a_process_that_has_ended() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_a_tree_is_read_as_it_was_written_and_every_bit_of_its_file_counts(tmp_path):
    path = tmp_path / "tree"
    files.write_tree(
        path, {"a": [1, {"b": torch.arange(5)}], "c": torch.tensor([1.5, -0.0]), 3: "text"}
    )
    tree = files.read_tree(path)
    assert tree["a"][0] == 1
    assert torch.equal(tree["a"][1]["b"], torch.arange(5))
    assert tree["c"].tolist() == [1.5, 0] and tree["c"][1].signbit()
    assert tree[3] == "text"

    whole = path.read_bytes()
    for position in range(0, 8 * len(whole), 7):
        content = bytearray(whole)
        content[position // 8] ^= 1 << position % 8
        path.write_bytes(content)
        with pytest.raises(ValueError, match=str(path)):
            files.read_tree(path)


def test_a_tree_that_does_not_exist_is_none(tmp_path):
    assert files.read_tree(tmp_path / "nothing") is None


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    files.write_text_atomically(path, "old")
    with pytest.raises(UserError, match=str(path)), files.atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise OSError(28, "No space left on device")
    assert folder_content(tmp_path) == {"file": b"old"}


def test_temporary_files_of_ended_processes_are_removed_and_others_kept(tmp_path):
    ours = files.temporary_path(tmp_path / "x")
    stale = ours.with_name(ours.name.replace(str(os.getpid()), str(a_process_that_has_ended())))
    elsewhere = tmp_path / ".x.another_machine-1"
    for path in (ours, stale, elsewhere):
        path.write_text("")
    stale_folder = stale.with_name(stale.name.replace(".x.", ".y."))
    stale_folder.mkdir()
    (stale_folder / "file").write_text("")
    files.clean_stale_temp_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {ours.name, elsewhere.name}


@pytest.mark.parametrize(
    ("process", "alive"),
    [(os.getpid(), True), (1, True), (10**30, True)],
    ids=["this process", "init", "beyond any number"],
)
def test_a_process_is_alive_if_in_doubt(process, alive):
    assert files.is_process_alive(process) is alive
    assert not files.is_process_alive(a_process_that_has_ended())


def test_a_changed_value_is_noticed_by_the_checksum():
    values = files.with_checksum({"a": (1, 2), 3: None})
    assert files.has_valid_checksum(values)
    assert not files.has_valid_checksum(values | {"a": [1, 3]})
    assert not files.has_valid_checksum({"a": [1, 2]})
