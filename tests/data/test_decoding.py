"""Images of any kind are decoded as a viewer shows them."""

import numpy as np
import pytest
import torch
from helpers.photos import read_pixels, write_image
from PIL import Image

from distill.data.decoding import ImageFormat, as_displayed, to_tensor
from distill.data.splits import Split, load_splits
from distill.recipe.schema import Data

RED = (200, 30, 30)


def open_image(path):
    with path.open("rb") as file:
        image = Image.open(file)
        image.load()
    return as_displayed(image)


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("rgb.png", "RGB", {}),
        ("capital.PNG", "RGB", {}),
        ("jpeg.jpg", "RGB", {"quality": 100, "subsampling": 0}),
        ("cmyk.jpg", "CMYK", {"quality": 100, "subsampling": 0}),
        ("palette.png", "P", {}),
        ("palette.gif", "P", {}),
        ("opaque.png", "RGBA", {}),
        ("web.webp", "RGB", {"lossless": True}),
        ("tagged.tif", "RGB", {}),
        ("plain.bmp", "RGB", {}),
    ],
)
def test_every_format_keeps_its_colour(tmp_path, name, mode, options):
    image = Image.new("RGB", (12, 12), RED)
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    image.save(tmp_path / name, **options)
    # The other class of a data set that is read from its folder, to test file extensions too.
    write_image(tmp_path / "root" / "blue" / "0.png", (0, 0, 200))
    for i in range(5):
        path = tmp_path / "root" / "red" / f"{i}{name}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((tmp_path / name).read_bytes())
    splits = load_splits(Data(source="folder", root=str(tmp_path / "root"), test=0.4))
    assert len(splits.train.images) == 6
    for i in range(1, 6):
        colour = splits.train.images[i].float().mean((1, 2))
        torch.testing.assert_close(colour, torch.tensor(RED).float(), atol=3, rtol=0)


def test_transparency_is_white_and_grey_is_grey(tmp_path):
    Image.new("RGBA", (12, 12), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    # Black that covers half: 255 · (1 - 128 / 255) = 127.
    Image.new("LA", (12, 12), (0, 128)).save(tmp_path / "half.png")
    Image.new("L", (12, 12), 77).save(tmp_path / "grey.png")
    sixteen_bits = np.full((12, 12), 77 * 257, np.uint16)
    Image.fromarray(sixteen_bits).save(tmp_path / "sixteen.png")
    expected = {"clear.png": 255, "half.png": 127, "grey.png": 77, "sixteen.png": 77}
    for name, value in expected.items():
        tensor = to_tensor(open_image(tmp_path / name), ImageFormat(3, (12, 12)))
        assert tensor.unique().tolist() == [value]


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        for i in range(4):
            pixels = np.full((8, 8), 256 * 40 * i, dtype=np.uint16)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    splits = load_splits(Data(source="folder", root=str(tmp_path)))
    everything = read_pixels(Split(splits.train.images, torch.arange(12)))
    assert set(everything.unique().tolist()) == {0, 40, 80, 120}


def test_pixels_of_unknown_range_are_refused():
    with pytest.raises(ValueError, match="floats"):
        as_displayed(Image.new("F", (4, 4)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["turned.png", "turned16.png", "turned.tif"])
def test_a_rotated_photograph_is_upright(tmp_path, name, orientation):
    """By the EXIF standard: which pixels of the upright image are stored first."""
    upright = np.zeros((16, 12), np.uint8)
    upright[:6, :4] = 200
    upright[:6, 8:] = 100
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, 3),
    }[orientation]  # fmt: skip
    if "16" in name:
        stored = stored.astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / name, exif=exif)
    assert np.array_equal(np.asarray(open_image(tmp_path / name)), upright)


def test_images_are_resized_by_the_short_side_and_cut_at_the_centre():
    ramp = np.tile(np.arange(40, dtype=np.uint8)[None, :, None] * 6, (20, 1, 3))
    tensor = to_tensor(Image.fromarray(ramp), ImageFormat(1, (20, 20)))
    assert tensor.shape == (1, 20, 20)
    assert torch.equal(tensor[0, 0], torch.arange(10, 30, dtype=torch.uint8) * 6)
    # A crop of half of the side is the centre of an image that is twice as large.
    half = to_tensor(Image.fromarray(ramp), ImageFormat(3, (10, 10), crop_pct=0.5))
    assert half.shape == (3, 10, 10)
    assert torch.equal(half[0, 0], torch.arange(15, 25, dtype=torch.uint8) * 6)
