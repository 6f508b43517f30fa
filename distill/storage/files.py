"""Write files that are either complete or absent, and detect damaged ones.

Every file is written under a temporary name and renamed, so a killed process leaves no half-written
file under the real name. Checksums show whether a file still has the content that was written.
"""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from distill.errors import UserError

CHECKSUM_KEY = "seal"
"""The key of the checksum in JSON files."""

SHA256_DIGITS = 64

# ---------------------------------------------------------------------------------- atomic writes


def temporary_path(path: Path) -> Path:
    """Return the path under which this process writes before it renames the file to `path`.

    The name contains the machine and the process, so that `clean_stale_temp_files` can recognise
    files of processes that have ended.
    """
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}")


def _machine() -> str:
    """Return the name of this machine, without the dots that separate parts of file names."""
    return platform.node().replace(".", "_")


def set_default_permissions(path: Path) -> None:
    """Give a file the permissions of any new file; safetensors lets only its owner read it."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Provide a temporary path to write to, which is renamed to `path` at the end.

    If the block raises, the temporary file is removed and `path` stays as it was.

    Raises:
        UserError: if the file cannot be written; it replaces errors of safetensors and the
            operating system.
    """
    temporary = temporary_path(path)
    try:
        yield temporary
        set_default_permissions(temporary)
        temporary.replace(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from None
    finally:
        temporary.unlink(missing_ok=True)


def reason(error: Exception) -> str:
    """Return the text of an error, in the short form "No space left on device" if it has one."""
    return getattr(error, "strerror", None) or str(error)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file that is complete or absent even if the process is killed."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def clean_stale_temp_files(folder: Path) -> None:
    """Remove temporary files and folders that killed processes of this machine have left."""
    for path in folder.glob(f".*.{_machine()}-*"):
        process = path.name.rsplit("-", 1)[1]
        if not process.isdecimal() or is_process_alive(int(process)):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def is_process_alive(process: int) -> bool:
    """Return whether a process with this number runs on this machine; True if in doubt."""
    try:
        os.kill(process, 0)  # signal 0 only asks whether the process could get a signal
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        # It exists but belongs to another user, or the number is too large.
        return True
    return True


# -------------------------------------------------------------------------------------- checksums


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def with_checksum(values: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with one more key: a checksum of all other keys and values."""
    # Compute the checksum of the values as a reader gets them: JSON turns keys into text and tuples
    # into lists.
    values = json.loads(json.dumps(values))
    return {**values, CHECKSUM_KEY: _checksum(values)}


def has_valid_checksum(values: dict[str, Any]) -> bool:
    """Return whether a JSON object matches the checksum that `with_checksum` added."""
    others = {key: value for key, value in values.items() if key != CHECKSUM_KEY}
    return values.get(CHECKSUM_KEY) == _checksum(others)


def _checksum(values: dict[str, Any]) -> str:
    """Return the sha256 of a JSON object."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of the tensors' names, types, shapes and values."""
    return _tree_digest("", tensors)


# ------------------------------------------------------------------------------ trees of tensors


def write_tree(path: Path, tree: dict[str, Any]) -> None:
    """Write nested dictionaries and lists of tensors, types and JSON values as a safetensors file.

    Keys and tuples keep their types. Unlike a pickle, the file cannot run code when it is opened.

    Args:
        path: the file, which is complete or absent at any time.
        tree: the values.

    Raises:
        UserError: if the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_take_tensors_out(tree, tensors))
    # One metadata entry holds both digest and structure: safetensors writes several entries in no
    # fixed order.
    metadata = {"tree": _tree_digest(structure, tensors) + structure}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def read_tree(path: Path) -> dict[str, Any] | None:
    """Return what `write_tree` wrote, or None if the file does not exist.

    Raises:
        ValueError: naming the file, if it is damaged or `write_tree` did not write it.
    """
    if not path.exists():
        return None
    try:
        tensors, metadata = read_safetensors(path)
        written_digest = metadata["tree"][:SHA256_DIGITS]
        structure = metadata["tree"][SHA256_DIGITS:]
        if written_digest != _tree_digest(structure, tensors):
            raise ValueError("its sha256 differs from what was written")
        return _put_tensors_back(json.loads(structure), tensors.__getitem__)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error})") from None


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


def _tree_digest(structure: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of a tree; safetensors files have no checksum of their own."""
    digest = hashlib.sha256(structure.encode())
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _take_tensors_out(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a tree as JSON values; move its tensors to `tensors` under consecutive numbers."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {"items": [[key, _take_tensors_out(child, tensors)] for key, child in value.items()]}
    if isinstance(value, list | tuple):
        children = [_take_tensors_out(child, tensors) for child in value]
        return {"tuple": children} if isinstance(value, tuple) else children
    return value


def _put_tensors_back(value: Any, get_tensor: Callable[[str], Tensor]) -> Any:
    """Return the tree that `_take_tensors_out` took apart."""
    if isinstance(value, list):
        return [_put_tensors_back(child, get_tensor) for child in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return get_tensor(value["tensor"])
    if "dtype" in value:
        return getattr(torch, value["dtype"])
    if "tuple" in value:
        return tuple(_put_tensors_back(child, get_tensor) for child in value["tuple"])
    return {key: _put_tensors_back(child, get_tensor) for key, child in value["items"]}
