"""The data of a plot of penultimate features.

These data suffice to draw the plot again without the networks and the data set.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.storage.files import read_tree, write_tree

SPLITS = ("train", "validation")
KINDS = {
    "plane": "plane through the three templates (large markers)",
    "pca": "first two principal components, fitted to each network",
    "tsne": "t-SNE: nearby points are similar; sizes and distances of clusters carry no meaning",
    "umap": "UMAP: nearby points are similar; sizes and distances of clusters carry no meaning",
}
"""The kinds of a `FeatureView`, with the caption of each."""


@dataclass
class NetworkFeatures:
    """One network, a row of a feature plot.

    Attributes:
        title: the name of the row.
        epochs: E snapshots, each by the number of epochs trained; the last is the finished network.
        predicted: the predicted classes ``[E, N]`` of each split.
        confidence: the probability of the predicted class, ``[E, N]`` in [0, 1], of each split.
    """

    title: str
    epochs: list[int]
    predicted: dict[str, Tensor]
    confidence: dict[str, Tensor]


@dataclass
class FeatureView:
    """One projection of the features of all networks to two dimensions.

    Attributes:
        kind: one of `KINDS`.
        classes: the classes whose examples are shown: three for a plane.
        example_indices: for each split, which of the plot's N examples are shown, ``[n]``.
        points: coordinates ``[E, n, 2]`` for each network and split; E is 1 if only the finished
            network is shown.
        templates: for a plane, by network, the three templates ``[E, 3, 2]``; else None.
        ratios: for a plane, by network and split, the ratio of within- to between-class variance of
            the points, ``[E]``; else None.
    """

    kind: str
    classes: list[int]
    example_indices: dict[str, Tensor]
    points: list[dict[str, Tensor]]
    templates: list[Tensor] | None = None
    ratios: list[dict[str, Tensor]] | None = None


@dataclass
class FeaturePlot:
    """Features of several networks: rows are networks, columns are splits, views are pages.

    Attributes:
        class_names: the names of all K classes.
        labels: the labels of the N examples of each split.
        thumbnails: uint8 images ``[N, C, h, w]`` of each split.
        networks: the rows.
        views: at least one.
    """

    class_names: list[str]
    labels: dict[str, Tensor]
    thumbnails: dict[str, Tensor]
    networks: list[NetworkFeatures]
    views: list[FeatureView]

    def save(self, path: Path) -> None:
        """Write the plot as one safetensors file, completely or not at all."""
        write_tree(path, asdict(self))

    def view_names(self) -> list[str]:
        """Return the file name of each view's figure, without suffix."""
        names = []
        seen: dict[str, int] = {}
        for view in self.views:
            number = seen.get(view.kind, 0)
            seen[view.kind] = number + 1
            names.append(numbered(f"features_{view.kind}", number))
        return names


def load_feature_plot(path: Path) -> FeaturePlot | None:
    """Load a stored feature plot; return None if there is no such file.

    Raises:
        ValueError: naming the file, if it is damaged or was written by another version.
    """
    stored = read_tree(path)
    if stored is None:
        return None
    try:
        networks = [NetworkFeatures(**network) for network in stored.pop("networks")]
        views = [FeatureView(**view) for view in stored.pop("views")]
        return FeaturePlot(**stored, networks=networks, views=views)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} was written by another version of distill ({error})") from None


def numbered(name: str, number: int) -> str:
    """Return the file name of a figure, numbered if there are several of its kind.

    It is `name` for number 0, then `name_2`, `name_3`, …
    """
    return f"{name}_{number + 1}" if number else name


def to_tensor(values: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return numbers as a tensor of the precision that a feature plot stores."""
    return torch.as_tensor(values).to(dtype)
