"""End to end, with the real commands: a study's files agree, nothing is trained twice, several processes as one."""

import csv
import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import timm
import torch
import yaml
from helpers.recipes import TINY_YAML
from safetensors.torch import load_file
from scipy import stats

from distill import load_recipe, run_study
from distill.cli import main
from distill.data.augment import normalise
from distill.data.splits import load_splits
from distill.models.factory import input_config
from distill.storage.find_runs import find_runs
from distill.storage.run_store import RunStore

STUDY = TINY_YAML.replace("seeds: [0]", "seeds: 3").replace("epochs: 3", "epochs: 2")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "distill"]
DISTILL = [sys.executable, "-m", "distill"]


def command(*words: str | Path, program=DISTILL, cwd=None, expect=0) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [*program, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        timeout=300,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study of nine student runs and three teachers, made by the command of the README."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.yaml").write_text(STUDY)
    program = [sys.executable, "-m", "accelerate.commands.launch", "-m", "distill"]
    done = command("run", "tiny.yaml", program=program, cwd=folder)
    return folder, done


def results_of(folder: Path, name: str = "tiny") -> dict:
    return json.loads((folder / "runs" / name / "results.json").read_text())


def weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {
        p.parent.name: load_file(p)
        for p in (folder / "runs" / "models").glob("*/model.safetensors")
    }


def test_all_files_are_there_and_agree(study):
    folder, done = study
    place = folder / "runs" / "tiny"
    results = results_of(folder)
    assert {p.name for p in place.iterdir()} == {
        "recipe.yaml", "results.json", "results.csv", "report.html", "figures", "features.safetensors"
    }  # fmt: skip
    figures = {p.name for p in (place / "figures").iterdir()}
    drawn = (
        "accuracy",
        "reliability",
        "learning_curves",
        "robustness",
        "features_plane",
        "features_plane_2",
    )
    assert figures == {
        f"{n}.{e}" for n in (*drawn, "features_pca", "features_tsne") for e in ("png", "svg")
    }
    assert len(results["runs"]) == 12 and yaml.safe_load(
        (place / "recipe.yaml").read_text()
    ) == yaml.safe_load(STUDY)
    rows = list(csv.DictReader((place / "results.csv").read_text().splitlines()))
    page = html.unescape((place / "report.html").read_text())
    for run, row in zip(results["runs"], rows, strict=True):
        model = folder / "runs" / "models" / run["id"]
        assert {p.name for p in model.iterdir()} == {
            "config.json",
            "model.safetensors",
            "run.json",
            "history.jsonl",
            "predictions.safetensors",
            "README.md",
        }
        record = json.loads((model / "run.json").read_text())
        history = [json.loads(line) for line in (model / "history.jsonl").read_text().splitlines()]
        predictions = load_file(model / "predictions.safetensors")
        assert (row["id"], row["arm"], int(row["seed"])) == (run["id"], run["arm"], run["seed"])
        assert (
            record["epochs"] == len(history) == run["epochs"] == 2
            and record["parameters"] == run["parameters"]
        )
        right = (predictions["test.logits"].argmax(1) == predictions["test.labels"]).sum().item()
        test = run["metrics"]["test"]
        assert (
            test["count"] == len(predictions["test.labels"]) == 599
            and test["errors"] == 599 - right
        )
        assert test["top1"] == pytest.approx(right / 599) == float(row["test.top1"])
        assert run["metrics"]["validation"]["top1"] == pytest.approx(
            history[-1]["validation"]["top1"]
        )
        assert run["metrics"]["validation"]["nll"] == pytest.approx(
            history[-1]["validation"]["nll"], rel=1e-6
        )
        assert (
            (test["agreement"] is None) == (run["teacher"] is None) == (row["test.agreement"] == "")
        )
    for name in {run["arm"] for run in results["runs"]}:
        accuracies = torch.tensor(
            [r["metrics"]["test"]["top1"] for r in results["runs"] if r["arm"] == name]
        ).double()
        shown = f"{100 * accuracies.mean():.2f} ± {100 * accuracies.std():.2f}"
        assert name in page and shown in page and shown in done.stdout
    assert (
        not re.search(r'(src|href)="(?!data:)', page) and page.count("<script") == 2
    )  # its data and its program


def test_comparisons_are_paired_tests_of_what_is_stored(study):
    results = results_of(study[0])
    accuracy = {(r["arm"], r["seed"]): r["metrics"]["test"]["top1"] for r in results["runs"]}
    found = {
        (c["question"], c["a"], c["b"]): c for c in results["comparisons"] if c["metric"] == "top1"
    }
    assert (
        set(found)
        == {
            ("Does label smoothing help the student?", "alone/smoothing=0", "alone/smoothing=0.1"),
        }
    )  # the distilled student has dropout, so it differs from the ones alone in more than its teacher
    for (_, a, b), comparison in found.items():
        ours, theirs = ([accuracy[name, seed] for seed in range(3)] for name in (b, a))
        expected = stats.ttest_rel(ours, theirs)
        assert comparison["seeds"] == 3 and comparison["p_value"] == pytest.approx(expected.pvalue)
        assert comparison["ci95"] == pytest.approx(list(expected.confidence_interval(0.95)))
        right = {}
        for run in results["runs"]:
            stored = load_file(study[0] / "runs" / "models" / run["id"] / "predictions.safetensors")
            right[run["arm"], run["seed"]] = (
                stored["test.logits"].argmax(1) == stored["test.labels"]
            ).double()
        gains = sum(right[b, seed] - right[a, seed] for seed in range(3)) / 3
        over_images = stats.ttest_1samp(gains.numpy(), 0).confidence_interval(0.95)
        assert comparison["ci95_images"] == pytest.approx(list(over_images))


def test_a_run_is_a_timm_folder_with_the_stored_logits(study):
    folder, _ = study
    splits = load_splits(load_recipe(folder / "tiny.yaml").data)
    splits.load_into_memory()
    for run in results_of(folder)["runs"][::4]:
        place = folder / "runs" / "models" / run["id"]
        model = timm.create_model(f"local-dir:{place}", pretrained=True).eval()
        images = splits.test.images.pixels[splits.test.positions]
        with torch.no_grad():
            logits = model(normalise(images, *input_config(model)))
        torch.testing.assert_close(
            logits, load_file(place / "predictions.safetensors")["test.logits"], atol=1e-5, rtol=0
        )
        assert model.pretrained_cfg["label_names"] == [str(i) for i in range(10)]


def test_the_same_command_trains_nothing_and_a_new_arm_only_itself(study):
    folder, _ = study
    times = {p: p.stat().st_mtime_ns for p in (folder / "runs" / "models").glob("*/*")}
    before = results_of(folder)
    done = command("run", "tiny.yaml", cwd=folder)
    assert "12 runs, 12 of them stored" in done.stderr and results_of(folder) == before
    (folder / "more.yaml").write_text(
        STUDY.replace("smoothing: [0.0, 0.1]", "smoothing: [0.0, 0.1, 0.2]")
    )
    done = command("run", "more.yaml", cwd=folder)
    assert "15 runs, 12 of them stored" in done.stderr
    new = {p for p in (folder / "runs" / "models").glob("*") if p / "run.json" not in times}
    assert len(new) == 3 and all(p.stat().st_mtime_ns == t for p, t in times.items())
    arms = {
        r["arm"] for r in results_of(folder, "more")["runs"] if r["id"] in {p.name for p in new}
    }
    assert arms == {"alone/smoothing=0.2"}


def test_the_plan_is_printed_without_training(study, capsys, monkeypatch):
    folder, _ = study
    (folder / "plan.yaml").write_text(STUDY.replace("seeds: 3", "seeds: 5"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["distill", "run", "plan.yaml", "--dry-run"])
    with pytest.raises(SystemExit) as stop:
        main()
    text = capsys.readouterr().out
    assert (
        not stop.value.code
        and "20 runs, 12 of them stored" in text
        and "4 cohorts to train" in text
    )
    assert not (folder / "runs" / "plan").exists()


def test_the_report_and_the_clusters_are_made_again(study, capsys, monkeypatch):
    folder, _ = study
    monkeypatch.chdir(folder)
    page = folder / "runs" / "tiny" / "report.html"
    before = page.read_text()
    page.unlink()
    for words in (
        ["report", "tiny"],
        ["clusters", "tiny:hard", "tiny:distilled", "--classes", "1,7,9", "--to", "pictures"],
    ):
        monkeypatch.setattr("sys.argv", ["distill", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code, capsys.readouterr().err
    assert (
        page.read_text() == before
        and (folder / "pictures" / "features_plane.png").stat().st_size > 10_000
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "none.yaml"], "cannot read the recipe none.yaml"),
        (["report", "nothing"], "results.json does not exist"),
        (["clusters", "tiny:hrad"], "did you mean 'hard'"),
        (["clusters", "zzz"], "fits 0 of the"),
        (["clusters", "tiny:hard", "--classes", "1,7,x"], "no class 'x'"),
        (["run", "tiny.yaml", "students.alone.model=mlp_9999"], "unknown model 'mlp_9999'"),
        (["run", "tiny.yaml", "data.source=folder", "data.root=empty"], "has no images"),
        (["run", "tiny.yaml", "data.augment.crop=99"], "augment.crop 99 is larger than the images"),
        (
            [
                "run",
                "tiny.yaml",
                "students.alone.loss.cross_entropy.smooth_over=wrong",
                "students.alone.loss.cross_entropy.smoothing=0.95",
            ],
            "must be in [0, 0.9]",
        ),
        (
            ["run", "tiny.yaml", "students.distilled.augment={crop: 6}"],
            "augment.crop must be the same",
        ),
        (
            ["run", "tiny.yaml", "students.alone.model=inception_v3"],
            "does not take images of 1×8×8",
        ),
        (["run", "tiny.yaml", "students.alone.model=resnet18.nonsense"], "Invalid pretrained tag"),
        (["run", "tiny.yaml", "--out", "tiny.yaml"], "Not a directory"),
        (["run", "tiny.yaml", "train.optimizer=sdg"], "train.optimizer 'sdg'"),
        (["run", "tiny.yaml", "check_teachers=true", "train.lr=1.0e-9"], "no better than chance"),
        (
            ["run", "tiny.yaml", "teachers.hard={model: mlp_16, checkpoint: nowhere}"],
            "nowhere does not exist",
        ),
    ],
)
def test_mistakes_end_in_one_message_and_status_2(study, capsys, monkeypatch, words, message):
    folder, _ = study
    (folder / "empty").mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["distill", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and "Traceback" not in error, error


def test_a_given_teacher_of_other_classes_is_refused_and_a_fitting_one_is_used(study, tmp_path):
    folder, _ = study
    run = results_of(folder)["runs"][0]
    source = folder / "runs" / "models" / run["id"]
    text = STUDY.replace(
        "hard: {model: {name: mlp_32, drop_rate: 0.2}, loss: {cross_entropy: {}}}",
        f"hard: {{model: mlp_32, checkpoint: {source}}}",
    ).replace("seeds: 3", "seeds: 2")
    (tmp_path / "given.yaml").write_text(text)
    results = run_study(
        load_recipe(tmp_path / "given.yaml", ["students.alone.loss.cross_entropy.smoothing=0"]),
        tmp_path / "runs",
    )
    teacher = [r for r in results["runs"] if r["role"] == "teacher"]
    assert len(teacher) == 1 and (teacher[0]["seed"], teacher[0]["epochs"]) == (None, 0)
    assert teacher[0]["metrics"]["test"]["top1"] == run["metrics"]["test"]["top1"]
    assert {r["teacher"] for r in results["runs"] if r["arm"] == "distilled"} == {teacher[0]["id"]}
    done = command(
        "run",
        tmp_path / "given.yaml",
        "data.source=synthetic",
        "data.synthetic={shape: [1, 8, 8], classes: 4}",
        "--out",
        tmp_path / "other",
        expect=2,
    )
    assert (
        "does not fit the model" in done.stderr and "[4, 32]" in done.stderr
    )  # its head has 10 classes


def test_two_processes_give_the_result_of_one(study, tmp_path):
    """Whole runs spread over processes: bit for bit. Batches shared: within rounding, over a few epochs."""
    folder, _ = study
    expected = weights(folder)
    for spread, tolerance in (("runs", 0.0), ("data", 1e-4)):
        place = tmp_path / spread
        place.mkdir()
        (place / "tiny.yaml").write_text(
            STUDY.replace("drop_rate: 0.2", "drop_rate: 0.0") if spread == "data" else STUDY
        )
        reference = expected
        if spread == "data":
            run_study(load_recipe(place / "tiny.yaml"), place / "one" / "runs")
            reference = weights(place / "one")
        command("run", "tiny.yaml", f"train.parallelism={spread}", program=TORCHRUN, cwd=place)
        got = weights(place)
        assert set(got) <= set(reference) and len(got) == 12
        for run_id, tensors in got.items():
            for name, value in tensors.items():
                distance = (value - reference[run_id][name]).norm() / reference[run_id][
                    name
                ].norm().clamp(min=1e-3)
                assert distance <= tolerance, (spread, run_id, name, distance)
        one, two = (
            load_file(root / "runs" / "models" / run_id / "predictions.safetensors")
            for root in ((folder if spread == "runs" else place / "one"), place)
        )
        assert torch.equal(one["test.labels"], two["test.labels"])
        assert (one["test.logits"].argmax(1) != two["test.logits"].argmax(1)).sum() <= 1


def test_killed_at_any_moment_it_goes_on_to_the_same_weights(tmp_path):
    slow = STUDY.replace("epochs: 2", "epochs: 24, snapshots: 3")
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tiny.yaml").write_text(slow)
    for signum, models, status in ((signal.SIGKILL, 1, -9), (signal.SIGINT, 4, 130)):
        process = subprocess.Popen(
            [*DISTILL, "run", "tiny.yaml"],
            cwd=tmp_path / "killed",
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.SIG_DFL
            ),  # a job in the background ignores it
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if len(list((tmp_path / "killed" / "runs" / "models").glob("*/run.json"))) >= models:
                process.send_signal(signum)
                break
            time.sleep(0.02)
        error = process.communicate(timeout=60)[1]
        assert process.returncode == status and "Traceback" not in error, error
        assert not (tmp_path / "killed" / "runs" / "tiny").exists()
    assert "the same command continues" in error
    command("run", "tiny.yaml", cwd=tmp_path / "killed")
    run_study(load_recipe(tmp_path / "whole" / "tiny.yaml"), tmp_path / "whole" / "runs")
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert got.keys() == expected.keys() and len(got) == 12
    for run_id, tensors in got.items():
        assert all(torch.equal(value, expected[run_id][name]) for name, value in tensors.items())
    states = [
        {
            p.relative_to(tmp_path / name): load_file(p)
            for p in (tmp_path / name).rglob("epoch-*.safetensors")
        }
        for name in ("killed/runs", "whole/runs")
    ]
    assert states[0].keys() == states[1].keys() and len(states[0]) == 36 == 3 * len(got)
    for path, tensors in states[0].items():
        assert all(torch.equal(value, states[1][path][name]) for name, value in tensors.items())
    assert (
        results_of(tmp_path / "killed")["comparisons"]
        == results_of(tmp_path / "whole")["comparisons"]
    )


def test_three_processes_of_which_one_is_killed_end_and_go_on_as_one(tmp_path):
    """Seven images a batch, in two parts, shared by three; a kill within an epoch stops all, and loses nothing."""
    text = TINY_YAML.replace("drop_rate: 0.2", "drop_rate: 0.0").replace(
        "batch_size: 128, lr: 0.1", "batch_size: 7, lr: 0.01"
    )
    text = text.replace("epochs: 3", "epochs: 2, accumulate: 2, spread: data")
    three = [*TORCHRUN[:-3], "3", "-m", "distill"]
    for name in ("one", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tiny.yaml").write_text(text)
    process = subprocess.Popen(
        [*three, "run", "tiny.yaml"],
        cwd=tmp_path / "three",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not list((tmp_path / "three").rglob("*.partial")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(psutil.Process(process.pid).children()[-1].pid, signal.SIGKILL)
    assert (
        process.communicate(timeout=100) and process.returncode
    )  # the others do not wait for ever
    assert not (tmp_path / "three" / "runs" / "tiny").exists()
    done = command("run", "tiny.yaml", program=three, cwd=tmp_path / "three")
    assert "continues after epoch" in done.stderr
    run_study(load_recipe(tmp_path / "one" / "tiny.yaml"), tmp_path / "one" / "runs")
    one, got = weights(tmp_path / "one"), weights(tmp_path / "three")
    assert one.keys() == got.keys()
    for run_id, tensors in got.items():
        for name, value in tensors.items():
            torch.testing.assert_close(value, one[run_id][name], rtol=1e-3, atol=1e-4)
        ours, theirs = (
            load_file(tmp_path / root / "runs" / "models" / run_id / "predictions.safetensors")
            for root in ("three", "one")
        )
        assert all(
            torch.equal(ours[name], theirs[name]) for name in ours if name.endswith("labels")
        )
        histories = [
            RunStore(tmp_path / root / "runs").history(run_id) for root in ("three", "one")
        ]
        for a, b in zip(*histories, strict=True):  # sums over an epoch that was interrupted, too
            assert (
                a["loss"] == pytest.approx(b["loss"], rel=1e-3)
                and a["epoch"] == b["epoch"]
                and a["lr"] == b["lr"]
            )
            assert abs(a["train"]["top1"] - b["train"]["top1"]) < 0.005


def test_the_same_recipe_gives_the_same_bytes_whatever_decodes(tmp_path):
    from PIL import Image

    generator = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(30):
            pixels = generator.integers(0, 256, (12, 12, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    photos = f"source: folder, root: {tmp_path / 'images'}, augment: {{flip: true, scale: 0.5, mixup: 0.2}}"
    text = TINY_YAML.replace("source: digits, augment: {shift: 1}", photos).replace(
        "batch_size: 128", "batch_size: 16"
    )
    (tmp_path / "tiny.yaml").write_text(text)
    left = []
    for name, *options in (("a", "data.workers=0"), ("b", "data.workers=0", "data.resident_gb=0"),
                           ("c", "data.workers=2", "data.resident_gb=0")):  # fmt: skip
        run_study(load_recipe(tmp_path / "tiny.yaml", options), tmp_path / name)
        files = {
            p.relative_to(tmp_path / name): p.read_bytes()
            for p in (tmp_path / name / "models").rglob("*.safetensors")
        }
        left.append(
            files
            | {p.name: p.read_bytes() for p in (tmp_path / name / "tiny" / "figures").iterdir()}
        )
    assert left[0] == left[1] == left[2] and len(left[0]) > 20


def test_runs_are_found_by_folder_id_and_arm(study):
    folder, _ = study
    store, run = RunStore(folder / "runs"), results_of(folder)["runs"][0]
    assert (
        find_runs(store, str(folder / "runs" / "models" / run["id"]))
        == find_runs(store, run["id"][:10])
        == [run["id"]]
    )
    assert find_runs(store, "tiny:hard")[0] == run["id"] and len(find_runs(store, "tiny:hard")) == 3


def test_class_names_cannot_write_html(tmp_path):
    from PIL import Image

    for name in ("<script>alert(1)</script>", "b & c", "$d^$"):
        (tmp_path / "images" / name.replace("/", "∕")).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (8, 8), (i, 10 * i, 0)).save(
                tmp_path / "images" / name.replace("/", "∕") / f"{i}.png"
            )
    (tmp_path / "<b>x.yaml").write_text(
        STUDY.replace("source: digits", f"source: folder, root: {tmp_path / 'images'}")
    )
    run_study(load_recipe(tmp_path / "<b>x.yaml", ["seeds=1"]), tmp_path / "runs")
    page = (tmp_path / "runs" / "<b>x" / "report.html").read_text()
    assert "<script>alert" not in page and "<b>x" not in page and "&lt;b&gt;x" in page


def test_a_run_that_lacks_a_file_is_made_again(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY_YAML)
    recipe = load_recipe(tmp_path / "tiny.yaml")
    before = run_study(recipe, tmp_path / "runs")
    place = tmp_path / "runs" / "models" / before["runs"][0]["id"]
    (place / "model.safetensors").unlink()
    assert (
        run_study(recipe, tmp_path / "runs")["comparisons"] == before["comparisons"]
        and (place / "model.safetensors").is_file()
    )
    (tmp_path / "runs" / "tiny" / "results.json").write_text("{}")
    run_study(recipe, tmp_path / "runs")
    assert (
        json.loads((tmp_path / "runs" / "tiny" / "results.json").read_text())["comparisons"]
        == before["comparisons"]
    )
