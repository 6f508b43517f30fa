"""Old names of keys and values are refused with their new names."""

import pytest
from helpers.recipes import TINY, merge, problems_of

from distill.losses import LOSSES
from distill.recipe import Analysis, Data, Train
from distill.recipe.loss_terms import loss_settings_model
from distill.recipe.renamed import RENAMED_KEYS, RENAMED_VALUES

BLOCKS = {"Data": "data", "Train": "train", "Analysis": "analysis"}


@pytest.mark.parametrize(("model", "old"), RENAMED_KEYS)
def test_an_old_key_is_refused_with_its_new_name(model, old):
    new = RENAMED_KEYS[model, old]
    if model in BLOCKS:
        changes = {BLOCKS[model]: {old: 1}}
        key = f"{BLOCKS[model]}.{old}"
    else:
        changes = {"students": {"alone": {"loss": {model: {old: 1}}}}}
        key = f"students.alone.loss.{model}.{old}"
    (problem,) = problems_of(merge(TINY, changes))
    assert (problem.key, problem.code) == (key, "renamed_key")
    assert f"'{old}'" in problem.message and f"'{new}'" in problem.message


@pytest.mark.parametrize(("model", "old"), RENAMED_KEYS)
def test_every_new_key_exists_and_no_old_one_does(model, old):
    models = {"Data": Data, "Train": Train, "Analysis": Analysis}
    fields = (models.get(model) or loss_settings_model(LOSSES[model])).model_fields
    assert RENAMED_KEYS[model, old] in fields and old not in fields


@pytest.mark.parametrize(
    ("changes", "key", "code", "words"),
    [
        (
            {"train": {"spread": "data"}},
            "train.spread", "renamed_key", ["'parallelism'", "'batches'"],
        ),
        ({"train": {"spread": "runs"}}, "train.spread", "renamed_key", ["'parallelism'"]),
        ({"train": {"parallelism": "data"}}, "train.parallelism", "renamed_value", ["'batches'"]),
        (
            {"students": {"alone": {"loss": {"cross_entropy": {"over": "others"}}}}},
            "students.alone.loss.cross_entropy.over", "renamed_key", ["'smooth_over'", "'wrong'"],
        ),
        (
            {"students": {"alone": {"loss": {"cross_entropy": {"smooth_over": "others"}}}}},
            "students.alone.loss.cross_entropy.smooth_over", "renamed_value", ["'wrong'"],
        ),
        (
            {"students": {"alone": {"train": {"spread": "auto"}}}},
            "students.alone.train.spread", "renamed_key", ["'parallelism'"],
        ),
    ],
)  # fmt: skip
def test_an_old_value_is_refused_with_its_new_name(changes, key, code, words):
    (problem,) = problems_of(merge(TINY, changes))
    assert (problem.key, problem.code) == (key, code)
    assert all(word in problem.message for word in words)


def test_values_are_renamed_to_allowed_ones():
    for (key, _), new in RENAMED_VALUES.items():
        changes = {
            "parallelism": {"train": {"parallelism": new}},
            "smooth_over": {"students": {"alone": {"loss": {"cross_entropy": {key: new}}}}},
        }[key]
        assert not problems_of(merge(TINY, changes))


def test_an_override_with_an_old_key_is_refused_with_the_new_name():
    (problem,) = problems_of(TINY, "data.store=float16")
    assert problem.code == "renamed_key" and "'logit_cache'" in problem.message
