"""A cosine head for any timm network, registered in timm as `cosine_head`.

``timm.create_model("cosine_head", base="resnet18", scale=16.0)`` is a ResNet-18 with a cosine
head. Margin losses on angles (AM-Softmax, ArcFace, A-Softmax) need it. They add the margin during
training only, so evaluation uses the same logits without a margin.
"""

from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import Tensor, nn

from distill.errors import UserError
from distill.models.heads import last_linear

NAME = "cosine_head"


class CosineHead(nn.Linear):
    """A last layer without bias whose logits are ``scale · cos(feature, template)``.

    A template is a row of the weight. With a scale of 0, features keep their length, and the
    logits are ‖f‖ cos θ as in A-Softmax.

    Args:
        in_features: D, the number of features.
        out_features: K, the number of classes.
        scale: factor of the cosines, or 0.
    """

    def __init__(self, in_features: int, out_features: int, scale: float) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[B, K]`` of features ``[B, D]``, in the precision of the weight."""
        # Half precision has too few significant digits for a cosine.
        with torch.autocast(x.device.type, enabled=False):
            features = x.to(self.weight.dtype)
            templates = F.normalize(self.weight, dim=1)
            if not self.scale:
                return F.linear(features, templates)
            return self.scale * F.linear(F.normalize(features, dim=1), templates)


def cosine_head(
    pretrained: bool = False,  # noqa: FBT001, FBT002 (timm's signature)
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict | None = None,
    base: str = "",
    scale: float = 16.0,
    **kwargs: Any,
) -> nn.Module:
    """Create the network `base` with a cosine head.

    Args:
        pretrained: whether to load pretrained weights: those of `base` with a new head or, if timm
            loads a stored network, those of the whole network.
        pretrained_cfg: the configuration that timm passes if it loads a stored network.
        pretrained_cfg_overlay: entries that replace those of the configuration.
        base: the name of a timm network.
        scale: factor of the cosines, or 0 for features that keep their length.
        kwargs: arguments of the base network.

    Raises:
        UserError: if there is no base, or its last layer is not linear.
        ValueError: if the scale is negative.
    """
    if scale < 0:
        raise ValueError(
            f"scale must be positive, or 0 for features that keep their length, got {scale:g}"
        )
    is_stored = pretrained_cfg is not None
    loads_base_weights = pretrained and not is_stored
    model = build_model_with_cfg(
        partial(_with_cosine_head, base, scale, pretrained=loads_base_weights),
        NAME,
        pretrained and is_stored,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        **kwargs,
    )
    if loads_base_weights:
        model.pretrained_cfg = dict(model.pretrained_cfg) | model.base_normalisation
    return model


def _with_cosine_head(base: str, scale: float, *, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Create the network `base` and replace its last layer."""
    if not base or base == NAME:
        raise UserError(
            "cosine_head needs the name of another network as its argument base, for example "
            "model: {name: cosine_head, base: resnet18, scale: 16}"
        )
    model = timm.create_model(base, pretrained=pretrained, **kwargs)
    head = last_linear(model)
    if not isinstance(head, nn.Linear):
        raise UserError(f"cosine_head: the last layer of {base} is not a single linear layer")
    path = next(name for name, module in model.named_modules() if module is head)
    parent, _, name = path.rpartition(".")
    new_head = CosineHead(head.in_features, head.out_features, scale)
    setattr(model.get_submodule(parent), name, new_head)
    model.base_normalisation = {key: model.pretrained_cfg[key] for key in ("mean", "std")}
    return model


default_cfgs = generate_default_cfgs(
    {
        NAME: {
            "input_size": (3, 224, 224),
            "num_classes": 1000,
            "mean": (0.5,) * 3,
            "std": (0.25,) * 3,
            "classifier": "head",
            "first_conv": None,
        }
    }
)

# A later version of timm may have a network of this name. Do not replace it.
if not is_model(NAME):
    register_model(cosine_head)
