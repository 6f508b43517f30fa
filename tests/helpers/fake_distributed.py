"""Several processes in one, where starting them is not the point of a test."""

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from distill.devices.distributed import Distributed

T = TypeVar("T")


@dataclass(frozen=True)
class FakeDistributed(Distributed):
    """One of `world_size` processes that all hold the same values.

    So a sum over them is `world_size` times its own.
    """

    rank: int = 0
    world_size: int = 2

    def sum(self, tensor: Tensor) -> Tensor:
        return self.world_size * tensor

    def gather_objects(self, value: T) -> list[T]:
        return [value] * self.world_size

    def broadcast_object(self, value: T) -> T:
        return value

    def broadcast(self, tensor: Tensor, source: int = 0) -> Tensor:
        return tensor

    def average_gradients(self, module: nn.Module) -> None:
        """Do nothing: the average of equal gradients is their value."""

    def wait(self) -> None:
        """Do nothing."""
