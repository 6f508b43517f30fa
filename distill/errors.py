"""A YAML document that knows where each of its keys stands, so that every problem can name its place.

In reading order: the errors; YAML with line numbers; overrides from the command line; checking a part of
the document by a pydantic model, with problems as sentences and the suggest known key.
"""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """A mistake of the person at the keyboard: shown as a sentence, with exit status 2, never a traceback."""


class RecipeError(UserError):
    """Every problem of one recipe, a line each."""


def pluralize(count: int, noun: str) -> str:
    """ "1 run", "2 runs"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def suggest(word: Any, known: Iterable[str]) -> str:
    """``did you mean …?`` where something known is close, else the list of what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return (
        f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(known) or 'nothing'}"
    )
