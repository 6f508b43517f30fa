"""Reference definitions of matrix norms in plain Python, for matrices as lists of rows."""

import math

from helpers.oracles import dot, length


def l1_entry(W):
    """sum |w|."""
    return sum(abs(w) for row in W for w in row)


def frobenius(W):
    """sqrt sum w^2."""
    return math.sqrt(sum(w * w for row in W for w in row))


def inf(W):
    """max over rows of sum |w|."""
    return max(sum(abs(w) for w in row) for row in W)


def spectral(W):
    """largest singular value: |Wv| after 500 steps of v -> W^T W v / |W^T W v|."""
    columns = len(W[0])
    v = [math.sin(j + 1.0) for j in range(columns)]
    for _ in range(500):
        u = [dot(row, v) for row in W]
        v = [sum(W[i][j] * u[i] for i in range(len(W))) for j in range(columns)]
        norm = length(v)
        if norm == 0:
            return 0.0
        v = [x / norm for x in v]
    return length([dot(row, v) for row in W])
