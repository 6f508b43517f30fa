"""Projections of stored networks' features."""

import numpy as np
import pytest
import torch
from helpers.photos import write_photos
from helpers.recipes import make_recipe
from safetensors.torch import load_file
from sklearn.decomposition import PCA

from distill import run_study
from distill.data.augment import normalise
from distill.errors import UserError
from distill.evaluation.project_features import feature_plot_of_runs, make_feature_plot
from distill.models.factory import input_config

CPU = torch.device("cpu")
ARMS = ("smoothed", "hard", "distilled/temperature=1")


def make(trained, kinds=("plane", "pca"), arms=ARMS, **changes):
    titles = {trained.run(arm).id: arm for arm in arms}
    settings = trained.recipe.analysis.model_copy(update=changes)
    return make_feature_plot(titles, trained.splits, trained.store, settings, CPU, kinds)


@pytest.fixture(scope="module")
def plot(trained):
    return make(trained)


def test_rows_are_networks_at_all_epochs_and_planes_are_of_both_triples(plot):
    assert [network.title for network in plot.networks] == list(ARMS)
    assert [network.epochs for network in plot.networks] == [[0, 1, 2, 3]] * 3
    assert [view.kind for view in plot.views] == ["plane", "plane", "pca"]


def test_planes_keep_the_distances_of_templates_at_every_epoch(trained, plot):
    for row, network in enumerate(plot.networks):
        files = trained.store.snapshots(trained.run(network.title).id)
        final = trained.folder(network.title) / "model.safetensors"
        for state, file in enumerate([*files.values(), final]):
            weight = load_file(file)["head.weight"]
            for view in plot.views[:2]:
                drawn = view.templates[row][state]
                real = weight[view.classes]
                distances = torch.cdist(drawn, drawn).numpy()
                assert distances == pytest.approx(torch.cdist(real, real).numpy(), abs=1e-5)


def test_predictions_are_those_that_the_run_stored(trained, plot):
    stored = trained.predictions("hard")
    logits = stored["validation.logits"]
    network = plot.networks[1]
    labels = plot.labels["validation"]
    assert len(labels) == len(logits)  # all of the few validation images are shown
    assert network.predicted["validation"].shape == (4, len(labels))
    assert network.confidence["validation"].shape == (4, len(labels))
    accuracy = (network.predicted["validation"][-1] == labels).double().mean()
    assert accuracy == (logits.argmax(1) == stored["validation.labels"]).double().mean()
    confidence = network.confidence["validation"][-1].mean().item()
    assert confidence == pytest.approx(logits.softmax(1).amax(1).mean().item(), abs=1e-5)


def test_points_of_a_plane_are_examples_of_its_classes(plot):
    for view in plot.views[:2]:
        for split, indices in view.example_indices.items():
            assert set(plot.labels[split][indices].tolist()) == set(view.classes)
            assert view.points[0][split].shape == (4, len(indices), 2)


def test_pca_keeps_the_axes_of_the_finished_networks_training_features(trained, plot):
    view = plot.views[2]
    points = view.points[1]
    last = points["train"][-1].double().numpy()
    # Principal components have mean 0, are not correlated, and the first has the larger variance.
    assert last.mean(0) == pytest.approx(0, abs=1e-4)
    covariance = np.cov(last.T)
    assert covariance[0, 1] == pytest.approx(0, abs=1e-4 * covariance[0, 0])
    assert covariance[0, 0] > covariance[1, 1]

    model = trained.model("hard")
    captured = []
    model.get_classifier().register_forward_pre_hook(lambda _, x: captured.append(x[0]))
    train = trained.splits.train
    shown = view.example_indices["train"]
    # The plot's examples of all classes are the first 50 of each.
    first = [(train.labels == k).nonzero()[:50, 0] for k in view.classes]
    positions = torch.cat(first).sort().values
    assert len(positions) == len(shown)
    images = train.images.pixels[train.positions[positions]]
    model(normalise(images, *input_config(model)))
    features = captured[0].double().numpy()
    expected = PCA(2, random_state=0).fit(features).transform(features)
    assert np.abs(last) == pytest.approx(np.abs(expected), abs=1e-3)


@pytest.mark.slow
def test_tsne_shows_the_finished_network_only(trained):
    view = make(trained, kinds=("tsne",), arms=("hard",)).views[0]
    for split, indices in view.example_indices.items():
        assert view.points[0][split].shape == (1, len(indices), 2)
        assert view.points[0][split].isfinite().all()


def test_named_classes_make_one_plane(trained):
    plot = make(trained, kinds=("plane",), arms=("hard",), classes=["7", "1", "9"], examples=10)
    (view,) = plot.views
    assert view.classes == [7, 1, 9]
    assert len(view.example_indices["train"]) == 30


@pytest.mark.parametrize("classes", [["1", "2"], ["1", "2", "x"]])
def test_other_than_three_known_classes_are_refused(trained, classes):
    with pytest.raises(UserError, match=classes[-1]):
        make(trained, arms=("hard",), classes=classes)


def test_an_unknown_view_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(UserError, match=r"'plain'.*'plane'"):
        feature_plot_of_runs(["looked:hard"], tmp_path, None, ["plain"])


def test_runs_of_other_classes_than_todays_are_refused_with_both_lists(tmp_path):
    photos = write_photos(tmp_path / "photos", per_class=8)
    students = {"alone": {"model": "mlp_16", "loss": {"cross_entropy": {}}}}
    document = {
        "data": {"source": "folder", "root": str(photos)},
        "train": {"epochs": 1, "batch_size": 8},
        "analysis": {"examples": 0, "num_attacked": 0, "num_views": 0},
        "students": students,
    }
    run_study(make_recipe(document), tmp_path / "runs")
    assert feature_plot_of_runs(["tiny:alone"], tmp_path / "runs", None, ["pca"])
    (photos / "cat").rename(photos / "dog")
    with pytest.raises(UserError, match=r"ant, bee, cat.*ant, bee, dog"):
        feature_plot_of_runs(["tiny:alone"], tmp_path / "runs", None, ["pca"])
