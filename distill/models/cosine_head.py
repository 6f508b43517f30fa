"""A cosine head for any network of timm's, registered in timm's registry as `cosine_head`.

``timm.create_model("cosine_head", base="resnet18", scale=16.0)``: margins on angles (AM-Softmax, ArcFace,
A-Softmax) are made for it, and evaluation then sees the same logits without a margin.
"""

from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import Tensor, nn

from distill.errors import UserError

NAME = "cosine_head"


class CosineHead(nn.Linear):
    """Logits ``[B, K]`` that are scale · cos(angle between features and template), in float32; no bias.

    With a scale of 0 features keep their length, so that logits are ‖f‖ cos θ, as A-Softmax has them.

    """

    def __init__(self, in_features: int, out_features: int, scale: float) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, K]`` of features ``[B, D]``."""
        with torch.autocast(x.device.type, enabled=False):  # two digits are too few for a cosine
            x, weight = x.to(self.weight.dtype), F.normalize(self.weight, dim=1)
            return (
                self.scale * F.linear(F.normalize(x, dim=1), weight)
                if self.scale
                else F.linear(x, weight)
            )


def last_linear(model: nn.Module) -> nn.Linear | nn.Conv2d | None:
    """The single layer that gives the logits, or None."""
    head = model.get_classifier() if hasattr(model, "get_classifier") else None
    inner = getattr(head, "fc", None)
    head = inner if inner is not None else head
    single = isinstance(head, nn.Linear) or (
        isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1)
    )
    return head if single and type(model).__name__ != "VOLO" else None


def cosine_head(
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict | None = None,
    base: str = "",
    scale: float = 16.0,
    **kwargs: Any,
) -> nn.Module:
    """The network `base` with a cosine head; pretrained weights are its own, and the head is new.

    Raises:
        UserError: if there is no base, or its last layer is not a linear one.
        ValueError: if scale is negative.
    """
    if scale < 0:
        raise ValueError(
            f"scale must be positive, or 0 for features that keep their length, got {scale:g}"
        )
    stored = pretrained_cfg is not None  # a folder of the whole network is being read
    make = partial(_with_head, base, scale, pretrained and not stored)
    model = build_model_with_cfg(
        make,
        NAME,
        pretrained and stored,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        **kwargs,
    )
    if pretrained and not stored:
        model.pretrained_cfg = dict(model.pretrained_cfg) | model.base_normalisation
    return model


def _with_head(base: str, scale: float, pretrained: bool, **kwargs: Any) -> nn.Module:
    if not base or base == NAME:
        raise UserError(
            "cosine_head needs a network: {name: cosine_head, base: resnet18, scale: 16}"
        )
    model = timm.create_model(base, pretrained=pretrained, **kwargs)
    head = last_linear(model)
    if not isinstance(head, nn.Linear):
        raise UserError(f"cosine_head: {base} has no single linear layer at its end")
    name = next(name for name, module in model.named_modules() if module is head)
    parent, _, own = name.rpartition(".")
    setattr(
        model.get_submodule(parent), own, CosineHead(head.in_features, head.out_features, scale)
    )
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

if not is_model(NAME):  # never in the way of a network of timm's own
    register_model(cosine_head)
