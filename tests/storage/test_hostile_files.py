"""Files and names that somebody else made run no code and lead nowhere else."""

import json
import os
import pickle
import re
import zipfile

import pytest
import timm
import torch
from helpers.recipes import TINY, make_recipe, merge
from helpers.small_study import train
from helpers.training import plan
from PIL import Image

from distill import run_study
from distill.errors import UserError

HOSTILE_NAMES = ['x\ny"z', "'--out'", "{{7*7}}", "<img src=x onerror=alert(1)>", "=1+1", "..."]


class MakesFolder:
    """An object whose pickle makes the folder `marker` when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def write_pickles(folder):
    """Write pickles under the names by which weights are known; return what they would make."""
    folder.mkdir(exist_ok=True)
    marker = folder / "marker"
    torch.save({"state_dict": MakesFolder(marker)}, folder / "evil.pt")
    (folder / "evil.pkl").write_bytes(pickle.dumps(MakesFolder(marker), protocol=2))
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    with zipfile.ZipFile(folder / "evil.npz", "w") as file:
        file.writestr("a.npy", header.ljust(128))
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
    "weights", [{"pretrained": True}, {"checkpoint": "evil.pt"}, {"checkpoint": ""}]
)
@pytest.mark.parametrize(
    "model",
    [
        "local-dir:FOLDER",
        {"name": "resnet18", "pretrained_cfg_overlay": {"file": "FOLDER/evil.pt"}},
        {"name": "resnet18", "pretrained_cfg_overlay": {"file": "FOLDER/evil.pkl"}},
        {
            "name": "vit_tiny_patch16_224",
            "pretrained_cfg_overlay": {"file": "FOLDER/evil.npz", "custom_load": True},
        },
        {"name": "resnet18", "checkpoint_path": "FOLDER/evil.pt"},
        {
            "name": "resnet18",
            "scriptable": True,
            "exportable": "FOLDER/evil.pt",
            "no_jit": True,
        },
    ],
    ids=["local", "pt", "pkl", "npz", "path", "jit"],
)
def test_no_pickle_is_loaded_for_a_network(tmp_path, study_context, model, weights):
    if "exportable" in model and "pretrained" in weights:
        pytest.skip("downloads the weights")
    marker = write_pickles(tmp_path / "evil")
    arm = {"model": model, "loss": {"cross_entropy": {}}, **weights}
    if "checkpoint" in weights:
        arm["checkpoint"] = f"FOLDER/{weights['checkpoint']}"
    arm = json.loads(json.dumps(arm).replace("FOLDER", str(tmp_path / "evil")))
    document = {**TINY, "teachers": {"hard": arm}}
    with pytest.raises(UserError, match=r"hard|evil"):
        ctx = study_context(make_recipe(document))
        run = next(run for run in plan(ctx) if run.arm.name == "hard")
        ctx.build(run.arm, run.seed)
    assert not marker.exists()


@pytest.mark.slow
def test_a_pickle_in_the_folder_of_a_run_is_not_loaded(study, tmp_path):
    """The run is damaged, and trained again."""
    folder = study.store.folder(study.ids()[0])
    marker = write_pickles(tmp_path / "evil")
    for name in ("model.safetensors", "pytorch_model.bin"):
        (folder / name).write_bytes((tmp_path / "evil" / "evil.pt").read_bytes())
    train(study.out)
    assert not marker.exists()
    assert timm.create_model(f"local-dir:{folder}", pretrained=True)


@pytest.mark.slow
def test_names_of_classes_and_links_lead_nowhere(tmp_path):
    images = tmp_path / "images"
    for name in HOSTILE_NAMES:
        (images / name).mkdir(parents=True)
        for i in range(8):
            Image.new("L", (8, 8), 20 * i + len(name)).save(images / name / f"{i}.png")
    os.symlink("/etc/passwd", images / "..." / "link.txt")
    os.symlink(images, images / "..." / "loop")
    document = merge(
        TINY,
        {
            "data": {"source": "folder", "root": str(images)},
            "train": {"epochs": 1, "batch_size": 8},
        },
    )
    results = run_study(make_recipe(document), tmp_path / "runs")
    assert sorted(results.classes) == sorted(HOSTILE_NAMES)
    page = (tmp_path / "runs" / "tiny" / "report.html").read_text()
    assert "<img src=x" not in page
    # A template in a name would have become the number.
    assert "49" not in re.findall(r"plane: [^<]*", page)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "runs"}


@pytest.mark.parametrize("name", ["..", "models", "logits", "analysis"])
def test_a_recipe_cannot_have_the_name_of_another_folder(tmp_path, name):
    with pytest.raises(UserError, match=re.escape(f"'{name}'")):
        run_study(make_recipe(TINY, name=name), tmp_path / "runs")


@pytest.mark.parametrize(
    "words", [["clusters", "../../etc:hard"], ["clusters", "../x"], ["report", "../../../etc"]]
)
def test_a_name_of_a_study_that_leads_elsewhere_is_refused(tmp_path, monkeypatch, capsys, words):
    from distill.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["distill", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
