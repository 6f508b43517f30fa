"""Read weights from files of any form that people have, and fit them to a network.

Files of PyTorch are read with `torch.load(weights_only=True)`, which builds tensors and plain
values and runs no code of the file.
"""

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from distill.errors import UserError

FILE_TYPES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
FILES_OF_A_FOLDER = ("model.safetensors", "pytorch_model.bin", "model.pth")

# Where training programs put the weights in their checkpoints. Averaged weights are better.
CONTAINERS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model",
    "model_state_dict", "model_state", "net", "network", "weights", "params",
)  # fmt: skip

# What wrappers put before the names of weights: DDP, torch.compile, Lightning, and others.
PREFIXES = (
    "module.", "_orig_mod.", "model.", "backbone.", "net.", "network.", "encoder.", "student.",
    "_model.", "_forward_module.", "base_model.", "classifier.model.",
)  # fmt: skip

MOST_NAMES = 3  # names of weights that a message lists


class WeightFile(NamedTuple):
    """The weights of a file.

    Attributes:
        path: the file.
        state: tensors by name.
        note: which part of the file was taken, if it has several; else empty.
    """

    path: Path
    state: dict[str, Tensor]
    note: str


def weight_file_path(checkpoint: str | Path) -> Path:
    """Return the file of weights that a recipe's `checkpoint` means: the file, or one in a folder.

    Raises:
        UserError: if there is none, or if it is of an unknown type.
    """
    path = Path(checkpoint)
    if path.is_dir():
        for name in FILES_OF_A_FOLDER:
            if (path / name).is_file():
                return path / name
        raise UserError(
            f"checkpoint {path} has no file {', '.join(FILES_OF_A_FOLDER[:-1])} or "
            f"{FILES_OF_A_FOLDER[-1]}; name the file of weights itself"
        )
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    if path.suffix not in FILE_TYPES:
        raise UserError(
            f"checkpoint {path}: expected a folder, or a file that ends in {', '.join(FILE_TYPES)}"
        )
    return path


def read_weights(checkpoint: str | Path) -> WeightFile:
    """Read the weights of a file, or of a folder with one.

    Raises:
        UserError: if the file is missing, damaged or of an unknown type, or holds no weights.
    """
    path = weight_file_path(checkpoint)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state, keys = _find_state(content)
    if state is None:
        raise UserError(
            f"checkpoint {path} holds no weights by name, but {_kind(content)}; expected tensors, "
            f"directly or under one of the keys {', '.join(CONTAINERS)}"
        )
    note = f"the weights of {path} are those under '{'.'.join(keys)}'" if keys else ""
    return WeightFile(path, state, note)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}") from None


def _read_pickle(path: Path) -> Any:
    try:
        # timm stores the arguments of its command line beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_pickle_message(path, error)) from None
    # A damaged file may cause any exception.
    except Exception as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}") from None


def _pickle_message(path: Path, error: Exception) -> str:
    if "Unsupported global" not in str(error) and "GLOBAL" not in str(error):
        return f"checkpoint {path} is not a file of PyTorch, or it is damaged"
    new_path = path.with_suffix(".safetensors")
    return (
        f"checkpoint {path} holds Python objects beside its weights, such as a whole module, and "
        "to load them is to run code of the file. If you trust it, write the weights alone:\n"
        '  python -c "import torch; from safetensors.torch import save_file; '
        f"x = torch.load('{path}', weights_only=False, map_location='cpu'); "
        "s = x.state_dict() if hasattr(x, 'state_dict') else x.get('state_dict', x); "
        "save_file({k: v.clone() for k, v in s.items() if torch.is_tensor(v)}, "
        f"'{new_path}')\"\n"
        f"and then checkpoint: {new_path}"
    )


def _find_state(content: Any) -> tuple[dict[str, Tensor] | None, list[str]]:
    """Return the weights in a checkpoint and the keys that lead to them; None without weights."""
    keys: list[str] = []
    while isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if torch.is_tensor(value)}
        inner = [
            key for key in CONTAINERS if isinstance(content.get(key), Mapping) and content[key]
        ]
        if inner:
            keys.append(inner[0])
            content = content[inner[0]]
            continue
        return tensors or None, keys
    return None, keys


def _kind(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"the keys {', '.join(map(str, list(content)[:10]))}" if content else "nothing"
    return f"a {type(content).__name__}"


# ------------------------------------------------------------------------------------------ fitting


def strip_prefix(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without what wrappers put before their names, if more of them fit then.

    Args:
        state: tensors by name.
        expected: the network's tensors by name.
    """
    best = state
    candidates = [state]
    # Wrappers can be wrapped: DDP around torch.compile around Lightning.
    for _ in range(len(PREFIXES)):
        stripped = [_without(prefix, one) for one in candidates for prefix in PREFIXES]
        candidates = [one for one in stripped if one]
        best = max([best, *candidates], key=lambda one: num_fitting(one, expected))
        candidates = candidates[: len(PREFIXES)]
    return best


def _without(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights whose names begin with a prefix, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


def num_fitting(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> int:
    """Return how many tensors of a network are in a file, with the same name and shape."""
    return sum(
        name in state and state[name].shape == tensor.shape for name, tensor in expected.items()
    )


def mismatch_message(
    origin: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> str:
    """Return what fits, what is missing and what is left over if weights do not fit a network."""
    fitting = num_fitting(state, expected)
    missing = [name for name in expected if name not in state]
    left_over = [name for name in state if name not in expected]
    other = [
        f"{name} ({_shape(state[name])} instead of {_shape(tensor)})"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    message = (
        f"checkpoint {origin} does not fit the model: of its {len(expected)} tensors, {fitting} "
        f"fit, {len(missing)} are missing{_examples(missing)}, and {len(other)} have another shape"
        f"{_examples(other)}; {len(left_over)} tensors of the file are left over"
        f"{_examples(left_over)}"
    )
    prefix = _likely_prefix(missing, left_over)
    if prefix:
        message += f". Names in the file seem to begin with '{prefix}'"
    return message


def _examples(names: list[str]) -> str:
    shown = ", ".join(names[:MOST_NAMES])
    return f" ({shown}{', …' if len(names) > MOST_NAMES else ''})" if names else ""


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def _likely_prefix(missing: list[str], left_over: list[str]) -> str:
    """Return what stands before most of the missing names in the names that are left over."""
    for name in missing:
        ends = [other.removesuffix(name) for other in left_over if other.endswith(f".{name}")]
        if ends:
            return min(ends, key=len)
    return ""
