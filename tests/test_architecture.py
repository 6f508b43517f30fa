"""The house: imports point one way, files and functions stay short, old words do not return."""

import ast
import re
import subprocess
import sys

import pytest
from helpers.recipes import ROOT

PACKAGE = ROOT / "distill"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the bottom up. A module imports its own folder and the layers below it.
LAYERS = [
    ["errors"],
    ["recipe", "devices"],
    ["losses", "models", "data"],
    ["storage"],
    ["evaluation"],
    ["training", "report", "export"],
    ["study"],
    ["cli"],
    ["__init__", "__main__"],
]
FLAT_FILES = {"__init__.py", "__main__.py", "cli.py", "errors.py"}
TOP_LEVEL = {
    "pyproject.toml",
    "distill",
    "recipes",
    "tests",
    "tools",
    "README.md",
    "LICENSE",
}
LONGEST_FILE = 400
LONGEST_FUNCTION = 60

# Names that were replaced by the field's own, and must not come back as names in code. Plain words
# that are right in their place (rows of a table, parts of a name) are not among them.
OLD_NAMES = set(
    """
    Workplace workplace place Member sharing Answers answers LogitStore Kept kept_answers codec_of
    told say PARTS SUPPLIED NEEDS judge Judged Claims claims train_phase advise advice make_views
    readers observe penultimate look_into looking with_shares decayed state_epochs weighted_sum
    precise sealed is_sealed written_aside write_aside aside_of remove_left_over one_or_list
    counted nearest of_class without_class gammas
    """.split()  # noqa: SIM905  (reads better than a list)
)


def folder_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_folders(source: str) -> set[str]:
    """Return the folders of the package that a module imports from, wherever in it."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    folders = {name.split(".")[1] for name in names if name.startswith("distill.")}
    return folders & {folder for layer in LAYERS for folder in layer}


def folders_below(folder: str) -> set[str]:
    level = next(i for i, layer in enumerate(LAYERS) if folder in layer)
    return {name for layer in LAYERS[:level] for name in layer}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    folder = folder_of(path)
    assert imported_folders(path.read_text()) <= folders_below(folder) | {folder}


def test_the_import_test_sees_what_is_wrong():
    assert imported_folders("from distill.study import x") - folders_below("losses") == {"study"}
    assert imported_folders("def f():\n    import distill.models.factory") == {"models"}
    assert imported_folders("from distill import recipe as r") == {"recipe"}


def test_four_files_are_flat_and_folders_say_what_they_hold():
    assert {path.name for path in PACKAGE.glob("*.py")} == FLAT_FILES
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


@pytest.mark.parametrize(
    "path",
    [*MODULES, *sorted((ROOT / "tools").glob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_files_and_functions_are_short(path):
    source = path.read_text()
    assert len(source.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            first = body[0].lineno if body else node.lineno
            assert node.end_lineno - first < LONGEST_FUNCTION, node.name


def names_in(source: str) -> set[str]:
    """Return every name that a module gives or uses, without leading underscores."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        found |= {
            getattr(node, field)
            for field in ("id", "attr", "arg", "name")
            if isinstance(getattr(node, field, None), str)
        }
    return {name.removeprefix("_") for name in found}


@pytest.mark.parametrize(
    "path",
    [*MODULES, *sorted((ROOT / "tools").glob("*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_old_names_are_gone(path):
    assert not names_in(path.read_text()) & OLD_NAMES


def test_old_recipe_keys_are_gone():
    old_keys = re.compile(r"\b(store|store_limit|spread|over|attacked|linf|draws):")
    for path in (ROOT / "recipes").rglob("*.yaml"):
        settings = re.sub(r"#.*", "", path.read_text())
        assert not old_keys.search(settings), path


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom distill.cli import app\ntry:\n    app(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "assert not {'torch', 'timm', 'numpy', 'pydantic'} & set(sys.modules), 'heavy imports'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "run" in done.stdout and "schema" in done.stdout


def test_the_top_level_holds_nothing_else():
    git = ["git", "ls-files"]
    tracked = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not tracked:
        pytest.skip("not a git checkout")
    names = {name.split("/")[0] for name in tracked.split()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL
