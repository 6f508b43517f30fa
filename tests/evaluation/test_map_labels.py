"""Labels of images become indices of the network's classes, by name."""

import pytest
import torch

from distill.errors import UserError
from distill.evaluation.evaluate import map_labels

LABELS = torch.tensor([0, 1, 1])


def test_classes_are_matched_by_name():
    assert map_labels(["a", "b", "c"], 3, ["c", "a"], LABELS).tolist() == [2, 0, 0]


def test_labels_stay_as_they_are_without_names():
    assert map_labels(None, 2, ["x", "y"], LABELS).tolist() == [0, 1, 1]


def test_a_class_that_the_network_does_not_have_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"'cat'.*'cats'"):
        map_labels(["cats", "dogs"], 2, ["cat", "dogs"], LABELS)


def test_another_number_of_classes_without_names_is_refused():
    with pytest.raises(UserError, match=r"1000.*2"):
        map_labels(None, 1000, ["x", "y"], LABELS)
