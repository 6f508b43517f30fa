"""From a recipe's file to its arms: axes are multiplied out, and every problem is told at once."""

import itertools
from typing import Any

from distill.recipe.yaml_reader import Key, Problems, dotted

# ------------------------------------------------------------------------------------------------------ axes


def expand(
    arm: dict[str, Any], key: Key, problems: Problems
) -> list[tuple[dict[Key, Any], dict[str, Any]]]:
    """The product of an arm's lists: ``(axis values by path, the arm without lists)`` for each arm.

    A list stands for an axis wherever one value is expected; a list that is itself a value is nested,
    ``[[…]]``, and where it is the only one it is no axis either, but for an ensemble of teachers, which names its
    arm. A list of mappings is an axis only as `model`.
    """
    axes: dict[Key, list[Any]] = {}
    single: dict[Key, Any] = {}

    def find(value: Any, path: Key) -> None:
        if isinstance(value, dict):
            for name, child in value.items():
                find(child, (*path, name))
        elif isinstance(value, list):
            if path in [(), ("loss",), ("train",), ("augment",)] or (
                path[:1] == ("loss",) and len(path) == 2
            ):
                problems.add(
                    (*key, *path),
                    "expected a mapping (KEY: VALUE), got a list: no axis may stand here",
                )
            elif not value:
                problems.add((*key, *path), "an axis needs at least one value")
            elif path != ("model",) and any(isinstance(v, dict) for v in value):
                problems.add((*key, *path), "an axis is a list of plain values, not of mappings")
            elif any(value.index(v) != i for i, v in enumerate(value)):
                problems.add(
                    (*key, *path),
                    "the same value stands twice in this axis (a list that is one value is "
                    "written [[…]])",
                )
            elif path != ("teacher",) and len(value) == 1 and isinstance(value[0], list):
                single[path] = value[0]
            else:
                axes[path] = value

    before = len(problems.found)
    find(arm, ())
    if len(problems.found) > before:
        return []  # checked as it stands, the list would be told again, as a value of the wrong type
    size = 1
    for values in axes.values():
        size *= len(values)
    if size > 10_000:
        problems.add(key, f"its axes make {size} arms; at most 10000 are allowed")
        return []
    result = []
    for choice in itertools.product(*axes.values()):
        picked = dict(zip(axes, choice, strict=True))
        result.append((picked, _replace(arm, (), picked | single)))
    return result


def _replace(value: Any, path: Key, picked: dict[Key, Any]) -> Any:
    if path in picked:
        return picked[path]
    if isinstance(value, dict):
        return {name: _replace(child, (*path, name), picked) for name, child in value.items()}
    return value


def axis_text(value: Any) -> str:
    """An axis value as it stands in an arm's name."""
    if isinstance(value, list):
        return "+".join(map(axis_text, value))
    if isinstance(value, dict):
        rest = ",".join(f"{k}={axis_text(v)}" for k, v in value.items() if k != "name")
        return f"{value.get('name')}({rest})" if rest else str(value.get("name"))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _short_names(paths: set[Key]) -> dict[Key, str]:
    """Each axis by the last word of its path, by more words where that would name two."""
    names = {}
    for path in paths:
        length = 1
        while any(other[-length:] == path[-length:] for other in paths - {path}) and length < len(
            path
        ):
            length += 1
        names[path] = dotted(path[-length:])
    return names
