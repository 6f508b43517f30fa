"""Which weights a penalty is for."""

from distill.models.hooks import weight_decay_params
from distill.models.small_registry import CifarResNet


def test_biases_and_normalisation_layers_are_not_decayed():
    names = set(weight_decay_params(CifarResNet(8)))
    assert {"conv1.weight", "head.weight"} <= names
    for name in names:
        assert "bn" not in name
        assert not name.endswith("bias")
        assert ".downsample.1" not in name
