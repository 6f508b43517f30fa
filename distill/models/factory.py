"""Build, load and describe networks through timm.

A network carries the description of its input in `pretrained_cfg` ("mean", "std", "input_size"),
where timm keeps it. So timm alone can load a stored run and use it correctly.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.models import PretrainedCfg, get_pretrained_cfg, is_model, load_state_dict
from torch import Tensor, nn

from distill.errors import UserError, suggest
from distill.recipe.schema import Arm


@dataclass(frozen=True)
class ModelSpec:
    """A network to build.

    Attributes:
        name: the name of a timm network, with or without a tag, or a location with the prefix
            `hf-hub:` or `local-dir:`.
        num_classes: K, the size of the head.
        view_shape: channels, height and width of a view.
        mean: mean of the data, per channel. A pretrained network keeps its own mean and std.
        std: standard deviation of the data, per channel.
        model_args: keyword arguments of the network, such as ``drop_rate``.
        input_size: height and width that views are resized to for this network; by default, views
            are not resized.
        class_names: names of the classes, stored with the network.
        pretrained: whether timm's pretrained weights are loaded.
        checkpoint: a run's folder, a timm folder or a safetensors file to load weights from.
        frozen: whether the network is used without training. If its head has another size, that
            is an error for a frozen network; for any other network the head is replaced.
    """

    name: str
    num_classes: int
    view_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    model_args: dict[str, Any] = field(default_factory=dict)
    input_size: tuple[int, int] | None = None
    class_names: list[str] | None = None
    pretrained: bool = False
    checkpoint: str | None = None
    frozen: bool = False

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Return the channels, height and width of the network's input."""
        channels, height, width = self.view_shape
        return (channels, *(self.input_size or (height, width)))


# --------------------------------------------------------------------------------------- building


def build_model(spec: ModelSpec, seed: int) -> nn.Module:
    """Build a network on the CPU.

    Args:
        spec: the network.
        seed: seed of the initial weights. The global random generator does not change.

    Raises:
        UserError: if there is no such network, its arguments are wrong, or the weights do not fit.
    """
    is_remote = "/" in spec.name.split(":")[0] or ":" in spec.name
    if not is_remote and not is_model(spec.name):
        raise UserError(f"unknown model '{spec.name}'; {_suggest_model(spec.name)}")
    stored_config = _stored_config(spec.checkpoint)
    model = _create(spec, seed)
    if spec.checkpoint:
        load_weights(model, Path(spec.checkpoint))
        # Loaded weights need the normalisation that they were trained with.
        trained_with = {key: stored_config[key] for key in ("mean", "std") if key in stored_config}
        model.pretrained_cfg = dict(model.pretrained_cfg) | trained_with
    if model.num_classes != spec.num_classes:
        raise UserError(
            f"model '{spec.name}' has {model.num_classes} classes, but the data have "
            f"{spec.num_classes}; a frozen teacher needs a head for the classes of the data. Give "
            "it a loss to fine-tune it with a new head"
        )
    _describe_input(model, spec)
    return model


def _create(spec: ModelSpec, seed: int) -> nn.Module:
    """Create the network with timm, with initial or pretrained weights."""
    is_named = ":" not in spec.name
    kwargs = dict(spec.model_args)
    if is_named and not spec.pretrained:
        kwargs["pretrained_cfg_overlay"] = {
            "mean": spec.mean,
            "std": spec.std,
            "input_size": spec.input_shape,
        }
    keeps_head = spec.frozen and spec.pretrained
    if not keeps_head:
        kwargs["num_classes"] = spec.num_classes
    channels, *size = spec.input_shape
    try:
        if _has_fixed_size(spec):
            kwargs.setdefault("img_size", tuple(size))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return timm.create_model(
                spec.name, pretrained=spec.pretrained, in_chans=channels, **kwargs
            )
    except (OSError, LocalEntryNotFoundError) as error:
        raise UserError(
            f"cannot load the weights of '{spec.name}' ({str(error).strip()[:200]}). Without an "
            "internet connection, write checkpoint: FILE.safetensors beside model, or use "
            "pretrained: false"
        ) from None
    # timm, the Hugging Face Hub and the networks' own checks raise exceptions of any type. Here
    # the recipe is the cause of all of them.
    except Exception as error:
        shape = "×".join(str(length) for length in spec.input_shape)
        raise UserError(
            f"cannot build the model '{spec.name}' with "
            f"{spec.model_args or 'its default arguments'} for images of shape {shape}: {error}"
        ) from None


def _has_fixed_size(spec: ModelSpec) -> bool:
    """Return whether the network is made for one image size, which timm calls ``img_size``."""
    # For a wrapper such as cosine_head, the network inside decides.
    inner_name = str(spec.model_args.get("base", spec.name))
    if ":" in inner_name:
        return False
    return getattr(get_pretrained_cfg(inner_name), "fixed_input_size", False)


def _describe_input(model: nn.Module, spec: ModelSpec) -> None:
    """Store the description of the input and the classes in the network's `pretrained_cfg`."""
    config = dict(model.pretrained_cfg)
    channels = spec.view_shape[0]
    input_size = spec.input_shape
    # A frozen network from the Hugging Face Hub keeps its input size, which is unknown until the
    # network is loaded.
    if spec.frozen and spec.pretrained and not spec.input_size:
        input_size = (channels, *config["input_size"][1:])
    config["num_classes"] = spec.num_classes
    config["label_names"] = spec.class_names
    config["input_size"] = input_size
    for key in ("mean", "std"):
        values = config[key]
        # A network pretrained on colour images gets grey ones, or the reverse.
        if len(values) != channels:
            config[key] = (sum(values) / len(values),) * channels
    model.pretrained_cfg = config


def _suggest_model(name: str) -> str:
    """Return a hint with similar timm names; a list of all names would fill the screen."""
    names = timm.list_models()
    same_start = [known for known in names if known[:3] == name[:3]]
    if not same_start:
        return "`timm.list_models()` lists timm's names; distill adds mlp_* and cifar_*"
    return suggest(name, same_start if len(same_start) < 30 else names)


# ---------------------------------------------------------------------------------------- loading


def load_run_model(folder: Path) -> nn.Module:
    """Load the network of a run's folder with timm, in eval mode, on the CPU.

    Raises:
        UserError: if the folder is damaged.
    """
    # A file may be missing, cut off, or made for another network.
    try:
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:
        raise UserError(
            f"the run in {folder} is damaged ({error}); remove the folder to train the run again"
        ) from None


def load_weights(model: nn.Module, path: Path) -> None:
    """Load weights from a safetensors file, or from a folder with one; all tensors must fit.

    Raises:
        UserError: if the file is missing, of another type, or made for another network.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if file.suffix != ".safetensors":
        raise UserError(
            f"checkpoint {path}: expected a .safetensors file, or a folder with model.safetensors "
            "(a pickled file can run code when it is opened)"
        )
    if not file.is_file():
        raise UserError(f"checkpoint {file} does not exist")
    try:
        model.load_state_dict(load_state_dict(str(file)), strict=True)
    except Exception as error:
        message = str(error).strip()[:600]
        raise UserError(f"checkpoint {file} does not fit the model: {message}") from None


# ------------------------------------------------------------------------------------ description


def input_config(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, int]]:
    """Return the mean and the std per channel of the network's input, and its height and width."""
    config = model.pretrained_cfg
    return tuple(config["mean"]), tuple(config["std"]), tuple(config["input_size"][1:])


def blank_images(model: nn.Module, count: int = 1) -> Tensor:
    """Return zeros ``[count, C, H, W]`` of the network's input size, on the network's device."""
    device = next(model.parameters()).device
    return torch.zeros(count, *model.pretrained_cfg["input_size"], device=device)


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def native_size(name: str) -> tuple[int, int, int] | None:
    """Return the image shape (channels, height, width) that timm's weights were trained with.

    The shape is unknown, and the result None, for networks of the Hugging Face Hub and for
    networks without pretrained weights.
    """
    prefix, _, path = name.partition(":")
    if prefix == "local-dir":
        return _stored_config(path).get("input_size")
    config = _weights_config(name)
    return config.input_size if config else None


def pretrained_size(arm: Arm) -> tuple[int, int] | None:
    """Return the height and width that a frozen network was trained with, or None if unknown.

    A frozen network gets only images of this size.
    """
    if not arm.frozen:
        return None
    stored_config = _stored_config(arm.checkpoint)
    if "input_size" in stored_config:
        shape = stored_config["input_size"]
    elif arm.pretrained:
        shape = native_size(arm.model)
    else:
        shape = None
    return tuple(shape[1:]) if shape else None


def largest_pretrained_side(arms: Iterable[Arm]) -> tuple[int, str] | None:
    """Return the largest image side of a study's pretrained networks, and that network's name."""
    sides = []
    for arm in arms:
        shape = native_size(arm.model) if arm.pretrained else None
        if shape:
            sides.append((max(shape[1:]), arm.model))
    return max(sides, default=None)


def replaced_head_note(arm: Arm, classes: int) -> str | None:
    """Return a sentence if the head of a pretrained network is replaced, else None.

    Args:
        arm: the arm of the network.
        classes: number of classes in the data.
    """
    if not arm.pretrained or arm.frozen:
        return None
    config = _weights_config(arm.model)
    if not config or config.num_classes == classes:
        return None
    return (
        f"{arm.model} has a pretrained head for {config.num_classes} classes; it gets a new head "
        f"for the {classes} classes of these data, and the whole network is fine-tuned"
    )


def _stored_config(checkpoint: str | None) -> dict[str, Any]:
    """Return the `pretrained_cfg` stored beside the weights; empty if there is none.

    Raises:
        UserError: if the file is not a configuration.
    """
    if not checkpoint:
        return {}
    path = Path(checkpoint)
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text("utf-8")).get("pretrained_cfg", {}))
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{file} is not a valid model configuration: {error}") from None


def _weights_config(name: str) -> PretrainedCfg | None:
    """Return timm's configuration of pretrained weights, or None if timm has no such weights."""
    if ":" in name:
        return None
    # An unknown tag is reported where the network is built.
    try:
        config = get_pretrained_cfg(name)
    except RuntimeError:
        return None
    return config if config and config.has_weights else None
