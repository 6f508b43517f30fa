"""Feature plots are stored completely and named by view."""

import pytest
import torch

from distill.evaluation.feature_plot import (
    FeaturePlot,
    FeatureView,
    NetworkFeatures,
    load_feature_plot,
)
from distill.storage.files import write_tree


@pytest.fixture
def plot():
    indices = {"train": torch.tensor([0, 2]), "validation": torch.tensor([1])}
    points = [{"train": torch.rand(2, 2, 2), "validation": torch.rand(2, 1, 2)}]
    ratios = [{"train": torch.rand(2), "validation": torch.rand(2)}]
    plane = FeatureView("plane", [0, 1, 2], indices, points, [torch.rand(2, 3, 2)], ratios)
    by_split = {"train": torch.zeros(2, 3), "validation": torch.zeros(2, 2)}
    return FeaturePlot(
        class_names=["a", "b", "c"],
        labels={"train": torch.arange(3), "validation": torch.arange(2)},
        thumbnails={"train": torch.zeros(3, 1, 8, 8), "validation": torch.zeros(2, 1, 8, 8)},
        networks=[NetworkFeatures("hard", [0, 3], by_split, by_split)],
        views=[plane, plane, FeatureView("pca", [0, 1, 2], indices, points)],
    )


def test_a_stored_plot_is_loaded_as_it_was(plot, tmp_path):
    plot.save(tmp_path / "features.safetensors")
    loaded = load_feature_plot(tmp_path / "features.safetensors")
    assert loaded.class_names == plot.class_names
    assert loaded.networks[0].title == "hard"
    assert loaded.networks[0].epochs == [0, 3]
    plane, _, pca = loaded.views
    assert torch.equal(plane.points[0]["train"], plot.views[0].points[0]["train"])
    assert torch.equal(plane.templates[0], plot.views[0].templates[0])
    assert plane.example_indices["train"].tolist() == [0, 2]
    assert pca.templates is None
    assert load_feature_plot(tmp_path / "none.safetensors") is None


def test_views_of_one_kind_are_numbered(plot):
    assert plot.view_names() == ["features_plane", "features_plane_2", "features_pca"]


def test_a_plot_of_another_version_is_refused_by_name(tmp_path):
    path = tmp_path / "features.safetensors"
    write_tree(path, {"networks": [{"title": "hard"}], "views": []})
    with pytest.raises(ValueError, match=r"features\.safetensors"):
        load_feature_plot(path)
