"""The model card: numbers of the predictions, the loss, the teachers; names that stay text."""

from types import SimpleNamespace

import pytest
import torch
from helpers.recipes import TINY, make_recipe

from distill.data.splits import load_splits
from distill.evaluation.metrics import own_metrics
from distill.export.model_card import model_card
from distill.storage.run_fingerprint import plan_runs


@pytest.fixture(scope="module")
def splits():
    return load_splits(make_recipe(TINY).data)


@pytest.fixture(scope="module")
def runs(splits):
    return {run.arm.name: run for run in plan_runs(make_recipe(TINY), splits.identity, "no")}


def predictions(count=50, classes=10):
    generator = torch.Generator().manual_seed(0)
    found = {}
    for split in ("test", "validation", "train"):
        found[f"{split}.logits"] = torch.randn(count, classes, generator=generator)
        found[f"{split}.labels"] = torch.randint(classes, (count,), generator=generator)
    return found


RECORD = {"model": "mlp_16", "parameters": 1210, "calibration_temperature": 1.5}


def test_a_card_has_the_numbers_of_the_predictions(runs, splits):
    stored = predictions()
    card = model_card(runs["distilled"], RECORD, stored, splits, {"0123": 0.9})
    values = own_metrics(stored["test.logits"].numpy(), stored["test.labels"].numpy(), 1.5)
    row = f"| test | 50 | {100 * values['top1']:.2f} | {values['nll']:.4f} |"
    assert row in card
    assert "T = 1.500" in card
    assert "1,210" in card
    assert card.startswith("---\nlibrary_name: timm\n")


def test_a_card_has_loss_seed_and_teachers(runs, splits):
    card = model_card(runs["distilled"], RECORD, predictions(), splits, {"0123": 0.9})
    assert '"temperature": 2.0' in card
    assert "seed 0" in card
    assert "`0123`, test accuracy 90.00%" in card
    alone = model_card(runs["alone/smoothing=0"], RECORD, predictions(), splits, {})
    assert "teacher: run" not in alone


def test_names_from_anywhere_stay_text_and_long_lists_are_cut(runs, splits):
    hostile = "a`b\n<script>alert(1)</script>\n# x"
    names = [hostile] + [f"class {i}" for i in range(59)]
    strange = SimpleNamespace(**vars(splits) | {"shape": splits.shape, "class_names": names})
    card = model_card(runs["distilled"], RECORD, predictions(classes=60), strange, {})
    assert "`a'b <script>alert(1)</script> # x`" in card
    assert "and 10 more" in card
    assert "class 58" not in card
