"""Worker processes that decode images.

An exception that crosses a process boundary loses its message. So if a data set cannot decode an
image, it returns the error message, a string, in its place. The receiving process raises the error
(`unwrap`).
"""

import multiprocessing
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.errors import UserError

# Starting worker processes takes longer than decoding fewer images than this.
MIN_IMAGES_FOR_WORKERS = 2000


def stack_images(items: list[Tensor | str]) -> Tensor | str:
    """Stack images to a batch ``[B, C, H, W]``, or return the first error message among them."""
    for item in items:
        if isinstance(item, str):
            return item
    return torch.stack(items)


def unwrap(batch: Tensor | str) -> Tensor:
    """Return an image or a batch; raise a UserError if it is an error message.

    Raises:
        UserError: if the batch is an error message.
    """
    if isinstance(batch, str):
        raise UserError(batch)
    return batch


def worker_arguments(workers: int) -> dict[str, Any]:
    """Return the DataLoader arguments for `workers` forked processes.

    If `workers` is 0 or the system cannot fork, everything runs in the calling process.
    """
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    if not workers or not can_fork:
        return {"num_workers": 0}
    return {"num_workers": workers, "multiprocessing_context": "fork"}


class WorkerPool:
    """The worker processes of one data set; they stay alive for the next stream of batches.

    Attributes:
        idle: the loader whose processes wait for the next stream, or None.
    """

    def __init__(self) -> None:
        self.idle: DataLoader | None = None

    def stream(
        self,
        dataset: Dataset,
        batches: list[list[int]],
        arguments: dict[str, Any],
        *,
        pinned: bool,
    ) -> Iterator[Tensor | str]:
        """Decode batches in order; at most two batches per process are decoded ahead.

        Args:
            dataset: the data set of this pool.
            batches: the image numbers of each batch.
            arguments: result of `worker_arguments`, used when new processes must be started.
            pinned: whether batches are put into page-locked memory, for copies to a GPU.

        Yields:
            Batches ``[B, C, H, W]``, or the message of the first error in a batch.
        """
        # A second stream that runs at the same time finds no idle loader and starts its own
        # processes.
        loader = self.idle
        self.idle = None
        if loader is None:
            loader = DataLoader(
                dataset,
                batch_sampler=[],
                collate_fn=stack_images,
                pin_memory=pinned,
                persistent_workers=arguments["num_workers"] > 0,
                **arguments,
            )
        # The loader keeps a reference to this list: new contents are its next epoch.
        loader.batch_sampler[:] = batches
        yield from loader
        self.idle = loader
