"""Results of a study with an ensemble, and of one whose student does not learn."""

import json
from dataclasses import asdict

import pytest
import torch.nn.functional as F
from helpers.loss_studies import ALL_TERMS
from helpers.recipes import TINY
from helpers.training import plan, train_study

from distill.evaluation.analysis_budget import plan_analysis
from distill.study.results import collect


def collected(ctx):
    runs = plan(ctx)
    return collect(ctx, runs, {}, plan_analysis(ctx.recipe.analysis, ctx.splits, runs))


@pytest.mark.slow
def test_an_ensemble_is_what_a_student_learns_from_and_is_compared_with(trained_once):
    """The mean of the teachers' probabilities."""
    ctx = trained_once(ALL_TERMS, "train.epochs=3").ctx
    results = collected(ctx)
    [row] = [run for run in results.runs if run.arm == "both/teacher=hard+soft"]
    teachers = [run.id for run in plan(ctx) if run.arm.role == "teacher"]
    assert row.teacher == teachers
    logits = [ctx.store.predictions(run_id)["test.logits"] for run_id in teachers]
    mean = sum(own.double().softmax(1) for own in logits) / 2
    student = ctx.store.predictions(row.id)["test.logits"].double()
    agreement = (student.argmax(1) == mean.argmax(1)).double().mean().item()
    metrics = row.metrics["test"]
    assert metrics.agreement == pytest.approx(agreement)
    kl = F.kl_div(student.log_softmax(1), mean, reduction="batchmean").item()
    assert metrics.kl_to_teacher == pytest.approx(kl, rel=1e-4)
    json.dumps(asdict(results), allow_nan=False)

    accuracy = {run.arm: run.metrics["test"].top1 for run in results.runs if run.role == "student"}
    ranked = [entry.arm for entry in results.ranking]
    assert set(ranked) == set(accuracy)
    assert [accuracy[arm] for arm in ranked] == sorted(accuracy.values(), reverse=True)


def test_students_that_did_not_learn_are_noted(study_context):
    """One of two runs of an arm, by the seed, would be noted as one; here it is the only one."""
    ctx = study_context(TINY, "students.distilled.train.lr=1.0e-9", "analysis.examples=0")
    train_study(ctx)
    notes = [note for note in collected(ctx).notes if "chance" in note]
    assert len(notes) == 1
    assert notes[0].startswith("distilled: 1 run ")
