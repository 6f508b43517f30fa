"""Networks for tests."""

from typing import Any

from torch import nn

from distill.models.factory import ModelSpec, build_model


def view_shape_of(name: str) -> tuple[int, int, int]:
    """Return the shape of the images that tests show a network: MNIST's for MLPs, else CIFAR's."""
    return (1, 28, 28) if name.startswith("mlp") else (3, 32, 32)


def build(
    name: str,
    *,
    view_shape: tuple[int, int, int] | None = None,
    num_classes: int = 10,
    seed: int = 0,
    **spec: Any,
) -> nn.Module:
    """Build a network for data with a mean of 0.4 and a std of 0.2 in each channel."""
    shape = view_shape or view_shape_of(name)
    spec = {"mean": (0.4,) * shape[0], "std": (0.2,) * shape[0], **spec}
    return build_model(ModelSpec(name, num_classes, shape, **spec), seed)
