"""The distillation loss of other libraries: by definition, and as it was kept."""

import importlib
import json

import pytest
import torch
from helpers.recipes import ROOT

KEPT = json.loads((ROOT / "tools" / "results" / "peers.json").read_text())


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("peers")


def test_the_reference_is_the_divergence_of_softened_probabilities(peers):
    student, teacher = (logits.double() / KEPT["temperature"] for logits in peers.batch())
    p, q = student.softmax(1), teacher.softmax(1)
    expected = KEPT["temperature"] ** 2 * (q * (q / p).log()).sum(1).mean().item()
    assert peers.reference(*peers.batch()) == pytest.approx(expected)
    assert KEPT["reference"] == pytest.approx(expected)


@pytest.mark.parametrize("library", ["distill", "timm", "torchdistill"])
def test_kept_values_are_those_of_the_installed_library(peers, library):
    values = peers.LIBRARIES[library](*peers.batch())
    assert values == pytest.approx(KEPT["libraries"][library]["values"], rel=1e-5)
    by_definition = values.get("default", values.get("alpha>0"))
    assert by_definition == pytest.approx(KEPT["reference"], rel=1e-5)


def test_the_batch_is_the_same_each_time(peers):
    first, second = peers.batch(), peers.batch()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(*first)
