"""Files that somebody else made: pickles, configurations, class names, links, recipe names run and reach nothing."""

import json
import os
import pickle
import re
import zipfile

import pytest
import timm
import torch
from helpers.recipes import TINY_YAML
from PIL import Image

from distill import load_recipe, run_study
from distill.errors import UserError
from distill.study.dry_run import dry_run

NAMES = ['x\ny"z', "'--out'", "{{7*7}}", "<img src=x onerror=alert(1)>", "=1+1", "..."]


class Evil:
    """Unpickled, it would make the file `marker`."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def evil_files(folder):
    """Pickles that run code when they are opened without care, under the names by which weights are known."""
    folder.mkdir(exist_ok=True)
    marker = folder / "marker"
    torch.save({"state_dict": Evil(marker)}, folder / "evil.pt")
    (folder / "evil.pkl").write_bytes(pickle.dumps(Evil(marker), protocol=2))
    with zipfile.ZipFile(folder / "evil.npz", "w") as file:
        file.writestr(
            "a.npy",
            b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(
                128
            ),
        )
    for name in ("pytorch_model.bin", "model.safetensors", "pytorch_model.pth"):
        (folder / name).write_bytes((folder / "evil.pt").read_bytes())
    config = {
        "architecture": "resnet18",
        "num_classes": 10,
        "pretrained_cfg": {"file": str(folder / "evil.pt")},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return marker


@pytest.mark.parametrize(
    "model",
    [
        "local-dir:FOLDER",
        "{name: resnet18, pretrained_cfg_overlay: {file: FOLDER/evil.pt}}",
        "{name: resnet18, pretrained_cfg_overlay: {file: FOLDER/evil.pkl}}",
        "{name: vit_tiny_patch16_224, pretrained_cfg_overlay: {file: FOLDER/evil.npz, custom_load: true}}",
        "{name: resnet18, checkpoint_path: FOLDER/evil.pt}",
        "{name: resnet18, scriptable: true, exportable: FOLDER/evil.pt, no_jit: true}",
    ],
)
@pytest.mark.parametrize(
    "weights", ["pretrained: true", "checkpoint: FOLDER/evil.pt", "checkpoint: FOLDER"]
)
def test_no_pickle_is_opened(tmp_path, model, weights):
    marker = evil_files(tmp_path / "evil")
    text = TINY_YAML.replace(
        "model: {name: mlp_32, drop_rate: 0.2}",
        f"model: {model}, {weights}".replace("FOLDER", str(tmp_path / "evil")),
    )
    (tmp_path / "tiny.yaml").write_text(text)
    try:
        dry_run(load_recipe(tmp_path / "tiny.yaml"), tmp_path / "runs")
    except UserError as error:
        assert "hard" in str(error)
    assert not marker.exists()


def test_a_pickle_within_a_run_is_not_opened(tmp_path):
    """Weights replaced by a pickle, and one beside them: the run is damaged, and trained again."""
    (tmp_path / "tiny.yaml").write_text(TINY_YAML)
    recipe = load_recipe(tmp_path / "tiny.yaml")
    run = run_study(recipe, tmp_path / "runs")["runs"][0]
    folder = tmp_path / "runs" / "models" / run["id"]
    marker = evil_files(tmp_path / "evil")
    for name in ("model.safetensors", "pytorch_model.bin"):
        (folder / name).write_bytes((tmp_path / "evil" / "evil.pt").read_bytes())
    run_study(recipe, tmp_path / "runs")
    assert not marker.exists() and timm.create_model(f"local-dir:{folder}", pretrained=True)


def test_names_of_classes_and_links_lead_nowhere(tmp_path):
    for name in NAMES:
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("L", (8, 8), 20 * i + len(name)).save(tmp_path / "images" / name / f"{i}.png")
    os.symlink("/etc/passwd", tmp_path / "images" / "..." / "link.txt")
    os.symlink(tmp_path / "images", tmp_path / "images" / "..." / "loop")
    (tmp_path / "tiny.yaml").write_text(
        TINY_YAML.replace("source: digits", f"source: folder, root: {tmp_path / 'images'}").replace(
            "128", "8"
        )
    )
    results = run_study(load_recipe(tmp_path / "tiny.yaml"), tmp_path / "runs")
    assert sorted(results["classes"]) == sorted(NAMES)
    page = (tmp_path / "runs" / "tiny" / "report.html").read_text()
    assert "<img src=x" not in page and "49" not in re.findall(r"plane: [^<]*", page)
    assert {p.name for p in tmp_path.iterdir()} == {"images", "tiny.yaml", "runs"}


@pytest.mark.parametrize("name", ["...yaml", "models.yaml", "logits.yaml", "analysis.yaml"])
def test_a_recipe_cannot_be_named_so_that_its_results_lie_elsewhere(tmp_path, name):
    (tmp_path / name).write_text(TINY_YAML)
    with pytest.raises(UserError, match="cannot be named"):
        run_study(load_recipe(tmp_path / name), tmp_path / "runs")


def test_a_study_that_is_named_leads_out_of_the_folder_of_studies(tmp_path, monkeypatch, capsys):
    from distill.cli import main

    monkeypatch.chdir(tmp_path)
    for words in (["clusters", "../../etc:hard"], ["clusters", "../x"], ["report", "../../../etc"]):
        monkeypatch.setattr("sys.argv", ["distill", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2 and "Traceback" not in capsys.readouterr().err
