"""The house: imports point one way, the command line answers without torch, nothing is put beside the plan."""

import ast
import subprocess
import sys

import pytest
from helpers.recipes import ROOT

PACKAGE = ROOT / "distill"

# Who may import whom, from the bottom up; a module may also import its own folder.
ALLOWED: dict[str, set[str]] = {
    "document": set(),
    "recipe": set(),
    "arms": {"document", "recipe"},
    "progress": {"document"},
    "losses": {"document", "recipe"},
    "models": {"document", "recipe"},
    "data": {"document", "recipe"},
    "analysis": {"document", "recipe"},
    "files": {"document"},
    "pictures": {"files"},
    "figures": {"document", "recipe", "analysis", "pictures"},
    "runs": {"document", "recipe", "files", "models"},
    "teachers": {"document", "recipe", "losses", "models"},
    "logits": {"losses", "teachers"},
    "evaluation": {"document", "recipe", "data", "models", "analysis"},
    "comparisons": {"document", "recipe", "losses", "analysis"},
    "explain": {
        "document",
        "recipe",
        "arms",
        "losses",
        "models",
        "data",
        "analysis",
        "pictures",
        "files",
        "runs",
        "evaluation",
    },
    "report": {
        "document",
        "recipe",
        "analysis",
        "pictures",
        "figures",
        "files",
        "runs",
        "comparisons",
    },
}
ALLOWED["members"] = {"document", "recipe", "losses", "models", "runs", "teachers"}
ALLOWED["training"] = (
    ALLOWED["evaluation"] | ALLOWED["members"] | {"members", "evaluation", "logits"}
)
ALLOWED["card"] = ALLOWED["evaluation"] | {"evaluation", "runs"}
ALLOWED["export"] = {"document", "recipe", "data", "models", "files"}
ALLOWED["evaluate_network"] = ALLOWED["evaluation"] | {"evaluation", "runs"}
ALLOWED["advice"] = {"document", "recipe", "losses", "data"}
ALLOWED["claims"] = {"document", "files"}
ALLOWED["study_context"] = {"document", "recipe", "data", "models", "progress", "runs", "claims"}
ALLOWED["tracking"] = ALLOWED["study_context"] | {"study_context", "members"}
ALLOWED["planning"] = ALLOWED["study_context"] | {
    "study_context",
    "advice",
    "losses",
    "teachers",
    "logits",
    "members",
    "explain",
}
ALLOWED["results"] = ALLOWED["evaluation"] | {
    "study_context",
    "advice",
    "losses",
    "runs",
    "files",
    "pictures",
    "comparisons",
    "evaluation",
    "teachers",
}
ALLOWED["phases"] = ALLOWED["planning"] | {
    "planning",
    "card",
    "tracking",
    "training",
    "evaluation",
    "analysis",
}
ALLOWED["study"] = set(ALLOWED) - {"study"}
ALLOWED["cli"] = set(ALLOWED) - {"cli"}
ALLOWED["__main__"] = {"cli"}
ALLOWED["__init__"] = {"study"}


def imported(source: str) -> set[str]:
    """The parts of the package that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{a.name}" for a in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("distill.")}
    return found & set(ALLOWED)


def part(path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = part(path)
    assert own in ALLOWED, f"{own} has no place in the plan of the house"
    assert imported(path.read_text()) <= ALLOWED[own] | {own}


def test_the_plan_has_no_circle():
    done: set[str] = set()
    while len(done) < len(ALLOWED):
        free = {name for name, below in ALLOWED.items() if name not in done and below <= done}
        assert free, f"these import each other in a circle: {set(ALLOWED) - done}"
        done |= free


def test_the_import_test_sees_what_is_wrong():
    assert imported("from distill.study import x") - ALLOWED["losses"] == {"study"}
    assert imported("def f():\n    import distill.models.build") == {"models"}
    assert imported("from distill import recipe as r") == {"recipe"}


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom distill.cli import app\ntry:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'timm', 'numpy', 'pydantic'} & set(sys.modules), 'heavy imports'"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert "run" in answer.stdout and "schema" in answer.stdout


def test_top_level_holds_nothing_else():
    with_tracking = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not with_tracking:
        pytest.skip("not a git checkout")
    names = {name.split("/")[0] for name in with_tracking}
    assert {n for n in names if not n.startswith(".")} <= {
        "pyproject.toml",
        "distill",
        "recipes",
        "tests",
        "tools",
        "README.md",
        "LICENSE",
    }
