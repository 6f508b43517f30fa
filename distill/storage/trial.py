"""Store a network before it is trained, to find out whether it can be stored afterwards."""

import tempfile
from pathlib import Path

import torch
from torch import nn

from distill.errors import UserError
from distill.models.factory import blank_images, load_run_model
from distill.storage.run_fingerprint import Run
from distill.storage.run_store import write_network


@torch.no_grad()
def check_storable(run: Run, model: nn.Module) -> None:
    """Store a network in a temporary folder, load it again and compare the outputs of both.

    Args:
        run: the run that will store it.
        model: the network, in eval mode, on the CPU.

    Raises:
        UserError: if it cannot be stored or loaded, or if it is another network then.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Networks of users may fail in any way.
        try:
            write_network(Path(folder), run, model)
            with torch.random.fork_rng(devices=[]):
                again = load_run_model(Path(folder))
        except Exception as error:
            if isinstance(error, OSError) or "I/O error" in str(error):
                # A full temporary folder says nothing about the network.
                return
            reason = str(error).replace(folder, "its folder")
            if "share memory" in reason:
                reason = "two of its weights share memory; give each of them its own"
            if "contiguous" in reason:
                reason = "a weight is not contiguous in memory; make it so with .contiguous()"
            raise UserError(f"it cannot be stored and loaded again: {reason}") from None
    shape = blank_images(model, 2).shape
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    expected = model(images)
    if not torch.equal(images, before):
        raise UserError(
            "it changes its input in place, which other networks see too; copy it first"
        )
    if not torch.allclose(expected, again(images), rtol=1e-4, atol=1e-5, equal_nan=True):
        raise UserError(
            "its outputs differ after it is stored and loaded again; are all its arguments plain "
            "values, and all its weights in state_dict()?"
        )
