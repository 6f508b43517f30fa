"""Networks are built from a seed, stored as timm stores them, and refused with the reason."""

import json
from dataclasses import replace

import pytest
import timm
import torch
from helpers.models import build
from helpers.recipes import TINY, make_recipe
from timm.models import save_for_hf

from distill.errors import UserError
from distill.models.factory import (
    blank_images,
    input_config,
    largest_pretrained_side,
    load_run_model,
    native_size,
    pretrained_size,
)


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    first = build("mlp_16", seed=3).state_dict()
    other = build("mlp_16", seed=4).state_dict()
    again = build("mlp_16", seed=3).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc1.weight"], other["fc1.weight"])


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp_16", (1, 8, 8)),
        ("cifar_alexnet", (3, 24, 24)),
        ("cifar_resnet8", (1, 28, 28)),
        ("resnet18", (1, 32, 32)),
        ("vit_tiny_patch16_224", (3, 32, 32)),
    ],
)
def test_a_stored_folder_is_one_of_timm(tmp_path, name, shape):
    names = [f"class {i}" for i in range(7)]
    model = build(
        name, view_shape=shape, num_classes=7, class_names=names, model_args={"drop_rate": 0.1}
    ).eval()
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, *shape)
    assert torch.equal(model(x), again(x))
    assert torch.equal(model(x), load_run_model(tmp_path)(x))
    assert input_config(again) == ((0.4,) * shape[0], (0.2,) * shape[0], shape[1:])
    assert again.pretrained_cfg["label_names"][3] == "class 3"
    assert blank_images(model, 3).shape == (3, *shape)


def test_an_input_size_replaces_that_of_the_views():
    model = build("mlp_16", view_shape=(1, 8, 8), input_size=(12, 10))
    assert model.fc1.in_features == 120
    assert input_config(model)[2] == (12, 10)


@pytest.mark.parametrize(
    ("spec", "fact"),
    [
        ({"name": "resnet1888"}, "'resnet18"),
        ({"name": "mlp_1201"}, "'mlp_1200'"),
        ({"name": "zzzqqq"}, "timm.list_models"),
        ({"name": "mlp_16", "model_args": {"widht": 3}}, "widht"),
        ({"name": "cifar_resnet20", "model_args": {"depth": 21}}, r"6n \+ 2.* 21"),
        ({"name": "cifar_wrn_16_2", "model_args": {"depth": 21}}, r"6n \+ 4.* 21"),
        ({"name": "cosine_head"}, "base: resnet18"),
        ({"name": "cosine_head", "model_args": {"base": "mlp_16", "scale": -1}}, "-1"),
        ({"name": "cosine_head", "model_args": {"base": "crossvit_tiny_240"}}, "crossvit_tiny_240"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(spec, fact):
    with pytest.raises(UserError, match=fact):
        build(**spec)


def test_a_checkpoint_brings_its_normalisation(tmp_path):
    save_for_hf(build("mlp_16"), str(tmp_path), safe_serialization=True)
    again = build("mlp_16", mean=(0.9,), std=(0.1,), checkpoint=str(tmp_path))
    assert input_config(again) == ((0.4,), (0.2,), (28, 28))


def test_a_frozen_network_needs_a_head_for_the_classes(tmp_path):
    save_for_hf(build("mlp_16"), str(tmp_path), safe_serialization=True)
    name = f"local-dir:{tmp_path}"
    frozen = build(name, view_shape=(1, 8, 8), pretrained=True, frozen=True)
    assert input_config(frozen)[2] == (28, 28)
    with pytest.raises(UserError, match=r" 10 classes.* 7"):
        build(name, view_shape=(1, 28, 28), num_classes=7, pretrained=True, frozen=True)


def test_a_network_for_colour_images_is_normalised_by_the_mean_of_channels_for_grey_ones(
    monkeypatch,
):
    """As timm, which adds up the first convolution's weights over the colours."""
    pretrained = build("cifar_resnet8", view_shape=(1, 32, 32))
    config = {"mean": (0.1, 0.2, 0.6), "std": (0.2, 0.3, 0.4)}
    pretrained.pretrained_cfg = dict(pretrained.pretrained_cfg) | config
    monkeypatch.setattr("timm.create_model", lambda *_args, **_kwargs: pretrained)
    grey = build("resnet18", view_shape=(1, 32, 32), pretrained=True)
    assert input_config(grey)[:2] == (pytest.approx((0.3,)), pytest.approx((0.3,)))


def test_a_damaged_run_is_named(tmp_path):
    save_for_hf(build("mlp_16"), str(tmp_path), safe_serialization=True)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=str(tmp_path)):
        load_run_model(tmp_path)


# ----------------------------------------------------------------- sizes of pretrained networks


def test_native_sizes_are_those_of_timms_weights(tmp_path):
    assert native_size("resnet18") == (3, 224, 224)
    assert native_size("vit_base_patch16_384") == (3, 384, 384)
    assert native_size("mlp_16") is None
    assert native_size("resnet18.no_such_tag") is None
    assert native_size("hf-hub:somebody/something") is None
    save_for_hf(build("mlp_16"), str(tmp_path), safe_serialization=True)
    assert tuple(native_size(f"local-dir:{tmp_path}")) == (1, 28, 28)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match=r"config\.json"):
        native_size(f"local-dir:{tmp_path}")


def arm(model, *, trained=True, **settings):
    """Return an arm of a recipe; one that is not trained is frozen."""
    made = replace(make_recipe(TINY).arms[0], model=model, pretrained=True, **settings)
    return made if trained else replace(made, loss=None)


def test_a_frozen_network_has_the_size_that_it_was_trained_with(tmp_path):
    assert pretrained_size(arm("resnet18", trained=False)) == (224, 224)
    assert pretrained_size(arm("resnet18")) is None
    assert pretrained_size(arm("mlp_16", trained=False)) is None
    save_for_hf(build("mlp_16"), str(tmp_path), safe_serialization=True)
    stored = arm("mlp_16", trained=False, checkpoint=str(tmp_path / "model.safetensors"))
    assert pretrained_size(stored) == (28, 28)


def test_the_largest_side_of_pretrained_networks_is_found():
    large = arm("vit_base_patch16_384")
    small = arm("resnet18")
    not_pretrained = replace(arm("vit_large_patch16_384"), pretrained=False)
    found = largest_pretrained_side([small, large, not_pretrained])
    assert found == (384, "vit_base_patch16_384")
    assert largest_pretrained_side([not_pretrained, arm("mlp_16")]) is None


def test_a_run_of_a_network_that_is_not_registered_is_not_called_damaged(tmp_path):
    save_for_hf(build("mlp_16"), str(tmp_path), safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architecture"] = "somebodys_net"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="registers it") as error:
        load_run_model(tmp_path)
    assert "damaged" not in str(error.value)
