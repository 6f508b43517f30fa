"""Features and templates are those that make the logits; hooks do not outlive their context."""

import pytest
import timm
import torch
from helpers.models import build, view_shape_of

from distill.errors import UserError
from distill.models.hooks import (
    capture_features,
    capture_outputs,
    last_layer,
    stage_modules,
    templates,
    weight_decay_params,
)
from distill.models.small_registry import NETWORKS

TIMM = [
    "resnet18",
    "efficientnet_b0",
    "mobilenetv3_small_100",
    "vit_tiny_patch16_224",
    "convnext_atto",
    "regnetx_002",
    "resnetv2_18",
    "test_vit",
    "test_resnet",
]


@pytest.mark.parametrize("name", [*NETWORKS, *TIMM])
def test_penultimate_features_and_templates_make_the_logits(name):
    model = build(name).eval()
    x = torch.randn(2, *view_shape_of(name))
    with torch.no_grad(), capture_features(model) as features:
        logits = model(x)
    assert logits.shape == (2, 10)
    assert templates(model).shape[0] == 10
    torch.testing.assert_close(features[0] @ templates(model).T + last_layer(model).bias, logits)
    model(x)
    assert len(features) == 1


@pytest.mark.parametrize("scale", [8.0, 0.0])
def test_the_templates_of_a_cosine_head_have_length_one(scale):
    model = build("cosine_head", model_args={"base": "cifar_resnet8", "scale": scale}).eval()
    needs = ("features", "templates", "weights", "feature_maps")
    with torch.no_grad(), capture_outputs(model, needs) as captured:
        logits = model(torch.randn(2, 3, 32, 32))
    assert captured["logit_scale"] == scale
    torch.testing.assert_close(captured["templates"].norm(dim=1), torch.ones(10))
    features = captured["features"]
    if scale:
        features = scale * torch.nn.functional.normalize(features, dim=1)
    torch.testing.assert_close(features @ captured["templates"].T, logits)
    shapes = [tuple(feature_map.shape) for feature_map in captured["feature_maps"]]
    assert shapes == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
    assert len(captured["weights"]) == len(weight_decay_params(model))


def test_only_what_is_needed_is_captured_and_hooks_are_removed():
    model = build("cifar_resnet8").eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), capture_outputs(model, ()) as captured:
        model(x)
    assert captured == {"logit_scale": None}
    with torch.no_grad(), capture_outputs(model, ("features", "feature_maps")) as captured:
        model(x)
        first = captured["features"]
    assert len(captured["feature_maps"]) == 3
    model(x + 1)
    assert captured["features"] is first
    assert len(captured["feature_maps"]) == 3


def test_feature_maps_with_channels_last_are_permuted():
    model = build("swin_tiny_patch4_window7_224", view_shape=(3, 224, 224)).eval()
    with torch.no_grad(), capture_outputs(model, ("feature_maps",)) as captured:
        model(torch.randn(1, 3, 224, 224))
    widths = [info["num_chs"] for info in model.feature_info]
    assert [feature_map.shape[1] for feature_map in captured["feature_maps"]] == widths


def test_weight_decay_spares_biases_norms_and_what_the_network_excludes():
    params = weight_decay_params(build("test_vit"))
    assert "pos_embed" not in params
    assert all(name.endswith("weight") and "norm" not in name for name in params)


def test_networks_without_stages_are_refused():
    with pytest.raises(UserError, match="MLP"):
        stage_modules(build("mlp_16"))
    model = build("test_vit").eval()
    with (
        pytest.raises(UserError, match=r"VisionTransformer.* 3 "),
        capture_outputs(model, ("feature_maps",)),
    ):
        model(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "crossvit_tiny_240"])
def test_networks_without_a_single_last_layer_are_refused(name):
    model = timm.create_model(name, num_classes=10)
    with pytest.raises(UserError, match=type(model).__name__):
        last_layer(model)
