"""The penultimate layer as the paper draws it (section 2), and how tightly its classes stand together, in numbers."""

import numpy as np
from numpy.typing import NDArray

from distill.evaluation.calibration import Array, Labels, log_probabilities, parts

# ------------------------------------------------------------------------------------------------- the plane


def template_plane(templates: NDArray) -> NDArray:
    """An orthonormal basis ``[D, 2]`` of the plane through three templates ``[3, D]``.

    The basis spans the differences of the templates, so that their distances survive the projection.

    Raises:
        ValueError: if the three stand on a line: they span no plane.
    """
    differences = (templates[:2] - templates[2]).T.astype(np.float64)
    left, singular, _ = np.linalg.svd(differences, full_matrices=False)
    if singular[1] <= 1e-8 * singular[0] or singular[0] == 0:
        raise ValueError("the three templates stand on a line, so there is no plane through them")
    basis = left[:, :2]
    # fixed by the templates, not by the solver: the first two differences point right, the second up
    first = differences[:, 0] / np.linalg.norm(differences[:, 0])
    second = differences[:, 1] - (differences[:, 1] @ first) * first
    second /= np.linalg.norm(second)
    return basis @ (basis.T @ np.stack([first, second], 1))


def project(points: NDArray, templates: NDArray, basis: NDArray) -> NDArray:
    """Coordinates ``[N, 2]`` of points ``[N, D]``, with the mean of the three templates at the origin."""
    return (points.astype(np.float64) - templates.mean(0)) @ basis


def template_space(templates: NDArray) -> NDArray[np.float64]:
    """An orthonormal basis ``[D, r]`` of all differences of templates ``[K, D]``, r ≤ K - 1.

    What a network with a linear last layer answers depends on nothing else in its features. The plane through three
    templates lies in it.
    """
    centred = templates.astype(np.float64) - templates.mean(0, dtype=np.float64)
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    return right[singular > 1e-8 * max(singular[0], np.finfo(float).tiny)].T


def shared_probability(logits: Array, labels: Labels) -> NDArray[np.float64]:
    """How much of their probability classes give to each other, ``[K, K]``: ``P + Pᵀ``, P_kj the mean p_j of the
    examples of class k. Symmetric; the diagonal is -1, so that it is never the largest.
    """
    classes = logits.shape[1]
    sums, count = (
        np.zeros((classes, classes)),
        np.maximum(np.bincount(labels, minlength=classes), 1),
    )
    for part in parts(logits):
        p, own = np.exp(log_probabilities(logits[part])), labels[part]
        for k in np.unique(own):
            sums[k] += p[own == k].sum(0)
    shared = sums / count[:, None]
    shared = shared + shared.T
    np.fill_diagonal(shared, -1)
    return shared


def most_confused(shared: NDArray) -> list[int]:
    """Three classes that a network confuses most: the pair that shares most probability, and its suggest third.

    Args:
        shared: as `shared_probability` returns it, K ≥ 3.
    """
    first, second = np.unravel_index(shared.argmax(), shared.shape)
    third = shared[first] + shared[second]
    third[[first, second]] = -np.inf
    return [int(first), int(second), int(third.argmax())]


def confused_and_far(shared: NDArray) -> list[int]:
    """The pair that a network confuses most, and the class that shares least with it (as in the paper's Figure 1,
    two poodles and a tench); `shared` as for `most_confused`.
    """
    first, second, _ = most_confused(shared)
    third = shared[first] + shared[second]
    third[[first, second]] = np.inf
    return [first, second, int(third.argmin())]


def near_classes(shared: NDArray, count: int) -> NDArray[np.bool_]:
    """For each class, which `count` others it shares most probability with, ``[K, K]``."""
    order = np.argsort(-shared, axis=1, kind="stable")[:, :count]
    near = np.zeros(shared.shape, bool)
    np.put_along_axis(near, order, True, axis=1)
    return near


# ----------------------------------------------------------------------------------------------- its numbers


def _centred(features: NDArray, labels: Labels) -> tuple[NDArray, NDArray]:
    """Features less their class mean ``[N, D]``, and the means ``[K, D]`` of the classes that occur, in float64."""
    x = features.astype(np.float64)
    classes, place = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError("this needs examples of at least two classes")
    means = np.stack([x[place == i].mean(0) for i in range(len(classes))])
    return x - means[place], means


def within_between(features: NDArray, labels: Labels) -> float:
    """Variance within classes over variance between their means, both summed over dimensions.

    The components of a one-way analysis of variance: ``MS_W / ((MS_B - MS_W) / n)``, n examples a class (of unequal
    ones, their usual mean). So it does not depend on how many examples are looked at, as the ratio of sums would: means
    of few examples lie apart by chance. 0 for clusters collapsed to points; inf where the means lie no farther apart
    than chance has them.

    Raises:
        ValueError: if there are fewer than two classes, or no class has two examples.
    """
    deviations, means = _centred(features, labels)
    count, classes = len(deviations), len(means)
    if count == classes:
        raise ValueError("this needs at least two examples of a class")
    x = features.astype(np.float64)
    within = (deviations**2).sum() / (count - classes)
    between = ((x - deviations - x.mean(0)) ** 2).sum() / (classes - 1)
    sizes = np.unique(labels, return_counts=True)[1]
    each = (count - (sizes**2).sum() / count) / (classes - 1)
    return float(within / ((between - within) / each)) if between > within else float("inf")


def class_separation(features: NDArray, labels: Labels) -> float:
    """R² = 1 - within/total of mean cosine distances (Kornblith et al. 2021, equation 11), in [0, 1].

    1 for classes collapsed to one direction each; classes weigh alike. A feature vector of length 0 has cosine 0
    to all.

    Raises:
        ValueError: if there are fewer than two classes.
    """
    x = features.astype(np.float64)
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(float).tiny)
    _, means = _centred(
        unit, labels
    )  # a mean of cosines is the product of the means of unit vectors
    total = 1 - (means.mean(0) ** 2).sum()
    return float(1 - (1 - (means**2).sum(1).mean()) / total) if total > 0 else 0.0


def nc1(features: NDArray, labels: Labels) -> float:
    """``tr(Σ_W Σ_B⁺) / K``: what varies within classes, against what lies between (Papyan et al. 2020); 0 at collapse.

    Σ_W is the mean over examples, Σ_B over the class means about their mean, ⁺ the Moore-Penrose inverse. Does not
    change with the scale of the features.

    Raises:
        ValueError: if there are fewer than two classes.
    """
    deviations, means = _centred(features, labels)
    _, singular, right = np.linalg.svd(means - means.mean(0), full_matrices=False)
    kept = singular > 1e-7 * singular[0]  # K means about their mean have at most K - 1 directions
    if not kept.any():
        return float("inf")
    along = ((deviations @ right[kept].T) ** 2).mean(0)
    return float(
        (along / singular[kept] ** 2).sum()
    )  # Σ_B has eigenvalues s²/K, which the 1/K cancels


def wrong_template_spread(features: NDArray, templates: NDArray, labels: Labels) -> float:
    """How unequal an example's distances to its K - 1 wrong templates are: standard deviation over mean, averaged.

    0 where they are equally far, as label smoothing wants them (section 2). With the biases, as the paper has it,
    features ``[N, D]`` end in a 1 and templates ``[K, D]`` in their bias.

    Raises:
        ValueError: if there are fewer than three classes.
    """
    if len(templates) < 3:
        raise ValueError("the spread of distances to wrong templates needs at least three classes")
    x, w = features.astype(np.float64), templates.astype(np.float64)
    squares = (x**2).sum(1)[:, None] - 2 * x @ w.T + (w**2).sum(1)
    distances = np.sqrt(np.maximum(squares, 0))
    wrong = distances[np.arange(len(w)) != labels[:, None]].reshape(len(x), -1)
    return float((wrong.std(1) / np.maximum(wrong.mean(1), np.finfo(float).tiny)).mean())


def logit_gap(logits: Array, labels: Labels) -> tuple[float, float]:
    """Mean and standard deviation of ``z_y - z_k`` over all examples and all k ≠ y."""
    sums, classes = np.zeros(2), logits.shape[1]
    mean = None
    for part in parts(logits):
        z = logits[part].astype(np.float64)
        gaps = np.take_along_axis(z, labels[part][:, None], 1) - z  # 0 for the class itself
        mean = (
            gaps.sum() / (len(z) * (classes - 1)) if mean is None else mean
        )  # near enough to subtract
        gaps -= mean
        np.put_along_axis(gaps, labels[part][:, None], 0.0, 1)
        sums += gaps.sum(), (gaps**2).sum()
    first, second = sums / (len(labels) * (classes - 1))
    return float(mean + first), float(np.sqrt(max(second - first**2, 0.0)))
