"""A YAML document that knows where each of its keys stands, so that every problem can name its place.

In reading order: the errors; YAML with line numbers; overrides from the command line; checking a part of
the document by a pydantic model, with problems as sentences and the suggest known key.
"""

import difflib
import itertools
from collections.abc import Iterable
from typing import Any

import yaml

from distill.errors import RecipeError, UserError

Key = tuple[str | int, ...]


# ------------------------------------------------------------------------------------------ YAML with lines

MAX_NODES = 20_000  # a recipe is short; a bomb of aliases is not
PLAIN_TAGS = tuple(
    f"tag:yaml.org,2002:{kind}"
    for kind in ("str", "int", "float", "bool", "null", "seq", "map", "timestamp", "merge", "value")
)


class Problems:
    """Problems found so far, and where each key of the document stands."""

    def __init__(self, file: str) -> None:
        self.file, self.lines, self.found = file, {(): 1}, []

    def add(self, key: Key, message: str) -> None:
        """Note a problem of the value at `key`."""
        prefix = next(key[:n] for n in range(len(key), -1, -1) if key[:n] in self.lines)
        line = self.lines[prefix]
        place = f"{self.file}:{line}" if isinstance(line, int) else line
        text = f"{place}: {dotted(key)}: {message}" if key else f"{place}: {message}"
        if text not in self.found:
            self.found.append(text)

    def stop(self) -> None:
        """Raise RecipeError if anything was found."""
        if self.found:
            raise RecipeError("\n".join(self.found))


def dotted(key: Key) -> str:
    """``('students', 'alone', 0)`` as ``students.alone[0]``."""
    return "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in key).lstrip(".")


def read_yaml(text: str, problems: Problems) -> Any:
    """Plain Python values of a YAML text; duplicate keys are problems, tags and objects are refused."""
    budget = itertools.count()

    def value(node: yaml.Node, key: Key) -> Any:
        problems.lines.setdefault(key, node.start_mark.line + 1)
        if next(budget) > MAX_NODES:
            raise RecipeError(f"{problems.file}: more than {MAX_NODES} values")
        if not node.tag.startswith(PLAIN_TAGS):
            place = f"{problems.file}:{node.start_mark.line + 1}"
            raise RecipeError(
                f"{place}: not valid YAML here: the tag {node.tag} stands for no plain value"
            )
        if isinstance(node, yaml.SequenceNode):
            return [value(child, (*key, i)) for i, child in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            plain = loader.construct_object(node)
            return (
                plain if isinstance(plain, str | int | float | None) else node.value
            )  # a date stays its text
        result: dict[str, Any] = {}
        for key_node, child in node.value:
            line = key_node.start_mark.line + 1
            name = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if name is None:
                problems.add(key, f"a key must be a word (line {line})")
                continue
            if name in result:
                problems.add((*key, name), f"this key stands twice, again on line {line}")
            problems.lines.setdefault((*key, name), line)
            result[name] = value(child, (*key, name))
        return result

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        return {} if node is None else value(node, ())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "not readable"
        raise RecipeError(f"{problems.file}{line}: not valid YAML: {reason}") from None
    except (
        RecursionError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
    ) as error:  # of tags that do not fit
        raise RecipeError(f"{problems.file}: not readable as a recipe: {error}") from None


def override(document: Any, assignments: Iterable[str], problems: Problems) -> None:
    """Apply ``KEY=VALUE`` texts, e.g. ``train.epochs=3``, to the document in place."""
    for text in assignments:
        name, equals, value_text = text.partition("=")
        path = tuple(name.split("."))
        if not equals or not all(path):
            raise UserError(f"'{text}' is not an override; write KEY=VALUE, as in train.epochs=3")
        place = f"override '{text}'"
        own = Problems(place)
        value = read_yaml(value_text, own) if value_text.strip() else None
        if own.found:
            raise RecipeError("\n".join(own.found))
        parent = document
        for depth, part in enumerate(path[:-1], 1):
            if part not in parent:
                close = (
                    difflib.get_close_matches(part, map(str, parent), n=1) if depth == 2 else []
                )  # of the arms
                problems.lines[path[:depth]] = place + (
                    f" ('{part}' is new there; did you mean '{close[0]}'?)" if close else ""
                )
            parent = parent.setdefault(part, {})
            if not isinstance(parent, dict):
                raise UserError(
                    f"{place}: {dotted(path[:depth])} is {parent!r}, which has no keys to set"
                )
        parent[path[-1]] = value
        stale = [key for key in problems.lines if key[: len(path)] == path]
        for key in stale:
            del problems.lines[key]
        problems.lines[path] = place
