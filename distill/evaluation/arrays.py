"""Helpers for arrays of logits: chunks of rows, probabilities, and the value of each label.

Metrics are computed in float64, a chunk of rows at a time, so that a million predictions take no
more memory than a few.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.floating]
Labels = NDArray[np.int64]

CHUNK_VALUES = 2**20  # logits that are in memory as float64 at one time


def row_chunks(logits: Array) -> Iterator[slice]:
    """Yield slices of rows that cover logits ``[N, K]``, each of at most `CHUNK_VALUES` logits."""
    rows = max(1, CHUNK_VALUES // logits.shape[1])
    for first in range(0, len(logits), rows):
        yield slice(first, first + rows)


def log_probabilities(logits: Array, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return ``log softmax(z / T)`` of logits ``[N, K]``, in float64."""
    scaled = np.array(logits, np.float64) / temperature
    # PyTorch's log_softmax is faster than scipy's.
    return torch.from_numpy(scaled).log_softmax(1).numpy()


def probabilities(logits: Array, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return ``softmax(z / T)`` of logits ``[N, K]``, in float64."""
    return np.exp(log_probabilities(logits, temperature))


def select_class(values: Array, labels: Labels) -> Array:
    """Return ``[N]``, the entry of each row of values ``[N, K]`` at its label ``[N]``."""
    return np.take_along_axis(values, labels[:, None], axis=1)[:, 0]


def sum_by_class(values: Array, labels: Labels, sums: NDArray[np.float64]) -> None:
    """Add each row of values ``[N, D]`` to its class's row of `sums` ``[K, D]``, in place."""
    for label in np.unique(labels):
        sums[label] += values[labels == label].sum(0)
