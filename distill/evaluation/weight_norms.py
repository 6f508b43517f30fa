"""Measure the norms of weights, and how far training has moved the weights.

Label smoothing is expected to shrink the last layer, and the geometric argument of Müller et al.
2019 (section 2) assumes that all templates have about the same norm. Both can be checked here.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.linalg import matrix_norm, vector_norm

TINY = 1e-30


def norms(weight: Tensor, initial: Tensor | None = None) -> dict[str, float]:
    """Compute norms of one layer's weight, as a matrix with a row for each output.

    Args:
        weight: ``[D_out, …]`` in any precision; norms are computed in float64.
        initial: the weight before training.

    Returns:
        ``l1`` (sum of absolute values), ``l2`` (Frobenius norm), ``spectral`` (largest singular
        value), ``inf`` (largest row sum of absolute values) and, with `initial`, ``distance``
        (Frobenius norm of the difference) and ``relative_distance`` (the distance over the norm of
        `initial`).
    """
    matrix = _to_float64(weight).flatten(1)
    found = {
        "l1": vector_norm(matrix, 1),
        "l2": matrix_norm(matrix),
        "spectral": matrix_norm(matrix, 2),
        "inf": matrix_norm(matrix, torch.inf),
    }
    if initial is not None:
        start = _to_float64(initial).flatten(1)
        found["distance"] = matrix_norm(matrix - start)
        found["relative_distance"] = found["distance"] / matrix_norm(start).clamp(min=TINY)
    return _to_floats(found)


def total(weights: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> dict[str, float]:
    """Compute norms of all layers as one vector.

    Args:
        weights: the trained weights, by name.
        initial: the same weights before training.

    Returns:
        ``l1``, ``l2``, ``distance`` (Euclidean, from `initial`), and ``relative_distance`` (the
        distance over the norm of `initial`).
    """
    vector = torch.cat([_to_float64(weights[name]).flatten() for name in weights])
    start = torch.cat([_to_float64(initial[name]).flatten() for name in weights])
    distance = vector_norm(vector - start)
    found = {
        "l1": vector_norm(vector, 1),
        "l2": vector_norm(vector),
        "distance": distance,
        "relative_distance": distance / vector_norm(start).clamp(min=TINY),
    }
    return _to_floats(found)


def template_spread(templates: Tensor) -> float:
    """Return the standard deviation over the mean of the squared norms of templates ``[K, D]``.

    It is 0 where all templates have the same norm.
    """
    squares = vector_norm(_to_float64(templates), dim=1).square()
    return (squares.std(correction=0) / squares.mean().clamp(min=TINY)).item()


def _to_float64(x: Tensor) -> Tensor:
    """Return a tensor in float64, on the CPU where its device (MPS) has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def _to_floats(values: dict[str, Tensor]) -> dict[str, float]:
    """Return scalars as numbers, copied from the device in one transfer."""
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
