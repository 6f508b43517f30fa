"""Test the tests: put small faults into the code, one at a time, and check that a test fails.

    python tools/mutate.py [--each N] PART [FILE.py[:FUNCTION]…]

PART is a folder of the package, losses or evaluation. A fault changes one token of a function: a
sign, a factor, a comparison, a reduction, a constant. Each mutant (the code with one fault) is
tested in a copy of the project and in a process of its own, with the tests that cover its file.
With --each, every function gets N faults, evenly spread over it, instead of all.

The tool prints every mutant that survives. Such a mutant shows a gap in the tests, or its fault has
no effect. It also prints, for each function, how many mutants were caught.
"""

import argparse
import ast
import io
import os
import shutil
import sys
import tempfile
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

TESTS: dict[str, dict[str, tuple[str, ...]]] = {
    "losses": {
        "classification": ("classification", "all_losses"),
        "compute": ("compute", "criterion"),
        "feature_distillation": ("feature_distillation", "all_losses"),
        "label_smoothing": ("label_smoothing", "all_losses"),
        "logit_distillation": ("logit_distillation", "all_losses"),
        "margins": ("margins", "all_losses"),
        "online_targets": ("online_targets", "all_losses"),
        "outputs": ("outputs",),
        "regularizers": ("regularizers", "all_losses"),
        "tensor_ops": ("margins", "logit_distillation", "compute", "all_losses"),
    },
    "evaluation": {
        "analysis_budget": ("analysis_budget",),
        "arrays": ("arrays", "calibration", "geometry"),
        "calibration": ("calibration", "arrays"),
        "fidelity": ("fidelity", "arrays"),
        "geometry": ("geometry", "arrays"),
        "information": ("information",),
        "metrics": ("metrics",),
        "robustness": ("robustness",),
        "statistics": ("statistics",),
        "weight_norms": ("weight_norms",),
    },
}
"""Modules to mutate, by their folder, and the files `test_….py` that cover each of them."""

SWAPS = (
    ("+", "-"),
    ("*", "/"),
    ("<", ">"),
    ("<=", ">="),
    ("==", "!="),
    ("and", "or"),
    ("True", "False"),
    ("sum", "mean"),
    ("max", "min"),
    ("log_softmax", "softmax"),
)
"""Pairs of tokens of which each replaces the other."""

REPLACEMENTS = {
    "**": "*",
    "%": "+",
    "~": "",
    "&": "|",
    "@": "*",
    "square": "abs",
    "sqrt": "square",
    "exp": "neg",
    "floor": "ceil",
    "clamp": "sub",
    "logsumexp": "sum",
    "argmax": "argmin",
}
FAULTS = REPLACEMENTS | dict(SWAPS) | {second: first for first, second in SWAPS}

NOT_MUTATED = ("raise", "warnings", "@", 'f"')
"""Beginnings of lines that compute nothing: errors, warnings, decorators and messages."""

NUM_PROCESSES = os.cpu_count() or 1
SURVIVED = 0
CAUGHT = 1
"""Exit statuses of the process that tests a mutant."""


@dataclass(frozen=True)
class Mutant:
    """A file with one fault.

    Attributes:
        module: path without suffix within the package, such as ``losses/margins``.
        function: the innermost function that has the fault.
        line: line number of the fault, from 1.
        change: the line before and after the change.
        source: the whole file with the fault.
        tests: paths of the test files to run.
    """

    module: str
    function: str
    line: int
    change: str
    source: str
    tests: tuple[str, ...]


@dataclass
class Tally:
    """Numbers of mutants."""

    caught: int = 0
    total: int = 0


def test_paths(part: str, module: str) -> tuple[str, ...]:
    """Return the paths of the test files that cover a module."""
    return tuple(f"tests/{part}/test_{name}.py" for name in TESTS[part][module])


def function_lines(source: str) -> list[tuple[str, int, int]]:
    """Return (name, first line, last line) of every function's body, without its docstring."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef):
            continue
        body = node.body[1:] if ast.get_docstring(node) else node.body
        if body:
            found.append((node.name, body[0].lineno, node.end_lineno or body[0].lineno))
    return sorted(found, key=lambda function: function[1])


def fault_of(token: tokenize.TokenInfo) -> str | None:
    """Return the text that replaces a token, or None if the token is not changed."""
    if token.type == tokenize.NUMBER:
        number = ast.literal_eval(token.string)
        return str(int(number) + 1) if number in (0, 1, 2) else None
    if token.type in (tokenize.OP, tokenize.NAME):
        return FAULTS.get(token.string)
    return None


def mutants_of(part: str, module: str) -> Iterator[Mutant]:
    """Yield a mutant for every fault that a module can have."""
    source = (ROOT / "distill" / part / f"{module}.py").read_text()
    functions = function_lines(source)
    lines = source.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, column = token.start
        fault = fault_of(token)
        around = [name for name, first, last in functions if first <= row <= last]
        if fault is None or not around:
            continue
        old_line = lines[row - 1]
        if old_line.lstrip().startswith(NOT_MUTATED):
            continue
        new_line = old_line[:column] + fault + old_line[column + len(token.string) :]
        yield Mutant(
            module=f"{part}/{module}",
            function=around[-1],
            line=row,
            change=f"{old_line.strip()}  ->  {new_line.strip()}",
            source="".join([*lines[: row - 1], new_line, *lines[row:]]),
            tests=test_paths(part, module),
        )


def spread(mutants: list[Mutant], each: int | None) -> list[Mutant]:
    """Return at most `each` mutants of every function, evenly spread over it; None keeps all."""
    if each is None:
        return mutants
    by_function: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in mutants:
        by_function[mutant.function].append(mutant)
    picked = []
    for own in by_function.values():
        count = min(each, len(own))
        picked += [own[i * len(own) // count] for i in range(count)]
    return picked


def choose_mutants(part: str, chosen: list[str], each: int | None) -> list[Mutant]:
    """Return the mutants of a part.

    Args:
        part: the folder of the package.
        chosen: ``FILE.py`` or ``FILE.py:FUNCTION``; empty for all files.
        each: the largest number of mutants of each function; None for all.
    """
    found = []
    for module in TESTS[part]:
        for mutant in spread(list(mutants_of(part, module)), each):
            names = {f"{module}.py", f"{module}.py:{mutant.function}"}
            if not chosen or names & set(chosen):
                found.append(mutant)
    return found


def without_fault(mutants: list[Mutant]) -> Mutant:
    """Return the unchanged code, to be tested with all tests of the mutants."""
    module = mutants[0].module
    source = (ROOT / "distill" / f"{module}.py").read_text()
    tests = dict.fromkeys(test for mutant in mutants for test in mutant.tests)
    return Mutant(module, "no_fault", 0, "", source, tuple(tests))


# ----------------------------------------------------------------------- the process of a mutant


def test_mutant(mutant: Mutant) -> int:
    """Run the tests of a mutant in a copy of the project; return `SURVIVED` or `CAUGHT`.

    This changes the working directory and `sys.path`, so it must run in a process of its own.
    """
    import pytest

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("distill", "tests", "recipes"):
            shutil.copytree(ROOT / part, folder / part)
        shutil.copy(ROOT / "pyproject.toml", folder)
        (folder / "distill" / f"{mutant.module}.py").write_text(mutant.source)
        os.chdir(folder)
        sys.path.insert(0, name)
        # pytest cannot rewrite plugins that this process has already imported. It warns of that,
        # and the project turns warnings into errors. Without plugins, the project's options for
        # them must be dropped too.
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        options = ["-x", "-q", "-p", "no:cacheprovider", "-o", "addopts="]
        options += ["--import-mode=importlib", *mutant.tests]
        _silence()
        # Most mutants end at the first test that has the function's name.
        if pytest.main([*options, "-k", mutant.function]) == pytest.ExitCode.TESTS_FAILED:
            return CAUGHT
        return SURVIVED if pytest.main(options) == pytest.ExitCode.OK else CAUGHT


def _silence() -> None:
    """Discard what this process prints."""
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)


def import_libraries() -> None:
    """Import the libraries that all mutants need, so that their processes need not import them."""
    import accelerate  # noqa: F401
    import timm.data
    import timm.loss
    import timm.models  # noqa: F401
    import torch

    torch.set_num_threads(1)


def start(mutant: Mutant) -> int:
    """Start a process that tests a mutant; return its number."""
    process = os.fork()
    if process != 0:
        return process
    status = CAUGHT
    # A mutant that cannot even be imported counts as caught.
    try:
        status = test_mutant(mutant)
    finally:
        os._exit(status)


def test_all(mutants: list[Mutant]) -> Iterator[tuple[Mutant, bool]]:
    """Test mutants in `NUM_PROCESSES` processes; yield each, and whether it was caught."""
    waiting = list(reversed(mutants))
    running: dict[int, Mutant] = {}
    while waiting or running:
        while waiting and len(running) < NUM_PROCESSES:
            mutant = waiting.pop()
            running[start(mutant)] = mutant
        process, status = os.wait()
        yield running.pop(process), os.waitstatus_to_exitcode(status) != SURVIVED


# ---------------------------------------------------------------------------------------- the tool


def report(mutants: list[Mutant]) -> int:
    """Test mutants and print what happened; return how many survived."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    overall = Tally()
    for mutant, caught in test_all(mutants):
        for tally in (overall, tallies[f"{mutant.module}.py:{mutant.function}"]):
            tally.total += 1
            tally.caught += caught
        if not caught:
            where = f"{mutant.module}.py:{mutant.line} ({mutant.function})"
            print(f"survives  {where}  {mutant.change}", flush=True)
    for name, tally in [*sorted(tallies.items()), ("all", overall)]:
        print(f"{name:55} {tally.caught:3} of {tally.total:3} caught")
    return overall.total - overall.caught


def main() -> None:
    """Test the chosen mutants; exit with status 1 if any of them survives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, help="number of faults in each function (default: all)")
    parser.add_argument("part", choices=TESTS)
    parser.add_argument("chosen", nargs="*", metavar="FILE.py[:FUNCTION]")
    arguments = parser.parse_args()

    mutants = choose_mutants(arguments.part, arguments.chosen, arguments.each)
    if not mutants:
        sys.exit(f"there are no mutants of {', '.join(arguments.chosen)} in {arguments.part}")
    import_libraries()
    for unchanged, failed in test_all([without_fault(mutants)]):
        if failed:
            sys.exit(f"the tests fail without any fault; see pytest {' '.join(unchanged.tests)}")
    sys.exit(report(mutants) > 0)


if __name__ == "__main__":
    main()
