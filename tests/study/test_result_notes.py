"""Notes beside the numbers of a study: versions, likelihoods, calibration, training that failed."""

import torch
from helpers.results import make_results, runs_of
from helpers.training import run_of

from distill.study import result_notes
from distill.study.result_notes import calibration_notes, likelihood_notes, version_notes
from distill.training.teacher import likelihood_note


def test_runs_of_other_versions_are_noted(tiny_study, monkeypatch):
    runs = [run_of(tiny_study.ctx, name) for name in ("hard", "distilled")]
    assert version_notes(tiny_study.ctx, runs) == []
    newer = result_notes.versions() | {"timm": "99.0"}
    monkeypatch.setattr(result_notes, "versions", lambda: newer)
    (note,) = version_notes(tiny_study.ctx, runs)
    assert note.startswith("2 runs") and "timm 99.0" in note


def test_a_likelihood_worse_than_that_of_the_frequencies_is_noted():
    """The frequencies 3/4 and 1/4 have 0.5623 nats."""
    labels = torch.tensor([0, 0, 0, 1])
    better = torch.tensor([[3.0, 1.0]] * 3 + [[1.0, 1.0]]).log()
    assert likelihood_note("t", better, labels) is None
    confident = torch.tensor([[0.0, 9.0]]).expand(4, 2)
    assert "0.56" in likelihood_note("t", confident, labels)


def test_only_teachers_are_checked_for_their_likelihood(tiny_study):
    runs = [run_of(tiny_study.ctx, name) for name in ("hard", "distilled")]
    labels = torch.tensor([0, 1, 2])
    wrong = {"validation.logits": 20 * torch.eye(10)[labels + 1], "validation.labels": labels}
    (note,) = likelihood_notes(runs, {run.id: wrong for run in runs})
    assert note.startswith("hard")


def test_networks_that_keep_their_probabilities_are_counted():
    results = make_results(runs_of("an_arm", [0.9, 0.8, 0.7])).runs
    temperatures = [run.metrics["test"].fitted_temperature for run in results]
    notes = calibration_notes(results)
    count = temperatures.count(1)
    assert len(notes) == (count > 0)
    assert not notes or f"{count} of 3" in notes[0]
