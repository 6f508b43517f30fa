"""Errors that the user can fix, and functions that help to write their messages.

This module imports nothing from the package, so every other module can import it.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


class UserError(Exception):
    """A mistake that the user can fix.

    The command line prints the message without a traceback and exits with status 2.
    """


@dataclass(frozen=True)
class Problem:
    """One mistake in a recipe, with its location.

    Attributes:
        source: the file with the mistake, or the override: ``override 'train.lr=x'``.
        line: line number in the file, counted from 1; None without a file.
        key: path of the key, as in ``students.alone.loss``; empty for the whole document.
        code: kind of mistake as one word, for programs: ``unknown_key``, or one of pydantic's
            error types, such as ``greater_than``.
        message: what is wrong and how to fix it, in English.
    """

    source: str
    line: int | None
    key: str
    code: str
    message: str

    def __str__(self) -> str:
        """Return ``file:line: key: message``; unknown parts are omitted."""
        location = self.source if self.line is None else f"{self.source}:{self.line}"
        if self.key:
            return f"{location}: {self.key}: {self.message}"
        return f"{location}: {self.message}"


class RecipeError(UserError):
    """An error with all problems of one recipe; its message has one line for each problem."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


def pluralize(count: int, noun: str) -> str:
    """Return a count with its noun in the right form: ``1 run``, ``2 runs``, ``1,000 runs``."""
    ending = "" if count == 1 else "s"
    return f"{count:,} {noun}{ending}"


def closest(word: Any, known: Iterable[str]) -> str | None:
    """Return the known word with the most similar spelling, or None if no word is similar."""
    names = [str(name) for name in known]
    for name in names:
        if name.lower() == str(word).lower():
            return name
    matches = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    return matches[0] if matches else None


def suggest(word: Any, known: Iterable[str]) -> str:
    """Return a hint for an unknown word: ``did you mean 'x'?``, or the list of all known words."""
    known = sorted(known)
    match = closest(word, known)
    if match is not None:
        return f"did you mean '{match}'?"
    return f"the known names are: {', '.join(known)}" if known else "there are no known names"
