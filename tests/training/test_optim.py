"""timm's optimizers and schedules by name, with loss modules beside the network."""

import math

import pytest
import torch
from helpers.recipes import TINY, make_recipe
from torch import nn

from distill.errors import UserError
from distill.training.optim import make_optimizer, make_scheduler, match_strides


def train_settings(*overrides):
    return make_recipe(TINY, *overrides).students[0].train


def make(*overrides):
    """Return the optimizer and the schedule of 3 epochs of 10 steps for a small network."""
    train = train_settings(*overrides)
    optimizer = make_optimizer(nn.Linear(2, 2), train, "arm")
    return optimizer, make_scheduler(optimizer, train, 10, "arm")


@pytest.mark.parametrize(
    ("override", "facts"),
    [
        ("train.optimizer=sdg", ("train.optimizer", "'sdg'", "sgd")),
        ("train.optimizer={name: sgd, momentun: 1}", ("train.optimizer", "'sgd'", "momentun")),
        ("train.schedule=cosin", ("train.schedule", "'cosin'")),
        ("train.schedule={name: step, decay: 1}", ("train.schedule", "'step'", "decay")),
        ("train.schedule=plateau", ("train.schedule", "'plateau'")),
    ],
)
def test_optimizers_and_schedules_that_timm_lacks_are_refused(override, facts):
    with pytest.raises(UserError) as caught:
        make(override)
    assert str(caught.value).startswith("arm: ")
    for fact in facts:
        assert fact in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "fused"),
    [
        ("sgd", True),
        ("adamw", True),
        ("lookahead_adamw", True),
        ("{name: sgd, fused: false}", False),
        ("{name: sgd, foreach: true}", None),
        ("lamb", None),  # timm's own, which has no fused form
    ],
)
def test_optimizers_are_fused_where_torch_has_a_fused_form(setting, fused):
    optimizer, _ = make(f"train.optimizer={setting}")
    assert optimizer.defaults.get("fused") is fused


def test_a_schedule_steps_after_every_update():
    optimizer, schedule = make("train.lr=0.4")
    rates = []
    for step in range(30):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step_update(step + 1)
    cosine = [0.2 * (1 + math.cos(math.pi * step / 30)) for step in range(30)]
    assert rates == pytest.approx(cosine)


def test_a_schedule_of_none_keeps_the_rate():
    optimizer, schedule = make("train.schedule=none", "train.lr=0.4")
    assert schedule is None
    assert optimizer.param_groups[0]["lr"] == 0.4


def test_biases_of_the_network_and_of_a_projector_are_not_decayed():
    train = train_settings("train.weight_decay=0.1")
    optimizer = make_optimizer(nn.Linear(2, 2), train, "", nn.Linear(3, 4))
    decays = {}
    for group in optimizer.param_groups:
        for weight in group["params"]:
            decays[tuple(weight.shape)] = group["weight_decay"]
    assert decays == {(2, 2): 0.1, (2,): 0.0, (4, 3): 0.1, (4,): 0.0}


def test_loss_modules_without_weights_add_no_group():
    optimizer = make_optimizer(nn.Linear(2, 2), train_settings(), "", nn.ModuleDict())
    alone = make_optimizer(nn.Linear(2, 2), train_settings(), "")
    assert len(optimizer.param_groups) == len(alone.param_groups)


@pytest.mark.parametrize("name", ["adamw", "lookahead_adamw"])
def test_a_loaded_state_gets_the_strides_of_its_weights(name):
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, train_settings(f"train.optimizer={name}"), "")
    model(torch.randn(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    inner = getattr(optimizer, "_base_optimizer", optimizer)
    moments = inner.state[model.weight]
    expected = moments["exp_avg"].clone()
    moments["exp_avg"] = moments["exp_avg"].contiguous()

    match_strides(optimizer)
    assert moments["exp_avg"].stride() == model.weight.stride()
    assert torch.equal(moments["exp_avg"], expected)
