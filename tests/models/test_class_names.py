"""Classes of networks and of images are matched by name, or the match is refused or noted."""

import unicodedata

import pytest
import timm
from timm.data import ImageNetInfo

from distill.errors import UserError
from distill.models.class_names import match_classes, names_of_outputs, stored_names


@pytest.mark.parametrize(
    ("network", "images", "expected"),
    [
        (["a", "b", "c"], ["a", "b", "c"], [0, 1, 2]),
        (["c", "a", "b"], ["a", "b", "c"], [1, 2, 0]),
        (["a", "b", "c"], ["c", "a"], [2, 0]),
        (["10", "9"], ["9", "10"], [1, 0]),
        (["0", "1", "2", "3"], ["1", "3"], [1, 3]),
        (["2", "10", "red"], ["2", "10"], [0, 1]),
        (
            [unicodedata.normalize("NFD", "é"), "b"],
            ["b", unicodedata.normalize("NFC", "é")],
            [1, 0],
        ),
    ],
)
def test_classes_are_matched_by_name(network, images, expected):
    match = match_classes(network, len(network), images)
    assert match.outputs == expected
    assert bool(match.note) == (len(network) > len(images))


@pytest.mark.parametrize(
    ("network", "images"),
    [(None, ["x", "y"]), (["0", "1"], ["x", "y"]), (["x", "y"], ["0", "1"]), ([], ["x", "y"])],
)
def test_classes_without_names_are_matched_by_position_and_this_is_noted(network, images):
    match = match_classes(network, 2, images)
    assert match.outputs == [0, 1]
    assert "same order" in match.note


def test_a_class_that_the_network_does_not_have_is_refused_with_both_lists():
    with pytest.raises(UserError, match=r"'cat'.*'cats'.*cats, dogs.*cat, dogs"):
        match_classes(["cats", "dogs"], 2, ["cat", "dogs"])


@pytest.mark.parametrize("network", [None, [str(i) for i in range(1000)]])
def test_another_number_of_classes_without_names_is_refused(network):
    with pytest.raises(UserError, match=r"1000.*2"):
        match_classes(network, 1000, ["x", "y"])
    with pytest.raises(UserError, match=r"1000.*2"):
        match_classes(network, 1000, ["0", "1"])


def test_a_name_that_two_outputs_have_is_refused():
    with pytest.raises(UserError, match="'crane'"):
        match_classes(["crane", "x", "crane"], 3, ["crane", "x"])
    assert match_classes(["crane", "x", "crane", "y"], 4, ["x", "y"]).outputs == [1, 3]


def test_outputs_of_an_imagenet_network_have_the_names_that_the_images_have():
    model = timm.create_model("resnet18")
    identifiers = names_of_outputs(model)
    assert identifiers == ImageNetInfo("imagenet-1k").label_names()
    assert names_of_outputs(model, ["n01440764", "n02102040"]) == identifiers
    english = names_of_outputs(model, ["tench", "English springer"])
    assert english[0] == "tench"
    assert english[identifiers.index("n02102040")].startswith("English springer")
    assert names_of_outputs(model, ["no class of ImageNet"]) == identifiers


def test_a_network_for_own_classes_has_the_names_that_are_stored_with_it():
    model = timm.create_model("mlp_16", num_classes=3)
    assert names_of_outputs(model) is None
    model.pretrained_cfg = dict(model.pretrained_cfg) | {"label_names": ["a", "b", "c"]}
    assert names_of_outputs(model) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"label_names": ["b", "a"]}, ["b", "a"]),
        ({"label_names": {"1": "a", "0": "b", "10": "c"}}, ["b", "a", "c"]),
        ({"id2label": {0: "b", 1: "a"}}, ["b", "a"]),
        ({"label_names": {"n1": "an ant", "n2": "a bee"}}, ["n1", "n2"]),
        ({"label_names": None}, None),
        ({}, None),
    ],
)
def test_names_are_read_in_every_form(config, names):
    assert stored_names(config) == names


def test_a_name_in_another_case_is_suggested():
    with pytest.raises(UserError, match=r"did you mean 'Ant'"):
        match_classes(["Ant", "Bee", "Cat"], 3, ["ant", "Bee", "Cat"])
