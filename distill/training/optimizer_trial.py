"""Try an optimizer on a tiny network: one that cannot train or resume is refused at once."""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import UserError
from distill.recipe.schema import Train
from distill.storage.files import read_tree, write_tree
from distill.training.optim import make_optimizer, match_strides

# Small, so that no optimizer diverges: this is about steps, not about the learning rate.
LEARNING_RATE = 1e-3
STEPS = 4
RESUMED_AFTER = 2


def try_optimizer(train: Train, name_of_run: str, device: torch.device) -> None:
    """Train a tiny network with an optimizer, once in one piece and once with an interruption.

    Args:
        train: names the optimizer and its arguments.
        name_of_run: the run's name, for error messages.
        device: where the study trains; some optimizers work on some devices only.

    Raises:
        UserError: if the optimizer cannot take a step, if its state cannot be stored, or if
            training goes on in another way after a resume.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        uninterrupted = _Trial(train, name_of_run, device)
        uninterrupted.take_steps(range(STEPS))
        resumed = _Trial(train, name_of_run, device)
        resumed.take_steps(range(RESUMED_AFTER))
        resumed = resumed.restart()
        resumed.take_steps(range(RESUMED_AFTER, STEPS))
    pairs = zip(uninterrupted.weights(), resumed.weights(), strict=True)
    if not all(torch.equal(one, other) for one, other in pairs):
        raise UserError(
            f"{name_of_run}: train.optimizer '{train.optimizer}' has a state that its checkpoints "
            "do not hold, so an interrupted run would end with other weights; choose another one"
        )


class _Trial:
    """A tiny network in training, with a convolution, a linear layer and vectors."""

    def __init__(self, train: Train, name_of_run: str, device: torch.device) -> None:
        self.train = train.model_copy(update={"lr": LEARNING_RATE})
        self.name_of_run = name_of_run
        self.device = device
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
        self.model = nn.Sequential(*layers).to(device)
        self.optimizer = make_optimizer(self.model, self.train, name_of_run)

    def weights(self) -> list[Tensor]:
        """Return the weights and buffers of the network."""
        return list(self.model.state_dict().values())

    def take_steps(self, steps: range) -> None:
        """Take optimizer steps on batches that depend on the number of the step alone."""
        for step in steps:
            torch.manual_seed(step)
            images = torch.randn(6, 3, 6, 6).to(self.device)
            labels = (torch.arange(6) % 3).to(self.device)
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(images), labels).backward()
            # Optimizers with other demands, such as a closure, raise exceptions of any type.
            try:
                self.optimizer.step()
            except Exception as error:
                raise UserError(
                    f"{self.name_of_run}: train.optimizer '{self.train.optimizer}' cannot take a "
                    f"step with the gradients alone ({error}); choose one that needs no closure "
                    "and no second derivatives"
                ) from None

    def restart(self) -> "_Trial":
        """Return a trial that goes on from a checkpoint of this one."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint"
            try:
                write_tree(path, {"optimizer": self.optimizer.state_dict()})
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"{self.name_of_run}: the state of train.optimizer '{self.train.optimizer}' "
                    f"cannot be stored in a checkpoint ({error}); choose another one"
                ) from None
            checkpoint = read_tree(path)
        again = _Trial(self.train, self.name_of_run, self.device)
        again.model.load_state_dict(self.model.state_dict())
        again.optimizer.load_state_dict(checkpoint["optimizer"])
        match_strides(again.optimizer)
        return again
