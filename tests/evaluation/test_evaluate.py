"""Networks on images again: with the splits that they were trained with, the stored numbers."""

import pytest
import torch
from helpers.photos import write_photos
from helpers.recipes import make_recipe

from distill import run_study
from distill.evaluation.evaluate import evaluate_network, find_networks, open_evaluation_images
from distill.storage.run_store import RunStore


def test_a_run_of_a_folder_of_classes_has_its_stored_metrics_on_the_same_folder(tmp_path):
    photos = write_photos(tmp_path / "photos", per_class=12, size=(12, 12))
    recipe = make_recipe(
        {
            "data": {"source": "folder", "root": str(photos)},
            "train": {"epochs": 1, "batch_size": 8},
            "analysis": {"examples": 0, "num_attacked": 0, "num_views": 0},
            "students": {"alone": {"model": "mlp_16", "loss": {"cross_entropy": {}}}},
        }
    )
    results = run_study(recipe, tmp_path / "runs")
    (network,) = find_networks("tiny:alone", RunStore(tmp_path / "runs"))
    for name in ("test", "validation"):
        splits, split, _ = open_evaluation_images(network, str(photos), {}, name)
        metrics = evaluate_network(network, splits, split, torch.device("cpu"))
        stored = results.runs[0].metrics[name]
        assert metrics["count"] == stored.count
        assert metrics["nll"] == pytest.approx(stored.nll, rel=1e-6)
