"""Project penultimate features of several networks and their snapshots to two dimensions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from distill.data.splits import Split, Splits, load_splits
from distill.errors import UserError, suggest
from distill.evaluation.class_selection import class_indices, select_classes
from distill.evaluation.dimension_reduction import embed, principal_components
from distill.evaluation.examples import evaluation_images, evenly_spaced, first_per_class
from distill.evaluation.feature_plot import (
    KINDS,
    SPLITS,
    FeaturePlot,
    FeatureView,
    NetworkFeatures,
    to_tensor,
)
from distill.evaluation.geometry import project, template_plane, within_between
from distill.evaluation.predict import features_and_logits
from distill.evaluation.snapshots import models_over_training
from distill.losses import LOSSES
from distill.models.class_names import stored_names
from distill.models.factory import largest_pretrained_side, load_run_model
from distill.models.hooks import templates
from distill.recipe.load import load
from distill.recipe.schema import Analysis, Augment
from distill.storage.find_runs import find_runs
from distill.storage.run_store import RunStore
from distill.storage.study_results import read_results

ROWS = 4  # networks in the feature plot of a study
PLANE_EXAMPLES = 100  # of each class in a plane, as in Müller et al. 2019, appendix A
OVERVIEW_EXAMPLES = 500  # of all classes together, in the other views
OVERVIEW_CLASSES = 20  # classes that can be told apart in the other views; of more, these are shown
THUMBNAIL_SIDE = 32  # pixels


def feature_plot_of_runs(
    names: Sequence[str], out: Path, class_names: list[str] | None, kinds: Sequence[str]
) -> FeaturePlot:
    """Make a feature plot of any runs of one study.

    Args:
        names: run folders, beginnings of run ids, or ``STUDY:ARM``, of which the first seed is
            taken.
        out: the folder of studies and runs.
        class_names: the three classes of the plane; by default those that the first network
            confuses most.
        kinds: the views, of `feature_plot.KINDS`.

    Raises:
        UserError: if a run is not found, is damaged or belongs to no study, or if a network's last
            layer has no templates.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"there is no view '{kind}'; {suggest(kind, KINDS)}")
    store = RunStore(out)
    ids = [find_runs(store, name)[0] for name in names]
    study, arms = _study_of(store, ids)
    for run_id in ids:
        damage = store.damage(run_id)
        if damage:
            raise UserError(f"{damage}; `distill run` of the recipe trains that run again")

    recipe = load(study / "recipe.yaml", LOSSES)
    settings = recipe.analysis.model_copy(
        update={
            "classes": class_names or recipe.analysis.classes,
            "examples": recipe.analysis.examples or PLANE_EXAMPLES,
        }
    )
    splits = load_splits(recipe.data, largest_pretrained_side(recipe.arms))
    _check_classes(store, ids, splits)
    titles = dict(zip(ids, arms, strict=True))
    return make_feature_plot(titles, splits, store, settings, torch.device("cpu"), kinds)


def _check_classes(store: RunStore, ids: list[str], splits: Splits) -> None:
    """Refuse runs whose classes are not those of the images, as after a change of the data.

    Raises:
        UserError: with the names of both.
    """
    for run_id in ids:
        config = load_run_model(store.folder(run_id)).pretrained_cfg
        names = stored_names(config) or splits.class_names
        if names != splits.class_names:
            raise UserError(
                f"run {run_id} was trained for the classes {', '.join(names[:10])}, but the images "
                f"now have {', '.join(splits.class_names[:10])}; `distill run` of the recipe "
                "trains it again"
            )


def _study_of(store: RunStore, ids: list[str]) -> tuple[Path, list[str]]:
    """Return the folder of the study that has all of the runs, and the names of their arms."""
    for file in sorted(store.root.glob("*/results.json")):
        try:
            arms = {run.id: run.arm for run in read_results(file.parent).runs}
        except UserError:
            continue  # a damaged study that is not needed must not stop this one
        if set(ids) <= set(arms):
            return file.parent, [arms[run_id] for run_id in ids]
    raise UserError(
        f"no study in {store.root} has all of these runs ({', '.join(ids)}), so their data cannot "
        "be found"
    )


def make_feature_plot(
    titles: dict[str, str],
    splits: Splits,
    store: RunStore,
    settings: Analysis,
    device: torch.device,
    kinds: Sequence[str] = ("plane", "pca", "tsne"),
) -> FeaturePlot:
    """Make a feature plot of stored runs.

    Args:
        titles: the name of each row, by run id.
        splits: the study's data.
        store: where the runs are.
        settings: the recipe's, for the classes of planes and the number of examples.
        device: where the networks run.
        kinds: the views, of `feature_plot.KINDS`; a plane gives a view for each triple of classes.

    Raises:
        UserError: if there are too few classes for a plane, `settings.classes` are not three known
            classes, or a network's last layer has no templates or three that are on a line.
    """
    if "plane" in kinds and len(splits.class_names) < 3:
        raise UserError(
            "a plane through three templates needs at least 3 classes; --view pca or tsne does not"
        )
    triples = _plane_classes(settings, splits, store, next(iter(titles)))
    overview = evenly_spaced(len(splits.class_names), OVERVIEW_CLASSES).tolist()
    plane_count = min(PLANE_EXAMPLES, settings.examples)
    overview_count = min(OVERVIEW_EXAMPLES // len(overview), settings.examples)

    in_planes = sorted({label for triple in triples for label in triple})
    positions = {}
    for name in SPLITS:
        labels = getattr(splits, name).labels
        of_planes = first_per_class(labels, in_planes, plane_count)
        of_overview = first_per_class(labels, overview, overview_count)
        positions[name] = torch.cat([of_planes, of_overview]).unique()

    examples = _Examples(splits, positions)
    networks = [
        _trajectory(run_id, title, store, examples, device) for run_id, title in titles.items()
    ]
    views = []
    for kind in kinds:
        if kind == "plane":
            views += [_plane(triple, plane_count, examples, networks) for triple in triples]
        else:
            views.append(_overview(kind, overview, overview_count, examples, networks))
    augment = _augment_of(store, next(iter(titles)))
    return FeaturePlot(
        splits.class_names,
        {name: examples.labels(name) for name in SPLITS},
        {name: _thumbnails(examples, name, augment) for name in SPLITS},
        [network.outputs for network in networks],
        views,
    )


def _plane_classes(
    settings: Analysis, splits: Splits, store: RunStore, run_id: str
) -> list[list[int]]:
    """Return the triples of classes for planes: the recipe's, or those that a run confuses."""
    if not settings.classes:
        return select_classes(settings, splits.class_names, store.predictions(run_id)).triples
    if len(settings.classes) != 3:
        raise UserError(f"name three different classes, got {', '.join(settings.classes)}")
    return [class_indices(settings.classes, splits.class_names)]


def _augment_of(store: RunStore, run_id: str) -> Augment:
    """Return the augmentation of a stored run, whose crop decides how its images are cropped."""
    return Augment(**store.record(run_id)["settings"]["augment"])


# ------------------------------------------------------------------------ features over training


@dataclass(frozen=True)
class _Examples:
    """The examples of a feature plot.

    Attributes:
        splits: the study's data.
        positions: by split, positions of the N examples.
    """

    splits: Splits
    positions: dict[str, Tensor]

    def split(self, name: str) -> Split:
        """Return a split by name."""
        return getattr(self.splits, name)

    def labels(self, name: str) -> Tensor:
        """Return the labels of a split's examples ``[N]``."""
        return self.split(name).labels[self.positions[name]]


@dataclass(frozen=True)
class _Snapshot:
    """A network at one epoch.

    Attributes:
        templates: ``[K, D]``.
        features: by split, ``[N, D]``.
    """

    templates: Tensor
    features: dict[str, Tensor]


@dataclass(frozen=True)
class _Trajectory:
    """A network over its training: what the plot keeps, and what its views are made from."""

    outputs: NetworkFeatures
    snapshots: list[_Snapshot]


def _trajectory(
    run_id: str, title: str, store: RunStore, examples: _Examples, device: torch.device
) -> _Trajectory:
    """Compute a run's predictions and features of the examples at each of its snapshots."""
    augment = _augment_of(store, run_id)
    epochs = []
    snapshots = []
    predicted: dict[str, list[Tensor]] = {name: [] for name in SPLITS}
    confidence: dict[str, list[Tensor]] = {name: [] for name in SPLITS}
    for epoch, model in models_over_training(store, run_id, device):
        features = {}
        for name in SPLITS:
            features[name], logits = features_and_logits(
                model,
                examples.splits,
                examples.split(name),
                augment,
                device,
                examples.positions[name],
            )
            highest = logits.softmax(1).max(1)
            predicted[name].append(highest.indices)
            confidence[name].append(highest.values)
        epochs.append(epoch)
        # A copy, because the next snapshot overwrites the weights.
        snapshots.append(_Snapshot(templates(model).detach().cpu().clone(), features))
    outputs = NetworkFeatures(
        title,
        epochs,
        {name: torch.stack(predicted[name]).int() for name in SPLITS},
        {name: torch.stack(confidence[name]) for name in SPLITS},
    )
    return _Trajectory(outputs, snapshots)


def _thumbnails(examples: _Examples, name: str, augment: Augment) -> Tensor:
    """Return small images of a split's examples, uint8 ``[N, C, h, w]``."""
    images = evaluation_images(
        examples.splits,
        examples.split(name),
        augment,
        torch.device("cpu"),
        examples.positions[name],
    )
    if max(images.shape[2:]) > THUMBNAIL_SIDE:
        images = interpolate(images.float(), THUMBNAIL_SIDE, mode="area").round()
    return images.to(torch.uint8)


# ------------------------------------------------------------------------ planes


def _plane(
    triple: list[int], count: int, examples: _Examples, networks: list[_Trajectory]
) -> FeatureView:
    """Project examples of three classes to the plane through their templates, at every epoch."""
    indices = {}
    labels = {}
    for name in SPLITS:
        of_split = examples.labels(name)
        of_classes = [(of_split == label).nonzero()[:count, 0] for label in triple]
        indices[name] = torch.cat(of_classes)
        labels[name] = of_split[indices[name]].numpy()

    view = FeatureView("plane", triple, indices, points=[], templates=[], ratios=[])
    for network in networks:
        points: dict[str, list[NDArray]] = {name: [] for name in SPLITS}
        ratios: dict[str, list[float]] = {name: [] for name in SPLITS}
        corners = []
        for snapshot in network.snapshots:
            three = snapshot.templates[triple].double().numpy()
            try:
                basis = template_plane(three)
            except ValueError as error:
                raise UserError(f"{network.outputs.title}: {error}") from None
            corners.append(project(three, three, basis))
            for name in SPLITS:
                features = snapshot.features[name][indices[name]].numpy()
                points[name].append(project(features, three, basis))
                ratios[name].append(_ratio(points[name][-1], labels[name]))
        view.points.append({name: to_tensor(np.stack(points[name])) for name in SPLITS})
        view.ratios.append({name: to_tensor(ratios[name]) for name in SPLITS})
        view.templates.append(to_tensor(np.stack(corners)))
    return view


def _ratio(points: NDArray, labels: NDArray) -> float:
    """Return within- over between-class variance; NaN where there are too few examples for it."""
    try:
        return within_between(points, labels)
    except ValueError:
        return math.nan


# ------------------------------------------------------------------------ overviews of many classes


def _overview(
    kind: str,
    classes: list[int],
    count: int,
    examples: _Examples,
    networks: list[_Trajectory],
) -> FeatureView:
    """Project `count` examples of each of many classes by PCA, t-SNE or UMAP.

    PCA keeps its axes, so it shows every epoch; the others show the finished network only.
    """
    indices = {name: first_per_class(examples.labels(name), classes, count) for name in SPLITS}
    view = FeatureView(kind, classes, indices, points=[])
    for network in networks:
        by_epoch = [
            {name: snapshot.features[name][indices[name]].double().numpy() for name in SPLITS}
            for snapshot in network.snapshots
        ]
        points = principal_components(by_epoch) if kind == "pca" else embed(kind, by_epoch[-1])
        view.points.append(points)
    return view
