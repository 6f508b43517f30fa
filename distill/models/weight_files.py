"""Read weights from files of any form that people have, and fit them to a network.

Files of PyTorch are read with `torch.load(weights_only=True)`, which builds tensors and plain
values and runs no code of the file.
"""

import argparse
import json
import pickle
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from distill.errors import UserError

FILE_TYPES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")

# Where training programs put the weights in their checkpoints. Averaged weights are better.
CONTAINERS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model",
    "model_state_dict", "model_state", "net", "network", "weights", "params",
)  # fmt: skip

# Files of weights in a folder, the first that exists. An index lists the parts of large weights.
FILES_OF_A_FOLDER = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json", "model.pth",
)  # fmt: skip
INDEX_ENDING = ".index.json"

# The beginning of a file that Git LFS has not downloaded.
LFS_POINTER = b"version https://git-lfs"

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


def weight_file_paths(checkpoint: str | Path) -> list[Path]:
    """Return the files of weights that a recipe's `checkpoint` means: a file, or those of a folder.

    Raises:
        UserError: if there is none, or if it is of an unknown type.
    """
    path = Path(checkpoint)
    if path.is_dir():
        found = [path / name for name in FILES_OF_A_FOLDER if (path / name).is_file()]
        if not found:
            raise UserError(
                f"checkpoint {path} has none of the files {', '.join(FILES_OF_A_FOLDER)}; name the "
                "file of weights itself"
            )
        path = found[0]
    if path.name.endswith(INDEX_ENDING):
        return [path, *_parts_of_index(path)]
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    if path.suffix not in FILE_TYPES:
        raise UserError(
            f"checkpoint {path}: expected a folder, or a file that ends in {', '.join(FILE_TYPES)}"
        )
    return [path]


def _parts_of_index(index: Path) -> list[Path]:
    """Return the files that an index of transformers lists."""
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"checkpoint {index} is not an index of weights: {error}") from None
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"checkpoint {index} lists {missing[0]}, which does not exist")
    return [index.parent / name for name in names]


def read_weights(checkpoint: str | Path) -> WeightFile:
    """Read the weights of a file, of several that an index lists, or of a folder with them.

    Raises:
        UserError: if a file is missing, damaged or of an unknown type, or holds no weights.
    """
    paths = weight_file_paths(checkpoint)
    origin = paths[0]
    whole: dict[str, Tensor] = {}
    note = ""
    for path in paths:
        if not path.name.endswith(INDEX_ENDING):
            state, note = _read_file(path)
            whole |= state
    return WeightFile(origin, whole, note)


def _read_file(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the weights of one file, and which part of it they are."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(
                f"checkpoint {path} is a pointer of Git LFS, not the file itself; run `git lfs "
                "pull` in its repository"
            )
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state, keys = _find_state(content)
    if state is None:
        raise UserError(
            f"checkpoint {path} holds no weights by name, but {_kind(content)}; expected tensors, "
            f"directly or under one of the keys {', '.join(CONTAINERS)}"
        )
    note = f"the weights of {path} are those under '{'.'.join(keys)}'" if keys else ""
    return state, note


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"checkpoint {path} is damaged or cut off ({error})") from None


def _read_pickle(path: Path) -> Any:
    try:
        # timm stores the arguments of its command line beside the weights.
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_pickle_message(path, error)) from None
    # A damaged file may cause any exception.
    except Exception as error:
        if "TorchScript" in str(error):
            loading = f"torch.jit.load('{path}', map_location='cpu').state_dict()"
            raise UserError(
                f"checkpoint {path} is a program of TorchScript; {_conversion(path, loading)}"
            ) from None
        raise UserError(f"checkpoint {path} is damaged or cut off ({error})") from None


def _pickle_message(path: Path, error: Exception) -> str:
    if "Unsupported global" not in str(error) and "GLOBAL" not in str(error):
        return f"checkpoint {path} is not a file of PyTorch, or it is damaged"
    loading = f"torch.load('{path}', weights_only=False, map_location='cpu')"
    return (
        f"checkpoint {path} holds Python objects beside its weights, such as a whole module or "
        "arrays of numpy, and to load them is to run code of the file. If you trust it, "
        f"{_conversion(path, loading)}"
    )


def _conversion(path: Path, loading: str, prefix: str = "") -> str:
    """Return the command that writes weights as safetensors.

    Args:
        path: the file.
        loading: expression that loads it.
        prefix: beginning of the names of the weights to write, which is removed.
    """
    name = f"k.removeprefix('{prefix}')" if prefix else "k"
    condition = f" and k.startswith('{prefix}')" if prefix else ""
    new_path = path.with_name(f"{path.name.partition('.')[0]}-weights.safetensors")
    return (
        "write the weights alone:\n"
        '  python -c "import torch; from safetensors.torch import save_file; '
        f"x = {loading}; "
        "s = x.state_dict() if hasattr(x, 'state_dict') else x.get('state_dict', x); "
        f"save_file({{{name}: torch.as_tensor(v).clone() for k, v in s.items() "
        f"if hasattr(v, 'shape'){condition}}}, '{new_path}')\"\n"
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


def strip_prefix(
    state: dict[str, Tensor], expected: Mapping[str, Tensor], path: str
) -> tuple[dict[str, Tensor], str]:
    """Remove what wrappers put before the names of weights, such as ``module.`` or ``model.``.

    Args:
        state: tensors by name.
        expected: the network's tensors by name.
        path: the file, for messages.

    Returns:
        The weights, and what was before their names; those without it keep their names.

    Raises:
        UserError: if the file has several networks that fit.
    """
    fitting: Counter[str] = Counter()
    for name, tensor in state.items():
        parts = name.split(".")
        for start in range(len(parts)):
            rest = ".".join(parts[start:])
            if rest in expected and expected[rest].shape == tensor.shape:
                fitting[name.removesuffix(rest)] += 1
    most = max(fitting.values(), default=0)
    best = [prefix for prefix, count in fitting.items() if count == most]
    if not best or "" in best:
        return state, ""
    if len(best) > 1:
        loading = f"torch.load('{path}', map_location='cpu')"
        if path.endswith(".safetensors"):
            loading = f"__import__('safetensors.torch').torch.load_file('{path}')"
        raise UserError(
            f"checkpoint {path} has several networks that fit, whose names begin with "
            f"{', '.join(best)}. Choose one, here {best[0]}: "
            f"{_conversion(Path(path), loading, best[0])}"
        )
    (prefix,) = best
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}, prefix


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
    return (
        f"checkpoint {origin} does not fit the model: of its {len(expected)} tensors, {fitting} "
        f"fit, {len(missing)} are missing{_examples(missing)}, and {len(other)} have another shape"
        f"{_examples(other)}; {len(left_over)} tensors of the file are left over"
        f"{_examples(left_over)}"
    )


def _examples(names: list[str]) -> str:
    shown = ", ".join(names[:MOST_NAMES])
    return f" ({shown}{', …' if len(names) > MOST_NAMES else ''})" if names else ""


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"
