"""What leaves the project: cards, ONNX files, evaluations elsewhere, trackers, wheels; and jobs that share a study."""

import json
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from helpers.recipes import ROOT
from PIL import Image

from distill import load_recipe
from distill.errors import UserError
from distill.evaluation.evaluate import map_labels
from distill.models.factory import ModelSpec, build_model, load_run_model
from distill.storage.run_store import RunStore


def distill(folder, *words, status=0):
    done = subprocess.run(
        [sys.executable, "-m", "distill", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The tiny study, trained once by the command, with TensorBoard looking on; its results as that printed them."""
    from helpers.recipes import TINY_YAML

    folder = tmp_path_factory.mktemp("handover")
    (folder / "tiny.yaml").write_text(TINY_YAML)
    done = distill(folder, "run", "tiny.yaml", "--json", "--track", "tensorboard")
    return folder, json.loads(done.stdout)


# --------------------------------------------------------------------------------------------------- commands


def test_json_is_the_stored_results(study):
    folder, results = study
    stored = json.loads((folder / "runs/tiny/results.json").read_text())
    assert {key: value for key, value in stored.items() if key != "seal"} == results
    again = distill(folder, "report", "tiny", "--json")
    assert json.loads(again.stdout) == results
    plan = json.loads(distill(folder, "run", "tiny.yaml", "--dry-run", "--json").stdout)
    assert [run["stored"] for run in plan["runs"]] == [True] * 4


def test_tensorboard_has_every_epoch_of_every_run(study):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, results = study
    (path,) = (folder / "runs" / "tiny").glob("events*")
    events = EventAccumulator(str(path)).Reload()
    for run in results["runs"]:
        history = [
            json.loads(line)
            for line in (folder / f"runs/models/{run['id']}/history.jsonl").read_text().splitlines()
        ]
        for name, values in (
            ("validation top1", [line["validation"]["top1"] for line in history]),
            ("loss", [line["loss"] for line in history]),
        ):
            seen = events.Scalars(f"{run['arm'].replace('=', ':')}/seed 0/{name}")
            assert [event.step for event in seen] == [1, 2, 3]
            np.testing.assert_allclose([event.value for event in seen], values, rtol=1e-6)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run", "tiny.yaml", "--track", "tensorbord"), "did you mean 'tensorboard'?"),
        (("run", "tiny.yaml", "--shard", "0/2"), "expected I/N"),
        (("run", "tinny"), "neither a file nor a recipe 'tinny'"),
        (("recipes", "digitz"), "did you mean 'digits'?"),
        (("evaluate", "tiny:nobody", "--data", "digits"), "has no arm 'nobody'"),
        (("evaluate", "nosuchnet", "--data", "digits"), "timm has no network of that name"),
        (
            ("evaluate", "tiny:hard", "--data", "digits", "--split", "half"),
            "expected one of all, train",
        ),
        (("evaluate", "tiny:hard", "--data", "digits", "imagesize=3"), "unknown key"),
        (("export", "tiny:hard", "--to", "hard.pt"), "ends in .onnx"),
    ],
)
def test_mistakes_are_told(study, words, told):
    assert told in distill(study[0], *words, status=2).stderr


def test_recipes_are_listed_and_copied(tmp_path):
    names = {line.split()[0] for line in distill(tmp_path, "recipes").stdout.splitlines()}
    assert names == {
        p.relative_to(ROOT / "recipes").with_suffix("").as_posix()
        for p in (ROOT / "recipes").rglob("*.yaml")
    }
    assert (
        distill(tmp_path, "recipes", "digits").stdout
        == (ROOT / "recipes" / "digits.yaml").read_text()
    )
    assert "16 runs" in distill(tmp_path, "run", "digits", "seeds=2", "--dry-run").stdout


# -------------------------------------------------------------------------------------------------- evaluation


def test_a_run_judged_again_is_what_it_was(study):
    """On the split of its own study: every metric that results.json has of it."""
    folder, results = study
    run = next(r for r in results["runs"] if r["arm"] == "hard")
    for split in ("test", "validation"):
        done = distill(
            folder, "evaluate", "tiny:hard", "--data", "digits", "--split", split, "--json"
        )
        (judged,) = json.loads(done.stdout).values()
        assert judged == pytest.approx(
            {name: run["metrics"][split][name] for name in judged}, rel=1e-6
        )
    assert "top1" in distill(folder, "evaluate", run["id"][:6], "--data", "digits").stdout


def test_a_run_judged_on_a_folder_takes_classes_by_name(study, tmp_path):
    """Digits as files, in folders of another order and of some classes only; errors pluralize by hand."""
    folder, results = study
    run = next(r for r in results["runs"] if r["arm"] == "hard")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    chosen = [i for i in range(300) if bunch.target[i] in (7, 3)]
    for i in chosen:
        path = tmp_path / "photos" / str(bunch.target[i]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((bunch.images[i] * (255 / 16)).round().astype(np.uint8)).save(path)
    done = distill(folder, "evaluate", run["id"], "--data", str(tmp_path / "photos"), "--json")
    (judged,) = json.loads(done.stdout).values()
    model = load_run_model(folder / "runs" / "models" / run["id"])
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    pixels = torch.from_numpy((bunch.images[chosen] * (255 / 16)).round() / 255).float()[:, None]
    with torch.no_grad():
        wrong = (model((pixels - mean) / std).argmax(1).numpy() != bunch.target[chosen]).sum()
    assert judged["count"] == len(chosen) and judged["errors"] == wrong
    assert f"all {len(chosen)} images" in done.stderr


def test_classes_are_matched_by_name_or_refused():
    labels = torch.tensor([0, 1, 1])
    assert map_labels(["a", "b", "c"], 3, ["c", "a"], labels).tolist() == [2, 0, 0]
    assert map_labels(None, 2, ["x", "y"], labels).tolist() == [0, 1, 1]
    with pytest.raises(UserError, match=r"'cat'.*did you mean 'cats'"):
        map_labels(["cats", "dogs"], 2, ["cat", "dogs"], labels)
    with pytest.raises(UserError, match="which is which"):
        map_labels(None, 1000, ["x", "y"], labels)


# ------------------------------------------------------------------------------------------------ cards and ONNX


def test_a_runs_card_says_what_it_is_worth(study):
    folder, results = study
    run = next(r for r in results["runs"] if r["arm"] == "distilled")
    card = (folder / "runs" / "models" / run["id"] / "README.md").read_text()
    record = RunStore(folder / "runs").record(run["id"])
    test = run["metrics"]["test"]
    assert f"| test | 599 | {100 * test['top1']:.2f} | {test['nll']:.4f} |" in card
    assert record["calibration_temperature"] == pytest.approx(test["fitted_temperature"])
    assert f"T = {test['fitted_temperature']:.3f}" in card and f"run `{run['teacher']}`" in card
    assert (
        card.startswith("---\nlibrary_name: timm\n")
        and '"kd": {"weight": 0.9, "temperature": 2.0}' in card
    )


def test_names_of_classes_do_nothing_in_a_card():
    from distill.export.model_card import _code

    assert _code("a`b\n<script>alert(1)</script>\n# x") == "`a'b <script>alert(1)</script> # x`"


def test_an_exported_run_answers_as_the_study_did(study, tmp_path):
    """By onnxruntime alone, from pixels in [0, 1]: the stored logits, and their softmax at the stored temperature."""
    onnxruntime = pytest.importorskip("onnxruntime")
    folder, results = study
    run = next(r for r in results["runs"] if r["arm"] == "hard")
    done = distill(folder, "export", "tiny:hard", "--to", str(tmp_path / "hard.onnx"))
    assert run["id"] in done.stdout
    session = onnxruntime.InferenceSession(
        tmp_path / "hard.onnx", providers=["CPUExecutionProvider"]
    )
    from distill.data.splits import load_splits

    test = load_splits(load_recipe(folder / "tiny.yaml").data).test
    pixels = test.images.pixels[test.positions].float().numpy() / 255
    logits, probabilities = session.run(None, {"pixels": pixels})
    store = RunStore(folder / "runs")
    expected, temperature = store.predictions(run["id"])["test.logits"], store.record(run["id"])
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
    scaled = torch.softmax(expected.double() / temperature["calibration_temperature"], 1)
    np.testing.assert_allclose(probabilities, scaled.numpy(), atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    assert (
        json.loads(about["classes"]) == [str(i) for i in range(10)]
        and about["distill_run"] == run["id"]
    )


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "cifar_resnet8", "cosine_head"])
def test_networks_of_every_kind_are_exported(tmp_path, name):
    pytest.importorskip("onnxscript")
    from distill.export.onnx import TOLERANCE, export_onnx

    args = {"base": "cifar_resnet8"} if name == "cosine_head" else {}
    spec = ModelSpec(name, 5, (3, 32, 32), (0.4,) * 3, (0.2,) * 3, model_args=args)
    model = build_model(spec, seed=0)
    assert export_onnx(model, tmp_path / "x.onnx", 1.3) <= TOLERANCE
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]


# ---------------------------------------------------------------------------------------------------- packages


def test_wheel_and_sdist_hold_the_package_and_its_recipes_alone(tmp_path):
    pytest.importorskip("build")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and "ConnectionError" in done.stdout + done.stderr:
        pytest.skip("needs the build backend")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    sources = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "distill").rglob("*")
        if p.suffix in (".py", ".jinja")
    }
    recipes = {
        f"distill/recipes/{p.relative_to(ROOT / 'recipes').as_posix()}"
        for p in (ROOT / "recipes").rglob("*.yaml")
    }
    assert sources | recipes <= names and not [n for n in names if "__pycache__" in n]
    with tarfile.open(sdist) as archive:
        parts = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert {"distill", "recipes", "pyproject.toml", "README.md", "LICENSE"} <= parts
    assert not parts & {"tests", "tools", "data", "runs"}
    listed = subprocess.run(
        [sys.executable, "-c", "from distill.cli import main; main()", "recipes"],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "installed"), "PATH": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert len(listed.stdout.splitlines()) == len(recipes), listed.stderr
