"""The identity of a run with a user's network is the code of that network."""

import importlib
import json
import sys

import pytest
import torch
from helpers.recipes import TINY, make_recipe, merge
from timm.models import _registry as registry
from torch import nn

from distill.errors import UserError
from distill.losses import LOSSES
from distill.storage.run_fingerprint import plan_runs
from distill.storage.user_code import code_digest, network_code

MODULE = """
from timm.models import register_model
from torch import nn

from blocks import Block


@register_model
def users_net(pretrained=False, num_classes=10, in_chans=1, **kwargs):
    return nn.Sequential(Block(), nn.Flatten(), nn.Linear(64 * in_chans, num_classes))
"""

BLOCKS = """
from torch import nn


class Block(nn.Module):
    def forward(self, x):
        return x * {factor}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes and imports a user's network, as a new process would."""
    monkeypatch.syspath_prepend(tmp_path)

    def forget():
        for name in ("users_networks", "blocks"):
            sys.modules.pop(name, None)
        registry._model_entrypoints.pop("users_net", None)
        registry._model_to_module.pop("users_net", None)
        registry._module_to_models.pop("users_networks", None)

    def write_network(module=MODULE, factor=1):
        (tmp_path / "users_networks.py").write_text(module)
        (tmp_path / "blocks.py").write_text(BLOCKS.format(factor=factor))
        forget()
        importlib.invalidate_caches()
        importlib.import_module("users_networks")

    yield write_network
    forget()


def test_other_code_is_another_identity(write):
    write()
    first = network_code("users_net", {})
    write()
    assert network_code("users_net", {}) == first
    write(factor=2)
    assert network_code("users_net", {}) != first
    write(module=MODULE + "\n\nDEPTH = 3\n")
    assert network_code("users_net", {}) not in (None, first)
    assert network_code("cosine_head", {"base": "users_net"}) == network_code("users_net", {})


LAZY = """
from timm.models import register_model
from torch import nn


class Net(nn.Module):
    def forward(self, x):
        from blocks import Block

        return Block()(x)


@register_model
def users_net(pretrained=False, **kwargs):
    return Net()
"""


def test_modules_that_are_imported_within_functions_belong_to_the_code(write):
    write(module=LAZY)
    first = network_code("users_net", {})
    write(module=LAZY, factor=2)
    assert network_code("users_net", {}) != first


@pytest.mark.parametrize("name", ["resnet18", "mlp_16", "cosine_head", "hf-hub:a/b", "local-dir:x"])
def test_networks_of_libraries_are_known_by_name(name):
    assert network_code(name, {}) is None


def test_runs_with_other_code_are_other_runs_and_others_keep_their_ids(write):
    document = merge(TINY, {"students": {"mine": {"model": "users_net", "loss": {"kd": {}}}}})
    document["students"]["mine"]["teacher"] = "hard"

    def ids():
        return {run.arm.name: run.id for run in plan_runs(make_recipe(document), {"d": 1}, "no")}

    write()
    first = ids()
    write(factor=2)
    second = ids()
    assert first["mine"] != second["mine"]
    assert {name: one for name, one in first.items() if name != "mine"} == {
        name: one for name, one in second.items() if name != "mine"
    }


def test_a_stored_network_of_a_user_is_known_by_its_code(write, tmp_path):
    write()
    config = {"architecture": "users_net", "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    first = network_code(f"local-dir:{tmp_path}", {})
    assert first == network_code("users_net", {})
    write(factor=2)
    assert network_code(f"local-dir:{tmp_path}", {}) != first


def own_loss(outputs, labels):
    return outputs.logits.sum(1)


def test_losses_of_users_belong_to_the_identity():
    assert code_digest(own_loss)
    assert all(code_digest(loss) is None for loss in LOSSES.values())
    assert code_digest(torch.optim.SGD) is None
    assert code_digest(nn.Linear) is None


def test_code_that_cannot_be_read_is_refused():
    scope = {"__name__": "__main__"}
    exec("def typed_net(): pass", scope)
    function = scope["typed_net"]
    function.__module__ = "typed_module"
    sys.modules["typed_module"] = type(sys)("typed_module")
    try:
        with pytest.raises(UserError, match="typed_net"):
            code_digest(function)
    finally:
        del sys.modules["typed_module"]
