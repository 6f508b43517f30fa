"""Odd studies: each ends with a report whose numbers are numbers, or is refused before anything is trained."""

import json
import os
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from distill import load_recipe, run_study
from distill.cli import main
from distill.errors import UserError
from distill.evaluation.feature_plot import load_feature_plot
from distill.storage.run_store import RunStore
from distill.study.context import idle_cores
from distill.study.dry_run import dry_run

HEAD = """\
data: {source: digits, augment: {shift: 1}}
train: {epochs: 1, batch_size: 128, lr: 0.1}
analysis: {examples: 10, attacked: 20, draws: 2, steps: 2, linf: 0.1}
check_teachers: false
seeds: 2
"""
TEACHERS = """\
teachers:
  hard: {model: mlp_16, loss: {cross_entropy: {}}}
  smoothed: {model: mlp_16, loss: {cross_entropy: {smoothing: 0.1}}}
"""


def images(folder, sizes):
    """A folder of grey images, so many of each class; the class is the brightness."""
    for number, (name, count) in enumerate(sizes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (8, 8), 30 * number + i % 20).save(folder / name / f"{i}.png")
    return f"source: folder, root: {folder}, validation: 0.2, test: 0.2"


def run(folder, text, *overrides):
    (folder / "odd.yaml").write_text(text)
    results = run_study(load_recipe(folder / "odd.yaml", overrides), folder / "runs")
    page = (folder / "runs" / "odd" / "report.html").read_text()
    for data in re.findall(r'<script type="application/json".*?>(.*?)</script>', page, re.S):
        json.loads(data, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    return results, page


def test_networks_that_are_given_alone_are_reported_on(tmp_path):
    results, _ = run(tmp_path, HEAD + TEACHERS)
    ids = {r["arm"]: r["id"] for r in results["runs"]}
    given = "teachers:\n" + "".join(
        f"  {arm}: {{model: mlp_16, checkpoint: {tmp_path}/runs/models/{i}/model.safetensors}}\n"
        for arm, i in ids.items()
    )
    _, page = run(tmp_path, HEAD + given)
    assert (
        "features_plane" in {p.stem for p in (tmp_path / "runs/odd/figures").iterdir()}
        and "hard" in page
    )


def test_a_dead_network_does_not_take_the_others_with_it(tmp_path):
    text = (
        HEAD
        + "teachers:\n  dead: {model: mlp_16, train: {lr: 100, clip_grad: 10}, loss: {cross_entropy: {}}}\n"
    )
    text += "  alive: {model: mlp_16, loss: {cross_entropy: {}}}\n"
    _, page = run(tmp_path, text)
    titles = json.loads(re.search(r'id="feature_plot">(.*?)</script>', page, re.S).group(1))[
        "networks"
    ]
    assert [entry["title"] for entry in titles] == ["dead", "alive"]


def test_a_class_without_images_is_never_chosen(tmp_path):
    """`background` adds a class that has none; it shares no probability with any, and would always be the far one."""
    results, _ = run(
        tmp_path, HEAD.replace("source: digits", "source: digits, background: true") + TEACHERS
    )
    feature_plot = load_feature_plot(tmp_path / "runs" / "odd" / "features.safetensors")
    assert all(10 not in view.classes for view in feature_plot.views if view.kind == "plane")
    assert all(state["examples"] > 150 for r in results["runs"] for state in r["information"])


def test_views_of_other_sizes_are_not_attacked_by_each_others_images(tmp_path):
    text = HEAD + TEACHERS.replace("smoothed: {", "smoothed: {augment: {crop: 6}, ")
    tests = [r["metrics"]["test"] for r in run(tmp_path, text)[0]["runs"]]
    assert all(t["transfer"] is not None and t["worst_linf"] <= t["transfer"] for t in tests)


def test_without_random_views_there_is_no_information_to_estimate(tmp_path):
    results, page = run(tmp_path, HEAD.replace(", augment: {shift: 1}", "") + TEACHERS)
    assert (
        all(r["information"] == [] for r in results["runs"])
        and "Information about single images" not in page
    )


def test_two_classes_and_single_examples(tmp_path):
    """No plane of two templates; of one validation image a class no spread is told."""
    data = images(tmp_path / "images", {"a": 30, "b": 6})
    results, _ = run(
        tmp_path, HEAD.replace("source: digits", data) + TEACHERS, "train.batch_size=8"
    )
    kinds = [
        view.kind
        for view in load_feature_plot(tmp_path / "runs" / "odd" / "features.safetensors").views
    ]
    assert kinds == ["pca", "tsne"] and "features_pca" in {
        p.stem for p in (tmp_path / "runs/odd/figures").iterdir()
    }
    assert all(r["metrics"]["train"]["examples"] for r in results["runs"])


def test_a_network_without_a_last_layer_takes_no_picture_from_the_others(tmp_path):
    text = HEAD.replace("shift: 1", "flip: true").replace("seeds: 2", "seeds: 1") + TEACHERS
    text = text.replace(
        "source: digits", "source: synthetic, synthetic: {shape: [3, 16, 16], train: 60, test: 40}"
    )
    text += "students:\n  two_heads: {model: {name: deit_tiny_distilled_patch16_224, img_size: 16, patch_size: 8, "
    text += "embed_dim: 12, depth: 1}, teacher: hard, loss: {kd: {}}}\n"
    run(tmp_path, text)
    feature_plot = load_feature_plot(tmp_path / "runs" / "odd" / "features.safetensors")
    assert [entry.title for entry in feature_plot.networks] == ["hard", "smoothed"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("pair: [one, '2']", "analysis.pair: there is no class 'one'"),
        ("classes: [1, 2, 11]", "analysis.classes: there is no class '11'"),
        ("pair: [3, 3]", "analysis.pair: name 2 different classes"),
        ("pair: [3, background]", "no training image of class 'background'"),
    ],
)
def test_misspelt_classes_are_told_before_training(tmp_path, settings, message):
    text = HEAD.replace("examples: 10", settings).replace(
        "source: digits", "source: digits, background: true"
    )
    (tmp_path / "odd.yaml").write_text(text + TEACHERS)
    for begin in (dry_run, run_study):
        with pytest.raises(UserError, match=re.escape(message)):
            begin(load_recipe(tmp_path / "odd.yaml"), tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("models/*/run.json"))


def test_states_that_came_later_are_looked_into(tmp_path, capfd):
    """What was found in a run without states on its way is not what there is to find in the same run with them."""
    text = HEAD.replace("epochs: 1", "epochs: 2") + TEACHERS
    run(tmp_path, text)
    same, _ = run(tmp_path, text, "train.snapshots=2")  # stored, so without states: this is said
    assert "4 stored runs lack states on their way" in capfd.readouterr().err
    removed = same["runs"][0]["id"]
    weights = load_file(tmp_path / "runs" / "models" / removed / "model.safetensors")
    shutil.rmtree(tmp_path / "runs" / "models" / removed)
    results, _ = run(tmp_path, text, "train.snapshots=2")
    assert [state["epoch"] for state in results["runs"][0]["information"]] == [0, 1, 2]
    again = load_file(tmp_path / "runs" / "models" / removed / "model.safetensors")
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert sorted(RunStore(tmp_path / "runs").states(removed)) == [0, 1]


def test_a_map_of_two_kinds_of_teachers_is_two_maps(tmp_path):
    """Two teachers of one smoothing are not one: each kind has its own map, and its own sentence."""
    text = (
        HEAD
        + TEACHERS
        + "  slow: {model: mlp_16, train: {lr: 0.001}, loss: {cross_entropy: {smoothing: [0, 0.2]}}}\n"
    )
    text += "students:\n  s: {model: mlp_16, teacher: [hard, smoothed, slow], loss: {kd: {temperature: [1, 4]}}}\n"
    _, page = run(tmp_path, text)
    drawn = {p.stem for p in (tmp_path / "runs" / "odd" / "figures").glob("*.png")}
    assert {"temperature_map", "temperature_map_2"} <= drawn and "temperature_map_3" not in drawn
    assert (
        "smoothing is 0 and by" in page and page.count("Raising the temperature from 1 to 4") == 2
    )


def test_a_report_is_made_again_from_within_its_folder(tmp_path, monkeypatch):
    run(tmp_path, HEAD + TEACHERS)
    monkeypatch.chdir(tmp_path / "runs" / "odd")
    monkeypatch.setattr("sys.argv", ["distill", "report", "."])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code


@pytest.mark.parametrize(
    ("environment", "threads", "told"),
    [
        ({}, 1, False),  # whoever starts one thread without a launcher means it
        ({"ACCELERATE_MIXED_PRECISION": "no"}, 1, True),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, 8, False),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2"}, 1, True),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "8"}, 1, False),
    ],
)
def test_cores_that_a_launcher_leaves_idle_are_pointed_out(monkeypatch, environment, threads, told):
    for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    notes = idle_cores(SimpleNamespace(device=torch.device("cpu")))
    share = 8 // int(environment.get("LOCAL_WORLD_SIZE", 1))
    assert [f"OMP_NUM_THREADS={share} " in note for note in notes] == [True] * told
    assert not idle_cores(SimpleNamespace(device=torch.device("cuda")))
