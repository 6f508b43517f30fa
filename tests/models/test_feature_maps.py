"""The stages whose feature maps a loss can use, by network."""

import pytest
import timm
import torch

import distill  # noqa: F401  (adds networks to timm's)
from distill.models.hooks import capture_outputs


@pytest.mark.parametrize(
    ("name", "arguments", "side", "shapes"),
    [
        ("cifar_resnet20", {}, 8, [(16, 8, 8), (32, 4, 4), (64, 2, 2)]),
        (
            "cifar_vgg8",
            {},
            8,
            [(64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1), (512, 1, 1)],
        ),
        (
            "swin_tiny_patch4_window7_224",
            {"num_classes": 4},
            224,
            [(96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7)],
        ),
    ],
)
def test_feature_maps_are_those_of_the_stages(name, arguments, side, shapes):
    model = timm.create_model(name, **arguments).eval()
    with torch.no_grad(), capture_outputs(model, {"feature_maps"}) as captured:
        model(torch.zeros(1, 3, side, side))
    assert [tuple(maps.shape[1:]) for maps in captured["feature_maps"]] == shapes
