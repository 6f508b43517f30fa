"""Collect every problem of a recipe with its line, so that all are reported at once."""

from distill.errors import Problem, RecipeError

Key = tuple[str | int, ...]
"""Path of a value in a document: mapping keys and list indices, as in ``("seeds", 0)``."""


def dotted(key: Key) -> str:
    """Return a key path as users write it: ``('students', 'a', 0)`` becomes ``students.a[0]``."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in key]
    return "".join(parts).removeprefix(".")


class Problems:
    """The problems of one document, and the location of each of its keys.

    Attributes:
        lines: location of each key path: its line in the file or, for a value that is not from the
            file, a text such as ``override 'train.lr=0.2'``. The empty path always has a location.
        entries: the problems in the order in which they were found, without repetitions.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Key, int | str] = {(): 1}
        self.entries: list[Problem] = []

    @property
    def found(self) -> list[str]:
        """Return every problem as a line of text."""
        return [str(problem) for problem in self.entries]

    def add(self, key: Key, code: str, message: str) -> None:
        """Add a problem with the value at a key path; the key need not exist.

        Args:
            key: path of the value. If it does not exist, the line is that of the nearest parent.
            code: see `Problem.code`.
            message: what is wrong and how to fix it.
        """
        location = self._location(key)
        if isinstance(location, int):
            problem = Problem(self.file, location, dotted(key), code, message)
        else:
            problem = Problem(location, None, dotted(key), code, message)
        if problem not in self.entries:
            self.entries.append(problem)

    def raise_if_any(self) -> None:
        """Raise a `RecipeError` with all problems, if there are any."""
        if self.entries:
            raise RecipeError(*self.entries)

    def _location(self, key: Key) -> int | str:
        while key not in self.lines:
            key = key[:-1]
        return self.lines[key]
