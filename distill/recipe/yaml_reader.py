"""Read a recipe's YAML with the line of every key, and apply overrides from the command line.

The reader accepts only plain values: text, numbers, true and false, lists, and mappings. It refuses
tags that would create Python objects, and documents that grow without limit through aliases.
"""

from collections.abc import Iterable
from typing import Any

import yaml

from distill.errors import Problem, RecipeError, UserError, closest
from distill.recipe.problems import Key, Problems, dotted

SECTIONS_OF_ARMS = ("teachers", "students")

# A recipe is short. Nested aliases ("billion laughs") can make a short file expand to gigabytes.
MAX_VALUES = 20_000

PLAIN_KINDS = (
    "str", "int", "float", "bool", "null", "seq", "map", "timestamp", "merge", "value",
)  # fmt: skip
MERGE_TAG = "tag:yaml.org,2002:merge"
PLAIN_TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in PLAIN_KINDS)


def read_yaml(text: str, problems: Problems) -> Any:
    """Return the plain Python values of a YAML text.

    Args:
        text: the YAML document.
        problems: collects the line of every key, and a problem for each key that is a duplicate or
            not a word.

    Returns:
        usually a dictionary; an empty one for an empty text.

    Raises:
        RecipeError: if the text is not YAML, has values that are not plain, or is too large.
    """
    try:
        # The loader refuses control characters as soon as it is made.
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return {}
        return _NodeReader(loader, problems).value(node, ())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        reason = getattr(error, "problem", None) or "it cannot be read"
        if "escape sequence" in str(error) or "escape character" in str(error):
            reason += " (in double quotes, a backslash begins a code; use single quotes, or /)"
        raise _invalid(problems, line, f"not valid YAML: {reason}") from None
    except (RecursionError, ValueError, KeyError, AttributeError, TypeError) as error:
        # PyYAML raises these for a tag that does not fit its value, as in "!!int [1]".
        raise _invalid(problems, None, f"not readable as a recipe: {error}") from None


class _NodeReader:
    """Turns the nodes of a YAML document into values, and notes the line of each key."""

    def __init__(self, loader: yaml.SafeLoader, problems: Problems) -> None:
        self.loader = loader
        self.problems = problems
        self.count = 0

    def value(self, node: yaml.Node, key: Key) -> Any:
        """Return the value of a node, which is at a key path of the document."""
        line = node.start_mark.line + 1
        self.problems.lines.setdefault(key, line)
        self.count += 1
        if self.count > MAX_VALUES:
            raise _invalid(self.problems, None, f"the recipe has more than {MAX_VALUES} values")
        if not node.tag.startswith(PLAIN_TAGS):
            message = (
                f"the YAML tag {node.tag} is not allowed in a recipe; expected text, a number, "
                "true, false, a list or a mapping"
            )
            raise _invalid(self.problems, line, message)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*key, i)) for i, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if _is_text_today(node):
            return node.value
        value = self.loader.construct_object(node)
        # A date stays the text that it is written as.
        return value if isinstance(value, str | int | float | None) else node.value

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for name_node, child in node.value:
            if name_node.tag == MERGE_TAG:
                for name, value in self._merged(child, key).items():
                    merged.setdefault(name, value)
                continue
            line = name_node.start_mark.line + 1
            if not isinstance(name_node, yaml.ScalarNode):
                message = f"a key must be a word, not a list or a mapping (line {line})"
                self.problems.add(key, "invalid_key", message)
                continue
            # The text as it is written, so that the arm `1` is named "1".
            name = name_node.value
            path = (*key, name)
            if name in result:
                message = f"this key appears twice, the second time on line {line}"
                self.problems.add(path, "duplicate_key", message)
            self.problems.lines.setdefault(path, line)
            result[name] = self.value(child, path)
        return merged | result

    def _merged(self, node: yaml.Node, key: Key) -> dict[str, Any]:
        """Return the keys that ``<<`` brings in: those of a mapping, or of the first of several."""
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for one in nodes:
            if not isinstance(one, yaml.MappingNode):
                message = "<< takes a mapping, as in <<: *name"
                self.problems.add(key, "invalid_key", message)
                return merged
            merged = self._mapping(one, key) | merged
        return merged


def _is_text_today(node: yaml.Node) -> bool:
    """Return whether a plain word is a value of YAML 1.1 only, as PyYAML reads it, and text in 1.2.

    These are the words yes, no, on and off, and numbers such as 010 (octal) and 1:30 (base 60).
    People mean names by them.
    """
    text = node.value
    if node.tag == "tag:yaml.org,2002:bool":
        return text.lower() not in ("true", "false")
    if node.tag == "tag:yaml.org,2002:int":
        digits = text.lstrip("+-")
        return ":" in digits or (len(digits) > 1 and digits.isdecimal() and digits[0] == "0")
    return node.tag == "tag:yaml.org,2002:float" and ":" in text


def _invalid(problems: Problems, line: int | None, message: str) -> RecipeError:
    location = problems.lines[()]
    if isinstance(location, int):
        return RecipeError(Problem(problems.file, line, "", "invalid_yaml", message))
    return RecipeError(Problem(location, None, "", "invalid_yaml", message))


def override(document: dict[str, Any], assignments: Iterable[str], problems: Problems) -> None:
    """Replace values of a document, in place.

    Args:
        document: the recipe as read from its file.
        assignments: ``KEY=VALUE`` texts, as in ``train.epochs=3``; the value is YAML, and mappings
            that do not exist are created. ``students.NAME=null`` removes an arm.
        problems: stores the override as the location of these keys, so that messages show it.

    Raises:
        UserError: if a text is not ``KEY=VALUE``, or a key is below a value that is not a mapping.
        RecipeError: if a value is not YAML.
    """
    for assignment in assignments:
        name, equals, value_text = assignment.partition("=")
        path = tuple(part.strip() for part in name.split("."))
        if not equals or not all(path):
            raise UserError(
                f"'{assignment}' is not an override; write KEY=VALUE, as in train.epochs=3"
            )
        location = f"override '{assignment}'"
        value = _override_value(value_text, location)
        parent = _parent_mapping(document, path, location, problems)
        is_arm = len(path) == 2 and path[0] in SECTIONS_OF_ARMS
        if is_arm and value is None and path[1] in parent:
            del parent[path[1]]
            continue
        parent[path[-1]] = value
        for key in list(problems.lines):
            if key[: len(path)] == path:
                del problems.lines[key]
        problems.lines[path] = location


def _override_value(text: str, location: str) -> Any:
    if not text.strip():
        return None
    problems = Problems(location)
    problems.lines[()] = location
    value = read_yaml(text, problems)
    problems.raise_if_any()
    return value


def _parent_mapping(
    document: dict[str, Any], path: Key, location: str, problems: Problems
) -> dict[str, Any]:
    """Return the mapping that holds the last key of a path; mappings on the path are created."""
    parent = document
    for depth, part in enumerate(path[:-1], 1):
        if part not in parent:
            # The second word of a path is usually the name of an arm. A misspelt name creates a
            # new arm, and the problems of that arm should show the likely cause.
            match = closest(part, parent) if depth == 2 else None
            hint = f" (this adds a new key '{part}'; did you mean '{match}'?)" if match else ""
            problems.lines[path[:depth]] = location + hint
            parent[part] = {}
        child = parent[part]
        if not isinstance(child, dict):
            raise UserError(
                f"{location}: {dotted(path[:depth])} is {child!r}, but it must be a mapping to "
                "have keys"
            )
        parent = child
    return parent
