"""The source code of networks and losses that users wrote, as part of a run's identity.

A network of timm is known by its name and timm's version. A network that a user registers can
change under the same name, so the source of its module, and of the user's modules that it imports,
belongs to the run.
"""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import textwrap
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from timm.models import is_model, model_entrypoint

from distill.errors import UserError
from distill.models.factory import native_architecture

# Code of these packages is known by the versions of the libraries that each run stores.
LIBRARIES = ("timm", "torch", "torchvision", "distill", "accelerate", "numpy", "transformers")


def network_code(name: str, model_args: dict[str, Any]) -> str | None:
    """Return a digest of the code of a network that a user registered in timm; else None.

    Args:
        name: the network's name in a recipe.
        model_args: its arguments; a wrapper such as `cosine_head` has a network as its base.

    Raises:
        UserError: if the code cannot be read.
    """
    names = [native_architecture(name), str(model_args.get("base", ""))]
    entries = [model_entrypoint(one) for one in names if ":" not in one and is_model(one)]
    digests = [digest for digest in map(code_digest, entries) if digest]
    return "".join(digests) or None


def code_digest(thing: Callable[..., Any]) -> str | None:
    """Return a digest of the code that a function or a class depends on; None for a library's.

    Raises:
        UserError: if its source cannot be read, as for code that is typed into a prompt.
    """
    # `functools.partial` and decorators hide the function itself.
    thing = inspect.unwrap(getattr(thing, "func", thing))
    start = sys.modules.get(getattr(thing, "__module__", "") or "")
    if start is None or not _is_users(start):
        return None
    sources: dict[str, str] = {}
    remaining = [start]
    while remaining:
        module = remaining.pop()
        if module.__name__ in sources:
            continue
        source = _source(module, thing)
        sources[module.__name__] = source
        used = [*_used_modules(module), *_imported_modules(source, module)]
        remaining += [one for one in used if _is_users(one)]
    digest = hashlib.sha256()
    for name in sorted(sources):
        # The script that is run is called __main__, whatever its file is called.
        digest.update(f"{name}\n{sources[name]}\n".encode())
    return digest.hexdigest()[:16]


def _source(module: ModuleType, thing: Callable[..., Any]) -> str:
    """Return the source of a module; in a notebook, that of the function or class alone."""
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):
        pass
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        raise UserError(
            f"the code of {getattr(thing, '__name__', thing)} cannot be read, so runs with it "
            "cannot be told apart from runs with other code; put it into a file"
        ) from None


def _used_modules(module: ModuleType) -> list[ModuleType]:
    """Return the modules whose functions and classes a module has among its names."""
    found = []
    for value in list(vars(module).values()):
        name = value.__name__ if isinstance(value, ModuleType) else None
        if inspect.isclass(value) or inspect.isfunction(value):
            name = value.__module__
        if name in sys.modules:
            found.append(sys.modules[name])
    return found


def _imported_modules(source: str, module: ModuleType) -> list[ModuleType]:
    """Return the modules that a source imports anywhere, also within functions.

    A module that is not imported yet is imported here, since its code belongs to the network.
    """
    try:
        tree = ast.parse(textwrap.dedent(source))
    except SyntaxError:
        return []
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names |= {base, *(f"{base.rstrip('.')}.{alias.name}" for alias in node.names)}
    found = []
    for name in names:
        if name.lstrip(".").partition(".")[0] in (*LIBRARIES, *sys.stdlib_module_names):
            continue
        # A name may be that of a function, or of a package that is not installed.
        with suppress(Exception):
            spec = importlib.util.find_spec(name, module.__package__ or None)
            if spec and spec.origin and _is_own_file(spec.origin):
                found.append(importlib.import_module(spec.name))
    return found


def _is_users(module: ModuleType) -> bool:
    """Return whether a module is neither Python's nor an installed package's."""
    if module.__name__.partition(".")[0] in (*LIBRARIES, *sys.stdlib_module_names):
        return module.__name__ == "__main__"
    file = getattr(module, "__file__", None)
    if file is None:
        return True
    return _is_own_file(file)


def _is_own_file(file: str) -> bool:
    """Return whether a module's file is in no folder of installed packages."""
    installed = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")}
    return not installed & set(Path(file).resolve().parents)
