"""Which runs train side by side, and how processes and jobs share them."""

import pytest
from helpers.fake_distributed import FakeDistributed
from helpers.recipes import TINY, merge
from helpers.training import plan, run_of, train_generation

from distill.study.cohorts import (
    available_memory,
    halve,
    make_cohorts,
    split_cohorts,
    uses_data_parallel,
)
from distill.study.plan import ancestor_ids, missing_runs

COHORTS = [[1, 2, 3, 4], [5, 6]]


def first_generation(ctx):
    return [run for run in plan(ctx) if run.generation == 0]


# ---------------------------------------------------------------------------------------- cohorts


def test_cohorts_hold_runs_of_one_seed_and_equal_views(study_context):
    """For each of two seeds: the teacher, and both students whose views are not shifted."""
    ctx = study_context(TINY, "seeds=2", "students.alone.augment={shift: 0}")
    cohorts = make_cohorts(first_generation(ctx))
    assert sorted(len(cohort) for cohort in cohorts) == [1, 1, 2, 2]
    for cohort in cohorts:
        assert len({(run.seed, run.arm.augment) for run in cohort}) == 1


@pytest.mark.parametrize(
    "own_train",
    [
        {"batch_size": 64},
        {"accumulate": 2},
        {"epochs": 1},
        {"channels_last": True},
        {"compile": True},
    ],
    ids=str,
)
def test_runs_that_take_other_steps_are_in_another_cohort(study_context, own_train):
    ctx = study_context(merge(TINY, {"students": {"alone": {"train": own_train}}}))
    assert [len(cohort) for cohort in make_cohorts(first_generation(ctx))] == [1, 2]


def test_runs_may_differ_in_optimizer_rate_and_network(study_context):
    own = {"optimizer": "adamw", "lr": 0.01, "ema": 0.9, "clip_grad": 1.0, "weight_norms": True}
    students = {"alone": {"train": own, "model": "cifar_resnet8"}}
    ctx = study_context(merge(TINY, {"students": students}))
    assert [len(cohort) for cohort in make_cohorts(first_generation(ctx))] == [3]


@pytest.mark.parametrize(
    ("memory", "lengths"),
    [(60, [3]), (59, [2, 1]), (30, [1, 1, 1]), (40, [2, 1]), (5, [1, 1, 1])],
)
def test_the_runs_of_a_cohort_fit_into_memory_together(study_context, memory, lengths):
    """Sizes are 20 + 20 + 20; a run that is too large alone is tried nevertheless."""
    runs = first_generation(study_context(TINY))
    sizes = {run.arm.name: 20 for run in runs}
    cohorts = make_cohorts(runs, sizes, memory)
    assert [len(cohort) for cohort in cohorts] == lengths
    assert [run for cohort in cohorts for run in cohort] == runs


def test_processes_of_a_machine_share_its_memory(study_context, monkeypatch):
    ctx = study_context(TINY)
    monkeypatch.setattr(
        "distill.study.cohorts.psutil.virtual_memory",
        lambda: type("Memory", (), {"available": 800}),
    )
    assert available_memory(ctx) == 400
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available_memory(ctx) == 100


# ---------------------------------------------------------------------------- processes and jobs


@pytest.mark.parametrize(
    ("cohorts", "processes", "parallelism", "expected"),
    [
        (COHORTS, 1, "auto", False),
        (COHORTS, 1, "batches", False),
        (COHORTS, 3, "auto", False),
        (COHORTS, 6, "auto", False),
        (COHORTS, 7, "auto", True),
        ([[1]], 2, "auto", True),
        (COHORTS, 2, "batches", True),
        ([[1]], 2, "runs", False),
    ],
)
def test_processes_share_batches_where_there_are_fewer_runs(
    cohorts, processes, parallelism, expected
):
    assert uses_data_parallel(cohorts, processes, parallelism) is expected


def test_processes_of_several_jobs_count_together():
    """Six runs are enough for two jobs of three processes, but not for three."""
    assert not uses_data_parallel(COHORTS, 3, "auto", jobs=2)
    assert uses_data_parallel(COHORTS, 3, "auto", jobs=3)


@pytest.mark.parametrize(
    ("workers", "lengths"),
    [(1, [4, 2]), (2, [4, 2]), (3, [2, 2, 2]), (4, [2, 2, 1, 1]), (9, [1] * 6)],
)
def test_every_worker_gets_a_cohort_while_there_are_runs(workers, lengths):
    cohorts = split_cohorts(COHORTS, workers)
    assert [len(cohort) for cohort in cohorts] == lengths
    assert sorted(run for cohort in cohorts for run in cohort) == [1, 2, 3, 4, 5, 6]
    assert COHORTS == [[1, 2, 3, 4], [5, 6]]


def test_halves_are_equal_or_the_first_is_larger():
    assert halve([1, 2, 3, 4]) == [[1, 2], [3, 4]]
    assert halve([1, 2, 3]) == [[1, 2], [3]]


# --------------------------------------------------------------------------------- what is missing


def test_missing_runs_are_those_that_are_not_stored_each_once(study_context):
    ctx = study_context(TINY, "train.epochs=1")
    runs = plan(ctx)
    assert missing_runs(ctx, [*runs, *runs]) == runs
    train_generation(ctx, [run_of(ctx, "hard")])
    assert missing_runs(ctx, runs) == [run for run in runs if run.arm.name != "hard"]


def test_process_0_decides_which_runs_are_missing(study_context):
    """Another process may look later, when a run is stored already."""
    ctx = study_context(TINY)
    runs = plan(ctx)

    class DecidedBefore(FakeDistributed):
        def broadcast_object(self, value):
            return [runs[2].id]

    ctx.processes = DecidedBefore(rank=1)
    assert missing_runs(ctx, runs) == [runs[2]]


def test_ancestors_are_teachers_and_their_teachers(study_context):
    second = {"model": "mlp_16", "teacher": "hard", "loss": {"kd": {}}}
    document = merge(TINY, {"teachers": {"second": second}})
    ctx = study_context(document, "students.distilled.teacher=second")
    hard, second, distilled = (run_of(ctx, arm) for arm in ("hard", "second", "distilled"))
    assert ancestor_ids(hard) == set()
    assert ancestor_ids(distilled) == {hard.id, second.id}
    assert [run.generation for run in (hard, second, distilled)] == [0, 1, 2]
