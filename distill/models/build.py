"""Building networks through timm.

A network's normalisation is part of it: `pretrained_cfg["mean"]` and `["std"]`, where timm keeps them, so
that a stored run is used rightly by timm alone.
"""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg, is_model, load_state_dict
from torch import nn

from distill.document import UserError, nearest
from distill.models import heads, small  # noqa: F401  (registers the small networks and the cosine head)


def build_model(name: str, args: dict[str, Any], *, classes: int, shape: tuple[int, int, int], seed: int,
                mean: tuple[float, ...], std: tuple[float, ...], class_names: list[str] | None = None,
                pretrained: bool = False, checkpoint: str | None = None, keep_head: bool = False) -> nn.Module:
    """A timm network for images ``shape = (C, H, W)`` and K classes, on the CPU.

    Args:
        name: any name of timm's, tags, `hf-hub:` and `local-dir:` included.
        args: keyword arguments for it, e.g. ``drop_rate``.
        classes: K, the size of the head.
        shape: of one view.
        seed: of the initial weights; equal networks of one seed start alike. The caller's generator stays.
        mean: of the data, per channel; a pretrained network keeps its own, and so for `std`.
        std: see mean.
        class_names: stored with the network.
        pretrained: load timm's weights.
        checkpoint: a run's folder, a timm folder or a safetensors file to load weights from.
        keep_head: the network is used as it is, so a head of another size is an error, not replaced.

    Raises:
        UserError: if there is no such network, its arguments are wrong, or the weights do not fit it.
    """
    known = "/" in name.split(":")[0] or ":" in name or is_model(name)
    if not known:
        raise UserError(f"unknown model '{name}'; {_nearest_model(name)}")
    kwargs = dict(args)
    if not pretrained and ":" not in name:
        kwargs["pretrained_cfg_overlay"] = {"mean": mean, "std": std, "input_size": shape}
    if not keep_head or not pretrained:
        kwargs["num_classes"] = classes
    try:
        inner = str(args.get("base", name))  # of a network within another
        if ":" not in inner and getattr(get_pretrained_cfg(inner), "fixed_input_size", False):
            kwargs.setdefault("img_size", shape[1:])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = timm.create_model(name, pretrained=pretrained, in_chans=shape[0], **kwargs)
    except Exception as error:  # timm, the hub or a model's own checks: all speak of the recipe's words here
        raise UserError(f"model '{name}' cannot be built with {args or 'its defaults'} for images of "
                        f"{'×'.join(map(str, shape))}: {error}") from None
    if checkpoint:
        load_weights(model, Path(checkpoint))
        folder = Path(checkpoint) if Path(checkpoint).is_dir() else Path(checkpoint).parent
        if (folder / "config.json").is_file():  # a network brings the normalisation that it was trained with
            try:
                stored = dict(json.loads((folder / "config.json").read_text("utf-8")).get("pretrained_cfg", {}))
            except (ValueError, AttributeError, TypeError) as error:
                raise UserError(f"{folder / 'config.json'} is not a model's configuration: {error}") from None
            model.pretrained_cfg = dict(model.pretrained_cfg) | {k: stored[k] for k in ("mean", "std") if k in stored}
    if model.num_classes != classes:
        raise UserError(f"model '{name}' has {model.num_classes} classes, the data have {classes}; a given teacher "
                        "needs a head for these classes (give it a loss and it is fine-tuned with a new one)")
    own = {"num_classes": classes, "label_names": class_names, "input_size": shape}
    for key in ("mean", "std"):  # of a network pretrained on colour images, for grey ones
        values = model.pretrained_cfg[key]
        own[key] = values if len(values) == shape[0] else (sum(values) / len(values),) * shape[0]
    model.pretrained_cfg = dict(model.pretrained_cfg) | own
    return model


def load_stored(folder: Path) -> nn.Module:
    """The network of a run's folder, as timm reads it, in eval mode on the CPU.

    Raises:
        UserError: if the folder is damaged.
    """
    try:
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:  # a missing or cut file, or one for another network
        raise UserError(f"the run in {folder} is damaged ({error}); remove it, to train the run again") from None


def _nearest_model(name: str) -> str:
    """Near names among timm's; all of them would fill the screen."""
    names = timm.list_models()
    same_start = [n for n in names if n[:3] == name[:3]]
    return nearest(name, same_start if 0 < len(same_start) < 30 else names) if same_start or len(names) < 30 \
        else "`timm.list_models()` lists them, and mlp_* and cifar_* are added here"


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file, or the one in a folder; every tensor must fit, none may be missing.

    Raises:
        UserError: if the file is missing, of another kind, or made for another network.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if file.suffix != ".safetensors":
        raise UserError(f"checkpoint {path}: only .safetensors files and folders holding model.safetensors are read "
                        "(a pickled file can run code when it is opened)")
    if not file.is_file():
        raise UserError(f"checkpoint {file} does not exist")
    try:
        model.load_state_dict(load_state_dict(str(file)), strict=True)
    except Exception as error:
        raise UserError(f"checkpoint {file} does not fit the model: {str(error).strip()[:600]}") from None


def normalisation(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel that the network's input is normalised with."""
    cfg = model.pretrained_cfg
    return tuple(cfg["mean"]), tuple(cfg["std"])


def parameter_count(model: nn.Module) -> int:
    """Number of trainable weights."""
    return sum(p.numel() for p in model.parameters())
