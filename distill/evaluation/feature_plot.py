"""What a feature_plot of penultimate features is made of: all that is needed to draw it again, without network or data."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.storage.files import read_tree, write_tree

SPLITS = ("train", "validation")
KINDS = {
    "plane": "plane through the three templates (large markers)",
    "pca": "two principal components, of each network its own",
    "tsne": "t-SNE: near points are alike; sizes and distances of clusters mean nothing",
    "umap": "UMAP: near points are alike; sizes and distances of clusters mean nothing",
}


@dataclass
class Network:
    """One network, a row of a feature_plot.

    Attributes:
        title: what the row is called.
        epochs: E stored states, by the epochs that they had seen; the last is the finished network.
        predicted: by split, classes ``[E, N]``.
        confidence: by split, of the predicted class, ``[E, N]`` in [0, 1].
    """

    title: str
    epochs: list[int]
    predicted: dict[str, Tensor]
    confidence: dict[str, Tensor]


@dataclass
class View:
    """One way to see the features in two dimensions.

    Attributes:
        kind: one of `KINDS`.
        classes: whose examples are shown: three for a plane.
        members: by split, which of the feature_plot's examples those are, ``[n]``.
        points: by network and split, ``[E, n, 2]``; E is 1 where only the finished network is shown.
        templates: by network, ``[E, 3, 2]`` in a plane; else None.
        ratios: by network and split, within/between of the points of a plane, ``[E]``; else None.
    """

    kind: str
    classes: list[int]
    members: dict[str, Tensor]
    points: list[dict[str, Tensor]]
    templates: list[Tensor] | None = None
    ratios: list[dict[str, Tensor]] | None = None


@dataclass
class FeaturePlot:
    """Rows are networks, columns splits; views are pages.

    Attributes:
        class_names: of all K classes.
        labels: by split, of the N examples.
        thumbnails: by split, uint8 images ``[N, C, h, w]``.
        networks: the rows.
        views: at least one.
    """

    class_names: list[str]
    labels: dict[str, Tensor]
    thumbnails: dict[str, Tensor]
    networks: list[Network]
    views: list[View]

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        write_tree(path, asdict(self))

    def view_names(self) -> list[str]:
        """What the figures of the views are called."""
        kinds = [view.kind for view in self.views]
        before = [kinds[:i].count(kind) for i, kind in enumerate(kinds)]
        return [numbered(f"features_{kind}", n) for kind, n in zip(kinds, before, strict=True)]


def load_feature_plot(path: Path) -> FeaturePlot | None:
    """A stored feature_plot, or None if there is none; ValueError if it is damaged."""
    stored = read_tree(path)
    if stored is None:
        return None
    try:
        networks = [Network(**network) for network in stored.pop("networks")]
        views = [View(**view) for view in stored.pop("views")]
        return FeaturePlot(**stored, networks=networks, views=views)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is of another version ({error})") from None


def numbered(name: str, number: int) -> str:
    """The name of the number-th of several figures of one kind: the first has the plain name."""
    return f"{name}_{number + 1}" if number else name


def to_tensor(values: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers as they are stored in a feature_plot."""
    return torch.as_tensor(values).to(dtype)
