"""Networks for tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules import module as hooks

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
    notes: list[str] | None = None,
    **spec: Any,
) -> nn.Module:
    """Build a network for data with a mean of 0.4 and a std of 0.2 in each channel."""
    shape = view_shape or view_shape_of(name)
    spec = {"mean": (0.4,) * shape[0], "std": (0.2,) * shape[0], **spec}
    return build_model(ModelSpec(name, num_classes, shape, **spec), seed, notes)


@dataclass
class Passes:
    """How many images went through networks; `depth` is that of the call that is under way."""

    total: int = 0
    depth: int = 0


@contextmanager
def count_passes() -> Iterator[Passes]:
    """Count the images that go through networks: once, and once more where a gradient follows."""
    passes = Passes()

    def enter(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if passes.depth == 0:
            (images,) = inputs
            passes.total += len(images) * (2 if images.requires_grad else 1)
        passes.depth += 1

    def leave(*_: Any) -> None:
        passes.depth -= 1

    handles = [
        hooks.register_module_forward_pre_hook(enter),
        hooks.register_module_forward_hook(leave),
    ]
    yield passes
    for handle in handles:
        handle.remove()
