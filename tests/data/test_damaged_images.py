"""Images that cannot be read are named, or left out and counted."""

import tarfile

import pytest
from helpers.recipes import TINY, make_recipe, merge
from helpers.training import plan
from PIL import Image

from distill import run_study
from distill.errors import UserError

DOCUMENT = merge(
    TINY,
    {
        "train": {"epochs": 1, "batch_size": 8},
        "analysis": {"examples": 0, "num_attacked": 0, "num_views": 0},
    },
)


def write_photos(folder):
    """Write twenty images of each of three classes; of the first two one is damaged."""
    for name in ("a", "b", "c"):
        (folder / name).mkdir(parents=True)
        for i in range(20):
            Image.new("L", (8, 8), 5 * i + len(name)).save(folder / name / f"{i}.png")
    (folder / "a" / "3.png").write_bytes(b"no image")
    (folder / "b" / "7.png").write_bytes((folder / "b" / "8.png").read_bytes()[:48])


def photo_recipe(folder, *overrides, source="folder", resident_gb=1.0):
    data = {"source": source, "root": str(folder), "resident_gb": resident_gb}
    return make_recipe(merge(DOCUMENT, {"data": data}), *overrides)


@pytest.mark.slow
@pytest.mark.parametrize("resident_gb", [1.0, 0.0])
def test_damaged_images_are_named_or_left_out_and_counted(tmp_path, study_context, resident_gb):
    write_photos(tmp_path / "photos")
    recipe = photo_recipe(tmp_path / "photos", resident_gb=resident_gb)
    with pytest.raises(UserError, match=r"\.png.*data\.on_error=skip"):
        run_study(recipe, tmp_path / "runs")

    skipping = photo_recipe(tmp_path / "photos", "data.on_error=skip", resident_gb=resident_gb)
    results = run_study(skipping, tmp_path / "runs")
    data = results.data
    assert data.train + data.validation + data.test == 58
    note = next(note for note in results.notes if "a/3.png" in note)
    assert "2 unreadable images" in note and "b/7.png" in note
    assert "a/3.png" in (tmp_path / "runs" / "tiny" / "report.html").read_text()

    # Without the damaged files the images are the same, and so are the runs.
    for name in ("a/3.png", "b/7.png"):
        (tmp_path / "photos" / name).unlink()
    assert {run.id for run in plan(study_context(recipe))} == {run.id for run in results.runs}


def test_a_damaged_tar_file_is_named(tmp_path, study_context):
    write_photos(tmp_path / "photos")
    path = tmp_path / "photos.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "photos", "photos")
    with tarfile.open(path) as tar:
        middle = tar.getmembers()[30].offset
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[middle + 5] ^= 1
    for content in (flipped, whole[: middle + 700], b"", b"\xff" * 4000):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"photos\.tar"):
            run_study(photo_recipe(path, source="tar"), tmp_path / "runs")
