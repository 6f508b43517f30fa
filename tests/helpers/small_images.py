"""A study of convolutional networks on synthetic images."""

from helpers.recipes import TINY, merge

IMAGES = merge(
    TINY,
    {
        "data": {
            "source": "synthetic",
            "synthetic": {"shape": [3, 8, 8], "train": 160, "test": 40},
        },
        "train": {"epochs": 2, "batch_size": 48},
        "teachers": {"hard": {"model": "cifar_resnet8"}},
        "students": {
            "alone": {"model": "cifar_resnet8"},
            "distilled": {"model": "cifar_resnet8"},
        },
    },
)
"""The arms of `TINY` with batch normalisation, on 144 colour images: 3 steps an epoch."""
