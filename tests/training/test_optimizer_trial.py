"""Every optimizer that timm lists trains and resumes to the bit, or is refused with the reason."""

import pytest
import torch
from timm.optim import list_optimizers

from distill.errors import UserError
from distill.recipe.schema import Train
from distill.training.optimizer_trial import try_optimizer

CPU = torch.device("cpu")

# Why timm's optimizers are refused on a CPU.
REFUSED = {"adahessian": "second derivatives"}
NEEDS_A_GPU = ("bnb", "fused")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list_optimizers())
def test_optimizers_of_timm(name):
    train = Train(epochs=1, optimizer=name, weight_decay=0.01)
    reason = "CUDA|not found|install" if name.startswith(NEEDS_A_GPU) else REFUSED.get(name)
    if reason:
        with pytest.raises(UserError, match=reason):
            try_optimizer(train, "x", CPU)
    else:
        try_optimizer(train, "x", CPU)


def test_the_global_generator_stays_as_it_was():
    before = torch.get_rng_state()
    try_optimizer(Train(epochs=1, optimizer="adamw"), "x", CPU)
    assert torch.equal(before, torch.get_rng_state())


class Forgetful(torch.optim.SGD):
    """Has a step size that its state does not hold."""

    steps = 0

    def step(self):
        self.steps += 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.steps
        super().step()


class WithClosure(torch.optim.SGD):
    def step(self, closure):
        closure()


class Unstorable(torch.optim.SGD):
    def step(self):
        super().step()
        self.state["note"] = object()


@pytest.mark.parametrize(
    ("kind", "fact"),
    [(Forgetful, "do not hold"), (WithClosure, "closure"), (Unstorable, "cannot be stored")],
)
def test_optimizers_that_cannot_resume_are_refused(monkeypatch, kind, fact):
    monkeypatch.setattr(
        "distill.training.optimizer_trial.make_optimizer",
        lambda model, *_: kind(model.parameters(), lr=0.1),
    )
    with pytest.raises(UserError, match=fact):
        try_optimizer(Train(epochs=1), "x", CPU)
