"""Networks that are not timm's are described, tried whole, or refused with what to do."""

import pytest
import torch
import torchvision
from helpers.models import build
from torch import nn

from distill.errors import UserError
from distill.models.foreign import check_logits, describe_foreign
from distill.models.heads import find_last_layer, last_linear, last_linear_name, start_small
from distill.models.hooks import capture_features, check_features, templates

CONFIG = {"architecture": "mine", "input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.2,) * 3}


class TwoHeads(nn.Module):
    """Has an auxiliary head that is registered last, and gives the logits of the first."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 5, 3, stride=8)
        self.head = nn.Linear(5 * 16, 4)
        self.auxiliary = nn.Linear(5 * 16, 4)

    def forward(self, x):
        features = self.body(x).flatten(1)
        self.auxiliary(features)
        return self.head(features)


def test_the_last_layer_is_the_one_that_makes_the_logits():
    model = TwoHeads()
    describe_foreign(model, CONFIG)
    assert model.num_classes == 4
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    assert model.num_features == 80
    assert last_linear(model) is model.head
    assert last_linear_name(model) == "head"
    assert templates(model).shape == (4, 80)
    images = torch.randn(2, 3, 32, 32)
    with capture_features(model) as features:
        model(images)
    assert torch.equal(features[0], model.body(images).flatten(1))
    check_features(model)


@pytest.mark.parametrize(
    ("name", "last"),
    [("resnet18", "fc"), ("mobilenet_v3_small", "classifier.3"), ("vgg11", "classifier.6"),
     ("squeezenet1_1", "")],
)  # fmt: skip
def test_networks_of_torchvision_have_features(name, last):
    """SqueezeNet averages the outputs of its last convolution, so no layer outputs the logits."""
    model = torchvision.models.get_model(name, num_classes=6).train()
    find_last_layer(model, torch.zeros(1, 3, 64, 64))
    assert model.last_layer_name == last
    assert model.training
    assert (last_linear(model) is None) == (last == "")


def test_a_sum_of_two_heads_has_no_last_layer():
    class Sum(TwoHeads):
        def forward(self, x):
            features = self.body(x).flatten(1)
            return self.head(features) + self.auxiliary(features)

    model = Sum()
    describe_foreign(model, CONFIG)
    assert last_linear(model) is None
    check_features(model)


@pytest.mark.parametrize("name", ["caformer_s18", "mobilenetv3_small_050", "resnet18"])
def test_last_layers_within_heads_of_timm_are_found(name):
    model = build(name, view_shape=(3, 64, 64), num_classes=7).eval()
    assert last_linear(model).weight.shape[0] == 7
    check_features(model)


@pytest.mark.parametrize("name", ["volo_d1_224", "crossvit_tiny_240"])
def test_networks_with_two_heads_have_none(name):
    shape = (3, 224, 224) if "224" in name else (3, 240, 240)
    assert last_linear(build(name, view_shape=shape)) is None


@pytest.mark.parametrize(
    ("output", "fact"),
    [
        ((torch.zeros(2, 3), torch.zeros(2, 3)), "a tuple of 2"),
        ({"logits": torch.zeros(2, 3)}, "a dictionary with logits"),
        ([torch.zeros(2, 3)], "a list of 1"),
        (torch.zeros(2, 3, 4, 4), r"\[2, 3, 4, 4\]"),
        (torch.zeros(2, 5), "5 outputs for 3"),
    ],
)
def test_outputs_that_are_not_logits_are_refused(output, fact):
    with pytest.raises(UserError, match=fact):
        check_logits(output, 3)
    logits = torch.zeros(2, 3)
    assert check_logits(logits, 3) is logits


def test_features_only_is_refused_with_the_reason():
    with pytest.raises(UserError, match="features_only"):
        build("test_resnet", model_args={"features_only": True})


def test_a_new_last_layer_starts_with_zeros():
    model = build("resnet18", view_shape=(3, 32, 32))
    start_small(model)
    assert not model.fc.weight.any() and not model.fc.bias.any()
    assert model.layer1[0].conv1.weight.any()


@pytest.mark.parametrize("config", [{}, {"num_classes": 4}, {"mean": (0.1,) * 3}])
def test_a_configuration_that_is_incomplete_is_completed(config):
    model = TwoHeads()
    model.pretrained_cfg = config
    describe_foreign(model, CONFIG)
    assert model.pretrained_cfg == {"num_classes": 4, **CONFIG, **config}
