"""The penultimate layer as the paper draws it (section 2): the plane through three templates."""

import numpy as np
from numpy.typing import NDArray


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


def within_between(features: NDArray, labels: NDArray[np.int64]) -> float:
    """Mean squared distance to the own class mean over that of the class means to their mean.

    0 for clusters collapsed to points; classes weigh by their examples.

    Raises:
        ValueError: if there are fewer than two classes.
    """
    x = features.astype(np.float64)
    classes, place = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError("within/between needs at least two classes")
    means = np.stack([x[place == i].mean(0) for i in range(len(classes))])
    within = ((x - means[place]) ** 2).sum(1).mean()
    between = ((means[place] - x.mean(0)) ** 2).sum(1).mean()
    return float(within / between) if between > 0 else float("inf")


def most_confused(probabilities: NDArray, labels: NDArray[np.int64]) -> list[int]:
    """Three classes that a network confuses most: the pair that shares most probability, and its nearest third.

    Args:
        probabilities: ``[N, K]``, K ≥ 3.
        labels: ``[N]``.
    """
    classes = probabilities.shape[1]
    shared = np.zeros((classes, classes))
    for k in np.unique(labels):
        shared[k] = probabilities[labels == k].mean(0)
    shared = shared + shared.T
    np.fill_diagonal(shared, -1)
    first, second = np.unravel_index(shared.argmax(), shared.shape)
    third = shared[first] + shared[second]
    third[[first, second]] = -1
    return [int(first), int(second), int(third.argmax())]
