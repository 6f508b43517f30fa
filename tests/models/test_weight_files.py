"""Weights are found in files of any form, and no file runs code."""

import argparse
import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distill.errors import UserError
from distill.models.weight_files import read_weights, strip_prefix, weight_file_paths

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
    assert [path.name for path in weight_file_paths(tmp_path)] == ["model.safetensors"]
    assert_state(read_weights(tmp_path).state)


PREFIXES = "module. _orig_mod. model. timm_model. ema.module. module._orig_mod. my.own.wrapper."


@pytest.mark.parametrize("prefix", PREFIXES.split())
def test_prefixes_of_wrappers_are_removed(prefix):
    wrapped = {f"{prefix}{name}": tensor for name, tensor in STATE.items()}
    state, found = strip_prefix(wrapped, EXPECTED, "w.pth")
    assert_state(state)
    assert found == prefix
    others, _ = strip_prefix(wrapped | {"criterion.weight": torch.zeros(3)}, EXPECTED, "w.pth")
    assert others.keys() == {*STATE, "criterion.weight"}
    expected = {f"{prefix}{name}": tensor for name, tensor in EXPECTED.items()}
    assert strip_prefix(wrapped, expected, "w.pth") == (wrapped, "")
    assert strip_prefix({"x": torch.zeros(9)}, EXPECTED, "w.pth")[1] == ""


def run_command_in(message):
    """Run the Python code of the command that a message tells people to run."""
    line = next(line for line in message.splitlines() if "python -c" in line)
    exec(line.partition('"')[2].rpartition('"')[0], {})


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_two_networks_in_a_file_are_refused_with_a_command_that_takes_one(tmp_path, ending):
    teacher = {f"teacher.{name}": tensor for name, tensor in STATE.items()}
    student = {f"student.{name}": tensor * 0 for name, tensor in STATE.items()}
    path = tmp_path / f"w.{ending}"
    if ending == "pth":
        torch.save({"state_dict": teacher | student, "epoch": 3}, path)
    else:
        save_file(teacher | student, path)
    with pytest.raises(UserError, match=r"teacher\., student\.|student\., teacher\.") as error:
        strip_prefix(read_weights(path).state, EXPECTED, str(path))
    message = str(error.value)
    run_command_in(message)
    found = read_weights(tmp_path / "w-weights.safetensors").state
    chosen = message.partition("here ")[2].partition(".:")[0]
    assert found.keys() == STATE.keys()
    assert found["a.bias"].sum() == (2 if chosen == "teacher" else 0)


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
    with pytest.raises(UserError, match=r"(?s)w\.pth.*w-weights\.safetensors") as error:
        read_weights(tmp_path / "w.pth")
    run_command_in(str(error.value))
    assert read_weights(tmp_path / "w-weights.safetensors").state.keys() == {"weight", "bias"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_arrays_of_numpy_and_torchscript_are_refused_with_the_line_that_converts_them(tmp_path):
    torch.save({"a.weight": np.ones((2, 3))}, tmp_path / "n.pth")
    torch.jit.script(nn.Linear(3, 2)).save(tmp_path / "s.pt")
    for name, keys in (("n.pth", {"a.weight"}), ("s.pt", {"weight", "bias"})):
        with pytest.raises(UserError, match=name) as error:
            read_weights(tmp_path / name)
        run_command_in(str(error.value))
        weights = tmp_path / f"{name[0]}-weights.safetensors"
        assert read_weights(weights).state.keys() == keys


def test_weights_in_several_files_are_read_by_their_index(tmp_path):
    parts = {name: f"part-{i}.safetensors" for i, name in enumerate(STATE)}
    for name, part in parts.items():
        save_file({name: STATE[name] * 1}, tmp_path / part)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    assert_state(read_weights(tmp_path).state)
    assert len(weight_file_paths(tmp_path)) == 3
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"part-1\.safetensors"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("w.pth", b"no pickle", r"w\.pth"),
        ("w.safetensors", b"x" * 50, r"w\.safetensors"),
        ("w.onnx", b"x", r"\.safetensors.*\.pth"),
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\noid x", "git lfs pull"),
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
