"""Weights are found in files of any form, and no file runs code."""

import argparse
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distill.errors import UserError
from distill.models.weight_files import read_weights, strip_prefix, weight_file_path

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}
EXPECTED = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}


def assert_state(state):
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".ckpt", ".pth.tar"])
def test_files_of_pytorch(tmp_path, ending):
    torch.save(STATE, tmp_path / f"w{ending}")
    found = read_weights(tmp_path / f"w{ending}")
    assert_state(found.state)
    assert found.note == ""


@pytest.mark.parametrize(
    ("content", "taken"),
    [
        ({"state_dict": STATE, "epoch": 3, "optimizer": {"state": {}}}, "state_dict"),
        ({"model": STATE, "args": argparse.Namespace(lr=0.1)}, "model"),
        ({"model": {"state_dict": STATE}}, "model.state_dict"),
        ({"state_dict": EXPECTED, "state_dict_ema": STATE}, "state_dict_ema"),
        ({"model": EXPECTED, "model_ema": STATE}, "model_ema"),
    ],
)
def test_the_weights_within_a_checkpoint_are_found_and_this_is_noted(tmp_path, content, taken):
    torch.save(content, tmp_path / "w.pth")
    found = read_weights(tmp_path / "w.pth")
    assert_state(found.state)
    assert f"'{taken}'" in found.note


def test_folders_and_safetensors(tmp_path):
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    assert_state(read_weights(tmp_path).state)
    save_file({name: tensor * 1 for name, tensor in STATE.items()}, tmp_path / "model.safetensors")
    assert weight_file_path(tmp_path).name == "model.safetensors"
    assert_state(read_weights(tmp_path).state)


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "model.",
        "backbone.",
        "module._orig_mod.",
        "model.backbone.",
        "net.",
    ],
)
def test_prefixes_of_wrappers_are_removed(prefix):
    wrapped = {f"{prefix}{name}": tensor for name, tensor in STATE.items()}
    assert_state(strip_prefix(wrapped, EXPECTED))
    others = wrapped | {"criterion.weight": torch.zeros(3)}
    assert_state(strip_prefix(others, EXPECTED))
    expected = {f"{prefix}{name}": tensor for name, tensor in EXPECTED.items()}
    assert strip_prefix(wrapped, expected) == wrapped


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", ["torch", "pickle"])
def test_hostile_files_run_no_code(tmp_path, save):
    content = {"state_dict": STATE, "extra": Hostile(tmp_path / "made by code")}
    path = tmp_path / "evil.pth"
    if save == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"evil\.pth"):
        read_weights(path)
    assert not (tmp_path / "made by code").exists()


def test_a_whole_module_is_refused_with_the_line_that_converts_it(tmp_path):
    torch.save(nn.Linear(3, 2), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"(?s)w\.pth.*save_file.*w\.safetensors") as error:
        read_weights(tmp_path / "w.pth")
    line = next(line for line in str(error.value).splitlines() if "python -c" in line)
    code = line.partition('"')[2].rpartition('"')[0]
    exec(code, {})
    assert read_weights(tmp_path / "w.safetensors").state.keys() == {"weight", "bias"}


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("w.pth", b"no pickle", r"w\.pth"),
        ("w.safetensors", b"x" * 50, r"w\.safetensors"),
        ("w.onnx", b"x", r"\.safetensors.*\.pth"),
        ("none.pth", None, r"none\.pth does not exist"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, fact):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=fact):
        read_weights(tmp_path / name)


def test_a_checkpoint_without_weights_is_refused_with_what_it_holds(tmp_path):
    torch.save({"epoch": 3, "best": 0.5}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="epoch, best"):
        read_weights(tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        read_weights(tmp_path / "..")
