"""The types of a recipe: properties that are computed from their keys."""

import pytest

from distill.recipe import Analysis, Augment, Train


@pytest.mark.parametrize(
    ("epochs", "snapshots", "expected"),
    [(40, 0, set()), (40, 1, {0}), (40, 4, {0, 10, 20, 30}), (3, 2, {0, 1}), (2, 5, {0, 1})],
)
def test_snapshots_are_evenly_spaced_from_the_initial_weights(epochs, snapshots, expected):
    assert Train(epochs=epochs, snapshots=snapshots).snapshot_epochs == expected


@pytest.mark.parametrize(
    ("settings", "moves"),
    [
        ({}, False),
        ({"mixup": 1.0, "cutmix": 1.0}, False),
        ({"shift": 1}, True),
        ({"crop": 4}, True),
        ({"scale": 0.5}, True),
        ({"flip": True}, True),
    ],
)
def test_mixing_alone_moves_no_image(settings, moves):
    assert Augment(**settings).moves is moves


def test_class_names_that_yaml_reads_as_numbers_are_text():
    assert Analysis(classes=[1, "2", 3], pair=["a", 7]).model_dump(include={"classes", "pair"}) == {
        "classes": ["1", "2", "3"],
        "pair": ["a", "7"],
    }
    with pytest.raises(ValueError, match="pair"):
        Analysis(pair=[True, "x"])


def test_no_mixed_precision_is_written_as_no():
    assert Train(epochs=1, precision=False).precision == "no"
    with pytest.raises(ValueError, match="precision"):
        Train(epochs=1, precision=True)
