"""The README: short, its picture is there, its recipe and its first example are what they say."""

import re
import struct

import pytest
import timm
import yaml
from helpers.photos import write_photos
from helpers.recipes import ROOT
from timm.models import save_for_hf

from distill import load_recipe
from distill.losses import LOSSES
from distill.study.dry_run import dry_run

TEXT = (ROOT / "README.md").read_text()


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 150


def test_it_keeps_its_two_commands():
    commands = re.findall(r"^    (pip install .*)$", TEXT, re.M)
    assert commands == [
        "pip install -e . && accelerate launch -m distill run recipes/digits.yaml",
        "pip install -e '.[test]' && pytest",
    ]


def test_it_counts_the_losses():
    assert set(re.findall(r"(\d+) (?:tested )?losses", TEXT)) == {str(len(LOSSES))}


def test_its_picture_is_small():
    (name,) = re.findall(r"!\[.*\]\((.*)\)", TEXT)
    content = (ROOT / name).read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    assert len(content) < 200_000
    assert 800 <= width <= 1200
    assert height <= 800


@pytest.mark.slow
def test_its_recipe_for_photos_is_planned(tmp_path):
    """With a teacher from a file, on a folder of photographs; without a download."""
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
    assert len(block.splitlines()) == 8
    write_photos(tmp_path / "photos", 12, (50, 40))
    classes = len(list((tmp_path / "photos").iterdir()))
    teacher = timm.create_model("test_resnet", num_classes=classes)
    save_for_hf(teacher, str(tmp_path / "teacher"), safe_serialization=True)
    path = tmp_path / "my.yaml"
    path.write_text(block)
    students = yaml.safe_load(block)["students"]
    recipe = load_recipe(
        path,
        [
            f"data.root={tmp_path / 'photos'}",
            "data.image_size=32",
            "teachers.mine.model=test_resnet",
            f"teachers.mine.checkpoint={tmp_path / 'teacher'}",
            *(f"students.{name}.pretrained=false" for name in students),
        ],
    )
    plan = dry_run(recipe, tmp_path / "runs")
    # a frozen teacher once, two students at three seeds
    assert len(plan["runs"]) == 1 + 2 * 3
