"""Training a study's runs: phase by phase, in cohorts, over processes and jobs; what is done is stored."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from distill.analysis.calibration import gamma
from distill.card import model_card
from distill.claims import Shard
from distill.document import UserError, counted
from distill.evaluation import accuracy, fitted_temperature, predict_all
from distill.logits import Answers, LogitStore, codec_of
from distill.members import Member, layout, resume, start
from distill.models.build import blank_input, parameter_count
from distill.planning import (
    answers_identity,
    cohorts_of,
    kept_answers,
    memory_for_runs,
    missing_of,
    needs_of_teachers,
    share_out,
    steps_of,
    told,
)
from distill.runs import Run
from distill.teachers import Teacher, check_teacher
from distill.tracking import track_others, tracked
from distill.training import fit
from distill.workplace import Workplace

POLL = 5.0  # seconds between two looks at what other jobs have stored


def ancestors(run: Run) -> set[str]:
    """Ids of the teachers, and theirs."""
    return {run_id for teacher in run.teachers for run_id in {teacher.id} | ancestors(teacher)}


def train_all(place: Workplace, runs: list[Run], sizes: dict[str, int], wait: bool) -> dict[str, str]:
    """Train runs that do not depend on each other, with other jobs where there are some; returns why runs failed.

    Args:
        place: of the study.
        runs: that are not stored.
        sizes: as `preflight` returns them.
        wait: for the other jobs to end theirs, which others depend on; else until it is seen that they are alive. What
            jobs that are gone have claimed is trained here.
    """
    failed = _of_all(place, train_phase(place, runs, sizes))
    said = False
    while place.claims:
        failed |= _of_all(place, {run.id: why for run in runs if (why := place.claims.failure(run.id))})
        left = [run for run in missing_of(place, runs) if run.id not in failed]
        if not left or not _goes_on(place, left, wait):
            break
        if not said and wait:
            place.progress.say(f"waiting for {counted(len(left), 'run')} of other jobs, {left[0].title} for one")
        said = True
        time.sleep(POLL)
        failed |= _of_all(place, train_phase(place, left, sizes, again=True))
    track_others(place, runs)
    return failed


def _goes_on(place: Workplace, left: list[Run], wait: bool) -> bool:
    """Whether to look again at runs that others claim: these are waited for, or not yet seen to be alive."""
    on = [wait or not all(place.claims.is_alive(run.id) for run in left)]
    if place.accelerator.num_processes > 1:
        broadcast_object_list(on)
    return on[0]


def _claimed(place: Workplace, cohort: list[Run], sharing: bool) -> list[Run]:
    """What of a cohort is this job's to train; the main process asks where all processes train it together."""
    if place.claims is None:
        return cohort
    asks = place.accelerator.is_main_process or not sharing
    mine = [[run.id for run in cohort if asks and place.claims.take(run.id) and not _is_done(place, run)]]
    if sharing:
        broadcast_object_list(mine)
    return [run for run in cohort if run.id in mine[0]]


def _is_done(place: Workplace, run: Run) -> bool:
    """Whether another job has stored a run, before this one claimed it."""
    done = place.store.complete(run.id)
    if done:
        place.claims.release(run.id)
    return done


def _of_all(place: Workplace, found: dict[str, str]) -> dict[str, str]:
    """What all processes found, when all are done."""
    place.accelerator.wait_for_everyone()
    every = gather_object([found]) if place.accelerator.num_processes > 1 else [found]
    return {key: value for own in every for key, value in own.items()}


def train_phase(place: Workplace, runs: list[Run], sizes: dict[str, int] | None = None,
                again: bool = False) -> dict[str, str]:
    """Train runs that do not depend on each other; why runs failed, by their ids. `again` says nothing twice."""
    for run in [run for run in runs if run.arm.given]:
        _store_given(place, run)
    runs = [run for run in runs if not run.arm.given]
    failed: dict[str, str] = {}
    if not runs:
        return failed
    process, processes = place.accelerator.process_index, place.accelerator.num_processes
    cohorts = cohorts_of(runs, sizes, memory_for_runs(place.accelerator))
    jobs = place.claims.shard if place.claims else Shard(0, 1)
    cohorts, sharing = share_out(cohorts, processes, runs[0].arm.train.spread, jobs.count)
    for line in told(kept_answers(place, cohorts, sharing)) if not again else ():
        place.progress.say(line)
    first = jobs.index * len(cohorts) // jobs.count  # each job begins with its own, and goes on with what is left
    cohorts = cohorts[first:] + cohorts[:first]
    waiting = cohorts if sharing else cohorts[process::processes]
    while waiting:
        cohort, *waiting = waiting
        cohort = _claimed(place, cohort, sharing)
        if cohort and not _fits(place, cohort, sharing, failed):
            half = (len(cohort) + 1) // 2
            place.progress.say(f"out of memory with {len(cohort)} runs side by side: {half} at a time")
            waiting = [cohort[:half], cohort[half:], *waiting]
        elif place.claims:
            for run in cohort:
                if run.id in failed:
                    place.claims.fail(run.id, failed[run.id])
                place.claims.release(run.id)
    return failed


def _fits(place: Workplace, cohort: list[Run], sharing: bool, failed: dict[str, str]) -> bool:
    """Train a cohort, noting why runs failed; False if it is too large for the device, and can be split."""
    try:
        _train_cohort(place, cohort, sharing, failed)
        return True
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        told = (f"{cohort[0].title}: out of memory; lower train.batch_size, raise train.accumulate, or set "
                "train.precision=bf16")
        if sharing:  # the other processes have not met it
            raise UserError(told) from None
        if len(cohort) == 1:
            failed[cohort[0].id] = told
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # not before the exception is gone, which holds all that there was
    return len(cohort) == 1


def _is_out_of_memory(error: BaseException) -> bool:
    """CUDA has an exception of its own; of a CPU it is a sentence."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _train_cohort(place: Workplace, cohort: list[Run], sharing: bool, failed: dict[str, str]) -> None:
    device, train = place.accelerator.device, cohort[0].arm.train
    teachers = _teachers_of(place, cohort)
    members: list[Member] = []
    for run in cohort:
        model = place.build(run.arm, run.seed)
        members.append(start(run, model, teachers, place.splits.shares, steps_of(place.splits, run.arm),
                             place.accelerator, sharing))
        resume(members[-1], place.store, place.accelerator.process_index if sharing else 0, device,
               place.progress.say)
    names = list(dict.fromkeys(run.arm.name.split("/")[0] for run in cohort))
    names = [*names[:3], f"{len(names) - 3} more"] if len(names) > 4 else names
    title = f"{'+'.join(names)}, seed {cohort[0].seed}, {len(cohort)} run{'s' if len(cohort) > 1 else ''}"
    with _answers_of(place, cohort, teachers, sharing) as answers:
        for reached in sorted({(member.epoch, member.step) for member in members}):  # a kill between two checkpoints
            level = [member for member in members if (member.epoch, member.step) == reached]  # leaves two
            with place.progress.task(title, train.epochs, *reached) as log:
                fit(level, answers, place.splits, place.store, place.accelerator, sharing, tracked(place, level, log))
    for member in [member for member in members if member.failure]:
        failed[member.run.id] = member.failure
        place.progress.say(member.failure)
    for member in [member for member in members if not member.failure]:
        shared = place.accelerator if sharing else None
        predictions = predict_all(member.result, place.splits, member.run.arm.augment, device, shared)
        if place.accelerator.is_main_process or not sharing:
            _store(place, member.run, member.result, predictions, member.seconds, member.history)


def _teachers_of(place: Workplace, cohort: list[Run]) -> dict[str, Teacher]:
    """The networks that a cohort learns from, by id, ready to tell what its losses look at."""
    needs: dict[str, set[str]] = {}
    for run in cohort:
        for teacher in run.teachers:
            needs.setdefault(teacher.id, set()).update(needs_of_teachers(run))
    known = {teacher.id: teacher for run in cohort for teacher in run.teachers}
    train = cohort[0].arm.train
    return {name: Teacher(place.load(known[name]).to(memory_format=layout(train)), wanted, place.half, train.compile)
            for name, wanted in needs.items()}


@contextmanager
def _answers_of(place: Workplace, cohort: list[Run], teachers: dict[str, Teacher],
                sharing: bool) -> Iterator[dict[str, Answers]]:
    """What teachers say to the cohort's views, from and to the files in which that is kept."""
    arm, data, shared = cohort[0].arm, place.recipe.data, place.accelerator if sharing else None
    size = min(arm.train.batch_size, len(place.splits.train))
    rows = size * steps_of(place.splits, arm)
    with ExitStack() as stack:
        answers = {}
        for name, teacher in teachers.items():
            codec, store = codec_of(teacher, blank_input(teacher.model), data.store), None
            if not teacher.needs:
                identity = answers_identity(place, cohort[0], name, sharing)
                store = LogitStore(place.store.answers(identity), identity, rows, codec, place.progress.say)
                if not sharing or place.accelerator.is_main_process:
                    stack.enter_context(store.writing(arm.train.epochs, data.store_limit * 1e9))
            answers[name] = Answers(teacher, codec if data.store != "exact" else None, store, size, shared)
        yield answers


def _store_given(place: Workplace, run: Run) -> None:
    """A network that is given: nothing to train, but judged and stored as the others are."""
    if place.accelerator.is_main_process:
        model = place.build(run.arm, None).to(place.accelerator.device)
        predictions = predict_all(model, place.splits, run.arm.augment, place.accelerator.device)
        _store(place, run, model, predictions, 0.0, [])


def _store(place: Workplace, run: Run, model: nn.Module, predictions: dict[str, Tensor], seconds: float,
           history: list[dict[str, Any]]) -> None:
    """Keep a run that is done, with its calibration and its card."""
    taught = {t.id: place.store.predictions(t.id) for t in run.teachers}
    accuracies = {name: accuracy(said["test.logits"], said["test.labels"]) for name, said in taught.items()}
    record = {"model": run.arm.model, "parameters": parameter_count(model),
              "epochs": 0 if run.arm.given else run.arm.train.epochs, "seconds": round(seconds, 3),
              "calibration_temperature": fitted_temperature(predictions)}
    card = model_card(run, record, predictions, place.splits, accuracies)
    place.store.save(run, model, record, history, predictions, card)


def check_teachers(place: Workplace, teachers: list[Run]) -> None:
    """Every teacher's accuracy on the validation split, said and judged before a student starts."""
    for run in teachers:
        predictions = place.store.predictions(run.id)
        logits, labels = predictions["validation.logits"], predictions["validation.labels"]
        if place.recipe.check_teachers:
            check_teacher(run.title, logits, labels)
        index = gamma(logits, labels)
        place.progress.say(f"teacher {run.title}: {accuracy(logits, labels):.2%} of {len(labels)} validation images, "
                           f"its answers as good as smoothed by {index:.2f} (gamma)")
