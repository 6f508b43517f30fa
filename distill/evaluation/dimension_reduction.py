"""Two-dimensional embeddings of the features of many classes: PCA, t-SNE and UMAP."""

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from distill.errors import UserError
from distill.evaluation.feature_plot import SPLITS, to_tensor


def principal_components(by_epoch: list[dict[str, NDArray]]) -> dict[str, Tensor]:
    """Project features to the first two principal components of the last training features.

    Args:
        by_epoch: for each epoch, the features ``[n, D]`` by split.

    Returns:
        by split, ``[E, n, 2]``.
    """
    fitted = by_epoch[-1]["train"]
    points = {}
    # If a network has collapsed, its features have variance 0, and PCA divides by it.
    with np.errstate(invalid="ignore"):
        pca = PCA(min(2, *fitted.shape), random_state=0).fit(fitted)
        for name in SPLITS:
            projected = [_transform(pca, features[name]) for features in by_epoch]
            points[name] = to_tensor(np.stack(projected))
    return points


def _transform(pca: PCA, features: NDArray) -> NDArray:
    """Return two components ``[n, 2]`` of features ``[n, D]``; a missing component is 0."""
    if not len(features):
        return np.zeros((0, 2))
    components = pca.transform(features)
    return np.pad(components, ((0, 0), (0, 2 - components.shape[1])))


def embed(kind: str, features: dict[str, NDArray]) -> dict[str, Tensor]:
    """Embed the features ``[n, D]`` of both splits together by t-SNE or UMAP.

    Returns:
        by split, ``[1, n, 2]``.
    """
    parts = [features[name] for name in SPLITS]
    together = np.concatenate(parts)
    neighbours = max(2, min(30, (len(together) - 1) // 3))
    if not np.ptp(together, axis=0).any():
        # The network has collapsed: all features are equal, and so are all points.
        embedded = np.zeros((len(together), 2))
    elif kind == "tsne":
        embedded = _tsne(together, neighbours)
    else:
        embedded = _umap(together, neighbours)
    split_points = np.split(embedded, [len(parts[0])])
    return {
        name: to_tensor(points)[None] for name, points in zip(SPLITS, split_points, strict=True)
    }


def _tsne(features: NDArray, neighbours: int) -> NDArray:
    """Embed features ``[N, D]`` by t-SNE, ``[N, 2]``."""
    # Reduced to 50 dimensions first, as van der Maaten and Hinton (2008) do.
    reduced = PCA(min(50, *features.shape), random_state=0).fit_transform(features)
    return TSNE(2, perplexity=neighbours, init="pca", random_state=0).fit_transform(reduced)


def _umap(features: NDArray, neighbours: int) -> NDArray:
    """Embed features ``[N, D]`` by UMAP, ``[N, 2]``."""
    try:
        from umap import UMAP
    except ImportError:
        raise UserError("the view 'umap' needs umap-learn: pip install umap-learn") from None
    with warnings.catch_warnings():
        # UMAP warns that a fixed seed limits it to one thread.
        warnings.simplefilter("ignore")
        return UMAP(n_components=2, n_neighbors=neighbours, random_state=0).fit_transform(features)
