"""What stored networks look like inside: figures that need the networks themselves, not their predictions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax
from torch import nn

from distill import figures
from distill.analysis.clusters import most_confused, project, template_plane, within_between
from distill.arms import load
from distill.data.sources import Split, Splits, load_splits
from distill.document import UserError, nearest
from distill.evaluation import predict
from distill.losses import TERMS
from distill.models.build import load_stored
from distill.models.inside import penultimate, templates
from distill.recipe import Augment
from distill.runs import Store, read_results

EXAMPLES = 100  # of each class, as the paper draws (appendix A)
ROWS = 4


def draw_clusters(names: Sequence[str], out: Path, to: Path, class_names: Sequence[str] | None = None) -> Path:
    """The penultimate layer of runs side by side, in the plane through three templates.

    Args:
        names: run folders, beginnings of ids, or ``STUDY:ARM``, of which the first seed is drawn.
        out: the folder of studies and runs.
        to: folder for the figure.
        class_names: three of the data's; by default those that the first network confuses most.

    Returns:
        the figure's path.

    Raises:
        UserError: if a run is not found or belongs to no study, or its last layer has no templates.
    """
    store = Store(out)
    ids = [store.find(name)[0] for name in names]
    study, titles = _study_of(store, ids)
    splits = load_splits(load(study / "recipe.yaml", TERMS).data)
    return clusters_figure(store, splits, dict(zip(ids, titles, strict=True)), to, class_names)


def clusters_figure(store: Store, splits: Splits, runs: dict[str, str], to: Path,
                    class_names: Sequence[str] | None = None) -> Path:
    """The figure for runs (titles by id) of one study; see `draw_clusters`."""
    if len(splits.class_names) < 3:
        raise UserError("a plane through three templates needs at least 3 classes")
    chosen = _classes(store, splits, next(iter(runs)), class_names)
    clouds = []
    for run_id, title in runs.items():
        model = load_stored(store.folder(run_id))
        corners = templates(model).detach().double().numpy()[chosen]
        augment = Augment(**store.record(run_id)["settings"]["augment"])
        panels, ratio = {}, {}
        try:
            basis = template_plane(corners)
            for name, split in (("train", splits.train), ("validation", splits.validation)):
                features, which = _features(model, splits, split, augment, chosen)
                panels[name] = project(features, corners, basis), which
                ratio[name] = within_between(features, which)
        except ValueError as error:
            raise UserError(f"{title}: {error}") from None
        clouds.append(figures.Cloud(title, project(corners, corners, basis), panels, ratio))
    figure = figures.clusters(clouds, [splits.class_names[k] for k in chosen])
    return figures.save(figure, to, "clusters").with_suffix(".png")


def _classes(store: Store, splits: Splits, run_id: str, names: Sequence[str] | None) -> list[int]:
    if names is None:
        stored = store.predictions(run_id)
        logits, labels = stored["validation.logits"].double().numpy(), stored["validation.labels"].numpy()
        return most_confused(softmax(logits, axis=1), labels)
    for name in names:
        if name not in splits.class_names:
            raise UserError(f"there is no class '{name}'; {nearest(name, splits.class_names)}")
    if len(set(names)) != 3:
        raise UserError(f"name three different classes, got {', '.join(names)}")
    return [splits.class_names.index(name) for name in names]


def _features(model: nn.Module, splits: Splits, split: Split, augment: Augment,
              classes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Penultimate features of up to 100 examples of each class, and which class (0, 1, 2) each has."""
    positions = [(split.labels == k).nonzero()[:EXAMPLES, 0] for k in classes]
    with penultimate(model) as seen:
        predict(model, splits, split, augment, torch.device("cpu"), torch.cat(positions))
    which = np.repeat([0, 1, 2], [len(p) for p in positions])
    return torch.cat(seen).double().numpy(), which


def _study_of(store: Store, ids: list[str]) -> tuple[Path, list[str]]:
    """The study that has all of the runs, and what it calls them."""
    for file in sorted(store.root.glob("*/results.json")):
        arms = {run["id"]: run["arm"] for run in read_results(file.parent)["runs"]}
        if set(ids) <= set(arms):
            return file.parent, [arms[i] for i in ids]
    raise UserError(f"no study in {store.root} has all of these runs: their data cannot be found")
