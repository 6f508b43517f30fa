"""What the launcher gave a process: idle cores, unknown trackers."""

import os
from types import SimpleNamespace

import pytest
import torch

from distill.devices.accelerator import idle_core_warnings, make_accelerator
from distill.errors import UserError

LAUNCHER_VARIABLES = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE")
CORES = 8


@pytest.mark.parametrize(
    ("environment", "threads", "is_warned"),
    [
        # Whoever starts one thread without a launcher means it.
        ({}, 1, False),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, 1, True),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, 8, False),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2"}, 1, True),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "8"}, 1, False),
    ],
)
def test_cores_that_a_launcher_leaves_idle_are_reported(
    monkeypatch, environment, threads, is_warned
):
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)), raising=False)
    warnings = idle_core_warnings(SimpleNamespace(device=torch.device("cpu")))
    assert len(warnings) == is_warned
    if is_warned:
        share = CORES // int(environment.get("LOCAL_WORLD_SIZE", 1))
        assert f"OMP_NUM_THREADS={share} " in warnings[0]
    assert not idle_core_warnings(SimpleNamespace(device=torch.device("cuda")))


def test_unknown_trackers_are_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="'tensorboard'"):
        make_accelerator(None, ["tensorbord"])


def test_the_precision_of_an_earlier_study_is_forgotten():
    assert make_accelerator("bf16").mixed_precision == "bf16"
    assert make_accelerator("no").mixed_precision == "no"
