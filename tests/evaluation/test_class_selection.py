"""Which classes are analysed."""

import pytest
import torch

from distill.errors import UserError
from distill.evaluation.class_selection import (
    SelectedClasses,
    check_class_names,
    class_indices,
    select_classes,
)


def test_default_classes_are_a_confused_pair_with_a_near_and_a_far_one(trained):
    settings = trained.recipe.analysis
    names = trained.splits.class_names
    selected = select_classes(settings, names, trained.predictions("hard"))
    confused, with_far = selected.triples
    assert confused[:2] == with_far[:2]
    assert confused[2] != with_far[2]
    assert selected.pair == [with_far[0], with_far[2]]


def test_a_recipe_names_classes(trained):
    settings = trained.recipe.analysis.model_copy(
        update={"classes": ["7", "1", "9"], "pair": ["0", "3"]}
    )
    names = trained.splits.class_names
    selected = select_classes(settings, names, trained.predictions("hard"))
    assert selected == SelectedClasses(triples=[[7, 1, 9]], pair=[0, 3])


@pytest.mark.parametrize(
    ("occurring", "triples", "pair_size"), [([0, 2, 3], 1, 2), ([1, 3], 0, 2), ([2], 0, 0)]
)
def test_only_classes_with_examples_are_selected(trained, occurring, triples, pair_size):
    labels = torch.tensor(occurring * 4)
    logits = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(0))
    predictions = {"train.labels": labels, "validation.labels": labels, "validation.logits": logits}
    selected = select_classes(trained.recipe.analysis, list("abcd"), predictions)
    assert len(selected.triples) == triples
    assert len(selected.pair) == pair_size
    for label in sum(selected.triples, selected.pair):
        assert label in occurring


def test_unknown_and_repeated_classes_are_refused(trained):
    with pytest.raises(UserError, match=r"'hosre'.*'horse'"):
        class_indices(["cat", "hosre"], ["cat", "horse"])
    with pytest.raises(UserError, match="cat, cat"):
        class_indices(["cat", "cat"], ["cat", "horse"])
    for key, names in {"classes": ["7", "1", "x"], "pair": ["0", "0"]}.items():
        settings = trained.recipe.analysis.model_copy(update={key: names})
        with pytest.raises(UserError, match=rf"^analysis\.{key}: "):
            check_class_names(settings, trained.splits)
    check_class_names(trained.recipe.analysis, trained.splits)
