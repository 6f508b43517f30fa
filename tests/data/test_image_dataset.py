"""Image data sets give the same pixels from memory, from files and from any number of workers."""

import gc
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.photos import write_photos
from PIL import Image

from distill.data.decoding import ImageFormat
from distill.data.image_dataset import ImageDataset, ImageReader
from distill.data.loaders import read_batches
from distill.data.splits import Split, load_splits
from distill.errors import UserError
from distill.recipe.schema import Data

CPU = torch.device("cpu")


def with_workers(splits, workers):
    splits.settings = splits.settings.model_copy(update={"workers": workers})
    return splits


def test_streamed_and_resident_images_are_the_same(tmp_path):
    write_photos(tmp_path)
    data = Data(source="folder", root=str(tmp_path), image_size=8)
    resident = load_splits(data)
    streamed = load_splits(data.model_copy(update={"resident_gb": 0.0}))
    assert resident.fits_in_memory
    assert not streamed.fits_in_memory
    assert resident.identity == streamed.identity
    parts = [torch.tensor([3, 1]), torch.tensor([0])]
    expected = [images for _, images in read_batches(resident, resident.train, parts, CPU)]
    assert [tuple(images.shape) for images in expected] == [(2, 3, 8, 8), (1, 3, 8, 8)]
    assert resident.train.images.pixels is not None
    for workers in (0, 2):
        with_workers(streamed, workers)
        streamed.train.images.pool.idle = None
        got = [images for _, images in read_batches(streamed, streamed.train, parts, CPU)]
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        assert streamed.train.images.pixels is None


def test_workers_stay_for_the_next_stream_and_streams_do_not_mix():
    def read(i):
        """Return one pixel with the number of the process and of the image."""
        return Image.fromarray(
            np.array([[os.getpid() // 256 % 256, os.getpid() % 256, i]], np.uint8)
        )

    images = ImageDataset(
        torch.arange(10), str, reader=ImageReader(read), format=ImageFormat(1, (1, 3))
    )
    evens = [[0, 2], [4, 6], [8]]
    odds = [[1], [3, 5], [7, 9]]

    def processes_and_numbers(stream):
        batches = [batch.flatten(1) for batch in stream]
        processes = {tuple(row[:2].tolist()) for batch in batches for row in batch}
        return processes, [batch[:, 2].tolist() for batch in batches]

    first, numbers = processes_and_numbers(images.stream(evens, 2, pinned=False))
    second, _ = processes_and_numbers(images.stream(evens, 2, pinned=False))
    assert numbers == evens
    assert first == second
    assert len(first) == 2
    assert (os.getpid() // 256 % 256, os.getpid() % 256) not in first

    one = images.stream(evens, 2, pinned=False)
    other = images.stream(odds, 2, pinned=False)
    together = [
        (a[:, 0, 0, 2].tolist(), b[:, 0, 0, 2].tolist()) for a, b in zip(one, other, strict=True)
    ]
    assert together == list(zip(evens, odds, strict=True))


def damaged_photos(folder):
    write_photos(folder)
    path = folder / "bee" / "3.png"
    path.write_bytes(path.read_bytes()[:-200])


def test_a_damaged_image_is_named(tmp_path):
    damaged_photos(tmp_path)
    with pytest.raises(UserError, match=rf"bee/3\.png .*{tmp_path}"):
        load_splits(Data(source="folder", root=str(tmp_path))).load_into_memory()
    splits = load_splits(Data(source="folder", root=str(tmp_path), resident_gb=0.0))
    everything = Split(splits.train.images, torch.arange(18))
    for workers in (0, 1):
        with_workers(splits, workers)
        splits.train.images.pool.idle = None
        with pytest.raises(UserError, match=r"bee/3\.png"):
            list(read_batches(splits, everything, [torch.arange(18)], CPU))


def test_unreadable_images_are_left_out_as_if_they_were_not_there(tmp_path):
    damaged_photos(tmp_path)
    data = Data(source="folder", root=str(tmp_path), on_error="skip")
    splits = load_splits(data)
    (name,) = splits.train.images.left_out
    assert name.startswith("bee/3.png")
    assert any("bee/3.png" in note for note in splits.notes)
    (tmp_path / "bee" / "3.png").unlink()
    assert load_splits(data).identity == splits.identity


def test_a_data_set_without_readable_images_is_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r" 2 images .*a/0\.png"):
        load_splits(Data(source="folder", root=str(tmp_path), on_error="skip"))


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
def test_workers_that_share_a_tar_file_read_the_right_images(tmp_path):
    """More images than MIN_IMAGES_FOR_WORKERS, so that two processes decode them."""
    count = 2400
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for i in range(count):
            buffer = io.BytesIO()
            pixels = np.full((8, 8, 3), (i % 200, i // 200, 7), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, "png")
            entry = tarfile.TarInfo(f"{'ab'[i % 2]}/{i}.png")
            entry.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(entry, buffer)
    splits = load_splits(Data(source="tar", root=str(tmp_path / "t.tar"), workers=2))
    splits.load_into_memory()
    images = splits.train.images
    numbers = [int(Path(images.name(i)).stem) for i in range(count)]
    expected = torch.tensor([[number % 200, number // 200, 7] for number in numbers])
    assert torch.equal(images.pixels[:, :, 4, 4].long(), expected)
    del splits, images
    gc.collect()
