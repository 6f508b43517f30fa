"""Networks on images again: with the splits that they were trained with, the stored numbers."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import build
from helpers.photos import write_photos, write_shard
from helpers.recipes import make_recipe
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import classification_report
from torch import nn

from distill import run_study
from distill.errors import UserError
from distill.evaluation.evaluate import class_counts, evaluate_network
from distill.evaluation.evaluation_images import open_evaluation_images
from distill.evaluation.evaluation_networks import EvalTarget, find_networks
from distill.export.onnx import about_run, export_onnx
from distill.recipe.schema import Augment
from distill.storage.run_store import RunStore

CPU = torch.device("cpu")


def test_a_run_of_a_folder_of_classes_has_its_stored_metrics_on_the_same_folder(
    tmp_path, monkeypatch
):
    photos = write_photos(tmp_path / "photos", per_class=12, size=(12, 12))
    recipe = make_recipe(
        {
            "data": {"source": "folder", "root": str(photos)},
            "train": {"epochs": 1, "batch_size": 8},
            "analysis": {"examples": 0, "num_attacked": 0, "num_views": 0},
            "students": {"alone": {"model": "mlp_16", "loss": {"cross_entropy": {}}}},
        }
    )
    results = run_study(recipe, tmp_path / "runs")
    (network,) = find_networks("tiny:alone", RunStore(tmp_path / "runs"))
    for name in ("test", "validation"):
        images = open_evaluation_images(network, str(photos), {}, name)
        metrics = evaluate_network(network, images, CPU)
        stored = results.runs[0].metrics[name]
        assert metrics["count"] == stored.count
        assert metrics["nll"] == pytest.approx(stored.nll, rel=1e-6)
        assert metrics["fitted_temperature"] == stored.fitted_temperature

    # A run that an earlier version stored has a temperature that was chosen in another way.
    record = RunStore.record
    monkeypatch.setattr(
        RunStore, "record", lambda *one: record(*one) | {"calibration_temperature": 0.01}
    )
    (network,) = find_networks("tiny:alone", RunStore(tmp_path / "runs"))
    assert network.temperature == stored.fitted_temperature


class ByBrightness(nn.Module):
    """Knows the classes of `write_photos` by the brightness of their images."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.pretrained_cfg = {"input_size": (3, 16, 16), "mean": (0.0,) * 3, "std": (1.0,) * 3}

    def forward(self, images):
        brightness = images.mean((1, 2, 3)) * 255 / 60 - 0.5
        return -10 * (brightness[:, None] - torch.arange(3)).abs()


@pytest.fixture
def target():
    return EvalTarget(
        name="bright",
        model=ByBrightness(),
        class_names=["ant", "bee", "cat"],
        temperature=None,
        augment=Augment(),
        image_settings={"image_size": 16, "channels": 3},
        split_settings={},
    )


def evaluated(target, source, split=None):
    images = open_evaluation_images(target, str(source), {}, split)
    return evaluate_network(target, images, CPU)


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_folders_and_archives_of_classes(tmp_path, target, kind):
    photos = write_photos(tmp_path / "photos")
    source = photos
    if kind != "folder":
        source = shutil.make_archive(str(tmp_path / "x"), kind, photos)
    found = evaluated(target, source)
    assert found["top1"] == 1
    assert found["count"] == 18
    assert found["classes"]["bee"]["images"] == 6


def test_an_image_and_a_folder_of_images_have_predictions(tmp_path, target):
    photos = write_photos(tmp_path / "photos")
    for source, names in ((photos / "bee" / "3.png", ["bee"]), (photos / "cat", ["cat"] * 6)):
        rows = evaluated(target, source)["predictions"]
        assert [row["classes"][0][0] for row in rows] == names
        assert rows[0]["image"].startswith("3.png" if len(names) == 1 else "0.png")
        assert sum(value for _, value in rows[0]["classes"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("list.csv", "file,class\n{0}/bee/3.png,bee\nphotos/cat/1.png,cat\n"),
        ("list.txt", "photos/bee/3.png\tbee\nphotos/cat/1.png\tcat\n"),
        ("val.txt", "photos/bee/3.png bee\nphotos/cat/1.png cat\n"),
        ("excel.csv", "file;class\nphotos/bee/3.png;bee\nphotos/cat/1.png;cat\n"),
    ],
)
def test_a_list_of_images_with_classes_has_metrics(tmp_path, target, name, lines):
    photos = write_photos(tmp_path / "photos")
    (tmp_path / name).write_text(lines.format(photos))
    found = evaluated(target, tmp_path / name)
    assert (found["count"], found["top1"]) == (2, 1)
    (tmp_path / name).write_text("photos/bee/3.png\nphotos/cat/1.png\n")
    rows = evaluated(target, tmp_path / name)["predictions"]
    assert [row["classes"][0][0] for row in rows] == ["bee", "cat"]
    (tmp_path / name).write_text("photos/bee/30.png\n")
    with pytest.raises(UserError, match=r"bee/30\.png"):
        evaluated(target, tmp_path / name)


def test_classes_are_matched_by_name_or_by_position_with_a_note(tmp_path, target):
    photos = write_photos(tmp_path / "photos")
    swapped = replace(target, class_names=["bee", "ant", "cat"])
    assert evaluated(swapped, photos)["top1"] == pytest.approx(1 / 3)
    unnamed = evaluated(replace(target, class_names=None), photos)
    assert unnamed["top1"] == 1
    assert "same order" in unnamed["note"]
    assert unnamed["classes"].keys() == {"ant", "bee", "cat"}
    with pytest.raises(UserError, match="'cat'"):
        evaluated(replace(target, class_names=["ant", "bee", "dog"]), photos)


def test_an_onnx_file_gives_what_the_network_gives(tmp_path, target):
    pytest.importorskip("onnxruntime")
    photos = write_photos(tmp_path / "photos", size=(16, 16))
    model = build("cifar_resnet8", view_shape=(3, 16, 16), num_classes=3).eval()
    about = about_run("0123", ["ant", "bee", "cat"], 1.3, 1.0)
    export_onnx(model, tmp_path / "x.onnx", 1.3, about)
    (network,) = find_networks(str(tmp_path / "x.onnx"), RunStore(tmp_path))
    found = evaluated(network, photos)
    expected = evaluated(replace(target, model=model, temperature=1.3), photos)
    for name in ("top1", "nll", "ece_scaled", "fitted_temperature"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4)


@pytest.mark.parametrize("content", [b"no network", None])
def test_an_onnx_file_that_cannot_be_opened_is_named(tmp_path, content):
    pytest.importorskip("onnxruntime")
    if content:
        (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.onnx"):
        find_networks(str(tmp_path / "x.onnx"), RunStore(tmp_path))


@given(st.integers(0, 10_000))
def test_class_counts_are_those_of_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    labels, predicted = generator.integers(0, 4, (2, 30))
    counts = class_counts(torch.tensor(predicted), torch.tensor(labels), list("abcd"))
    report = classification_report(
        labels, predicted, labels=range(4), target_names=list("abcd"), output_dict=True,
        zero_division=np.nan,
    )  # fmt: skip
    for name, row in counts.items():
        assert row["images"] == report[name]["support"]
        for key in ("recall", "precision"):
            value = report[name][key]
            assert row[key] == (None if np.isnan(value) else pytest.approx(value))
    assert sum(row["correct"] for row in counts.values()) == (labels == predicted).sum()


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"photos/bee/3.png,bee\nphotos/cat/1.png\n", "line 2.*no class"),
        (b"file,class\nphotos/bee/30.png,bee\n", r"line 2.*bee/30\.png.*PATH,CLASS"),
        (b"id,file\n1,photos/bee/3.png\n", "line 2.*PATH,CLASS"),
        ("é".encode("utf-16"), "UTF-8"),
        (b"\n", "no image"),
    ],
)
def test_lists_that_are_not_clear_are_refused_with_the_line(tmp_path, target, content, fact):
    write_photos(tmp_path / "photos")
    (tmp_path / "l.csv").write_bytes(content)
    with pytest.raises(UserError, match=fact):
        evaluated(target, tmp_path / "l.csv")


def test_paths_of_a_list_may_be_relative_to_the_current_folder(tmp_path, target, monkeypatch):
    write_photos(tmp_path / "photos")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "l.csv").write_text("photos/bee/3.png,bee\n")
    monkeypatch.chdir(tmp_path)
    assert evaluated(target, "lists/l.csv")["top1"] == 1


def test_classes_that_count_from_one_keep_their_numbers(tmp_path, target):
    photos = write_photos(tmp_path / "photos")
    write_shard(tmp_path / "s" / "train-0.tar", photos, first=1)
    numbered = replace(target, class_names=["1", "2", "3"])
    images = open_evaluation_images(
        numbered, "wds/photos", {"root": str(tmp_path / "s"), "test": 0.3}, "train"
    )
    assert images.splits.class_names == ["1", "2", "3"]
    assert evaluate_network(numbered, images, CPU)["top1"] == 1
