"""Odd studies end with a report whose numbers are numbers, or are refused before training."""

import json
import re
import shutil

import pytest
from helpers import stored
from helpers.recipes import REMOVE, make_recipe, merge
from PIL import Image

from distill import run_study
from distill.errors import UserError
from distill.evaluation.feature_plot import load_feature_plot
from distill.storage.run_store import RunStore
from distill.study.dry_run import dry_run

ODD = {
    "data": {"source": "digits", "augment": {"shift": 1}},
    "train": {"epochs": 1, "batch_size": 128, "lr": 0.1},
    "analysis": {
        "examples": 10,
        "num_attacked": 20,
        "num_views": 2,
        "steps": 2,
        "eps_linf": 0.1,
    },
    "check_teachers": False,
    "seeds": 1,
    "teachers": {
        "hard": {"model": "mlp_16", "loss": {"cross_entropy": {}}},
        "smoothed": {"model": "mlp_16", "loss": {"cross_entropy": {"smoothing": 0.1}}},
    },
}
WITHOUT_ANALYSIS = {"examples": 0, "num_attacked": 0, "num_views": 0}


def run(out, changes):
    """Run the study with changes, check the JSON in its page, and return results and page."""
    results = run_study(make_recipe(merge(ODD, changes), name="odd"), out)
    page_path = out / "odd" / "report.html"
    if not page_path.is_file():
        return results, ""
    page = page_path.read_text()
    for data in re.findall(r'<script type="application/json".*?>(.*?)</script>', page, re.S):
        json.loads(data, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    return results, page


def feature_plot(out):
    return load_feature_plot(out / "odd" / "features.safetensors")


def write_images(folder, counts):
    """Write grey images, `counts` of each class, whose brightness is that of their class."""
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (8, 8), 30 * number + i % 20).save(folder / name / f"{i}.png")


@pytest.mark.slow
def test_frozen_networks_alone_are_reported_on(tmp_path, svg_only, out):
    teachers = {"hard": REMOVE, "smoothed": REMOVE}
    for run_result in stored.results_json(out)["runs"]:
        if run_result["seed"] == 0 and run_result["arm"].startswith("alone"):
            name = run_result["arm"].replace("/", "_").replace("=", "_").replace(".", "_")
            checkpoint = str(out / "models" / run_result["id"] / "model.safetensors")
            teachers[name] = {"model": "mlp_16", "checkpoint": checkpoint}
    results, page = run(tmp_path, {"seeds": 2, "teachers": teachers})
    names = [run_result.arm for run_result in results.runs]
    assert len(names) == 2 and set(names) < set(teachers)
    assert "features_plane" in stored.figures(tmp_path, "odd")
    assert all(name in page for name in names)


@pytest.mark.slow
def test_a_dead_network_does_not_remove_the_others_from_the_plot(tmp_path, svg_only):
    loss = {"cross_entropy": {}}
    teachers = {
        "hard": REMOVE,
        "smoothed": REMOVE,
        "dead": {"model": "mlp_16", "train": {"lr": 100, "clip_grad": 10}, "loss": loss},
        "alive": {"model": "mlp_16", "loss": loss},
    }
    _, page = run(tmp_path, {"seeds": 2, "teachers": teachers})
    data = re.search(r'id="feature_plot">(.*?)</script>', page, re.S).group(1)
    titles = [network["title"] for network in json.loads(data)["networks"]]
    assert titles == ["dead", "alive"]


def test_a_class_without_images_is_never_selected(tmp_path, no_drawing):
    """`background` adds class 10 without images.

    It shares no probability with any class, so it would always be the far one.
    """
    results, _ = run(tmp_path, {"data": {"background": True}, "train": {"snapshots": 1}})
    planes = [view for view in feature_plot(tmp_path).views if view.kind == "plane"]
    assert planes and all(10 not in view.classes for view in planes)
    for run_result in results.runs:
        assert run_result.information
        assert all(estimate.examples > 150 for estimate in run_result.information)


def test_views_of_other_sizes_are_not_attacked_with_images_of_each_other(tmp_path, no_report):
    results, _ = run(tmp_path, {"seeds": 2, "teachers": {"smoothed": {"augment": {"crop": 6}}}})
    for run_result in results.runs:
        assert run_result.test.transfer is not None
        assert run_result.test.worst_linf <= run_result.test.transfer


def test_without_random_views_there_is_no_information_to_estimate(tmp_path, no_report):
    results, _ = run(tmp_path, {"data": {"augment": {"shift": 0}}})
    assert all(run_result.information == [] for run_result in results.runs)


@pytest.mark.slow
def test_two_classes_with_single_examples_have_no_plane(tmp_path, svg_only):
    """One validation image of a class has no spread."""
    write_images(tmp_path / "images", {"a": 30, "b": 6})
    data = {"root": str(tmp_path / "images"), "validation": 0.2, "test": 0.2}
    changes = {"data": {"source": "folder", **data}, "train": {"batch_size": 8}, "seeds": 2}
    results, _ = run(tmp_path / "runs", changes)
    kinds = [view.kind for view in feature_plot(tmp_path / "runs").views]
    assert kinds == ["pca", "tsne"]
    assert "features_pca" in stored.figures(tmp_path / "runs", "odd")
    assert all(run_result.train.examples for run_result in results.runs)


def test_a_network_without_a_last_layer_is_left_out_of_the_plot(tmp_path, no_drawing):
    two_heads = {
        "name": "deit_tiny_distilled_patch16_224",
        "img_size": 16,
        "patch_size": 8,
        "embed_dim": 12,
        "depth": 1,
    }
    student = {"model": two_heads, "teacher": "hard", "loss": {"kd": {}}}
    synthetic = {"shape": [3, 16, 16], "train": 60, "test": 40}
    augment = {"shift": 0, "flip": True}
    data = {"source": "synthetic", "synthetic": synthetic, "augment": augment}
    run(tmp_path, {"data": data, "students": {"s": student}})
    titles = [network.title for network in feature_plot(tmp_path).networks]
    assert titles == ["hard", "smoothed"]


@pytest.mark.parametrize(
    ("analysis", "facts"),
    [
        ({"pair": ["one", "2"]}, ["analysis.pair", "'one'"]),
        ({"classes": [1, 2, 11]}, ["analysis.classes", "'11'"]),
        ({"pair": [3, 3]}, ["analysis.pair"]),
        ({"pair": [3, "background"]}, ["'background'"]),
    ],
)
def test_misspelt_classes_are_found_before_training(tmp_path, analysis, facts):
    recipe = make_recipe(merge(ODD, {"data": {"background": True}, "analysis": analysis}))
    for begin in (dry_run, run_study):
        with pytest.raises(UserError) as caught:
            begin(recipe, tmp_path)
        assert all(fact in str(caught.value) for fact in facts)
    assert not stored.finished_runs(tmp_path)


def test_snapshots_that_came_later_are_analysed(tmp_path, capfd, no_report):
    """A run's analysis without snapshots is not that of the same run with them."""
    changes = {"train": {"epochs": 2}}
    run(tmp_path, changes)
    changes["train"]["snapshots"] = 2
    # The stored runs have no snapshots, which is reported.
    results, _ = run(tmp_path, changes)
    assert "train.snapshots" in capfd.readouterr().err
    removed = results.runs[0].id
    folder = tmp_path / "models" / removed
    before = (folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder)
    results, _ = run(tmp_path, changes)
    assert [estimate.epoch for estimate in results.runs[0].information] == [0, 1, 2]
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(RunStore(tmp_path).snapshots(removed)) == [0, 1]


def test_teachers_of_two_kinds_have_a_temperature_map_each(tmp_path, no_drawing):
    """Two teachers with the same smoothing are not the same teacher."""
    sweep = {"cross_entropy": {"smoothing": [0, 0.2]}}
    slow = {"model": "mlp_16", "train": {"lr": 0.001}, "loss": sweep}
    student = {
        "model": "mlp_16",
        "teacher": ["hard", "smoothed", "slow"],
        "loss": {"kd": {"temperature": [1, 4]}},
    }
    changes = {
        "teachers": {"slow": slow},
        "students": {"s": student},
        "analysis": WITHOUT_ANALYSIS,
        "seeds": 2,
    }
    _, page = run(tmp_path, changes)
    figures = stored.figures(tmp_path, "odd")
    assert {"temperature_map", "temperature_map_2"} <= figures
    assert "temperature_map_3" not in figures
    captions = re.findall(r'<figcaption><p class="finding">(.*?)</p>', page)
    about_maps = [caption for caption in captions if "temperature from 1 to 4" in caption]
    assert len(about_maps) == 2 and len(set(about_maps)) == 2
