"""Making pictures of penultimate features: several networks side by side, each at all of its stored epochs."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor, nn
from torch.nn.functional import interpolate

from distill.data.splits import Split, Splits, load_splits
from distill.errors import UserError, suggest
from distill.evaluation.class_selection import (
    class_indices,
    features_and_logits,
    first_per_class,
    images_of,
    select_classes,
    spread,
)
from distill.evaluation.feature_plot import KINDS, SPLITS, FeaturePlot, Network, View, to_tensor
from distill.evaluation.geometry import project, template_plane, within_between
from distill.losses import LOSSES
from distill.models.factory import largest_pretrained_side, load_run_model
from distill.models.hooks import templates
from distill.recipe.load import load
from distill.recipe.schema import Analysis, Augment
from distill.storage.find_runs import find_runs
from distill.storage.run_store import RunStore
from distill.storage.study_results import read_results

ROWS = 4  # of a study's feature_plot
EXAMPLES = 100  # of each class in a plane, as the paper draws (appendix A)
ALL = 500  # of all classes together, in the other views
CLASSES = 20  # that can be told apart there; of more, so many are shown
THUMBNAIL = 32  # pixels


def feature_plot_of_runs(
    names: Sequence[str], out: Path, class_names: list[str] | None, kinds: Sequence[str]
) -> FeaturePlot:
    """A feature_plot of any runs of one study.

    Args:
        names: run folders, beginnings of ids, or ``STUDY:ARM``, of which the first seed is taken.
        out: the folder of studies and runs.
        class_names: the three of the plane; by default those that the first network confuses most.
        kinds: of `distill.pictures.KINDS`.

    Raises:
        UserError: if a run is not found or belongs to no study, or its last layer has no templates.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"there is no view '{kind}'; {suggest(kind, KINDS)}")
    store = RunStore(out)
    ids = [find_runs(store, name)[0] for name in names]
    study, titles = _study_of(store, ids)
    for damage in filter(None, map(store.damage, ids)):
        raise UserError(f"{damage}; `distill run` of the recipe trains that run again")
    recipe = load(study / "recipe.yaml", LOSSES)
    asked = {
        "classes": class_names or recipe.analysis.classes,
        "examples": recipe.analysis.examples or EXAMPLES,
    }
    settings = recipe.analysis.model_copy(update=asked)
    splits = load_splits(recipe.data, largest_pretrained_side(recipe.arms))
    return make_feature_plot(
        dict(zip(ids, titles, strict=True)), splits, store, settings, torch.device("cpu"), kinds
    )


def make_feature_plot(
    runs: dict[str, str],
    splits: Splits,
    store: RunStore,
    settings: Analysis,
    device: torch.device,
    kinds: Sequence[str] = ("plane", "pca", "tsne"),
) -> FeaturePlot:
    """A feature_plot of runs (titles by id); see `feature_plot_of_runs`."""
    if "plane" in kinds and len(splits.class_names) < 3:
        raise UserError(
            "a plane through three templates needs at least 3 classes; --view pca or tsne does not"
        )
    if settings.classes and len(settings.classes) != 3:
        raise UserError(f"name three different classes, got {', '.join(settings.classes)}")
    first = next(iter(runs))
    triples = (
        [class_indices(settings.classes, splits.class_names)]
        if settings.classes
        else select_classes(settings, splits.class_names, store.predictions(first)).triples
    )
    augment = Augment(**store.record(first)["settings"]["augment"])
    sides = {"train": splits.train, "validation": splits.validation}
    shown = spread(len(splits.class_names), CLASSES).tolist()  # in the views of all classes
    plane, each = (min(count, settings.examples) for count in (EXAMPLES, ALL // len(shown)))
    positions = {
        name: _positions(split.labels, triples, plane, shown, each) for name, split in sides.items()
    }
    labels = {name: split.labels[positions[name]] for name, split in sides.items()}
    thumbnails = {
        name: _thumbnails(splits, split, augment, positions[name]) for name, split in sides.items()
    }
    networks, seen = [], []
    for run_id, title in runs.items():
        augment = Augment(**store.record(run_id)["settings"]["augment"])
        network, states = _states(run_id, title, store, splits, augment, device, positions)
        networks.append(network)
        seen.append(states)
    views = []
    for kind in kinds:
        if kind == "plane":
            views += [
                _plane(triple, plane, labels, seen, list(runs.values())) for triple in triples
            ]
        else:
            views.append(_all_classes(kind, shown, each, labels, seen))
    return FeaturePlot(splits.class_names, labels, thumbnails, networks, views)


State = dict[str, Tensor]  # features by split, and "templates"


def _states(
    run_id: str,
    title: str,
    store: RunStore,
    splits: Splits,
    augment: Augment,
    device: torch.device,
    positions: dict[str, Tensor],
) -> tuple[Network, list[State]]:
    """A network at each of its stored epochs: what it says of the examples, and its features of them."""
    model: nn.Module = load_run_model(store.folder(run_id)).to(device)
    last = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    files = store.snapshots(run_id)
    states, predicted, confidence = [], {name: [] for name in SPLITS}, {name: [] for name in SPLITS}
    for file in [*files.values(), None]:
        model.load_state_dict(load_file(file) if file else last)
        state = {
            "templates": templates(model).detach().cpu().clone()
        }  # the weights are written over
        for name, split in (("train", splits.train), ("validation", splits.validation)):
            state[name], logits = features_and_logits(
                model, splits, split, augment, device, positions[name]
            )
            best = logits.softmax(1).max(1)
            predicted[name].append(best.indices)
            confidence[name].append(best.values)
        states.append(state)
    epochs = [*files, store.record(run_id)["epochs"]]
    return Network(
        title,
        epochs,
        {name: torch.stack(predicted[name]).int() for name in SPLITS},
        {name: torch.stack(confidence[name]) for name in SPLITS},
    ), states


def _positions(
    labels: Tensor, triples: list[list[int]], plane: int, shown: list[int], each: int
) -> Tensor:
    """Of the examples that are looked at: so many of each class in a plane, and so many of all that are shown."""
    drawn = first_per_class(labels, sorted({k for triple in triples for k in triple}), plane)
    return torch.cat([drawn, first_per_class(labels, shown, each)]).unique()


def _thumbnails(splits: Splits, split: Split, augment: Augment, positions: Tensor) -> Tensor:
    images = images_of(splits, split, augment, torch.device("cpu"), positions)
    if max(images.shape[2:]) > THUMBNAIL:
        images = interpolate(images.float(), THUMBNAIL, mode="area").round()
    return images.to(torch.uint8)


def _plane(
    triple: list[int],
    each: int,
    labels: dict[str, Tensor],
    seen: list[list[State]],
    titles: list[str],
) -> View:
    """The plane through three templates of each network, at each of its epochs."""
    members = {
        name: torch.cat([(labels[name] == k).nonzero()[:each, 0] for k in triple])
        for name in SPLITS
    }
    view = View("plane", triple, members, [], [], [])
    for states, title in zip(seen, titles, strict=True):
        points, corners, ratios = {name: [] for name in SPLITS}, [], {name: [] for name in SPLITS}
        for state in states:
            three = state["templates"][triple].double().numpy()
            try:
                basis = template_plane(three)
            except ValueError as error:
                raise UserError(f"{title}: {error}") from None
            for name in SPLITS:
                points[name].append(project(state[name][members[name]].numpy(), three, basis))
                ratios[name].append(_ratio(points[name][-1], labels[name][members[name]].numpy()))
            corners.append(project(three, three, basis))
        view.points.append({name: to_tensor(np.stack(points[name])) for name in SPLITS})
        view.ratios.append({name: to_tensor(ratios[name]) for name in SPLITS})
        view.templates.append(to_tensor(np.stack(corners)))
    return view


def _ratio(points: NDArray, labels: NDArray) -> float:
    """Within/between; NaN where too few examples are shown for one."""
    try:
        return within_between(points, labels)
    except ValueError:
        return math.nan


def _all_classes(
    kind: str, classes: list[int], each: int, labels: dict[str, Tensor], seen: list[list[State]]
) -> View:
    """Many classes of each network: at every epoch where the axes can stay (PCA), else of the finished network."""
    members = {name: first_per_class(labels[name], classes, each) for name in SPLITS}
    view = View(kind, classes, members, [])
    for states in seen:
        last = [states[-1][name][members[name]].double().numpy() for name in SPLITS]
        if kind == "pca":
            view.points.append(
                {
                    name: to_tensor(
                        np.stack(
                            [
                                _along(last[0], s[name][members[name]].double().numpy())
                                for s in states
                            ]
                        )
                    )
                    for name in SPLITS
                }
            )
        else:
            flat = _flatten(kind, np.concatenate(last))
            view.points.append(
                {
                    name: to_tensor(part)[None]
                    for name, part in zip(SPLITS, np.split(flat, [len(last[0])]), strict=True)
                }
            )
    return view


def _along(fitted: NDArray, features: NDArray) -> NDArray:
    """Two principal components ``[n, 2]`` of other features than those that they are fitted to."""
    if not len(features):
        return np.zeros((0, 2))
    with np.errstate(invalid="ignore"):  # features of a dead network do not vary
        components = PCA(min(2, *fitted.shape), random_state=0).fit(fitted).transform(features)
    return np.pad(components, ((0, 0), (0, 2 - components.shape[1])))


def _flatten(kind: str, features: NDArray) -> NDArray:
    """Two coordinates of each example, near where features are near."""
    if not np.ptp(features, axis=0).any():  # a dead network: one point
        return np.zeros((len(features), 2))
    near = max(2, min(30, (len(features) - 1) // 3))
    if kind == "tsne":
        start = PCA(min(50, *features.shape), random_state=0).fit_transform(
            features
        )  # as its authors lint_recipe
        return TSNE(2, perplexity=near, init="pca", random_state=0).fit_transform(start)
    try:
        from umap import UMAP
    except ImportError:
        raise UserError("the view 'umap' needs umap-learn: pip install 'distill[umap]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a fixed seed leaves one thread
        return UMAP(n_components=2, n_neighbors=near, random_state=0).fit_transform(features)


def _study_of(store: RunStore, ids: list[str]) -> tuple[Path, list[str]]:
    """The study that has all of the runs, and what it calls them."""
    for file in sorted(store.root.glob("*/results.json")):
        try:
            arms = {run.id: run.arm for run in read_results(file.parent).runs}
        except UserError:  # of another study, which is not asked for
            continue
        if set(ids) <= set(arms):
            return file.parent, [arms[i] for i in ids]
    raise UserError(f"no study in {store.root} has all of these runs: their data cannot be found")
