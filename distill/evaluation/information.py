"""Estimate how much information a network's output has about individual training examples.

See Müller et al. 2019, section 4.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp


def mutual_information(draws: NDArray, values: NDArray) -> float:
    """Estimate the mutual information I(X; Y) of examples and a network's output, in nats.

    X is the index of an example, Y the output on a random view of it, one number per view. The
    numbers of an example x are assumed to be normal with mean μ_x and the same variance s² for all
    examples:

        I = 1/N Σ_x [ -(y_x - μ_x)² / 2s² - log 1/N Σ_x' exp(-(y_x - μ_x')² / 2s²) ]

    The paper prints the inner sum over the index of the outer one. That makes I the same constant
    (about -0.153) for every network. The definition of I(X; Y) needs the differences y_x - μ_x' to
    the means of all examples.

    Args:
        draws: ``[N, L]``, Y on L views of each example, for the means μ.
        values: ``[N]``, Y on one more view of each example, y. Reusing one of the draws would add
            about a tenth of a nat.

    Returns:
        At most log N. The estimate is about 1 / 2L too low (a tenth of a nat for L = 5, as in the
        paper), so it is slightly below 0 if there is no information. If all views of an example
        give the same number (s = 0), it is the entropy of the values.
    """
    means = draws.mean(1, dtype=np.float64)
    values = np.asarray(values, np.float64)
    variance = ((values - means) ** 2).mean()
    if variance <= (1e-12 * np.abs(values).max(initial=0)) ** 2:
        is_equal = np.isclose(values[:, None], means[None], rtol=1e-9, atol=0)
        share = is_equal.mean(1).clip(1 / len(values))
        return float(-np.log(share).mean())
    # log p(y_x | x'), up to a constant, [x, x'].
    log_likelihood = -((values[:, None] - means[None]) ** 2) / (2 * variance)
    log_sum = logsumexp(log_likelihood, axis=1)
    return float((log_likelihood.diagonal() - log_sum + np.log(len(values))).mean())
