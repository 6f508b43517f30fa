"""Small networks from papers on distillation and label smoothing.

All of them follow timm's interface for classifiers, so code for timm's networks works with them.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Module):
    """A base class with timm's interface: features, and a linear head on the pooled features.

    Args:
        num_classes: K.
        in_chans: channels of the images.
        drop_rate: dropout before the head.
    """

    head: nn.Linear
    num_features: int

    def __init__(self, num_classes: int, in_chans: int, drop_rate: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate

    def get_classifier(self) -> nn.Linear:
        """Return the last layer. Its rows are the templates."""
        return self.head

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the features before pooling and head: ``[B, D, H, W]`` or ``[B, D]``."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:  # noqa: FBT001, FBT002 (timm's signature)
        """Return the logits ``[B, K]`` of features, or the pooled features with `pre_logits`."""
        if x.ndim == 4:
            x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``[B, K]`` of images ``[B, C, H, W]``."""
        return self.forward_head(self.forward_features(x))


class MLP(Classifier):
    """An MLP with two hidden ReLU layers, and dropout after each of them but not on the input.

    It is from Müller et al. 2019, appendix A.5. The paper's networks, `mlp_800` and `mlp_1200`,
    use ``init_std=0.03``. The paper writes "variance 0.03", but with this variance the initial
    logits of MNIST images would have a standard deviation of 32.

    Args:
        width: units of each hidden layer.
        num_classes: K.
        in_chans: channels of the images.
        img_size: side of the images, or their height and width.
        drop_rate: dropout after each hidden layer.
        init_std: standard deviation of initial weights and biases. By default, weights are
            initialised as in He et al. 2015, and biases are 0.
    """

    def __init__(
        self,
        width: int = 1200,
        num_classes: int = 10,
        in_chans: int = 1,
        img_size: int | tuple[int, int] = 28,
        drop_rate: float = 0.0,
        init_std: float | None = None,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        image_height, image_width = _height_and_width(img_size)
        self.num_features = width
        self.fc1 = nn.Linear(in_chans * image_height * image_width, width)
        self.fc2 = nn.Linear(width, width)
        self.head = nn.Linear(width, num_classes)
        for layer in (self.fc1, self.fc2, self.head):
            nn.init.normal_(layer.weight, std=init_std or (2 / layer.in_features) ** 0.5)
            nn.init.normal_(layer.bias, std=init_std or 0.0)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the second hidden layer ``[B, width]``; the head applies its dropout."""
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.dropout(x, self.drop_rate, self.training)
        return F.relu(self.fc2(x))


class CifarResNet(Classifier):
    """A ResNet for CIFAR: 6n + 2 layers in three stages.

    He et al. 2016, section 4.2. Where the shape changes, the shortcut is a 1×1 convolution
    (option B), as in the tables of distillation papers.

    Args:
        depth: number of layers, 6n + 2.
        widths: channels of the first convolution and of the three stages.
        num_classes: K.
        in_chans: channels of the images.
        drop_rate: dropout before the head.

    Raises:
        ValueError: if there is no network of this depth.
    """

    def __init__(
        self,
        depth: int,
        widths: tuple[int, int, int, int] = (16, 16, 32, 64),
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        num_blocks, rest = divmod(depth - 2, 6)
        if rest or num_blocks < 1:
            raise ValueError(f"the depth of a CIFAR ResNet must be 6n + 2 with n ≥ 1, got {depth}")
        self.num_features = widths[-1]
        self.conv1 = _conv(in_chans, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        blocks = [
            _Block(inputs, outputs, stride)
            for inputs, outputs, stride in _block_shapes(widths, num_blocks)
        ]
        self.stages = nn.Sequential(*blocks)
        self.feature_info = _feature_info("stages", widths[1:], _last_of_stages(num_blocks))
        self.head = nn.Linear(widths[-1], num_classes)
        _init_convolutions(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return feature maps ``[B, D, H/4, W/4]``."""
        return self.stages(F.relu(self.bn1(self.conv1(x))))


class WideResNet(Classifier):
    """A wide residual network, WRN-depth-width: 6n + 4 layers in three stages.

    Zagoruyko and Komodakis 2016.

    Args:
        depth: number of layers, 6n + 4.
        width: factor of the stages' channels, which are 16, 32 and 64.
        num_classes: K.
        in_chans: channels of the images.
        drop_rate: dropout inside the blocks; there is none before the head.

    Raises:
        ValueError: if there is no network of this depth.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, 0.0)
        num_blocks, rest = divmod(depth - 4, 6)
        if rest or num_blocks < 1:
            raise ValueError(f"the depth of a wide ResNet must be 6n + 4 with n ≥ 1, got {depth}")
        widths = (16, 16 * width, 32 * width, 64 * width)
        self.num_features = widths[-1]
        self.conv1 = _conv(in_chans, 16)
        blocks = [
            _PreActivationBlock(inputs, outputs, stride, drop_rate)
            for inputs, outputs, stride in _block_shapes(widths, num_blocks)
        ]
        self.stages = nn.Sequential(*blocks)
        self.feature_info = _feature_info("stages", widths[1:], _last_of_stages(num_blocks))
        self.bn = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)
        _init_convolutions(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return feature maps ``[B, D, H/4, W/4]``."""
        return F.relu(self.bn(self.stages(self.conv1(x))))


class CifarVGG(Classifier):
    """A VGG with batch normalisation for 32×32 images, with one linear layer on pooled features.

    Args:
        stages: the output channels of the convolutions in each of five stages.
        num_classes: K.
        in_chans: channels of the images.
        drop_rate: dropout before the head.
    """

    def __init__(
        self,
        stages: tuple[tuple[int, ...], ...],
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        layers: list[nn.Module] = []
        last_layers: list[int] = []
        inputs = in_chans
        for number, stage in enumerate(stages):
            for outputs in stage:
                layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
                layers.append(nn.BatchNorm2d(outputs))
                layers.append(nn.ReLU(inplace=True))
                inputs = outputs
            last_layers.append(len(layers) - 1)
            # The networks of distillation papers keep 4×4 maps in the last two stages.
            if number < 3:
                layers.append(nn.MaxPool2d(2))
        self.num_features = inputs
        self.features = nn.Sequential(*layers)
        widths = [stage[-1] for stage in stages]
        self.feature_info = _feature_info("features", widths, last_layers)
        self.head = nn.Linear(inputs, num_classes)
        _init_convolutions(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return feature maps ``[B, 512, H/8, W/8]``."""
        return self.features(x)


class CifarAlexNet(Classifier):
    """The network of TensorFlow's CIFAR-10 tutorial, for 24×24 crops.

    Müller et al. 2019, appendix A.1, use it. It has two convolutions of 64 channels with local
    response normalisation, then 384 and 192 units. The paper applies weight decay to the two
    hidden dense layers alone (0.04), with a learning rate of 0.1 and a loss multiplied by 3.

    Args:
        num_classes: K.
        in_chans: channels of the images.
        img_size: side of the images, or their height and width.
        drop_rate: dropout before the head.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 24,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        height, width = _height_and_width(img_size)
        pooled_height = _divide_rounding_up(height, 4)
        pooled_width = _divide_rounding_up(width, 4)
        self.conv1 = nn.Conv2d(in_chans, 64, 5, padding=2)
        self.conv2 = nn.Conv2d(64, 64, 5, padding=2)
        # PyTorch divides alpha by the size. TensorFlow does not, and its alpha is 0.001 / 9.
        self.norm = nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1.0)
        self.fc1 = nn.Linear(64 * pooled_height * pooled_width, 384)
        self.fc2 = nn.Linear(384, 192)
        self.head = nn.Linear(192, num_classes)
        self.num_features = 192
        self._init_layer(self.conv1, std=0.05, bias=0.0)
        self._init_layer(self.conv2, std=0.05, bias=0.1)
        self._init_layer(self.fc1, std=0.04, bias=0.1)
        self._init_layer(self.fc2, std=0.04, bias=0.1)
        self._init_layer(self.head, std=1 / 192, bias=0.0)

    @staticmethod
    def _init_layer(layer: nn.Conv2d | nn.Linear, std: float, bias: float) -> None:
        nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.constant_(layer.bias, bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the activations of the second dense layer ``[B, 192]``."""
        x = self.norm(self._pool(F.relu(self.conv1(x))))
        x = self._pool(self.norm(F.relu(self.conv2(x))))
        x = F.relu(self.fc1(x.flatten(1)))
        return F.relu(self.fc2(x))

    @staticmethod
    def _pool(x: Tensor) -> Tensor:
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


# ----------------------------------------------------------------------------------------- parts


class _Block(nn.Module):
    """A residual block: convolution, norm, relu, convolution, norm, sum, relu."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        if stride != 1 or inputs != outputs:
            convolution = _conv(inputs, outputs, stride, kernel=1)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(outputs))
        else:
            self.downsample = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.downsample(x))


class _PreActivationBlock(nn.Module):
    """A block of wide residual networks: norm and relu before each of two convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int, drop_rate: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs)
        changes_shape = stride != 1 or inputs != outputs
        self.shortcut = _conv(inputs, outputs, stride, kernel=1) if changes_shape else None
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = F.relu(self.bn2(self.conv1(out)))
        out = F.dropout(out, self.drop_rate, self.training)
        return self.conv2(out) + shortcut


def _conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    """Return a convolution without bias that keeps the size at a stride of 1."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


def _block_shapes(widths: Sequence[int], num_blocks: int) -> list[tuple[int, int, int]]:
    """Return inputs, outputs and stride of each block in three stages.

    The first block of the second and of the third stage has a stride of 2.
    """
    shapes = []
    inputs = widths[0]
    for stage, outputs in enumerate(widths[1:]):
        for block in range(num_blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            shapes.append((inputs, outputs, stride))
            inputs = outputs
    return shapes


def _last_of_stages(num_blocks: int) -> list[int]:
    """Return the number of the last block of each of three stages."""
    return [num_blocks - 1, 2 * num_blocks - 1, 3 * num_blocks - 1]


def _feature_info(
    container: str, widths: Sequence[int], last_layers: Sequence[int]
) -> list[dict[str, Any]]:
    """Return timm's list of the modules that output the feature maps of the stages."""
    return [
        {"module": f"{container}.{layer}", "num_chs": width}
        for width, layer in zip(widths, last_layers, strict=True)
    ]


def _height_and_width(img_size: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(img_size, tuple | list):
        height, width = img_size
        return height, width
    return img_size, img_size


def _divide_rounding_up(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _init_convolutions(model: nn.Module) -> None:
    """Initialise convolutions as in He et al. 2015 (fan-out)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
