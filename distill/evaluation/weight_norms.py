"""Norms of weights, and how far training has taken them.

Label smoothing is expected to shrink the last layer, and the geometric reading of the paper (section 2) takes
the templates' norms to be about equal: both can be watched here.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.linalg import matrix_norm, vector_norm


def norms(weight: Tensor, initial: Tensor | None = None) -> dict[str, float]:
    """Of one layer's weight ``[D_out, …]``, as a matrix with a row for each output.

    Args:
        weight: in any precision; computed in float64.
        initial: the weight before training.

    Returns:
        ``l1`` (sum of absolute values), ``l2`` (Frobenius), ``spectral`` (largest singular value), ``inf`` (largest
        row sum of absolute values) and, with `initial`, ``distance`` and ``relative_distance``, in l2.
    """
    matrix = _precise(weight).flatten(1)
    found = {
        "l1": vector_norm(matrix, 1),
        "l2": matrix_norm(matrix),
        "spectral": matrix_norm(matrix, 2),
        "inf": matrix_norm(matrix, torch.inf),
    }
    if initial is not None:
        start = _precise(initial).flatten(1)
        found["distance"] = matrix_norm(matrix - start)
        found["relative_distance"] = found["distance"] / matrix_norm(start).clamp(min=1e-30)
    return dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True))


def total(weights: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> dict[str, float]:
    """All layers as one vector: ``l1``, ``l2``, ``distance`` from `initial`, and ``relative_distance``."""
    now, start = (
        torch.cat([_precise(w[name]).flatten() for name in weights]) for w in (weights, initial)
    )
    distance, length = vector_norm(now - start), vector_norm(start)
    found = torch.stack(
        [vector_norm(now, 1), vector_norm(now), distance, distance / length.clamp(min=1e-30)]
    )
    return dict(zip(("l1", "l2", "distance", "relative_distance"), found.tolist(), strict=True))


def template_spread(templates: Tensor) -> float:
    """Standard deviation over mean of the squared norms of templates ``[K, D]``; 0 where all are equal."""
    squares = vector_norm(_precise(templates), dim=1).square()
    return (squares.std(correction=0) / squares.mean().clamp(min=1e-30)).item()


def _precise(x: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return (x.cpu() if x.device.type == "mps" else x).double()
