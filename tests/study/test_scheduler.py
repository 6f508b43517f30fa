"""Generations of runs: what fails takes only its own students with it, and work is shared."""

import pytest
import torch
from helpers.fake_distributed import FakeDistributed
from helpers.recipes import REMOVE, TINY, merge
from helpers.training import plan, run_of, same, stored_weights, train_generation, train_run

from distill import run_study
from distill.errors import UserError
from distill.study import scheduler
from distill.study.preflight import preflight

ONE_EPOCH = merge(TINY, {"train": {"epochs": 1}})


# ---------------------------------------------------------------------------------------- failures


def test_runs_that_diverge_take_only_their_own_students_with_them(study_context, tiny_study):
    """A student and a teacher diverge; the others of their cohort end as without them."""
    wild = {"model": "mlp_16", "train": {"lr": 1e18}, "loss": {"cross_entropy": {}}}
    changes = {"students": {"wild": wild}, "teachers": {"hard": {"train": {"lr": 1e18}}}}
    ctx = study_context(merge(TINY, changes))
    with pytest.raises(UserError) as caught:
        run_study(ctx.recipe, ctx.store.root, ctx.accelerator)

    hard, wild, summary = str(caught.value).splitlines()
    assert hard.startswith("hard, seed 0: ")
    assert wild.startswith("wild, seed 0: ")
    for message in (hard, wild):
        assert "epoch 1" in message and "step 2 of 8" in message and "cross_entropy" in message
    assert "1 run" in summary  # that cannot be trained: the student of `hard`
    assert not (ctx.store.root / "tiny" / "results.json").exists()

    for run in plan(ctx):
        is_stored = run.arm.name.startswith("alone")
        assert ctx.store.is_complete(run.id) is is_stored
        if is_stored:
            assert same(stored_weights(ctx, run), tiny_study.weights[run.arm.name])


def test_failures_are_returned_by_run(study_context):
    ctx = study_context(ONE_EPOCH, "teachers.hard.train.lr=1.0e+18")
    runs = [run for run in plan(ctx) if run.generation == 0]
    failures = scheduler.train_generation(ctx, runs)
    assert list(failures) == [run_of(ctx, "hard").id]


# ---------------------------------------------------------------------------------------- teachers


def test_a_frozen_network_is_stored_without_training(study_context, tiny_study):
    folder = tiny_study.ctx.store.folder(run_of(tiny_study.ctx, "hard").id)
    teacher = {"model": "mlp_32", "checkpoint": str(folder)}
    document = merge(TINY, {"teachers": {"hard": REMOVE}})
    document["teachers"]["hard"] = teacher
    ctx = study_context(document)
    run = run_of(ctx, "hard")
    assert run.seed is None
    weights = train_generation(ctx, [run])["hard"]
    assert same(weights, tiny_study.weights["hard"])
    assert ctx.store.history(run.id) == []
    record = ctx.store.record(run.id)
    assert (record["epochs"], record["seconds"]) == (0, 0)
    # The student learns from it what it learns from the trained one.
    assert same(train_run(ctx, "distilled"), tiny_study.weights["distilled"])


def test_a_teacher_at_chance_stops_the_study_unless_it_is_not_checked(study_context, monkeypatch):
    """A learning rate of nearly 0 leaves the teacher with its random weights."""
    still = ("teachers.hard.train.lr=1.0e-12", "check_teachers=true")
    ctx = study_context(ONE_EPOCH, *still)
    with pytest.raises(UserError) as caught:
        run_study(ctx.recipe, ctx.store.root, ctx.accelerator)
    for fact in ("hard, seed 0", "check_teachers=false"):
        assert fact in str(caught.value)
    assert not ctx.store.is_complete(run_of(ctx, "distilled").id)

    unchecked = study_context(ONE_EPOCH, still[0])
    lines = []
    monkeypatch.setattr(unchecked.progress, "log", lines.append)
    scheduler.check_teachers(unchecked, [run_of(ctx, "hard")])
    line, likelihood = lines
    assert "hard, seed 0" in likelihood and "NLL" in likelihood
    assert "hard, seed 0" in line and "n = 120" in line and "γ" in line


# ---------------------------------------------------------------------------- processes and memory


def recorded_cohorts(ctx, runs, monkeypatch, sizes=None):
    """Return the runs of each cohort that this process would train, and whether data-parallel."""
    cohorts = []

    def record(_, cohort, *, data_parallel):
        cohorts.append(([run.id for run in cohort], data_parallel))
        return {}

    monkeypatch.setattr(scheduler, "train_cohort", record)
    scheduler.train_generation(ctx, runs, sizes)
    return cohorts


def test_processes_train_each_run_in_one_of_them(study_context, monkeypatch):
    ctx = study_context(TINY, "seeds=2")
    runs = [run for run in plan(ctx) if run.generation == 0]
    assert len(runs) == 6
    trained = []
    for rank in range(3):
        ctx.processes = FakeDistributed(rank=rank, world_size=3)
        for ids, data_parallel in recorded_cohorts(ctx, runs, monkeypatch):
            assert not data_parallel
            trained += ids
    assert sorted(trained) == sorted(run.id for run in runs)


def test_processes_without_a_run_for_each_share_the_batches_of_all(study_context, monkeypatch):
    ctx = study_context(TINY)
    runs = [run_of(ctx, "distilled")]
    for rank in range(2):
        ctx.processes = FakeDistributed(rank=rank, world_size=2)
        assert recorded_cohorts(ctx, runs, monkeypatch) == [([runs[0].id], True)]


def test_the_bytes_of_preflight_limit_the_cohorts(study_context, monkeypatch):
    ctx = study_context(TINY)
    runs = [run for run in plan(ctx) if run.generation == 0]
    sizes = preflight(ctx, runs)
    limit = sizes["hard"] + sizes["alone/smoothing=0"]
    monkeypatch.setattr(scheduler, "available_memory", lambda _: limit)
    cohorts = recorded_cohorts(ctx, runs, monkeypatch, sizes)
    assert [len(ids) for ids, _ in cohorts] == [2, 1]
    assert [run_id for ids, _ in cohorts for run_id in ids] == [run.id for run in runs]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError()], ids=repr)
def test_with_shared_batches_full_memory_ends_the_study(study_context, monkeypatch, error):
    """The other processes wait in the same step, so the cohort cannot be halved."""
    ctx = study_context(TINY)
    ctx.processes = FakeDistributed()

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(scheduler, "train_cohort", fail)
    with pytest.raises(UserError) as caught:
        scheduler.train_generation(ctx, [run_of(ctx, "distilled")])
    for fact in ("distilled, seed 0", "train.batch_size"):
        assert fact in str(caught.value)


def test_an_error_that_is_not_of_memory_is_raised(study_context, monkeypatch):
    ctx = study_context(TINY)

    def fail(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(scheduler, "train_cohort", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        scheduler.train_generation(ctx, [run_of(ctx, "hard")])
