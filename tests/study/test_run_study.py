"""A study's files agree, nothing is trained twice, and every number is what is stored."""

import html
import re

import pytest
import timm
import torch
import yaml
from helpers import stored
from helpers.commands import command
from helpers.finished_study import STUDY
from helpers.photos import write_photos
from helpers.recipes import TINY, make_recipe, merge, write_recipe
from PIL import Image
from scipy import stats

from distill import run_study
from distill.data.augment import normalise
from distill.data.splits import load_splits
from distill.models.factory import input_config
from distill.storage.study_results import QuestionCode

SMALL = merge(TINY, {"analysis": {"examples": 5, "num_attacked": 0, "num_views": 0}})


def test_every_file_of_a_study_is_there(out):
    names = {path.name for path in (out / "tiny").iterdir()}
    assert names == {
        "recipe.yaml",
        "results.json",
        "results.csv",
        "report.html",
        "figures",
        "features.safetensors",
    }
    assert yaml.safe_load((out / "tiny" / "recipe.yaml").read_text()) == STUDY
    stems = {
        "accuracy",
        "reliability",
        "learning_curves",
        "robustness",
        "features_plane",
        "features_plane_2",
        "features_pca",
        "features_tsne",
    }
    figures = {path.name for path in (out / "tiny" / "figures").iterdir()}
    assert figures == {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg")}
    for run_id in stored.finished_runs(out):
        files = {path.name for path in (out / "models" / run_id).iterdir()}
        assert files == stored.RUN_FILES


def test_results_table_history_and_predictions_agree(out):
    runs = stored.results_json(out)["runs"]
    assert len(runs) == 12
    for run, row in zip(runs, stored.csv_rows(out), strict=True):
        record = stored.record(out, run["id"])
        history = stored.history(out, run["id"])
        predictions = stored.predictions(out, run["id"])
        assert (row["id"], row["arm"], int(row["seed"])) == (run["id"], run["arm"], run["seed"])
        assert record["epochs"] == len(history) == run["epochs"] == 2
        assert record["parameters"] == run["parameters"]

        test = run["metrics"]["test"]
        predicted = predictions["test.logits"].argmax(1)
        correct = (predicted == predictions["test.labels"]).sum().item()
        assert test["count"] == len(predictions["test.labels"]) == 599
        assert test["errors"] == 599 - correct
        assert test["top1"] == pytest.approx(correct / 599) == float(row["test.top1"])

        last = history[-1]["validation"]
        validation = run["metrics"]["validation"]
        assert validation["top1"] == pytest.approx(last["top1"])
        assert validation["nll"] == pytest.approx(last["nll"], rel=1e-6)
        has_teacher = run["teacher"] is not None
        assert (test["agreement"] is not None) == has_teacher == (row["test.agreement"] != "")


def test_page_and_terminal_show_the_accuracy_of_every_arm(finished, out):
    printed = finished[1].out
    page = html.unescape(stored.page(out)).replace("\u200b", "")
    accuracies = {}
    for run in stored.results_json(out)["runs"]:
        accuracies.setdefault(run["arm"], []).append(run["metrics"]["test"]["top1"])
    for arm, values in accuracies.items():
        by_seed = 100 * torch.tensor(values, dtype=torch.float64)
        shown = f"{by_seed.mean():.2f} ± {by_seed.std():.2f}"
        assert arm in page and shown in page
        assert arm in printed and shown in printed


def test_the_model_card_of_a_run_has_its_results(out):
    for run in stored.results_json(out)["runs"]:
        card = (out / "models" / run["id"] / "README.md").read_text()
        test = run["metrics"]["test"]
        assert f"| test | 599 | {100 * test['top1']:.2f} | {test['nll']:.4f} |" in card
        assert (run["teacher"] is not None) == (f"`{run['teacher']}`" in card)
        temperature = stored.record(out, run["id"])["calibration_temperature"]
        assert temperature == pytest.approx(test["fitted_temperature"])
        assert f"T = {temperature:.3f}" in card


def test_the_page_needs_nothing_from_elsewhere(out):
    page = stored.page(out)
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert not re.search(r"url\((?!['\"]?data:)|@import", page)
    # The data of the explorer and its program, and the sorting of tables.
    assert page.count("<script") == 3


def test_comparisons_are_paired_tests_of_what_is_stored(out):
    results = stored.results_json(out)
    accuracy = {}
    correct = {}
    for run in results["runs"]:
        predictions = stored.predictions(out, run["id"])
        predicted = predictions["test.logits"].argmax(1)
        key = (run["arm"], run["seed"])
        correct[key] = (predicted == predictions["test.labels"]).double()
        accuracy[key] = run["metrics"]["test"]["top1"]

    # The distilled student has dropout, so it differs from those alone in more than its teacher.
    (comparison,) = [one for one in results["comparisons"] if one["metric"] == "top1"]
    arms = (comparison["a"], comparison["b"])
    assert arms == ("alone/smoothing=0", "alone/smoothing=0.1")
    assert comparison["question_code"] == QuestionCode.STUDENT_SMOOTHING
    assert comparison["seeds"] == 3

    accuracies_a = [accuracy[arms[0], seed] for seed in range(3)]
    accuracies_b = [accuracy[arms[1], seed] for seed in range(3)]
    expected = stats.ttest_rel(accuracies_b, accuracies_a)
    assert comparison["p_value"] == pytest.approx(expected.pvalue)
    assert comparison["ci95"] == pytest.approx(list(expected.confidence_interval(0.95)))

    gains = sum(correct[arms[1], seed] - correct[arms[0], seed] for seed in range(3)) / 3
    over_images = stats.ttest_1samp(gains.numpy(), 0).confidence_interval(0.95)
    assert comparison["ci95_images"] == pytest.approx(list(over_images))


def test_a_run_is_a_timm_folder_that_gives_the_stored_logits(out):
    splits = load_splits(make_recipe(STUDY).data)
    splits.load_into_memory()
    images = splits.test.images.pixels[splits.test.positions]
    for run in stored.results_json(out)["runs"][::4]:
        folder = out / "models" / run["id"]
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            logits = model(normalise(images, *input_config(model)))
        expected = stored.predictions(out, run["id"])["test.logits"]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        assert model.pretrained_cfg["label_names"] == [str(digit) for digit in range(10)]


def test_the_same_command_trains_nothing_and_a_new_arm_only_itself(copied, no_report):
    out = copied / "runs"
    times = {path: path.stat().st_mtime_ns for path in (out / "models").glob("*/*")}
    page_written = (out / "tiny" / "report.html").stat().st_mtime_ns
    before = stored.results_json(out)
    done = command(copied, "run", "tiny.yaml")
    assert "12 runs, 12 of them stored" in done.err
    assert stored.results_json(out) == before
    assert (out / "tiny" / "report.html").stat().st_mtime_ns == page_written

    old_ids = stored.finished_runs(out)
    sweep = {"cross_entropy": {"smoothing": [0.0, 0.1, 0.2]}}
    write_recipe(copied / "more.yaml", merge(STUDY, {"students": {"alone": {"loss": sweep}}}))
    done = command(copied, "run", "more.yaml")
    assert "15 runs, 12 of them stored" in done.err
    new_ids = stored.finished_runs(out) - old_ids
    assert len(new_ids) == 3
    assert {path: path.stat().st_mtime_ns for path in times} == times
    new_runs = [run for run in stored.results_json(out, "more")["runs"] if run["id"] in new_ids]
    assert {run["arm"] for run in new_runs} == {"alone/smoothing=0.2"}


def test_a_run_that_lacks_a_file_is_trained_again(copied, no_report):
    out = copied / "runs"
    before = stored.results_json(out)
    removed = out / "models" / before["runs"][0]["id"] / "model.safetensors"
    content = removed.read_bytes()
    removed.unlink()
    results = run_study(make_recipe(STUDY), out)
    assert removed.read_bytes() == content
    assert stored.results_json(out)["comparisons"] == before["comparisons"]
    assert len(results.comparisons) == len(before["comparisons"])


def test_results_without_content_are_written_again(copied, no_report):
    out = copied / "runs"
    before = stored.results_json(out)
    (out / "tiny" / "results.json").write_text("{}")
    run_study(make_recipe(STUDY), out)
    assert stored.results_json(out) == before


def test_a_frozen_teacher_is_used_as_it_is(out, tmp_path, no_report):
    hard = stored.results_json(out)["runs"][0]
    recipe = merge(SMALL, {"seeds": 2, "train": {"epochs": 1}})
    checkpoint = str(out / "models" / hard["id"])
    recipe["teachers"] = {"hard": {"model": "mlp_32", "checkpoint": checkpoint}}
    results = run_study(make_recipe(recipe), tmp_path / "runs")
    (teacher,) = [run for run in results.runs if run.role == "teacher"]
    assert (teacher.seed, teacher.epochs, teacher.loss) == (None, 0, None)
    assert teacher.test.top1 == hard["metrics"]["test"]["top1"]
    assert {run.teacher for run in results.runs if run.arm == "distilled"} == {teacher.id}

    write_recipe(tmp_path / "frozen.yaml", recipe)
    four_classes = ["data.source=synthetic", "data.synthetic={shape: [1, 8, 8], classes: 4}"]
    words = ["run", "frozen.yaml", *four_classes, "--out", "other"]
    # The head of the checkpoint has ten classes.
    done = command(tmp_path, *words, status=2)
    assert checkpoint in done.err and " 10 classes" in done.err and " have 4" in done.err


def test_class_names_and_study_names_cannot_write_html(tmp_path, svg_only):
    names = ("<script>alert(1)<∕script>", "b & c", "$d^$")
    for name in names:
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(12):
            image = Image.new("RGB", (8, 8), (i, 10 * i, 0))
            image.save(tmp_path / "images" / name / f"{i}.png")
    recipe = merge(SMALL, {"train": {"epochs": 1}})
    recipe["data"] = {"source": "folder", "root": str(tmp_path / "images")}
    run_study(make_recipe(recipe, name="<b>x"), tmp_path / "runs")
    page = stored.page(tmp_path / "runs", "<b>x")
    assert "<script>alert" not in page and "<b>x" not in page
    assert "&lt;b&gt;x" in page


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_bytes_whatever_decodes(tmp_path):
    write_photos(tmp_path / "images", per_class=30, size=(12, 12))
    augment = {"flip": True, "scale": 0.5, "mixup": 0.2}
    recipe = merge(SMALL, {"train": {"epochs": 2, "batch_size": 16}})
    recipe["data"] = {"source": "folder", "root": str(tmp_path / "images"), "augment": augment}
    contents = []
    for number, workers_and_memory in enumerate([(0, 4), (0, 0), (2, 0)]):
        workers, resident_gb = workers_and_memory
        settings = {"data": {"workers": workers, "resident_gb": resident_gb}}
        out = tmp_path / str(number)
        run_study(make_recipe(merge(recipe, settings)), out)
        files = [*(out / "models").rglob("*.safetensors"), *(out / "tiny" / "figures").iterdir()]
        contents.append({path.relative_to(out): path.read_bytes() for path in files})
    assert contents[0] == contents[1] == contents[2]
    assert len(contents[0]) > 15
