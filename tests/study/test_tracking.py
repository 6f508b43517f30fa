"""Every epoch of every run reaches the trackers."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers import stored
from helpers.commands import command
from helpers.recipes import TINY, merge, write_recipe

from distill.study.tracking import start_tracking, track_epoch, track_other_processes

SMALL = merge(TINY, {"analysis": {"examples": 0, "num_attacked": 0, "num_views": 0}})


def test_tensorboard_has_every_epoch_of_every_run(tmp_path, no_report):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write_recipe(tmp_path / "tiny.yaml", SMALL)
    command(tmp_path, "run", "tiny.yaml", "--track", "tensorboard")
    out = tmp_path / "runs"
    (path,) = (out / "tiny").glob("events*")
    events = accumulator.EventAccumulator(str(path)).Reload()
    for run in stored.results_json(out)["runs"]:
        history = stored.history(out, run["id"])
        expected = {
            "loss": [entry["loss"] for entry in history],
            "lr": [entry["lr"] for entry in history],
            "train top1": [entry["train"]["top1"] for entry in history],
            "validation top1": [entry["validation"]["top1"] for entry in history],
        }
        group = f"{run['arm'].replace('=', ':')}/seed 0"
        for name, values in expected.items():
            seen = events.Scalars(f"{group}/{name}")
            assert [event.step for event in seen] == [1, 2, 3]
            np.testing.assert_allclose([event.value for event in seen], values, rtol=1e-6)


class Recorder:
    """A tracker that remembers what it gets."""

    def __init__(self, name):
        self.name = name
        self.calls = []

    def log(self, values, step):
        self.calls.append((step, values))


ENTRY = {
    "epoch": 2,
    "loss": 0.5,
    "lr": 0.1,
    "train": {"top1": 0.7},
    "validation": {"top1": 0.6, "nll": 1.5},
    "terms": {"kd": 0.25},
}


def fake_run(run_id):
    return SimpleNamespace(id=run_id, seed=3, arm=SimpleNamespace(name="s/weight=1é"))


def test_trackers_with_one_clock_get_no_step():
    trackers = [Recorder("tensorboard"), Recorder("wandb")]
    accelerator = SimpleNamespace(log_with=["tensorboard", "wandb"], trackers=trackers)
    ctx = SimpleNamespace(accelerator=accelerator, tracked=set())
    track_epoch(ctx, [SimpleNamespace(run=fake_run("a"), history=[ENTRY])])
    assert ctx.tracked == {"a"}
    (step, values), (no_step, same_values) = (tracker.calls[0] for tracker in trackers)
    assert (step, no_step) == (2, None) and values == same_values
    assert values == {
        "s/weight:1é/seed 3/epoch": 2,
        "s/weight:1é/seed 3/loss": 0.5,
        "s/weight:1é/seed 3/lr": 0.1,
        "s/weight:1é/seed 3/train top1": 0.7,
        "s/weight:1é/seed 3/validation top1": 0.6,
        "s/weight:1é/seed 3/validation nll": 1.5,
        "s/weight:1é/seed 3/term kd": 0.25,
    }


def test_runs_of_other_processes_are_reported_once_from_what_is_stored():
    tracker = Recorder("tensorboard")
    processes = SimpleNamespace(is_single=False, gather_objects=lambda own: [own, {"b", "c"}])
    store = SimpleNamespace(is_complete=lambda run_id: run_id == "b", history=lambda _: [ENTRY] * 2)
    ctx = SimpleNamespace(
        accelerator=SimpleNamespace(log_with=["tensorboard"], trackers=[tracker]),
        processes=processes,
        store=store,
        tracked={"a"},
    )
    runs = [fake_run("a"), fake_run("b"), fake_run("c")]
    track_other_processes(ctx, runs)
    track_other_processes(ctx, runs)
    assert len(tracker.calls) == 2 and ctx.tracked == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("names", "has_settings"), [(["tensorboard"], False), (["tensorboard", "wandb"], True)]
)
def test_the_recipe_goes_to_all_trackers_but_tensorboard_alone(names, has_settings):
    started = []
    accelerator = SimpleNamespace(log_with=names, init_trackers=lambda *args: started.append(args))
    recipe = SimpleNamespace(name="tiny", source={"seeds": 3})
    start_tracking(SimpleNamespace(accelerator=accelerator, recipe=recipe))
    ((name, settings),) = started
    assert name == "tiny" and settings == ({"recipe": "seeds: 3\n"} if has_settings else None)
