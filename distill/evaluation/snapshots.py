"""Load a run's network at each of its snapshots."""

from collections.abc import Iterator

import torch
from safetensors.torch import load_file
from torch import nn

from distill.models.factory import load_run_model
from distill.storage.run_store import RunStore


def models_over_training(
    store: RunStore, run_id: str, device: torch.device
) -> Iterator[tuple[int, nn.Module]]:
    """Yield a stored run's network at each of its snapshots, and finally with its final weights.

    Every step yields the same module with new weights: copy the weights that you want to keep.

    Args:
        store: where the run is stored.
        run_id: the run.
        device: where to put the network.

    Yields:
        the number of epochs trained, and the network in eval mode.

    Raises:
        UserError: if the run's folder is damaged.
    """
    model = load_run_model(store.folder(run_id)).to(device).requires_grad_(requires_grad=False)
    final = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for epoch, file in store.snapshots(run_id).items():
        model.load_state_dict(load_file(file))
        yield epoch, model
    model.load_state_dict(final)
    yield store.record(run_id)["epochs"], model
