"""How much a network's answer tells of which training example it was shown (Müller et al. 2019, section 4)."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp


def mutual_information(draws: NDArray, values: NDArray) -> float:
    """I(X; Y) between the index of an example and a number that a network says of a random view of it, in nats.

    Each example's numbers are taken as normal with one variance:

        I = 1/N Σ_x [ -(y_x - μ_x)² / 2s² - log 1/N Σ_x' exp(-(y_x - μ_x')² / 2s²) ]

    The paper prints the inner sum over the index of the outer one, which makes it a constant (about -0.153) for any
    network; the difference y_x - μ_x' to the means of all examples is what the definition of I(X; Y) asks for.

    Args:
        draws: ``[N, L]``, of L views of each example, for the means μ.
        values: ``[N]``, of one more view of each, y: reusing a draw would add about a tenth of a nat.

    Returns:
        at most log N; about 1 / 2L too low, so slightly below 0 where there is nothing to know (the paper's L = 5 costs
        a tenth of a nat). Where no view differs from another (s = 0) it
        is the entropy of the values.
    """
    means, values = draws.mean(1, dtype=np.float64), np.asarray(values, np.float64)
    variance = ((values - means) ** 2).mean()
    if variance <= (1e-12 * np.abs(values).max(initial=0)) ** 2:
        same = np.isclose(values[:, None], means[None], rtol=1e-9, atol=0)
        return float(-np.log(same.mean(1).clip(1 / len(values))).mean())
    likelihood = -((values[:, None] - means[None]) ** 2) / (
        2 * variance
    )  # of y_x under x', up to a constant
    return float(
        (likelihood.diagonal() - logsumexp(likelihood, axis=1) + np.log(len(values))).mean()
    )
