"""A group of processes as one object, whose methods also work for a single process."""

from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Distributed:
    """A group of processes: all processes of an accelerator, or this process alone.

    With one process, no method communicates. So callers need no branches.

    Attributes:
        accelerator: the accelerator whose processes form the group; None for this process alone.
    """

    accelerator: Accelerator | None = None

    @property
    def world_size(self) -> int:
        """Return the number of processes."""
        return self.accelerator.num_processes if self.accelerator else 1

    @property
    def rank(self) -> int:
        """Return the rank of this process, counted from 0."""
        return self.accelerator.process_index if self.accelerator else 0

    @property
    def is_main(self) -> bool:
        """Return whether this is process 0, which writes files and decides for all processes."""
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        """Return whether there is only one process."""
        return self.world_size == 1

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        return tensor if self.is_single else self.accelerator.reduce(tensor, "sum")

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors `[1, …]` of all processes as `[world_size, …]`."""
        return tensor if self.is_single else self.accelerator.gather(tensor)

    def gather_objects(self, value: T) -> list[T]:
        """Return the values of all processes, in the order of their ranks."""
        return [value] if self.is_single else gather_object([value])

    def broadcast_object(self, value: T) -> T:
        """Return the value of process 0."""
        return value if self.is_single else broadcast_object_list([value])[0]

    def broadcast(self, tensor: Tensor, source: int = 0) -> Tensor:
        """Overwrite a tensor with the one of process `source`, and return it."""
        if not self.is_single:
            torch.distributed.broadcast(tensor, source)
        return tensor

    def average_gradients(self, module: nn.Module) -> None:
        """Average the gradients of a module that is not wrapped in DistributedDataParallel."""
        if self.is_single:
            return
        for weight in module.parameters():
            if weight.grad is not None:
                torch.distributed.all_reduce(weight.grad)
                weight.grad /= self.world_size

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        if not self.is_single:
            self.accelerator.wait_for_everyone()


ONE_PROCESS = Distributed()
"""The group that consists of this process alone."""
