"""Images of any kind are decoded as a viewer shows them."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from helpers.photos import read_pixels, write_image
from PIL import Image, ImageCms

from distill.data import decoding
from distill.data.decoding import ImageFormat, as_displayed, to_tensor
from distill.data.decoding import open_image as decode
from distill.data.splits import Split, load_splits
from distill.errors import UserError
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


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_sixteen_bit_files_with_fewer_bits_in_them(tmp_path, bits):
    top = (1 << bits) - 1
    for number, name in enumerate("abc"):
        (tmp_path / name).mkdir()
        for i in range(4):
            pixels = np.full((8, 8), top * (1 + number) // 3, np.uint16)
            pixels[0, 0] = top
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    splits = load_splits(Data(source="folder", root=str(tmp_path)))
    images = Split(splits.train.images, torch.arange(12))
    found = read_pixels(images)[:, 0, 4, 4]
    assert found.tolist() == [255 * n // 3 for n in (1, 2, 3) for _ in range(4)]
    said = any(f"{bits} bits" in note for note in splits.notes)
    assert said == (bits < 16)


def test_an_image_with_more_bits_than_the_others_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"4096.*data\.bit_depth=14"):
        as_displayed(Image.fromarray(np.full((4, 4), 4096, np.uint16)), bits=12)
    with pytest.raises(ValueError, match="negative"):
        as_displayed(Image.fromarray(np.full((4, 4), -1, np.int32)))
    with pytest.raises(ValueError, match="70000"):
        as_displayed(Image.fromarray(np.full((4, 4), 70_000, np.int32)))


def test_bit_depth_of_the_recipe_counts(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(np.full((8, 8), 1000, np.uint16)).save(tmp_path / name / f"{i}.png")
    twelve = load_splits(Data(source="folder", root=str(tmp_path), bit_depth=12))
    assert read_pixels(twelve.train).unique().tolist() == [1000 >> 4]
    measured = load_splits(Data(source="folder", root=str(tmp_path)))
    assert read_pixels(measured.train).unique().tolist() == [1000 >> 2]
    assert measured.identity != twelve.identity


def swapped_profile():
    """Return sRGB with red and blue exchanged, so that a wrong reading cannot be overlooked."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack(">I", profile[128:132])
    exchanged = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}
    for i in range(count):
        start = 132 + 12 * i
        tag = bytes(profile[start : start + 4])
        profile[start : start + 4] = exchanged.get(tag, tag)
    return bytes(profile)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_profiles_are_followed(tmp_path, mode):
    """The expected colour is that of PIL's own conversion of the whole image."""
    image = Image.new("RGB", (8, 8), (30, 30, 200))
    stored = image.quantize(4) if mode == "P" else image.convert(mode)
    stored.save(tmp_path / "a.png", icc_profile=swapped_profile())
    profile = ImageCms.ImageCmsProfile(io.BytesIO(swapped_profile()))
    expected = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"))
    shown = as_displayed(decode((tmp_path / "a.png").read_bytes())).convert("RGB")
    assert shown.getpixel((3, 3)) == expected.getpixel((3, 3)) == (200, 30, 30)


@pytest.mark.parametrize("profile", ["sRGB", "damaged", "of another mode"])
def test_profiles_without_effect(tmp_path, profile):
    content = {
        "sRGB": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        "damaged": b"x" * 200,
        "of another mode": ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    }[profile]
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=content)
    shown = as_displayed(decode((tmp_path / "a.png").read_bytes()))
    assert np.array_equal(np.asarray(shown), pixels)


def test_a_transparent_image_with_a_profile_is_on_white(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.png", icc_profile=swapped_profile())
    shown = as_displayed(decode((tmp_path / "a.png").read_bytes()))
    assert shown.getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("size", [(12_000, 1), (1, 12_000), (900, 3)])
def test_a_line_does_not_become_gigabytes(monkeypatch, size):
    largest = []
    resize = decoding.tvf.resize

    def measured(image, *arguments):
        resized = resize(image, *arguments)
        largest.append(resized.width * resized.height)
        return resized

    monkeypatch.setattr(decoding.tvf, "resize", measured)
    tensor = to_tensor(Image.new("RGB", size, RED), ImageFormat(3, (224, 224)))
    assert tensor.shape == (3, 224, 224)
    assert tensor.flatten(1).unique(dim=1).flatten().tolist() == list(RED)
    assert max(largest) <= decoding.LONGEST_SHAPE * 224**2


def test_colours_of_sixteen_bits_that_are_black_are_refused(tmp_path):
    """PIL keeps the upper eight bits of three channels: of twelve bits, four are left."""
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(3):
            raw = np.full((4, 4, 3), 4095, ">u2")
            (tmp_path / name / f"{i}.png").write_bytes(png_of_48_bits(raw))
    with pytest.raises(UserError, match="black"):
        load_splits(Data(source="folder", root=str(tmp_path)))


def png_of_48_bits(pixels):
    """Write a PNG file by its specification, since PIL cannot write three 16-bit channels."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind, data):
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">2I5B", width, height, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_photos_of_phones_are_read(tmp_path):
    """HEIC needs pillow-heif, which opens its files through PIL."""
    pytest.importorskip("pillow_heif")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i, kind in enumerate(("heic", "HEIF", "avif", "png")):
            Image.new("RGB", (64, 64), RED).save(tmp_path / name / f"{i}.{kind}")
    splits = load_splits(Data(source="folder", root=str(tmp_path)))
    images = read_pixels(Split(splits.train.images, torch.arange(8))).float()
    assert len(splits.train.images) == 8
    assert (images.mean((2, 3)) - torch.tensor(RED)).abs().max() < 6


def test_images_that_need_a_package_are_named_with_it(tmp_path, monkeypatch):
    readable = tuple(end for end in decoding.IMAGE_EXTENSIONS if end not in (".heic", ".heif"))
    for module in ("listing", "class_folders"):
        monkeypatch.setattr(f"distill.data.{module}.IMAGE_EXTENSIONS", readable)
    for name in ("a", "b"):
        for i in range(5):
            write_image(tmp_path / name / f"{i}.png")
        (tmp_path / name / "IMG_1.HEIC").write_bytes(b"x")
    notes = load_splits(Data(source="folder", root=str(tmp_path))).notes
    assert any("2 .heic" in note and "pip install pillow-heif" in note for note in notes)
