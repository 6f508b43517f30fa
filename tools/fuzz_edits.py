"""Random edits of the text and of the values of a recipe, for `fuzz.py`."""

import copy
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

NUMBERS_AND_CONTAINERS = """
null true -1 0 1e400 .nan -.inf 1e-320 999999999999999999999999999999 '' [] {} [[]] [null]
"""
TAGS_AND_ALIASES = (
    "!!python/object/apply:os.system [exit]",
    "!!binary aGk=",
    "!!set {a}",
    "&a [*a]",
    "*a",
    "<<: {a: 1}",
    "{a: 1}",
)
ODD_SCALARS = (
    "2026-11-21",
    "0x1F",
    "~",
    "'../../etc/passwd'",
    '"a\\0b"',
    "'<script>'",
    "'%s%n'",
    "\u202e",
    "ß🙂",
    "a" * 5000,
)
ODD_SYNTAX = (
    "@",
    "`",
    "%YAML 1.1",
    "--- a",
    "? [a]",
    "|",
    ">",
    "{",
    "]",
    "'",
    '"',
    "\t",
    "\0",
    "\ufeff",
    "\x85",
)
ODD_NAMES = ("local-dir:/", "hf-hub:../x", "__import__('os')")
ODD_TEXTS = (
    *NUMBERS_AND_CONTAINERS.split(),
    *TAGS_AND_ALIASES,
    *ODD_SCALARS,
    *ODD_SYNTAX,
    *ODD_NAMES,
)
"""Texts that replace or are inserted into others."""

ODD_VALUES = (None, -1, 0, 1e308, float("nan"), "", [], {}, [1, 2], "x", True, [[1]], {"a": {}})
"""Values that replace others in a document."""

ODD_KEYS = ("x", "teacher", "loss", "", 3, "smoothing", "temperature", "a.b", "a=b")
"""Keys that are added to mappings of a document."""

# ------------------------------------------------------------------------------- edits of a text


@dataclass(frozen=True)
class Location:
    """A random span of characters of a text, and the index of a random line of it."""

    start: int
    end: int
    row: int


TextEdit = Callable[[str, Location, random.Random], str]


def delete_span(text: str, at: Location, _: random.Random) -> str:
    """Delete a span."""
    return text[: at.start] + text[at.end :]


def insert_text(text: str, at: Location, dice: random.Random) -> str:
    """Insert an odd text."""
    return text[: at.start] + dice.choice(ODD_TEXTS) + text[at.start :]


def repeat_span(text: str, at: Location, dice: random.Random) -> str:
    """Repeat a span 2, 3 or 50 times."""
    return text[: at.start] + text[at.start : at.end] * dice.choice((2, 3, 50)) + text[at.end :]


def indent_line(text: str, at: Location, dice: random.Random) -> str:
    """Indent a line by up to four more spaces."""
    lines = text.split("\n")
    lines[at.row] = " " * dice.randrange(5) + lines[at.row]
    return "\n".join(lines)


def copy_line(text: str, at: Location, dice: random.Random) -> str:
    """Insert a copy of another line."""
    lines = text.split("\n")
    lines.insert(at.row, dice.choice(lines))
    return "\n".join(lines)


def replace_scalars(text: str, _: Location, dice: random.Random) -> str:
    """Replace about a fifth of the plain values after a colon by odd texts."""

    def replacement(match: re.Match) -> str:
        return dice.choice(ODD_TEXTS) if dice.random() < 0.2 else match[0]

    return re.sub(r"(?<=: )[\w.\-]+", replacement, text)


def replace_span(text: str, at: Location, dice: random.Random) -> str:
    """Replace a span by one character, of ASCII or of the whole basic plane of Unicode."""
    code = dice.choice((dice.randrange(32, 127), dice.randrange(0xD7FF)))
    return text[: at.start] + chr(code) + text[at.end :]


TEXT_EDITS: tuple[TextEdit, ...] = (
    delete_span,
    insert_text,
    repeat_span,
    indent_line,
    copy_line,
    replace_scalars,
    replace_span,
)


def edit_text(text: str, dice: random.Random) -> str:
    """Return a text after one to four random edits."""
    for _ in range(dice.randint(1, 4)):
        start = dice.randrange(len(text) or 1)
        end = min(len(text), start + dice.choice((1, 1, 2, 5, 20)))
        row = dice.randrange(text.count("\n") + 1)
        edit = dice.choice(TEXT_EDITS)
        text = edit(text, Location(start, end, row), dice)
    return text


# ---------------------------------------------------------------------------- edits of a document


def key_paths(value: Any, path: tuple = ()) -> list[tuple]:
    """Return the path of a value and of all values within it."""
    children: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))
    paths = [path]
    for key, child in children:
        paths += key_paths(child, (*path, key))
    return paths


def value_at(document: Any, path: tuple) -> Any:
    """Return the value at a path of keys and indices."""
    for key in path:
        document = document[key]
    return document


def edit_values(text: str, dice: random.Random) -> str:
    """Return a recipe after one or two random changes of its values."""
    document = yaml.safe_load(text)
    for _ in range(dice.randint(1, 2)):
        target = dice.choice([path for path in key_paths(document) if path])
        other_value = value_at(document, dice.choice(key_paths(document)))
        parent = value_at(document, target[:-1])
        kind = dice.choice(("delete", "replace by another", "replace", "add"))
        if kind == "delete":
            del parent[target[-1]]
        elif kind == "replace by another":
            parent[target[-1]] = copy.deepcopy(other_value)
        elif kind == "replace":
            parent[target[-1]] = dice.choice(ODD_VALUES)
        elif isinstance(parent, dict):
            parent[dice.choice(ODD_KEYS)] = copy.deepcopy(other_value)
    return yaml.safe_dump(document, allow_unicode=True)
