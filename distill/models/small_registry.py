"""The small networks by name, registered in timm.

`mlp_*` and `cifar_alexnet` are networks of Müller et al. 2019. The other `cifar_*` networks are
those of the usual benchmark in distillation papers (Tian et al. 2020, "Contrastive Representation
Distillation", table 1), so accuracies can be compared with theirs.

To add a network, write its class in `small_networks` and add a row to `NETWORKS`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import nn

from distill.models.small_networks import MLP, CifarAlexNet, CifarResNet, CifarVGG, WideResNet


class Network(NamedTuple):
    """A named network.

    Attributes:
        build: the network's class.
        settings: arguments of the class.
        input_size: channels, height and width of the paper's images.
        is_fixed_size: whether the network has dense layers that fit only one image size.
    """

    build: Callable[..., nn.Module]
    settings: dict[str, Any]
    input_size: tuple[int, int, int] = (3, 32, 32)
    is_fixed_size: bool = False


def _mlp(**settings: Any) -> Network:
    return Network(MLP, settings, input_size=(1, 28, 28), is_fixed_size=True)


def _resnet(depth: int, **settings: Any) -> Network:
    return Network(CifarResNet, {"depth": depth, **settings})


def _wide_resnet(depth: int, width: int) -> Network:
    return Network(WideResNet, {"depth": depth, "width": width})


def _vgg(convolutions_per_stage: int) -> Network:
    widths = (64, 128, 256, 512, 512)
    stages = tuple((width,) * convolutions_per_stage for width in widths)
    return Network(CifarVGG, {"stages": stages})


# Channels of the ResNets that are four times as wide as usual.
WIDE = (32, 64, 128, 256)

NETWORKS: dict[str, Network] = {
    "mlp": _mlp(),
    "mlp_16": _mlp(width=16),
    "mlp_32": _mlp(width=32),
    "mlp_64": _mlp(width=64),
    "mlp_128": _mlp(width=128),
    "mlp_256": _mlp(width=256),
    "mlp_400": _mlp(width=400),
    "mlp_800": _mlp(width=800, init_std=0.03),
    "mlp_1200": _mlp(width=1200, init_std=0.03),
    "cifar_resnet8": _resnet(8),
    "cifar_resnet14": _resnet(14),
    "cifar_resnet20": _resnet(20),
    "cifar_resnet32": _resnet(32),
    "cifar_resnet44": _resnet(44),
    "cifar_resnet56": _resnet(56),
    "cifar_resnet110": _resnet(110),
    "cifar_resnet8x4": _resnet(8, widths=WIDE),
    "cifar_resnet32x4": _resnet(32, widths=WIDE),
    "cifar_wrn_16_2": _wide_resnet(16, 2),
    "cifar_wrn_40_1": _wide_resnet(40, 1),
    "cifar_wrn_40_2": _wide_resnet(40, 2),
    "cifar_vgg8": _vgg(1),
    "cifar_vgg13": _vgg(2),
    "cifar_alexnet": Network(CifarAlexNet, {}, input_size=(3, 24, 24), is_fixed_size=True),
}


def _default_cfg(network: Network) -> dict[str, Any]:
    """Return timm's description of a network without pretrained weights."""
    channels = network.input_size[0]
    return {
        "input_size": network.input_size,
        "num_classes": 10,
        "mean": (0.5,) * channels,
        "std": (0.25,) * channels,
        "fixed_input_size": network.is_fixed_size,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "classifier": "head",
        "first_conv": None,
        "license": "apache-2.0",
    }


# timm finds the descriptions of a module's networks under this name.
default_cfgs = generate_default_cfgs(
    {name: _default_cfg(network) for name, network in NETWORKS.items()}
)


def _register(name: str, network: Network) -> None:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:  # noqa: FBT001, FBT002 (timm's signature)
        return build_model_with_cfg(network.build, name, pretrained, **(network.settings | kwargs))

    # timm registers a function under its name and looks for `default_cfgs` in its module.
    create.__name__ = name
    create.__module__ = __name__
    register_model(create)


for _name, _network in NETWORKS.items():
    # A later version of timm may have a network of this name. Do not replace it.
    if not is_model(_name):
        _register(_name, _network)
