"""The model card of a run has its numbers, and class names cannot change the page."""

from types import SimpleNamespace

import pytest
import torch
from helpers import stored
from helpers.recipes import TINY, make_recipe, merge

from distill import run_study
from distill.evaluation.metrics import fitted_temperature
from distill.export.model_card import model_card
from distill.study import conclude

SMALL = merge(
    TINY,
    {
        "train": {"epochs": 1},
        "analysis": {"examples": 0, "num_attacked": 0, "num_views": 0},
    },
)


def test_a_card_has_the_accuracy_calibration_loss_and_teacher_of_its_run(tmp_path, monkeypatch):
    monkeypatch.setattr(conclude, "write_report", lambda *_: None)
    results = run_study(make_recipe(SMALL), tmp_path)
    (run,) = [run for run in results.runs if run.arm == "distilled"]
    card = (tmp_path / "models" / run.id / "README.md").read_text()
    row = f"| test | 599 | {100 * run.test.top1:.2f} | {run.test.nll:.4f} |"
    assert row in card
    temperature = stored.record(tmp_path, run.id)["calibration_temperature"]
    assert temperature == pytest.approx(run.test.fitted_temperature)
    assert f"T = {temperature:.3f}" in card
    assert f"`{run.teacher}`" in card
    assert card.startswith("---\nlibrary_name: timm\n")
    assert '"kd": {"weight": 0.9, "temperature": 2.0}' in card


def test_names_do_nothing_in_a_card():
    name = "a`b\n<script>alert(1)</script>\n# x"
    shown = "`a'b <script>alert(1)</script> # x`"
    labels = torch.tensor([0, 1, 0, 1])
    logits = torch.eye(2)[[0, 1, 1, 1]]
    predictions = {}
    for split in ("test", "validation", "train"):
        predictions |= {f"{split}.logits": logits, f"{split}.labels": labels}
    arm = SimpleNamespace(name=name, role="student", loss=None, frozen=True, model="mlp_16")
    run = SimpleNamespace(
        id="abc", arm=arm, seed=None, teachers=[], settings={"loss": {}, "augment": {}}
    )
    record = {
        "model": "mlp_16",
        "parameters": 10,
        "epochs": 0,
        "calibration_temperature": fitted_temperature(predictions),
    }
    splits = SimpleNamespace(
        class_names=[name, "b"],
        settings=SimpleNamespace(source="digits"),
        shape=(1, 8, 8),
        train=[0] * 4,
        validation=[0] * 4,
        test=[0] * 4,
    )
    card = model_card(run, record, predictions, splits, {})
    assert card.count(shown) >= 2
    assert "\n<script>" not in card and "\n# x" not in card
