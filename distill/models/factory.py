"""Building networks through timm.

A network's input is part of it: `pretrained_cfg["mean"]`, `["std"]` and `["input_size"]`, where timm keeps them, so
that a stored run is used rightly by timm alone.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.models import PretrainedCfg, get_pretrained_cfg, is_model, load_state_dict
from torch import Tensor, nn

from distill.errors import UserError, suggest
from distill.recipe.schema import Arm


def build_model(
    name: str,
    args: dict[str, Any],
    *,
    classes: int,
    shape: tuple[int, int, int],
    seed: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    class_names: list[str] | None = None,
    pretrained: bool = False,
    checkpoint: str | None = None,
    frozen: bool = False,
    size: tuple[int, int] | None = None,
) -> nn.Module:
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
        frozen: the network is used as it is, so a head of another size is an error, not replaced.
        size: height and width that it is shown views at, where that is not their own.

    Raises:
        UserError: if there is no such network, its arguments are wrong, or the weights do not fit it.
    """
    known = "/" in name.split(":")[0] or ":" in name or is_model(name)
    if not known:
        raise UserError(f"unknown model '{name}'; {_nearest_model(name)}")
    kwargs, stored = dict(args), _stored_config(checkpoint)
    shape = (shape[0], *size) if size else shape
    if not pretrained and ":" not in name:
        kwargs["pretrained_cfg_overlay"] = {"mean": mean, "std": std, "input_size": shape}
    if not frozen or not pretrained:
        kwargs["num_classes"] = classes
    try:
        inner = str(args.get("base", name))  # of a network within another
        if ":" not in inner and getattr(get_pretrained_cfg(inner), "fixed_input_size", False):
            kwargs.setdefault("img_size", shape[1:])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = timm.create_model(name, pretrained=pretrained, in_chans=shape[0], **kwargs)
    except (OSError, LocalEntryNotFoundError) as error:
        raise UserError(
            f"the weights of '{name}' cannot be had ({str(error).strip()[:200]}). Without a network, give "
            "checkpoint: FILE.safetensors beside model, or start anew with pretrained: false"
        ) from None
    except (
        Exception
    ) as error:  # timm, the hub or a model's own checks: all speak of the recipe's words here
        raise UserError(
            f"model '{name}' cannot be built with {args or 'its defaults'} for images of "
            f"{'×'.join(map(str, shape))}: {error}"
        ) from None
    if checkpoint:
        load_weights(model, Path(checkpoint))
        model.pretrained_cfg = dict(model.pretrained_cfg) | {
            k: stored[k] for k in ("mean", "std") if k in stored
        }
    if model.num_classes != classes:
        raise UserError(
            f"model '{name}' has {model.num_classes} classes, the data have {classes}; a frozen teacher "
            "needs a head for these classes (give it a loss and it is fine-tuned with a new one)"
        )
    if frozen and pretrained and not size:  # of the hub's, known once it is there
        shape = (shape[0], *model.pretrained_cfg["input_size"][1:])
    own = {"num_classes": classes, "label_names": class_names, "input_size": shape}
    for key in ("mean", "std"):  # of a network pretrained on colour images, for grey ones
        values = model.pretrained_cfg[key]
        own[key] = values if len(values) == shape[0] else (sum(values) / len(values),) * shape[0]
    model.pretrained_cfg = dict(model.pretrained_cfg) | own
    return model


def _stored_config(checkpoint: str | None) -> dict[str, Any]:
    """What is known of a network whose weights are frozen: beside them, the normalisation that it was trained with."""
    folder = (
        Path(checkpoint or "") if Path(checkpoint or "").is_dir() else Path(checkpoint or "").parent
    )
    if not checkpoint or not (folder / "config.json").is_file():
        return {}
    try:
        return dict(
            json.loads((folder / "config.json").read_text("utf-8")).get("pretrained_cfg", {})
        )
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{folder / 'config.json'} is not a model's configuration: {error}"
        ) from None


def native_size(name: str) -> tuple[int, int, int] | None:
    """Channels, height and width of the images that timm's weights of a name were trained with, if that is known."""
    kind, _, place = name.partition(":")
    if kind == "local-dir":
        return _stored_config(place).get("input_size")
    cfg = _known_weights(name)
    return cfg.input_size if cfg else None


def _known_weights(name: str) -> PretrainedCfg | None:
    """What timm knows of the weights of a name; None for the hub's, for unknown ones, and where there are none."""
    try:
        cfg = None if ":" in name else get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag: building the network says so
        return None
    return cfg if cfg and cfg.has_weights else None


def pretrained_size(arm: Arm) -> tuple[int, int] | None:
    """Height and width that a frozen network was trained with, where that is known: it is shown nothing else."""
    if not arm.frozen:
        return None
    stored = _stored_config(arm.checkpoint)
    size = (
        stored["input_size"]
        if "input_size" in stored
        else native_size(arm.model)
        if arm.pretrained
        else None
    )
    return tuple(size[1:]) if size else None


def largest_pretrained_side(arms: Iterable[Arm]) -> tuple[int, str] | None:
    """The largest side of the images that pretrained networks of a study were trained with, and the network's name."""
    sides = [
        (max(size[1:]), arm.model)
        for arm in arms
        if arm.pretrained and (size := native_size(arm.model))
    ]
    return max(sides, default=None)


def replaced_head_note(arm: Arm, classes: int) -> str | None:
    """A sentence where the head of a pretrained network is of other classes, and is learned anew."""
    cfg = _known_weights(arm.model) if arm.pretrained and not arm.frozen else None
    if not cfg or cfg.num_classes == classes:
        return None
    return (
        f"{arm.model} comes with a head of {cfg.num_classes} classes; it gets a new one for the {classes} classes "
        "of these data, and is fine-tuned as a whole"
    )


def blank_images(model: nn.Module, count: int = 1) -> Tensor:
    """ImageDataset ``[count, C, H, W]`` of zeros, of the size that a network is shown, where its weights are."""
    return torch.zeros(
        count, *model.pretrained_cfg["input_size"], device=next(model.parameters()).device
    )


def load_run_model(folder: Path) -> nn.Module:
    """The network of a run's folder, as timm reads it, in eval mode on the CPU.

    Raises:
        UserError: if the folder is damaged.
    """
    try:
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:  # a missing or cut file, or one for another network
        raise UserError(
            f"the run in {folder} is damaged ({error}); remove it, to train the run again"
        ) from None


def _nearest_model(name: str) -> str:
    """Near names among timm's; all of them would fill the screen."""
    names = timm.list_models()
    same_start = [n for n in names if n[:3] == name[:3]]
    return (
        suggest(name, same_start if 0 < len(same_start) < 30 else names)
        if same_start or len(names) < 30
        else "`timm.list_models()` lists them, and mlp_* and cifar_* are added here"
    )


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file, or the one in a folder; every tensor must fit, none may be missing.

    Raises:
        UserError: if the file is missing, of another kind, or made for another network.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if file.suffix != ".safetensors":
        raise UserError(
            f"checkpoint {path}: only .safetensors files and folders holding model.safetensors are read "
            "(a pickled file can run code when it is opened)"
        )
    if not file.is_file():
        raise UserError(f"checkpoint {file} does not exist")
    try:
        model.load_state_dict(load_state_dict(str(file)), strict=True)
    except Exception as error:
        raise UserError(
            f"checkpoint {file} does not fit the model: {str(error).strip()[:600]}"
        ) from None


def input_config(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, int]]:
    """Mean and standard deviation per channel that the network's input is normalised with, its height and width."""
    cfg = model.pretrained_cfg
    return tuple(cfg["mean"]), tuple(cfg["std"]), tuple(cfg["input_size"][1:])


def parameter_count(model: nn.Module) -> int:
    """Number of trainable weights."""
    return sum(p.numel() for p in model.parameters())
