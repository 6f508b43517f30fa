"""Photographs as people have them: any format, any depth of folders, networks with sizes of their own."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from distill import load_recipe, run_study
from distill.data.splits import load_splits
from distill.errors import UserError
from distill.recipe.schema import Data
from distill.storage.run_store import RunStore

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def photo(path, colour, size=(12, 12), save=None, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, colour)
    (save or (lambda image, path: image.save(path, **kwargs)))(image, path)


def opened(root, **data):
    splits = load_splits(Data(source="folder", root=str(root), **data))
    return splits, splits.train.images


def by_name(images):
    """Pixels by the file's name; a message where there is none."""
    return {images.name(i).split(" (")[0].split("/")[-1]: images[i] for i in range(len(images))}


def test_every_format_is_read_as_a_viewer_shows_it(tmp_path):
    """Solid (200, 30, 30) in each format; a transparent pixel is white, a turned photograph upright."""
    folder = tmp_path / "red"
    formats = {
        "rgb.png": lambda image, path: image.save(path),
        "capital.PNG": lambda image, path: image.save(path, "PNG"),
        "jpeg.jpg": lambda image, path: image.save(path, quality=100, subsampling=0),
        "cmyk.jpg": lambda image, path: image.convert("CMYK").save(
            path, quality=100, subsampling=0
        ),
        "palette.png": lambda image, path: image.quantize(4).save(path),
        "palette.gif": lambda image, path: image.quantize(4).save(path),
        "opaque.png": lambda image, path: image.convert("RGBA").save(path),
        "web.webp": lambda image, path: image.save(path, lossless=True),
        "tagged.tif": lambda image, path: image.save(path),
        "plain.bmp": lambda image, path: image.save(path),
    }
    for name, save in formats.items():
        photo(folder / name, COLOURS["red"], save=save)
    clear = Image.new("RGBA", (12, 12), (0, 0, 0, 0))
    clear.save(folder / "clear.png")
    half = Image.new("LA", (12, 12), (0, 128))  # black, half covering: 255 · (1 − 128/255) = 127
    half.save(folder / "half.png")
    Image.new("L", (12, 12), 77).save(folder / "grey.png")
    Image.fromarray(np.full((12, 12), 77 * 257, np.uint16)).save(folder / "sixteen.png")
    photo(tmp_path / "blue" / "b.png", COLOURS["blue"])
    found = by_name(opened(tmp_path, test=0.1)[1])
    for name in formats:
        torch.testing.assert_close(
            found[name].float().mean((1, 2)),
            torch.tensor([200.0, 30, 30]),
            atol=3,
            rtol=0,
            msg=name,
        )
    expected = {"clear.png": 255, "half.png": 127, "grey.png": 77, "sixteen.png": 77}
    assert {name: found[name].unique().tolist() for name in expected} == {
        k: [v] for k, v in expected.items()
    }


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["turned.png", "turned16.png", "turned.tif"])
def test_a_turned_photograph_is_upright(tmp_path, name, orientation):
    """By the table of the EXIF standard: what stands at the top left of the feature_plot as seen, for each orientation."""
    seen = np.zeros((16, 12), np.uint8)
    seen[:6, :4] = 200  # the top left
    seen[:6, 8:] = 100  # the top right
    stored = {
        1: seen, 2: seen[:, ::-1], 3: seen[::-1, ::-1], 4: seen[::-1],
        5: seen.T, 6: np.rot90(seen), 7: seen[::-1, ::-1].T, 8: np.rot90(seen, 3),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a").mkdir()
    stored = stored.astype(np.uint16) * 257 if "16" in name else stored
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a" / name, exif=exif)
    for i in range(9):
        photo(tmp_path / "b" / f"{i}.png", COLOURS["blue"])
    images = opened(tmp_path)[1]
    turned = next(images.open(i) for i in range(len(images)) if "turned" in images.name(i))
    assert np.array_equal(np.asarray(turned), seen)


def test_classes_are_the_first_folders_and_what_is_left_out_is_said(tmp_path):
    for name, colour in COLOURS.items():
        for year in ("2020", "2021/spring"):
            for i in range(3):
                photo(tmp_path / name / year / f"{i}.png", colour)
    photo(tmp_path / "cover.png", (0, 0, 0))
    photo(tmp_path / ".thumbnails" / "t.png", (0, 0, 0))
    photo(tmp_path / "red" / "._0.png", (0, 0, 0))
    (tmp_path / "red" / "clip.mov").write_bytes(b"x")
    (tmp_path / "green" / "photo.HEIC").write_bytes(b"x")
    (tmp_path / "blue" / "again").symlink_to(tmp_path / "blue")  # a circle
    splits, images = opened(tmp_path)
    assert splits.class_names == ["blue", "green", "red"] and len(images) == 18
    for i in range(18):
        assert COLOURS[splits.class_names[images.labels[i]]] == tuple(images[i][:, 0, 0].tolist())
    notes = " ".join(splits.notes)
    assert "1 image not in a class's folder" in notes and "cover.png" in notes
    assert "1 .mov" in notes and "1 .heic" in notes and "18 images in folders within them" in notes


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda root: photo(root / "a.png", (0, 0, 0)),
            "1 image, as a.png, not in a class's folder",
        ),
        (lambda root: photo(root / "all" / "cats" / "a.png", (0, 0, 0)), "write data.root=.*all"),
        (lambda root: (root / "cats").mkdir(), "has no images"),
        (lambda root: photo(root / "cats" / "a.png", (0, 0, 0)), "found 1 class"),
        (
            lambda root: [photo(root / name / "a.png", (0, 0, 0)) for name in "ab"],
            "enough of the 2 images",
        ),
    ],
)
def test_folders_that_are_no_classes_are_told(tmp_path, make, words):
    make(tmp_path)
    with pytest.raises(UserError, match=words):
        load_splits(Data(source="folder", root=str(tmp_path)))


def test_a_folder_that_cannot_be_listed_is_told(tmp_path, monkeypatch):
    """Not left out in silence; and a link to a class beside it is a class, whose images stay."""
    photo(tmp_path / "a" / "0.png", (0, 0, 0))
    photo(tmp_path / "z" / "0.png", (0, 0, 9))
    (tmp_path / "alias").symlink_to(tmp_path / "z")
    for i in range(9):
        photo(tmp_path / "z" / f"{i}.png", (0, 0, i))
    assert opened(tmp_path)[0].class_names == ["a", "alias", "z"]
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("z"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(UserError, match=r"cannot list .*z: Permission denied"):
        opened(tmp_path)


def test_photographs_of_a_kind_that_is_not_read_are_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "IMG_1.HEIC").write_bytes(b"x")
    with pytest.raises(UserError, match=r"other files: 1 \.heic, which are not read: convert"):
        opened(tmp_path)


def test_a_class_of_one_image_is_trained_on_and_kept(tmp_path):
    for i in range(12):
        photo(tmp_path / "many" / f"{i}.png", (i, 0, 0))
    photo(tmp_path / "one" / "0.png", (0, 99, 0))
    photo(tmp_path / "two" / "0.png", (0, 0, 99))
    photo(tmp_path / "two" / "1.png", (0, 0, 98))
    splits, _ = opened(tmp_path)
    assert splits.class_names == ["many", "one", "two"]
    assert splits.train.labels.bincount(minlength=3).min() >= 1
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 15


def test_images_take_the_size_of_the_pretrained_network(tmp_path):
    for name, colour in COLOURS.items():
        for i in range(4):
            photo(tmp_path / name / f"{i}.png", colour, size=(300 + i, 200))
    splits = load_splits(Data(source="folder", root=str(tmp_path)), (96, "some_net"))
    assert splits.shape == (3, 96, 96) and "96×96, which some_net was trained with" in " ".join(
        splits.notes
    )
    splits = load_splits(Data(source="folder", root=str(tmp_path), image_size=32), (96, "some_net"))
    assert splits.shape == (3, 32, 32) and "some_net" not in " ".join(splits.notes)
    splits = load_splits(Data(source="folder", root=str(tmp_path)))
    assert splits.shape == (3, 224, 224) and "brought to 224×224 (" in " ".join(splits.notes)


# ------------------------------------------------------------------------------------- networks of other sizes


def test_each_network_is_shown_the_view_at_its_own_size(tiny, study_context):
    """A network with input_size 12 answers the views of 8 × 8 as one does that is handed resized, normalised images."""
    ctx = study_context(
        tiny,
        "teachers.hard.model=cifar_resnet8",
        "teachers.hard.input_size=12",
        "students.distilled.input_size=6",
    )
    results = run_study(ctx.recipe, ctx.store.root, ctx.accelerator)
    run = next(r for r in results["runs"] if r["arm"] == "hard")
    store = RunStore(ctx.store.root)
    import timm

    model = timm.create_model(f"local-dir:{store.folder(run['id'])}", pretrained=True).eval()
    assert model.pretrained_cfg["input_size"] == [1, 12, 12] or tuple(
        model.pretrained_cfg["input_size"]
    ) == (1, 12, 12)
    test = ctx.splits.test
    images = test.images.pixels[test.positions].float()
    images = (
        F.interpolate(images, (12, 12), mode="bilinear", antialias=True, align_corners=False) / 255
    )
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in ctx.splits.normalisation)
    with torch.no_grad():
        expected = model((images - mean) / std)
    stored = store.predictions(run["id"])["test.logits"]
    torch.testing.assert_close(stored, expected, atol=1e-4, rtol=1e-4)


def test_a_given_network_keeps_the_size_that_it_was_trained_with(tmp_path, tiny):
    """A run trained at 6 × 6, given to a study of 8 × 8 views, sees 6 × 6 there; its accuracy stays what it was."""
    first = run_study(
        load_recipe(tiny, ["students={}", "teachers.hard.input_size=6"]), tmp_path / "one"
    )
    run = next(r for r in first["runs"] if r["arm"] == "hard")
    folder = tmp_path / "one" / "models" / run["id"]
    given = f"teachers.hard={{model: {run['model']}, checkpoint: {folder}}}"
    second = run_study(load_recipe(tiny, ["students={}", "seeds=1", given]), tmp_path / "two")
    again = next(r for r in second["runs"] if r["arm"] == "hard")
    assert again["metrics"]["test"]["errors"] == run["metrics"]["test"]["errors"]
    assert again["metrics"]["test"]["nll"] == pytest.approx(run["metrics"]["test"]["nll"], rel=1e-5)


def test_the_size_is_part_of_a_runs_identity(tiny, study_context):
    from distill.storage.run import plan_runs

    def teachers(*overrides):
        ctx = study_context(tiny, *overrides)
        return {
            run.id
            for run in plan_runs(ctx.recipe, ctx.splits.identity, "no")
            if run.arm.role == "teacher"
        }

    assert teachers() == teachers() and not teachers() & teachers("teachers.hard.input_size=6")
