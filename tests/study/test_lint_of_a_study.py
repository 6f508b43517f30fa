"""Warnings about a study with several kinds of problems: in the plan, by arm, with numbers."""

from helpers.loss_studies import ALL_TERMS
from helpers.recipes import make_recipe, merge

from distill.data.splits import load_splits
from distill.study.dry_run import dry_run
from distill.study.lint import lint_recipe


def test_every_problem_of_a_study_is_a_note_with_its_arms(tmp_path):
    """A smoothed teacher, alone and in an ensemble; smoothing twice; a gap that is out of reach."""
    changes = {
        "related": {"teacher": "soft", "loss": {"kd": {"temperature": 4}}},
        "margin": {"model": {"scale": 2}, "loss": {"am_softmax": {"smoothing": 0.1}}},
    }
    document = merge(ALL_TERMS, {"students": changes})
    document["students"]["online"]["loss"] = {
        "cross_entropy": {"smoothing": 0.1},
        "max_sup": {"weight": 0.1},
    }
    recipe = make_recipe(document)
    notes = lint_recipe(recipe, load_splits(recipe.data))
    assert len(notes) == 3
    twice, smoothed_teacher, gap = notes
    assert twice.startswith("online: ") and "max_sup" in twice
    assert smoothed_teacher.startswith("related, both/teacher=hard+soft: ")
    # 2 (10/9 - 0.2) = 1.82 is less than log((10 - 0.9) / 0.1) = 4.51.
    assert gap.startswith("margin: ") and "4.5" in gap and "1.8" in gap
    assert dry_run(recipe, tmp_path / "runs")["notes"][-3:] == notes


def test_an_ensemble_at_temperature_1_is_fine():
    loss = {"kd": {"temperature": 1}}
    document = merge(ALL_TERMS, {"students": {"both": {"teacher": "soft"}}})
    document["students"]["both"]["loss"] = loss
    recipe = make_recipe(document)
    assert lint_recipe(recipe, load_splits(recipe.data)) == []
