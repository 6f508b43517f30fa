"""Networks: their sizes from arithmetic, features and templates, initial weights, storage as timm's."""

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

from distill.errors import UserError
from distill.models.factory import build_model, input_config, load_weights, parameter_count
from distill.models.hooks import capture_features, last_layer, templates
from distill.models.small import NETWORKS


def build(name, classes=10, shape=None, seed=0, **kwargs):
    shape = shape or ((1, 28, 28) if name.startswith("mlp") else (3, 32, 32))
    args = kwargs.pop("args", {})
    return build_model(
        name,
        args,
        classes=classes,
        shape=shape,
        seed=seed,
        mean=(0.4,) * shape[0],
        std=(0.2,) * shape[0],
        **kwargs,
    )


def conv(i, o, k=3):
    return i * o * k * k


def resnet_size(depth, widths, classes):
    """Weights of a CIFAR ResNet with 1×1 shortcuts where the shape changes, each convolution with a norm (2 o)."""
    n, total, inside = (depth - 2) // 6, conv(3, widths[0]) + 2 * widths[0], widths[0]
    for stage, width in enumerate(widths[1:]):
        for block in range(n):
            total += conv(inside, width) + conv(width, width) + 4 * width
            if inside != width or (stage and block == 0):
                total += conv(inside, width, 1) + 2 * width
            inside = width
    return total + inside * classes + classes


def wide_size(depth, k, classes):
    n, total, inside = (depth - 4) // 6, conv(3, 16), 16
    for width in (16 * k, 32 * k, 64 * k):
        for block in range(n):
            total += 2 * inside + conv(inside, width) + 2 * width + conv(width, width)
            total += (
                conv(inside, width, 1) if block == 0 and (inside != width or width != 16 * k) else 0
            )
            inside = width
    return total + 2 * inside + inside * classes + classes


def vgg_size(each, classes):
    total, inside = 0, 3
    for width in (64, 128, 256, 512, 512):
        for _ in range(each):
            total, inside = total + conv(inside, width) + width + 2 * width, width
    return total + 512 * classes + classes


SIZES = {
    "mlp_1200": 784 * 1200 + 1200 + 1200 * 1200 + 1200 + 1200 * 100 + 100,
    "mlp_800": 784 * 800 + 800 + 800 * 800 + 800 + 800 * 100 + 100,
    **{f"cifar_resnet{d}": resnet_size(d, (16, 16, 32, 64), 100) for d in (8, 20, 32, 44, 56, 110)},
    **{f"cifar_resnet{d}x4": resnet_size(d, (32, 64, 128, 256), 100) for d in (8, 32)},
    "cifar_wrn_16_2": wide_size(16, 2, 100),
    "cifar_wrn_40_2": wide_size(40, 2, 100),
    "cifar_wrn_40_1": wide_size(40, 1, 100),
    "cifar_vgg8": vgg_size(1, 100),
    "cifar_vgg13": vgg_size(2, 100),
    "cifar_alexnet": 3 * 64 * 25
    + 64
    + 64 * 64 * 25
    + 64
    + 36 * 64 * 384
    + 384
    + 384 * 192
    + 192
    + 192 * 100
    + 100,
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_papers_networks(name):
    shape = (3, 24, 24) if name == "cifar_alexnet" else None
    assert parameter_count(build(name, 100, shape)) == SIZES[name]


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
    x = torch.randn(2, *((1, 28, 28) if name.startswith("mlp") else (3, 32, 32)))
    with torch.no_grad(), capture_features(model) as features:
        logits = model(x)
    assert logits.shape == (2, 10) and templates(model).shape[0] == 10
    torch.testing.assert_close(features[0] @ templates(model).T + last_layer(model).bias, logits)
    model(x)
    assert len(features) == 1  # nothing is left behind


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "crossvit_tiny_240"])
def test_networks_without_a_single_last_layer_are_told(name):
    with pytest.raises(UserError, match="no single last layer"):
        last_layer(timm.create_model(name, num_classes=10))


def test_one_seed_starts_alike_and_leaves_the_generator():
    before = torch.get_rng_state()
    same, other = (build("mlp_16", seed=s).state_dict() for s in (3, 4))
    again = build("mlp_16", seed=3).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(same[k], again[k]) for k in same)
    assert not torch.equal(same["fc1.weight"], other["fc1.weight"])


def test_the_papers_networks_start_with_deviation_003():
    model = build("mlp_1200")
    for layer in (model.fc1, model.fc2, model.head):
        assert layer.weight.std().item() == pytest.approx(0.03, rel=0.02)


def test_dropout_works_in_training_on_both_hidden_layers_only():
    model = build("mlp_64", args={"drop_rate": 0.5})
    x = torch.rand(4, 1, 28, 28)
    assert not torch.equal(model(x), model(x))
    assert not torch.equal(
        model.forward_features(x), model.forward_features(x)
    )  # the first layer's own
    model.eval()
    assert torch.equal(model(x), model(x))


def test_our_names_do_not_shadow_timms():
    for name in NETWORKS:
        assert timm.models.model_entrypoint(name).__module__ == "distill.models.small"
    assert timm.create_model("resnet18").__class__.__module__.startswith("timm.")


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
def test_a_stored_folder_is_timms(tmp_path, name, shape):
    model = build(
        name, 7, shape, class_names=[f"class {i}" for i in range(7)], args={"drop_rate": 0.1}
    ).eval()
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, *shape)
    assert torch.equal(model(x), again(x))
    assert input_config(again) == ((0.4,) * shape[0], (0.2,) * shape[0], shape[1:])
    assert again.pretrained_cfg["label_names"][3] == "class 3"


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"name": "resnet1888"}, "did you mean 'resnet18"),
        ({"name": "mlp_1201"}, "did you mean 'mlp_1200'"),
        ({"name": "mlp_16", "args": {"widht": 3}}, "widht"),
        ({"name": "cifar_resnet20", "args": {"depth": 21}}, "6n \\+ 2"),
    ],
)
def test_what_cannot_be_built_is_told(kwargs, words):
    with pytest.raises(UserError, match=words):
        build(**kwargs)


def test_a_checkpoint_brings_its_normalisation(tmp_path):
    save_for_hf(build("mlp_16"), str(tmp_path), safe_serialization=True)  # mean 0.4, deviation 0.2
    again = build_model(
        "mlp_16",
        {},
        classes=10,
        shape=(1, 28, 28),
        seed=0,
        mean=(0.9,),
        std=(0.1,),
        checkpoint=str(tmp_path),
    )
    assert input_config(again) == ((0.4,), (0.2,), (28, 28))


def test_checkpoints_must_fit_and_are_never_unpickled(tmp_path):
    model = build("mlp_16")
    save_for_hf(model, str(tmp_path / "run"), safe_serialization=True)
    again = build("mlp_16", seed=9, checkpoint=str(tmp_path / "run"))
    assert torch.equal(model.fc1.weight, again.fc1.weight)
    with pytest.raises(UserError, match="does not fit"):
        build("mlp_32", checkpoint=str(tmp_path / "run"))
    with pytest.raises(UserError, match="does not fit"):
        build("mlp_16", classes=9, checkpoint=str(tmp_path / "run"))
    torch.save(model.state_dict(), tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"only \.safetensors"):
        load_weights(model, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="does not exist"):
        load_weights(nn.Linear(1, 1), tmp_path / "none.safetensors")
