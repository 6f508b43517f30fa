"""Multiply out the sweeps of an arm.

A sweep is a list where one value is expected: ``temperature: [1, 4]`` makes two arms, and several
sweeps make all combinations. A value that is itself a list is written ``[[…]]``.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from distill.recipe.problems import Key, Problems, dotted

MAX_ARMS = 10_000


@dataclass(frozen=True)
class SweepPoint:
    """One combination of the values of an arm's sweeps.

    Attributes:
        values: the chosen value of each sweep, by its key path within the arm.
        settings: the arm as written, with these values instead of the lists.
    """

    values: dict[Key, Any]
    settings: dict[str, Any]


def expand(arm: dict[str, Any], key: Key, problems: Problems) -> list[SweepPoint]:
    """Return every combination of the values of an arm's sweeps.

    Args:
        arm: the arm as written.
        key: path of the arm in the document.
        problems: collects a problem for each list that cannot be a sweep.

    Returns:
        the combinations in the order of the recipe; the last sweep changes fastest. An arm without
        sweeps has one combination, without values. The result is empty if there are problems,
        because the lists would be reported again as values of the wrong type.
    """
    sweeps: dict[Key, list[Any]] = {}
    single_values: dict[Key, Any] = {}
    has_problems = False
    for path, values in _lists(arm, ()):
        problem = _problem_of_sweep(path, values)
        if problem is not None:
            problems.add((*key, *path), *problem)
            has_problems = True
        elif _is_one_list_value(path, values):
            single_values[path] = values[0]
        else:
            sweeps[path] = values
    if has_problems:
        return []

    count = math.prod(len(values) for values in sweeps.values())
    if count > MAX_ARMS:
        message = f"the sweeps of this arm make {count} arms; at most {MAX_ARMS} are allowed"
        problems.add(key, "too_many_arms", message)
        return []

    points = []
    for combination in itertools.product(*sweeps.values()):
        chosen = dict(zip(sweeps, combination, strict=True))
        points.append(SweepPoint(chosen, _replace(arm, (), chosen | single_values)))
    return points


def _lists(value: Any, path: Key) -> Iterator[tuple[Key, list[Any]]]:
    """Yield every list that is not inside another list, with its path."""
    if isinstance(value, list):
        yield path, value
    elif isinstance(value, dict):
        for name, child in value.items():
            yield from _lists(child, (*path, name))


def _problem_of_sweep(path: Key, values: list[Any]) -> tuple[str, str] | None:
    """Return code and message if a list at a path within an arm cannot be a sweep."""
    is_loss_term = len(path) == 2 and path[0] == "loss"
    if is_loss_term or path in [("loss",), ("train",), ("augment",)]:
        message = "must be a mapping (KEY: VALUE), got a list; a sweep is not possible here"
        return "sweep_of_mapping", message
    if not values:
        return "empty_sweep", "a sweep needs at least one value"
    if path != ("model",) and any(isinstance(value, dict) for value in values):
        return "sweep_of_mappings", "a sweep must be a list of plain values, not of mappings"
    if any(values.index(value) != i for i, value in enumerate(values)):
        message = (
            "this sweep contains the same value twice; "
            "if the list is meant as a single value, write it as [[…]]"
        )
        return "repeated_value", message
    return None


def _is_one_list_value(path: Key, values: list[Any]) -> bool:
    """Return whether ``[[…]]`` is a single value that is a list, and not a sweep.

    A nested list of teachers counts as a sweep, so that the arm is named after its ensemble.
    """
    return path != ("teacher",) and len(values) == 1 and isinstance(values[0], list)


def _replace(value: Any, path: Key, replacements: dict[Key, Any]) -> Any:
    """Return a copy of a value at a path, with the values at some paths replaced."""
    if path in replacements:
        return replacements[path]
    if isinstance(value, dict):
        return {name: _replace(child, (*path, name), replacements) for name, child in value.items()}
    return value


def sweep_value_text(value: Any) -> str:
    """Return a swept value as it appears in an arm's name: ``0.1``, ``a+b``, ``net(depth=3)``."""
    if isinstance(value, list):
        return "+".join(sweep_value_text(item) for item in value)
    if isinstance(value, dict):
        arguments = [
            f"{key}={sweep_value_text(item)}" for key, item in value.items() if key != "name"
        ]
        name = str(value.get("name"))
        return f"{name}({','.join(arguments)})" if arguments else name
    if isinstance(value, float):
        # Use the short form only if it is exact: two arms with near values need different names.
        short = f"{value:g}"
        return short if float(short) == value else str(value)
    return str(value)


def short_names(paths: set[Key]) -> dict[Key, str]:
    """Return the shortest unique name of each sweep: the last word of its path, or more.

    ``loss.kd.temperature`` becomes ``temperature``. ``loss.kd.weight`` becomes ``kd.weight`` if the
    recipe also sweeps the weight of another term.
    """
    names = {}
    for path in paths:
        others = paths - {path}
        length = 1
        while length < len(path) and any(other[-length:] == path[-length:] for other in others):
            length += 1
        names[path] = dotted(path[-length:])
    return names
