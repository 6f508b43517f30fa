"""The small networks of the papers, registered in timm's own registry.

`mlp_*`: Müller et al. 2019, appendix A.5. `cifar_alexnet`: the same, appendix A.1. The other `cifar_*`
networks are those of the distillation tables that the field shares (Tian et al. 2020, "Contrastive
Representation Distillation", table 1), so that accuracies compare.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import Tensor, nn


class _Classifier(nn.Module):
    """What timm expects of a classifier: features, and a head on the pooled ones."""

    head: nn.Linear
    num_features: int

    def __init__(self, num_classes: int, in_chans: int, drop_rate: float) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate

    def get_classifier(self) -> nn.Linear:
        """The last layer: its input are the penultimate features, its rows the templates."""
        return self.head

    def forward_features(self, x: Tensor) -> Tensor:
        """Everything before pooling and head."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, drop out, classify."""
        x = F.adaptive_avg_pool2d(x, 1).flatten(1) if x.ndim == 4 else x
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, K]`` of images ``[B, C, H, W]``."""
        return self.forward_head(self.forward_features(x))


class MLP(_Classifier):
    """Two hidden layers of `width` rectified units, with dropout on both (none on the input).

    With `init_std`, weights and biases start Gaussian with that standard deviation, else as He et al. 2015
    have it. The paper's networks, `mlp_800` and `mlp_1200`, have 0.03: it says "variance 0.03", with which
    the logits of MNIST images would start with a standard deviation of 32.
    """

    def __init__(
        self,
        width: int = 1200,
        num_classes: int = 10,
        in_chans: int = 1,
        img_size: int | tuple = 28,
        drop_rate: float = 0.0,
        init_std: float | None = None,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        height, length = img_size if isinstance(img_size, tuple | list) else (img_size, img_size)
        self.num_features = width
        self.fc1 = nn.Linear(in_chans * height * length, width)
        self.fc2 = nn.Linear(width, width)
        self.head = nn.Linear(width, num_classes)
        for layer in (self.fc1, self.fc2, self.head):
            nn.init.normal_(layer.weight, std=init_std or (2 / layer.in_features) ** 0.5)
            nn.init.normal_(layer.bias, std=init_std or 0.0)

    def forward_features(self, x: Tensor) -> Tensor:
        """Both hidden layers; dropout after the second is the head's."""
        x = F.dropout(F.relu(self.fc1(x.flatten(1))), self.drop_rate, self.training)
        return F.relu(self.fc2(x))


def _conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


def _stage_ends(container: str, widths: Sequence[int], ends: Sequence[int]) -> list[dict[str, Any]]:
    """Which modules give the feature maps of the stages, as timm's networks tell it."""
    return [
        {"module": f"{container}.{end}", "num_chs": width}
        for width, end in zip(widths, ends, strict=True)
    ]


class _Block(nn.Module):
    """Post-activation residual block: conv, norm, relu, conv, norm, sum, relu."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs), nn.BatchNorm2d(outputs)
        changed = stride != 1 or inputs != outputs
        self.downsample = (
            nn.Sequential(_conv(inputs, outputs, stride, 1), nn.BatchNorm2d(outputs))
            if changed
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.downsample(x))


class CifarResNet(_Classifier):
    """He et al. 2016, section 4.2: 6n + 2 layers in three stages, with 1×1 convolutions where the shape
    changes (option B, as in the tables) and He's initialisation."""

    def __init__(
        self,
        depth: int,
        widths: tuple[int, int, int, int] = (16, 16, 32, 64),
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"the depth of a CIFAR ResNet is 6n + 2, got {depth}")
        self.num_features = widths[3]
        self.conv1, self.bn1 = _conv(in_chans, widths[0]), nn.BatchNorm2d(widths[0])
        self.stages = nn.Sequential(
            *(
                _Block(
                    widths[s] if b == 0 else widths[s + 1], widths[s + 1], 2 if s and b == 0 else 1
                )
                for s in range(3)
                for b in range(blocks)
            )
        )
        self.feature_info = _stage_ends("stages", widths[1:], range(blocks - 1, 3 * blocks, blocks))
        self.head = nn.Linear(widths[3], num_classes)
        _init_he(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Feature maps ``[B, D, H/4, W/4]``."""
        return self.stages(F.relu(self.bn1(self.conv1(x))))


class _PreBlock(nn.Module):
    """Pre-activation block of wide residual networks, dropout between its convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int, drop_rate: float) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, outputs, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), _conv(outputs, outputs)
        self.shortcut = (
            _conv(inputs, outputs, stride, 1) if stride != 1 or inputs != outputs else None
        )
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(out)
        out = F.dropout(F.relu(self.bn2(self.conv1(out))), self.drop_rate, self.training)
        return self.conv2(out) + kept


class WideResNet(_Classifier):
    """Zagoruyko and Komodakis 2016: WRN-depth-width, 6n + 4 layers. `drop_rate` is inside the blocks."""

    def __init__(
        self,
        depth: int,
        width: int,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, 0.0)
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"the depth of a wide ResNet is 6n + 4, got {depth}")
        widths = (16, 16 * width, 32 * width, 64 * width)
        self.num_features = widths[3]
        self.conv1 = _conv(in_chans, 16)
        self.stages = nn.Sequential(
            *(
                _PreBlock(
                    widths[s] if b == 0 else widths[s + 1],
                    widths[s + 1],
                    2 if s and b == 0 else 1,
                    drop_rate,
                )
                for s in range(3)
                for b in range(blocks)
            )
        )
        self.feature_info = _stage_ends("stages", widths[1:], range(blocks - 1, 3 * blocks, blocks))
        self.bn = nn.BatchNorm2d(widths[3])
        self.head = nn.Linear(widths[3], num_classes)
        _init_he(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Feature maps ``[B, D, H/4, W/4]``."""
        return F.relu(self.bn(self.stages(self.conv1(x))))


class CifarVGG(_Classifier):
    """VGG with batch normalisation for 32×32 images, one linear layer on the pooled 512 features."""

    def __init__(
        self,
        stages: tuple[tuple[int, ...], ...],
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        layers, width, ends = [], in_chans, []
        for number, stage in enumerate(stages):
            for outputs in stage:
                layers += [
                    nn.Conv2d(width, outputs, 3, padding=1),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(inplace=True),
                ]
                width = outputs
            ends.append(len(layers) - 1)
            if number < 3:  # the tables' networks keep 4×4 maps in the last two stages
                layers.append(nn.MaxPool2d(2))
        self.num_features = width
        self.features = nn.Sequential(*layers)
        self.feature_info = _stage_ends("features", [stage[-1] for stage in stages], ends)
        self.head = nn.Linear(width, num_classes)
        _init_he(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Feature maps ``[B, 512, H/8, W/8]``."""
        return self.features(x)


class CifarAlexNet(_Classifier):
    """The TensorFlow CIFAR-10 tutorial's network: on 24×24 crops, two convolutions of 64 with local
    response normalisation, then 384 and 192 units (Müller et al. 2019, appendix A.1).

    The paper decays the two hidden dense layers alone (0.04), at a rate of 0.1 and a loss times 3.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        img_size: int | tuple = 24,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        height, length = img_size if isinstance(img_size, tuple | list) else (img_size, img_size)
        self.conv1 = nn.Conv2d(in_chans, 64, 5, padding=2)
        self.conv2 = nn.Conv2d(64, 64, 5, padding=2)
        self.norm = nn.LocalResponseNorm(
            9, alpha=0.001, beta=0.75, k=1.0
        )  # TF's alpha is not divided by the size
        self.fc1 = nn.Linear(64 * -(-height // 4) * -(-length // 4), 384)
        self.fc2 = nn.Linear(384, 192)
        self.head = nn.Linear(192, num_classes)
        self.num_features = 192
        for layer, std in (
            (self.conv1, 0.05),
            (self.conv2, 0.05),
            (self.fc1, 0.04),
            (self.fc2, 0.04),
            (self.head, 1 / 192),
        ):
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.constant_(layer.bias, 0.0 if layer in (self.conv1, self.head) else 0.1)

    def forward_features(self, x: Tensor) -> Tensor:
        """The second dense layer's activations ``[B, 192]``."""
        pool = partial(F.max_pool2d, kernel_size=3, stride=2, padding=1)
        x = self.norm(pool(F.relu(self.conv1(x))))
        x = pool(self.norm(F.relu(self.conv2(x))))
        return F.relu(self.fc2(F.relu(self.fc1(x.flatten(1)))))


def _init_he(model: nn.Module) -> None:
    """He et al. 2015, fan-out, for convolutions; norms start as the identity."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


VGG_STAGES = {
    depth: tuple((width,) * each for width in (64, 128, 256, 512, 512))
    for depth, each in ((8, 1), (13, 2))
}

NETWORKS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "mlp": (MLP, {}),
    **{f"mlp_{width}": (MLP, {"width": width}) for width in (16, 32, 64, 128, 256, 400)},
    **{f"mlp_{width}": (MLP, {"width": width, "init_std": 0.03}) for width in (800, 1200)},
    **{
        f"cifar_resnet{depth}": (CifarResNet, {"depth": depth})
        for depth in (8, 14, 20, 32, 44, 56, 110)
    },
    **{
        f"cifar_resnet{depth}x4": (CifarResNet, {"depth": depth, "widths": (32, 64, 128, 256)})
        for depth in (8, 32)
    },
    **{
        f"cifar_wrn_{depth}_{width}": (WideResNet, {"depth": depth, "width": width})
        for depth, width in ((16, 2), (40, 1), (40, 2))
    },
    **{f"cifar_vgg{depth}": (CifarVGG, {"stages": stages}) for depth, stages in VGG_STAGES.items()},
    "cifar_alexnet": (CifarAlexNet, {}),
}

FIXED_SIZE = (MLP, CifarAlexNet)  # their dense layers are made for one image size


def _default_cfg(network: Callable[..., nn.Module]) -> dict[str, Any]:
    size = {MLP: (1, 28, 28), CifarAlexNet: (3, 24, 24)}.get(network, (3, 32, 32))
    return {
        "input_size": size,
        "num_classes": 10,
        "mean": (0.5,) * size[0],
        "std": (0.25,) * size[0],
        "fixed_input_size": network in FIXED_SIZE,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "classifier": "head",
        "first_conv": None,
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs(
    {name: _default_cfg(network) for name, (network, _) in NETWORKS.items()}
)


def _register(name: str, network: Callable[..., nn.Module], defaults: dict[str, Any]) -> None:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(network, name, pretrained, **(defaults | kwargs))

    create.__name__, create.__module__ = name, __name__
    register_model(create)


for _name, (_network, _defaults) in NETWORKS.items():
    if not is_model(_name):  # never in the way of a network of timm's own
        _register(_name, _network, _defaults)
