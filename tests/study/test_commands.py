"""The commands end to end: what they print and write, and how they refuse mistakes."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import stored
from helpers.commands import command
from helpers.finished_study import STUDY
from helpers.recipes import ROOT, make_recipe, merge, write_recipe
from PIL import Image
from sklearn.datasets import load_digits

from distill import cli
from distill.data.splits import load_splits
from distill.models.factory import load_run_model
from distill.report import html
from distill.storage.find_runs import find_runs
from distill.storage.run_store import RunStore


def hard_run(out):
    """Return the first run of the teacher."""
    runs = stored.results_json(out)["runs"]
    return next(run for run in runs if run["arm"] == "hard")


# ------------------------------------------------------------------------------------------ output


def test_json_is_the_stored_results(finished, monkeypatch):
    folder, _ = finished
    monkeypatch.setattr(html, "write_report", lambda *_: None)
    expected = stored.results_json(folder / "runs")
    del expected["seal"]
    assert json.loads(command(folder, "run", "tiny.yaml", "--json").out) == expected
    lines = command(folder, "report", "tiny", "tiny", "--json").out.splitlines()
    assert [json.loads(line) for line in lines] == [expected, expected]


def test_the_plan_counts_runs_and_trains_nothing(out, tmp_path):
    write_recipe(tmp_path / "plan.yaml", merge(STUDY, {"seeds": 5}))
    words = ["run", "plan.yaml", "--dry-run", "--out", out]
    printed = command(tmp_path, *words).out
    assert "20 runs, 12 of them stored" in printed and "4 cohorts" in printed
    plan = json.loads(command(tmp_path, *words, "--json").out)
    assert sum(run["stored"] for run in plan["runs"]) == 12
    assert not (out / "plan").exists()


@pytest.mark.slow
def test_a_report_is_made_again_from_what_is_stored(copied):
    study = copied / "runs" / "tiny"
    before = (study / "report.html").read_bytes()
    (study / "report.html").unlink()
    command(copied, "report", "tiny")
    assert (study / "report.html").read_bytes() == before


def test_a_report_is_made_again_from_within_its_folder(copied, monkeypatch):
    written = []
    monkeypatch.setattr(html, "write_report", lambda *paths: written.append(paths))
    command(copied / "runs" / "tiny", "report", ".")
    ((study, _, store),) = written
    assert (copied / "runs" / "tiny" / study).samefile(copied / "runs" / "tiny")
    assert store.root.samefile(copied / "runs")


def test_clusters_are_drawn_for_chosen_runs_and_classes(finished, tmp_path):
    folder, _ = finished
    words = ["clusters", "tiny:hard", "tiny:distilled", "--classes", "1,7,9", "--to", tmp_path]
    printed = command(folder, *words).out.split()
    assert printed == [str(tmp_path / "features_plane.png"), str(tmp_path / "clusters.html")]
    assert (tmp_path / "features_plane.png").stat().st_size > 10_000
    page = (tmp_path / "clusters.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page


def test_recipes_are_listed_and_printed(tmp_path):
    paths = sorted((ROOT / "recipes").rglob("*.yaml"))
    names = {path.relative_to(ROOT / "recipes").with_suffix("").as_posix() for path in paths}
    lines = command(tmp_path, "recipes").out.splitlines()
    assert {line.split()[0] for line in lines} == names
    digits = (ROOT / "recipes" / "digits.yaml").read_text()
    assert command(tmp_path, "recipes", "digits").out == digits


def test_runs_are_found_by_folder_id_and_arm(out):
    store = RunStore(out)
    run_id = hard_run(out)["id"]
    assert find_runs(store, str(out / "models" / run_id)) == [run_id]
    assert find_runs(store, run_id[:10]) == [run_id]
    of_arm = find_runs(store, "tiny:hard")
    assert of_arm[0] == run_id and len(of_arm) == 3


# -------------------------------------------------------------------------------------- evaluation


def test_a_run_evaluated_again_has_the_stored_metrics(finished, out):
    run = hard_run(out)
    for split in ("test", "validation"):
        words = ["evaluate", run["id"], "--data", "digits", "--split", split, "--json"]
        (metrics,) = json.loads(command(finished[0], *words).out).values()
        classes = metrics.pop("classes")
        assert sum(row["images"] for row in classes.values()) == metrics["count"]
        expected = {name: run["metrics"][split][name] for name in metrics}
        assert metrics == pytest.approx(expected, rel=1e-6)
    table = command(finished[0], "evaluate", "tiny:hard", "--data", "digits").out
    runs = [one for one in stored.results_json(out)["runs"] if one["arm"] == "hard"]
    assert all(one["id"] in table for one in runs)


def test_classes_of_a_folder_are_matched_by_name(finished, out, tmp_path):
    """Two digits as files; their folders are numbered in another order than the classes."""
    run = hard_run(out)
    bunch = load_digits()
    chosen = [i for i in range(300) if bunch.target[i] in (7, 3)]
    pixels = (bunch.images[chosen] * (255 / 16)).round()
    for number, label, image in zip(chosen, bunch.target[chosen], pixels, strict=True):
        path = tmp_path / "photos" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.astype(np.uint8)).save(path)

    words = ["evaluate", run["id"], "--data", tmp_path / "photos", "--json"]
    done = command(finished[0], *words)
    (metrics,) = json.loads(done.out).values()
    assert str(len(chosen)) in done.err

    model = load_run_model(out / "models" / run["id"])
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    images = torch.from_numpy(pixels / 255).float()[:, None]
    with torch.no_grad():
        predicted = model((images - mean) / std).argmax(1).numpy()
    assert metrics["count"] == len(chosen)
    assert metrics["errors"] == (predicted != bunch.target[chosen]).sum()


# ------------------------------------------------------------------------------------------ export


def test_an_exported_run_gives_the_stored_logits(finished, out, tmp_path):
    """By onnxruntime alone, from pixels in [0, 1]: logits, and calibrated probabilities."""
    onnxruntime = pytest.importorskip("onnxruntime")
    run_id = hard_run(out)["id"]
    done = command(finished[0], "export", "tiny:hard", "--to", tmp_path / "hard.onnx")
    assert run_id in done.out
    session = onnxruntime.InferenceSession(
        tmp_path / "hard.onnx", providers=["CPUExecutionProvider"]
    )
    predictions = stored.predictions(out, run_id)
    logits, probabilities = session.run(None, {"pixels": digits_test_pixels()})
    expected = predictions["test.logits"]
    temperature = stored.record(out, run_id)["calibration_temperature"]
    scaled = torch.softmax(expected.double() / temperature, 1)
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(probabilities, scaled.numpy(), atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == [str(digit) for digit in range(10)]
    assert about["distill_run"] == run_id


def digits_test_pixels():
    """Return the test images of the digits in [0, 1], ``[N, 1, 8, 8]``."""
    splits = load_splits(make_recipe(STUDY).data)
    splits.load_into_memory()
    pixels = splits.test.images.pixels[splits.test.positions]
    return pixels.float().numpy() / 255


# ---------------------------------------------------------------------------------------- mistakes


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    """A folder with a link to the finished study, for commands that do nothing."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "tiny.yaml").write_text((finished[0] / "tiny.yaml").read_text())
    (folder / "runs").symlink_to(finished[0] / "runs")
    (folder / "empty").mkdir()
    return folder


RUN = ("run", "tiny.yaml")
MISTAKES = {
    "no file": (("run", "none.yaml"), ["none.yaml"]),
    "no recipe": (("run", "tinny"), ["'tinny'"]),
    "recipe misspelt": (("recipes", "digitz"), ["'digitz'", "'digits'"]),
    "no study": (("report", "nothing"), ["nothing/results.json"]),
    "arm misspelt": (("clusters", "tiny:hrad"), ["'hrad'", "'hard'"]),
    "no run": (("clusters", "zzz"), ["'zzz'", "12 runs"]),
    "no class": (("clusters", "tiny:hard", "--classes", "1,7,x"), ["'x'"]),
    "model misspelt": ((*RUN, "students.alone.model=mlp_9999"), ["alone", "'mlp_9999'"]),
    "no images": ((*RUN, "data.source=folder", "data.root=empty"), ["empty"]),
    "large crop": ((*RUN, "data.augment.crop=99"), ["augment.crop 99", "8×8"]),
    "too smooth": (
        (
            *RUN,
            "students.alone.loss.cross_entropy={smooth_over: wrong, smoothing: 0.95}",
        ),
        ["alone", "smoothing", "0.9]"],
    ),
    "other views": (
        (*RUN, "students.distilled.augment={crop: 6}"),
        ["distilled", "hard", "6×6", "8×8", "augment.crop"],
    ),
    "other input": ((*RUN, "students.alone.model=inception_v3"), ["inception_v3", "1×8×8"]),
    "no such tag": ((*RUN, "students.alone.model=resnet18.nonsense"), ["alone", "nonsense"]),
    "out is a file": ((*RUN, "--out", "tiny.yaml"), ["tiny.yaml"]),
    "optimizer misspelt": ((*RUN, "train.optimizer=sdg"), ["train.optimizer", "'sdg'", "'sgd'"]),
    "no checkpoint": (
        (*RUN, "teachers.hard={model: mlp_16, checkpoint: nowhere}"),
        ["hard", "nowhere"],
    ),
    "tracker misspelt": ((*RUN, "--track", "tensorbord"), ["tensorbord", "'tensorboard'"]),
    "no shard": ((*RUN, "--shard", "0/2"), ["0/2", "I/N"]),
    "no arm": (("evaluate", "tiny:nobody", "--data", "digits"), ["'nobody'", "tiny"]),
    "no network": (("evaluate", "nosuchnet", "--data", "digits"), ["'nosuchnet'", "timm"]),
    "no split": (
        ("evaluate", "tiny:hard", "--data", "digits", "--split", "half"),
        ["--split half", "all, train, validation, test"],
    ),
    "no key": (("evaluate", "tiny:hard", "--data", "digits", "imagesize=3"), ["imagesize"]),
    "no data": (("evaluate", "tiny:hard", "--data", "nowhere"), ["nowhere"]),
    "not onnx": (("export", "tiny:hard", "--to", "hard.pt"), ["hard.pt", ".onnx"]),
    "reserved name": (("run", "models.yaml"), ["'models'"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_with_status_2_and_names_what_is_wrong(folder, name):
    (folder / "models.yaml").write_text((folder / "tiny.yaml").read_text())
    words, facts = MISTAKES[name]
    done = command(folder, *words, status=2)
    assert all(fact in done.err for fact in facts), done.err
    assert "Traceback" not in done.err and done.out == ""
    assert len(done.err) < 2000


def test_a_teacher_at_chance_is_refused_before_its_students(finished, tmp_path):
    changes = ["check_teachers=true", "train.lr=1.0e-9", "seeds=1"]
    words = ["run", finished[0] / "tiny.yaml", *changes, "--out", tmp_path / "runs"]
    done = command(finished[0], *words, status=2)
    assert "hard, seed 0" in done.err and "check_teachers" in done.err
    assert not (tmp_path / "runs" / "tiny").exists()
    trained = [
        stored.record(tmp_path / "runs", run_id)["settings"].get("teacher")
        for run_id in stored.finished_runs(tmp_path / "runs")
    ]
    assert trained and not any(trained)


def test_an_error_of_the_program_is_not_hidden(finished, monkeypatch):
    """Python ends with status 1 and a traceback."""

    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("distill.study.run_study.run_study", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        command(finished[0], "run", "tiny.yaml")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_program_with_128_and_its_number(number):
    program = (
        "import signal; from distill import cli; "
        f"cli.app = lambda **_: signal.raise_signal({int(number)}); cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        # A job in the background would inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert done.returncode == 128 + number
    assert done.stderr.strip() == cli.STOPPED and done.stdout == ""
