"""Random features and logits with labels."""

import numpy as np


def clusters(seed, count=24, classes=4, dimensions=5):
    """Return features ``[N, D]`` and labels ``[N]`` of classes of unequal sizes, none empty."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, count - classes)])
    centres = generator.normal(0, generator.uniform(0, 3), (classes, dimensions))
    return centres[labels] + generator.normal(size=(count, dimensions)), labels


def random_logits(seed, count=200, classes=7, scale=3.0):
    """Return logits ``[N, K]`` and labels ``[N]`` that are independent of them."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, scale, (count, classes))
    return logits, generator.integers(0, classes, count)
