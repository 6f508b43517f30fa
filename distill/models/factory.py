"""Build, load and describe networks through timm.

A network carries the description of its input in `pretrained_cfg` ("mean", "std", "input_size"),
where timm keeps it. So timm alone can load a stored run and use it correctly.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file
from timm.models import PretrainedCfg, get_pretrained_cfg, is_model
from torch import Tensor, nn

from distill.errors import UserError, suggest
from distill.models.class_names import match_classes, names_of_outputs, stored_names
from distill.models.cosine_head import NAME as COSINE_HEAD
from distill.models.foreign import describe_foreign
from distill.models.starting_weights import fit_weights
from distill.models.weight_files import read_weights
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
        checkpoint: a run's folder, a timm folder or a file to load weights from.
        frozen: whether the network is used without training. If it does not have the classes, that
            is an error for a frozen network; for any other network the last layer is replaced.
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
    def names(self) -> list[str]:
        """Return the names of the classes; without names, their numbers."""
        return self.class_names or [str(number) for number in range(self.num_classes)]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Return the channels, height and width of the network's input."""
        channels, height, width = self.view_shape
        return (channels, *(self.input_size or (height, width)))


# --------------------------------------------------------------------------------------- building


def build_model(spec: ModelSpec, seed: int, notes: list[str] | None = None) -> nn.Module:
    """Build a network on the CPU.

    Args:
        spec: the network.
        seed: seed of the initial weights. The global random generator does not change.
        notes: receives sentences on which weights were taken, and on a last layer that is replaced.

    Raises:
        UserError: if there is no such network, its arguments are wrong, or the weights do not fit.
    """
    is_remote = "/" in spec.name.split(":")[0] or ":" in spec.name
    if not is_remote and not is_model(spec.name):
        raise UserError(f"unknown model '{spec.name}'; {_suggest_model(spec.name)}")
    notes = notes if notes is not None else []
    if spec.checkpoint:
        model = _build_from_checkpoint(spec, seed, notes)
    elif spec.pretrained and spec.name != COSINE_HEAD:
        model = _build_pretrained(spec, seed, notes)
    else:
        model = _create(spec, seed, pretrained=spec.pretrained)
    _describe_input(model, spec)
    return model


def _build_from_checkpoint(spec: ModelSpec, seed: int, notes: list[str]) -> nn.Module:
    """Build a network with the weights of a file."""
    stored_config = _stored_config(spec.checkpoint)
    model = _create(spec, seed, pretrained=False)
    weights = read_weights(spec.checkpoint)
    if weights.note:
        notes.append(weights.note)
    architecture = stored_config.get("architecture")
    if architecture and architecture != spec.name.split(".")[0]:
        notes.append(f"the config.json beside its weights is that of {architecture}")
    names = (stored_names(stored_config), spec.names)
    notes += fit_weights(model, weights.state, str(weights.path), names, frozen=spec.frozen)
    # Loaded weights need the normalisation that they were trained with.
    trained_with = {key: stored_config[key] for key in ("mean", "std") if key in stored_config}
    model.pretrained_cfg = dict(model.pretrained_cfg) | trained_with
    return model


def _build_pretrained(spec: ModelSpec, seed: int, notes: list[str]) -> nn.Module:
    """Build a network with timm's weights, and with a last layer for the classes of the images."""
    original = _create(spec, seed, pretrained=True, keeps_head=True)
    names = names_of_outputs(original, spec.names)
    has_classes = original.num_classes == spec.num_classes
    if has_classes and (names is None or names == spec.names):
        if names is None and spec.frozen:
            notes.append(match_classes(None, original.num_classes, spec.names).note)
        return original
    model = _create(spec, seed, pretrained=False)
    state = original.state_dict()
    notes += fit_weights(model, state, spec.name, (names, spec.names), frozen=spec.frozen)
    model.pretrained_cfg = dict(original.pretrained_cfg)
    return model


def _create(spec: ModelSpec, seed: int, *, pretrained: bool, keeps_head: bool = False) -> nn.Module:
    """Create the network with timm.

    Args:
        spec: the network.
        seed: seed of the initial weights.
        pretrained: whether timm loads its pretrained weights.
        keeps_head: whether the last layer is that of the pretrained weights, and not one for the
            classes of the data.
    """
    is_named = ":" not in spec.name
    kwargs = dict(spec.model_args)
    if is_named and not spec.pretrained:
        kwargs["pretrained_cfg_overlay"] = {
            "mean": spec.mean,
            "std": spec.std,
            "input_size": spec.input_shape,
        }
    if not keeps_head:
        kwargs["num_classes"] = spec.num_classes
    channels, *size = spec.input_shape
    try:
        if _has_fixed_size(spec):
            kwargs.setdefault("img_size", tuple(size))
        with torch.random.fork_rng(devices=[]), _quiet_hub():
            torch.manual_seed(seed)
            model = timm.create_model(spec.name, pretrained=pretrained, in_chans=channels, **kwargs)
        config = {"architecture": spec.name, "input_size": spec.input_shape}
        describe_foreign(model, config | {"mean": spec.mean, "std": spec.std})
    except UserError as error:
        raise UserError(f"model '{spec.name}': {error}") from None
    except (OSError, LocalEntryNotFoundError) as error:
        raise UserError(_download_message(spec.name, error)) from None
    # timm, the Hugging Face Hub and the networks' own checks raise exceptions of any type. Here
    # the recipe is the cause of all of them.
    except Exception as error:
        if isinstance(error, AttributeError) and "'NoneType'" in str(error):
            raise UserError(f"model '{spec.name}': its function returns no network") from None
        shape = "×".join(str(length) for length in spec.input_shape)
        raise UserError(
            f"cannot build the model '{spec.name}' with "
            f"{spec.model_args or 'its default arguments'} for images of shape {shape}: {error}"
        ) from None
    return model


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Silence the Hub's messages about each attempt to connect; the error has the reason."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _download_message(name: str, error: Exception) -> str:
    """Return the message if weights cannot be downloaded, with a way that works without a net."""
    reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else "no reason"
    config = None if ":" in name else _weights_config(name)
    hub_id = name.partition(":")[2] if ":" in name else getattr(config, "hf_hub_id", None)
    page = (
        f"https://huggingface.co/{hub_id}" if hub_id else getattr(config, "url", "") or "its page"
    )
    return (
        f"cannot load the weights of '{name}' ({reason}). Without an internet connection, download "
        f"them from {page} on another machine, and write checkpoint: FILE (model.safetensors, or a "
        "folder with config.json beside it) instead of pretrained: true"
    )


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
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        # A network that somebody else registered in timm may not load the weights itself.
        model.load_state_dict(load_file(folder / "model.safetensors"))
        config = json.loads((folder / "config.json").read_text("utf-8"))
        describe_foreign(model, config["pretrained_cfg"] | {"architecture": config["architecture"]})
        return model.eval()
    except Exception as error:
        if "nknown model" in str(error):
            raise UserError(
                f"the network of the run in {folder} is not known here ({error}); import the "
                "module that registers it in timm, and call distill from Python"
            ) from None
        raise UserError(
            f"the run in {folder} is damaged ({error}); remove the folder to train the run again"
        ) from None


# ------------------------------------------------------------------------------------ description


def input_config(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, int]]:
    """Return the mean and the std per channel of the network's input, and its height and width."""
    config = model.pretrained_cfg
    return tuple(config["mean"]), tuple(config["std"]), tuple(config["input_size"][1:])


def blank_images(model: nn.Module, count: int = 1) -> Tensor:
    """Return zeros ``[count, C, H, W]`` of the network's input size, on the network's device."""
    device = next(model.parameters()).device
    return torch.zeros(count, *model.pretrained_cfg["input_size"], device=device)


def is_known_here(name: str) -> bool:
    """Return whether a network can be built on this machine without its weights and offline.

    The description of a network of the Hugging Face Hub is a file that may not be downloaded yet.
    """
    prefix, _, repository = name.partition(":")
    if prefix != "hf-hub":
        return True
    repository, _, revision = repository.partition("@")
    found = try_to_load_from_cache(repository, "config.json", revision=revision or None)
    return isinstance(found, str)


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def native_architecture(name: str) -> str:
    """Return the name in timm's registry of a network, which a local folder states itself.

    Raises:
        UserError: if the folder's file is not a configuration.
    """
    prefix, _, path = name.partition(":")
    if prefix == "local-dir":
        return _stored_config(path).get("architecture") or name
    return name


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
        whole = json.loads(file.read_text("utf-8"))
        # timm writes the names of classes beside `pretrained_cfg`, and transformers have only that.
        names = {key: whole[key] for key in ("label_names", "id2label") if key in whole}
        config = dict(whole.get("pretrained_cfg", {}))
        beside, within = stored_names(names), stored_names(config)
        if beside and within and beside != within:
            raise UserError(
                f"{file} names the classes twice, and not alike: {', '.join(beside[:10])} in "
                f"label_names, but {', '.join(within[:10])} in pretrained_cfg; remove one of them"
            )
        return {"architecture": whole.get("architecture"), **names, **config}
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
