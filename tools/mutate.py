"""Does the suite see a fault in what is computed? Small faults of one token, put in one at a time, must be caught.

    python tools/mutate.py [--each N] PART [FILE.py[:FUNCTION]…]

PART is losses or analysis. Faults: a sign, a factor, an axis, a power, a reduction, a comparison, a constant. Each
mutant runs against the part's tests in a process of its own; with --each, N faults spread over every
function are put in, not all. Printed are the mutants of each function,
caught and in all, and every one that survives: a hole in the tests, or a change that means nothing.
"""

import argparse
import ast
import io
import os
import shutil
import sys
import tempfile
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = {
    "losses": ("common", "labels", "online", "margins", "distillation", "features", "penalties"),
    "analysis": (
        "calibration",
        "clusters",
        "drift",
        "fidelity",
        "information",
        "robustness",
        "statistics",
    ),
}
TESTS = {"losses": ("losses", "loss_identities", "loss_libraries", "criterion"),
         "analysis": ("analysis", "inside", "robustness", "drift")}  # fmt: skip
FAULTS = {"+": "-", "-": "+", "*": "/", "/": "*", "**": "*", "%": "+", "<": ">", ">": "<", "<=": ">=", ">=": "<=",
          "==": "!=", "!=": "==", "~": "", "&": "|", "@": "*", "sum": "mean", "mean": "sum", "max": "min", "min": "max",
          "square": "abs", "sqrt": "square", "True": "False", "False": "True", "exp": "neg", "floor": "ceil",
          "clamp": "sub", "log_softmax": "softmax", "softmax": "log_softmax", "logsumexp": "sum", "argmax": "argmin",
          "and": "or", "or": "and"}  # fmt: skip
PROCESSES = os.cpu_count() or 1


def functions(source: str) -> Iterator[tuple[str, int, int]]:
    """Names of functions and methods, with the first and last line of what they do (docstrings are left out)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body:
                yield node.name, body[0].lineno, node.end_lineno or body[0].lineno


def mutants(source: str) -> Iterator[tuple[str, int, str, str]]:
    """``(function, line, what changes, mutated source)`` for every fault."""
    places = sorted(functions(source), key=lambda f: f[1])
    lines = source.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line, start = token.start
        inside = [name for name, first, last in places if first <= line <= last]
        fault = FAULTS.get(token.string)
        if token.type == tokenize.NUMBER and float(token.string) in (0, 1, 2):
            fault = str(int(float(token.string)) + 1)
        if not inside or fault is None or token.type in (tokenize.STRING, tokenize.COMMENT):
            continue
        if lines[line - 1].lstrip().startswith(("raise", "warnings", "@", "shapes =", 'f"')):
            continue
        text = lines[line - 1]
        mutated = text[:start] + fault + text[start + len(token.string) :]
        yield inside[-1], line, f"{text.strip()}  ->  {mutated.strip()}", "".join(
            [*lines[: line - 1], mutated, *lines[line:]])  # fmt: skip


def survives(part: str, file: str, function: str, source: str) -> bool:
    """Whether the part's tests pass with this source in place of the file; in a child that has the libraries loaded."""
    import pytest

    with tempfile.TemporaryDirectory() as folder:
        for name in ("distill", "tests", "pyproject.toml"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder) / name)
        (Path(folder) / "distill" / part / file).write_text(source)
        os.chdir(folder)
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = (
            "1"  # its own plugins are loaded already, and it minds
        )
        sys.path[:0] = [folder, f"{folder}/tests"]
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        words = [
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            *(f"tests/test_{test}.py" for test in TESTS[part]),
        ]
        terms = (ROOT / "tests/terms.py").read_text()
        own = pytest.main([*words, "-k", function]) if f'"{function}": (' in terms else 5
        return (
            own != 1 and pytest.main(words) == 0
        )  # first the tests that name the function: most end here


def spread(found: list[tuple], each: int | None) -> list[tuple]:
    """At most `each` mutants of every function, evenly over it."""
    by_function: dict[str, list[tuple]] = {}
    for mutant in found:
        by_function.setdefault(mutant[0], []).append(mutant)
    picked = []
    for own in by_function.values():
        count = min(each or len(own), len(own))
        picked += [own[i * len(own) // count] for i in range(count)]
    return picked


def main(part: str, chosen: list[str], each: int | None) -> int:
    """Run the mutants of a part's chosen files or functions (all by default); returns how many survive."""
    import accelerate  # noqa: F401  (children start with the libraries in memory)
    import timm.data
    import timm.loss
    import timm.models  # noqa: F401
    import torch

    torch.set_num_threads(1)
    files = {
        f"{name}.py": (ROOT / "distill" / part / f"{name}.py").read_text() for name in FILES[part]
    }
    work = [(file, "no fault", 0, "", text) for file, text in list(files.items())[:1]]
    for file, text in files.items():
        for function, line, change, source in spread(list(mutants(text)), each):
            if not chosen or file in chosen or f"{file}:{function}" in chosen:
                work.append((file, function, line, change, source))
    count: dict[str, list[int]] = {}
    running: dict[int, tuple] = {}
    survivors = 0
    while work or running:
        while work and len(running) < PROCESSES:
            item = work.pop(0)
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    code = int(survives(part, item[0], item[1], item[4]))
                except BaseException:
                    code = 2  # it does not even import: caught
                finally:
                    os._exit(code)
            running[pid] = item
        pid, status = os.wait()
        file, function, line, change, _ = running.pop(pid)
        caught = os.waitstatus_to_exitcode(status) != 1
        if function == "no fault":
            if caught:
                sys.exit("the tests fail without any fault: nothing can be learned from them")
            continue
        tally = count.setdefault(f"{file}:{function}", [0, 0])
        tally[0] += caught
        tally[1] += 1
        if not caught:
            survivors += 1
            print(f"survives  {file}:{line} ({function})  {change}", flush=True)
    for name, (caught, total) in sorted(count.items()):
        print(f"{name:45} {caught:3} of {total:3} caught")
    caught, total = (
        (sum(column) for column in zip(*count.values(), strict=True)) if count else (0, 0)
    )
    print(f"{'in all':45} {caught:3} of {total:3} caught")
    return survivors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int)
    parser.add_argument("part", choices=FILES)
    parser.add_argument("chosen", nargs="*")
    arguments = parser.parse_args()
    sys.exit(min(main(arguments.part, arguments.chosen, arguments.each), 1))
