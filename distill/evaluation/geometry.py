"""The geometry of penultimate features: planes through templates, and how tightly classes cluster.

A template is a row of the last layer's weight (Müller et al. 2019, section 2).
"""

import numpy as np
from numpy.typing import NDArray

from distill.evaluation.arrays import (
    Array,
    Labels,
    probabilities,
    row_chunks,
    select_class,
    sum_by_class,
)

TINY = np.finfo(float).tiny

# ------------------------------------------------------------------------ projections


def template_plane(templates: NDArray) -> NDArray:
    """Return an orthonormal basis ``[D, 2]`` of the plane through three templates ``[3, D]``.

    The basis spans the differences of the templates, so the projection preserves their distances.

    Raises:
        ValueError: if the three are on one line and so span no plane.
    """
    differences = (templates[:2] - templates[2]).T.astype(np.float64)
    left, singular, _ = np.linalg.svd(differences, full_matrices=False)
    if singular[1] <= 1e-8 * singular[0] or singular[0] == 0:
        raise ValueError("the three templates are on a line, so there is no plane through them")
    basis = left[:, :2]
    # The solver may return any rotation of the basis. Fix it by the templates: the first difference
    # points right, the second up.
    right = differences[:, 0] / np.linalg.norm(differences[:, 0])
    up = differences[:, 1] - (differences[:, 1] @ right) * right
    up /= np.linalg.norm(up)
    return basis @ (basis.T @ np.stack([right, up], 1))


def project(points: NDArray, templates: NDArray, basis: NDArray) -> NDArray:
    """Return the coordinates ``[N, 2]`` of points ``[N, D]`` in a plane.

    Args:
        points: ``[N, D]``.
        templates: the three ``[3, D]`` whose mean is the origin.
        basis: ``[D, 2]``, as `template_plane` returns it.
    """
    return (points.astype(np.float64) - templates.mean(0)) @ basis


def template_space(templates: NDArray) -> NDArray[np.float64]:
    """Return an orthonormal basis ``[D, r]`` of all differences of templates ``[K, D]``, r < K.

    If the last layer is linear, predictions depend only on the part of the features in this space.
    The space contains the plane through any three templates.
    """
    centred = templates.astype(np.float64) - templates.mean(0, dtype=np.float64)
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    return right[singular > 1e-8 * max(singular[0], TINY)].T


# ------------------------------------------------------------------------ similar classes


def shared_probability(logits: Array, labels: Labels) -> NDArray[np.float64]:
    """Return how much probability classes give to each other, ``P + Pᵀ`` ``[K, K]``.

    ``P_kj`` is the mean p_j over the examples of class k. The result is symmetric; its diagonal is
    -1, so that it is never the largest entry.
    """
    classes = logits.shape[1]
    sums = np.zeros((classes, classes))
    for rows in row_chunks(logits):
        sum_by_class(probabilities(logits[rows]), labels[rows], sums)
    count = np.maximum(np.bincount(labels, minlength=classes), 1)
    means = sums / count[:, None]
    shared = means + means.T
    np.fill_diagonal(shared, -1)
    return shared


def most_confused(shared: NDArray) -> list[int]:
    """Return the two classes that share most probability, and the one that shares most with them.

    Args:
        shared: ``[K, K]`` as `shared_probability` returns it, K ≥ 3.
    """
    first, second = np.unravel_index(shared.argmax(), shared.shape)
    with_pair = shared[first] + shared[second]
    with_pair[[first, second]] = -np.inf
    return [int(first), int(second), int(with_pair.argmax())]


def confused_and_far(shared: NDArray) -> list[int]:
    """Return the two classes that share most probability, and the one that shares least with them.

    As in Figure 1 of Müller et al. 2019: two poodles and a tench.

    Args:
        shared: ``[K, K]`` as `shared_probability` returns it, K ≥ 3.
    """
    first, second, _ = most_confused(shared)
    with_pair = shared[first] + shared[second]
    with_pair[[first, second]] = np.inf
    return [first, second, int(with_pair.argmin())]


def near_classes(shared: NDArray, count: int) -> NDArray[np.bool_]:
    """Return which `count` other classes share most probability with each class, ``[K, K]``."""
    order = np.argsort(-shared, axis=1, kind="stable")[:, :count]
    near = np.zeros(shared.shape, bool)
    np.put_along_axis(near, order, values=True, axis=1)
    return near


# ------------------------------------------------------------------------ clusters


def within_between(features: NDArray, labels: Labels) -> float:
    """Return the variance within classes over the variance between class means.

    Both are summed over dimensions. These are the variance components of a one-way analysis of
    variance, ``MS_W / ((MS_B - MS_W) / n)`` with n examples per class (for unequal classes the
    usual mean n₀). Unlike the ratio of sums of squares, it does not depend on how many examples
    there are: means of few examples differ by chance.

    Args:
        features: ``[N, D]``.
        labels: ``[N]``.

    Returns:
        0 if every class is collapsed to a point; inf if the means differ no more than by chance.

    Raises:
        ValueError: if there are fewer than two classes, or no class has two examples.
    """
    deviations, means = _deviations_and_means(features, labels)
    count = len(deviations)
    classes = len(means)
    if count == classes:
        raise ValueError("the variance within classes needs at least two examples of a class")
    x = features.astype(np.float64)
    within = (deviations**2).sum() / (count - classes)
    between = ((x - deviations - x.mean(0)) ** 2).sum() / (classes - 1)
    class_sizes = np.unique(labels, return_counts=True)[1]
    per_class = (count - (class_sizes**2).sum() / count) / (classes - 1)
    if between > within:
        return float(within / ((between - within) / per_class))
    return float("inf")


def class_separation(features: NDArray, labels: Labels) -> float:
    """Return R² = 1 - within/total of mean cosine distances, in [0, 1].

    This is the class separation of Kornblith et al. 2021, equation 11. It is 1 for classes that are
    collapsed to one direction each. All classes have equal weight. A feature vector of length 0 has
    cosine 0 to every vector.

    Args:
        features: ``[N, D]``.
        labels: ``[N]``.

    Raises:
        ValueError: if there are fewer than two classes.
    """
    x = features.astype(np.float64)
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), TINY)
    # A mean of cosines is the product of the means of the unit vectors.
    _, means = _deviations_and_means(unit, labels)
    total = 1 - (means.mean(0) ** 2).sum()
    within = 1 - (means**2).sum(1).mean()
    return float(1 - within / total) if total > 0 else 0.0


def nc1(features: NDArray, labels: Labels) -> float:
    """Return ``tr(Σ_W Σ_B⁺) / K``, the variability collapse of Papyan et al. 2020; 0 at collapse.

    Σ_W is the covariance of the features about their class mean, over examples. Σ_B is the
    covariance of the class means about their mean, ⁺ the Moore-Penrose inverse. It does not depend
    on the scale of the features.

    Args:
        features: ``[N, D]``.
        labels: ``[N]``.

    Returns:
        inf if all class means are equal.

    Raises:
        ValueError: if there are fewer than two classes.
    """
    deviations, means = _deviations_and_means(features, labels)
    _, singular, right = np.linalg.svd(means - means.mean(0), full_matrices=False)
    # K means about their mean have at most K - 1 directions; the others are rounding errors.
    kept = singular > 1e-7 * singular[0]
    if not kept.any():
        return float("inf")
    within = ((deviations @ right[kept].T) ** 2).mean(0)
    # Σ_B has the eigenvalues s²/K, whose K cancels the 1/K.
    return float((within / singular[kept] ** 2).sum())


def _deviations_and_means(features: NDArray, labels: Labels) -> tuple[NDArray, NDArray]:
    """Return features minus their class mean ``[N, D]``, and the class means, in float64.

    Only classes that occur have a mean.
    """
    x = features.astype(np.float64)
    classes, class_index = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError("this measure needs examples of at least two classes")
    means = np.stack([x[class_index == i].mean(0) for i in range(len(classes))])
    return x - means[class_index], means


# ------------------------------------------------------------------------ templates and logits


def wrong_template_spread(features: NDArray, templates: NDArray, labels: Labels) -> float:
    """Return how unequal an example's distances to its K - 1 wrong templates are.

    It is the standard deviation of the distances over their mean, averaged over examples: 0 if they
    are equal, which label smoothing encourages (Müller et al. 2019, section 2).

    Args:
        features: ``[N, D]``. To include the biases, as the paper does, append a 1 to each.
        templates: ``[K, D]``. To include the biases, append its bias to each template.
        labels: ``[N]``.

    Raises:
        ValueError: if there are fewer than three classes.
    """
    if len(templates) < 3:
        raise ValueError("the spread of distances to wrong templates needs at least three classes")
    x = features.astype(np.float64)
    w = templates.astype(np.float64)
    squares = (x**2).sum(1)[:, None] - 2 * x @ w.T + (w**2).sum(1)
    distances = np.sqrt(np.maximum(squares, 0))
    is_wrong = np.arange(len(w)) != labels[:, None]
    wrong = distances[is_wrong].reshape(len(x), -1)
    return float((wrong.std(1) / np.maximum(wrong.mean(1), TINY)).mean())


def logit_gap(logits: Array, labels: Labels) -> tuple[float, float]:
    """Return the mean and standard deviation of ``z_y - z_k`` over all examples and all k ≠ y."""
    wrong_classes = logits.shape[1] - 1
    sums = np.zeros(2)  # of the shifted gaps and of their squares
    shift = None
    for rows in row_chunks(logits):
        z = logits[rows].astype(np.float64)
        gaps = select_class(z, labels[rows])[:, None] - z  # 0 for the class itself
        if shift is None:
            # The mean of the first chunk is close enough to the mean to avoid cancellation in the
            # variance.
            shift = gaps.sum() / (len(z) * wrong_classes)
        gaps -= shift
        np.put_along_axis(gaps, labels[rows][:, None], 0.0, 1)
        sums += gaps.sum(), (gaps**2).sum()
    mean, mean_square = sums / (len(labels) * wrong_classes)
    return float(shift + mean), float(np.sqrt(max(mean_square - mean**2, 0.0)))
