"""The small networks: their sizes by arithmetic, their initial weights, dropout, names."""

import pytest
import timm
import torch
from helpers.models import build

from distill.models.factory import parameter_count
from distill.models.small_registry import NETWORKS


def conv(inputs, outputs, kernel=3):
    return inputs * outputs * kernel * kernel


def dense(inputs, outputs):
    return inputs * outputs + outputs


def resnet_size(depth, widths, classes):
    """Count the weights of a CIFAR ResNet; each convolution has a norm with 2 weights a channel."""
    total = conv(3, widths[0]) + 2 * widths[0]
    inputs = widths[0]
    for stage, width in enumerate(widths[1:]):
        for block in range((depth - 2) // 6):
            total += conv(inputs, width) + conv(width, width) + 4 * width
            if inputs != width or (stage and block == 0):
                total += conv(inputs, width, 1) + 2 * width
            inputs = width
    return total + dense(inputs, classes)


def wide_resnet_size(depth, factor, classes):
    total = conv(3, 16)
    inputs = 16
    for stage, width in enumerate((16 * factor, 32 * factor, 64 * factor)):
        for block in range((depth - 4) // 6):
            total += 2 * inputs + conv(inputs, width) + 2 * width + conv(width, width)
            if block == 0 and (stage or inputs != width):
                total += conv(inputs, width, 1)
            inputs = width
    return total + 2 * inputs + dense(inputs, classes)


def vgg_size(convolutions_per_stage, classes):
    total = 0
    inputs = 3
    for width in (64, 128, 256, 512, 512):
        for _ in range(convolutions_per_stage):
            total += conv(inputs, width) + width + 2 * width
            inputs = width
    return total + dense(512, classes)


SIZES = {
    "mlp_1200": dense(784, 1200) + dense(1200, 1200) + dense(1200, 100),
    "mlp_800": dense(784, 800) + dense(800, 800) + dense(800, 100),
    **{f"cifar_resnet{d}": resnet_size(d, (16, 16, 32, 64), 100) for d in (8, 20, 32, 44, 56, 110)},
    **{f"cifar_resnet{d}x4": resnet_size(d, (32, 64, 128, 256), 100) for d in (8, 32)},
    "cifar_wrn_16_2": wide_resnet_size(16, 2, 100),
    "cifar_wrn_40_2": wide_resnet_size(40, 2, 100),
    "cifar_wrn_40_1": wide_resnet_size(40, 1, 100),
    "cifar_vgg8": vgg_size(1, 100),
    "cifar_vgg13": vgg_size(2, 100),
    "cifar_alexnet": conv(3, 64, 5)
    + 64
    + conv(64, 64, 5)
    + 64
    + dense(36 * 64, 384)
    + dense(384, 192)
    + dense(192, 100),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_papers_networks(name):
    shape = (3, 24, 24) if name == "cifar_alexnet" else None
    assert parameter_count(build(name, view_shape=shape, num_classes=100)) == SIZES[name]


def test_the_networks_of_mueller_et_al_start_with_a_deviation_of_003():
    model = build("mlp_1200")
    for layer in (model.fc1, model.fc2, model.head):
        assert layer.weight.std().item() == pytest.approx(0.03, rel=0.02)


def test_dropout_of_an_mlp_is_on_both_hidden_layers_in_training_only():
    model = build("mlp_64", model_args={"drop_rate": 0.5})
    x = torch.rand(4, 1, 28, 28)
    assert not torch.equal(model(x), model(x))
    assert not torch.equal(model.forward_features(x), model.forward_features(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_names_do_not_shadow_those_of_timm():
    for name in NETWORKS:
        assert timm.models.model_entrypoint(name).__module__ == "distill.models.small_registry"
    assert timm.create_model("resnet18").__class__.__module__.startswith("timm.")


@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith("cifar_r")])
def test_feature_info_lists_three_stages_that_halve_the_size(name):
    model = build(name)
    modules = [model.get_submodule(info["module"]) for info in model.feature_info]
    shapes = []
    for module in modules:
        module.register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output.shape[1:])))
    model(torch.zeros(1, 3, 32, 32))
    widths = [info["num_chs"] for info in model.feature_info]
    assert shapes == [(w, s, s) for w, s in zip(widths, (32, 16, 8), strict=True)]
