"""Files that are whole or absent, and tell whether they are what was written: digests, seals, trees, locks."""

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from distill.errors import UserError

try:
    import fcntl
except ImportError:  # where there are no such locks
    fcntl = None


def file_digest(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_path(path: Path) -> Path:
    """Where this process writes what will be `path`."""
    return path.with_name(f".{path.name}.{_here()}{os.getpid()}")


def _here() -> str:
    return f"{platform.node().replace('.', '_')}-"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a place to write to, which is renamed to `path` once all is written; nothing is left if it is not.

    Raises:
        UserError: in place of what safetensors raises.
    """
    aside = temporary_path(path)
    try:
        yield aside
        aside.replace(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"cannot write {path}: {getattr(error, 'strerror', None) or error}"
        ) from None
    finally:
        aside.unlink(missing_ok=True)


def clean_stale_temp_files(folder: Path) -> None:
    """Remove what processes of this machine that were killed left in a folder while they wrote aside."""
    for path in folder.glob(f".*.{_here()}*"):
        number = path.name.rsplit("-", 1)[1]
        if number.isdigit() and not alive(int(number)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(
                missing_ok=True
            )


def alive(number: int) -> bool:
    """Whether a process of this number runs here; when in doubt, yes."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8")


def with_checksum(values: dict[str, Any]) -> dict[str, Any]:
    """JSON values with a digest of them, so that a change is seen."""
    values = json.loads(json.dumps(values))  # as they will be read: keys are text
    return {**values, "seal": _seal(values)}


def has_valid_checksum(values: dict[str, Any]) -> bool:
    """Whether values are those that were with_checksum."""
    return values.get("seal") == _seal(
        {key: value for key, value in values.items() if key != "seal"}
    )


def _seal(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------- trees


def write_tree(path: Path, value: dict[str, Any]) -> None:
    """Write a tree of tensors and JSON values as one safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_without_tensors(value, tensors))
    with atomic_write(path) as aside:
        save_file(
            tensors, aside, metadata={"tree": _tree_digest(tree, tensors) + tree}
        )  # two have no order


def read_tree(path: Path) -> dict[str, Any] | None:
    """What `write_tree` wrote, or None if there is nothing.

    Raises:
        ValueError: naming the file, if it is damaged or no such file.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            stated, tensors = (
                file.metadata()["tree"],
                {name: file.get_tensor(name) for name in file.keys()},
            )  # noqa: SIM118
        digest, tree = stated[:64], stated[64:]
        if digest != _tree_digest(tree, tensors):
            raise ValueError("its sha256 differs from what was written")
        return _with_tensors(json.loads(tree), tensors.__getitem__)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error})") from None


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names, types, shapes and values."""
    return _tree_digest("", tensors)


def _tree_digest(tree: str, tensors: Mapping[str, Tensor]) -> str:
    """sha256 of a tree and its tensors, which their file format does not have."""
    digest = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _without_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A tree as JSON, its tensors put aside under numbers; keys keep their types, tuples become lists."""
    if isinstance(value, Tensor):
        tensors[str(len(tensors))] = value.detach().clone(memory_format=torch.contiguous_format)
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(value, Mapping):
        return {"items": [[key, _without_tensors(child, tensors)] for key, child in value.items()]}
    if isinstance(value, list | tuple):
        return [_without_tensors(child, tensors) for child in value]
    return value


def _with_tensors(value: Any, tensor: Callable[[str], Tensor]) -> Any:
    """The tree that `_without_tensors` took apart."""
    if isinstance(value, list):
        return [_with_tensors(child, tensor) for child in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensor(value["tensor"])
    return {key: _with_tensors(child, tensor) for key, child in value["items"]}


# ---------------------------------------------------------------------------------------------------- locks


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within it no other process has the lock of the folder, a file beside it.

    Raises:
        UserError: if one has it already.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(
        folder.parent, os.W_OK
    ):  # nobody can write here; what is stored can still be read
        yield
        return
    with folder.with_name(f".{folder.name}.lock").open("a+") as file:
        try:
            if fcntl:
                _wait_for_the_dead(file)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{folder} is being written by another process ({file.read() or 'unknown'}); wait for it, "
                "or use another --out or another name of the recipe"
            ) from None
        clean_stale_temp_files(folder)
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
            if fcntl:  # closing is not enough: processes that decode images may have been forked
                fcntl.flock(file, fcntl.LOCK_UN)


def _wait_for_the_dead(file: TextIO) -> None:
    """Lock a file; BlockingIOError if a living process has it. Of one that was killed, the processes that decoded its
    images keep the lock until they see that, some seconds later.
    """
    for patience in range(100, -1, -1):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            number, _, node = file.read().partition(" on ")
            if (
                not patience
                or node != platform.node()
                or not number.isdigit()
                or alive(int(number))
            ):
                raise
            time.sleep(0.15)
