"""Every command that the documents print runs, and what is generated is current."""

import contextlib
import io
import re
import runpy
import shlex
import sys
from unittest.mock import patch

import pytest
from helpers.commands import command
from helpers.documents import (
    DOCUMENTS,
    commands,
    launchers,
    printed_lines,
    recipe_of,
    small_overrides,
    tool_lines,
)
from helpers.photos import write_photos
from helpers.recipes import ROOT, TINY, merge, write_recipe

from distill import run_study
from distill.study import dry_run

SMALL = merge(
    TINY,
    {
        "train": {"epochs": 1},
        "analysis": {"examples": 5, "num_attacked": 0, "num_views": 0},
    },
)
COMMANDS = {"run", "report", "clusters", "evaluate", "export", "recipes", "schema"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the documents speak of: a study `tiny`, photographs, the recipes."""
    from distill import load_recipe

    folder = tmp_path_factory.mktemp("docs")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    write_photos(folder / "photos", 12, (50, 40))
    path = write_recipe(folder / "tiny.yaml", SMALL)
    run_study(load_recipe(path), folder / "runs")
    return folder


def test_there_are_commands_to_run():
    assert len(printed_lines()) > 30
    assert {words[0] for words in launchers()} >= {"accelerate", "torchrun", "python"}
    assert {command.words[0] for command in commands() if command.words} >= COMMANDS
    recipes = {recipe_of(command) for command in commands()}
    paths = (ROOT / "recipes").rglob("*.yaml")
    names = {path.relative_to(ROOT / "recipes").with_suffix("").as_posix() for path in paths}
    assert names <= recipes, "each recipe prints the command that runs it"


@pytest.mark.slow
@pytest.mark.parametrize("printed", commands(), ids=lambda printed: " ".join(printed.words))
def test_a_printed_command_runs(folder, monkeypatch, printed):
    # Speeds are not the point.
    monkeypatch.setattr(dry_run, "_fastest_pass", lambda *_: 0.1)
    words = list(printed.words) or ["--help"]
    recipe = recipe_of(printed)
    if recipe:
        words += [*small_overrides(recipe), "--dry-run"]
    if words == ["--install-completion"]:
        # It would change the shell of the person who runs the tests.
        assert words[0] in command(folder, "--help").out
        return
    done = command(folder, *words)
    assert done.out or "--help" in words


@pytest.mark.parametrize("launcher", launchers(), ids=" ".join)
def test_a_printed_launcher_has_options_that_exist(launcher):
    if launcher[0] == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        parse = launch_command_parser().parse_args
        words = [*launcher[2:], "distill"]
    elif launcher[0] == "torchrun":
        from torch.distributed.run import parse_args as parse

        words = [*launcher[1:], "distill"]
    else:
        assert launcher == ("python", "-m")
        return
    try:
        parsed = parse(words)
    except SystemExit:
        pytest.fail(f"{launcher}: unknown options")
    assert parsed.module and parsed.training_script == "distill"


@pytest.mark.slow
@pytest.mark.parametrize("line", tool_lines())
def test_a_printed_tool_has_the_options_that_are_printed(line, monkeypatch):
    _, script, *options = shlex.split(line)
    path = ROOT / script
    source = path.read_text("utf-8")
    if "argparse" not in source:
        compile(source, script, "exec")
        return
    # Python does so for a script.
    monkeypatch.syspath_prepend(path.parent)
    printed = io.StringIO()
    with (
        patch.object(sys, "argv", [script, "--help"]),
        contextlib.redirect_stdout(printed),
        pytest.raises(SystemExit) as stop,
    ):
        runpy.run_path(str(path), run_name="__main__")
    assert not stop.value.code
    assert all(word in printed.getvalue() for word in options if word.startswith("-"))


def test_the_page_of_keys_is_current(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    from recipe_keys import page

    text = page()
    assert (ROOT / "recipes" / "README.md").read_text("utf-8") == text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows and not any(row.endswith("| |") for row in rows), "every key has a description"


# ---------------------------------------------------------------------------------------- the pages

PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
LONGEST_PARAGRAPH = 60  # words


def samples():
    """Return every Python sample of the pages, but those that need a stored run's id."""
    found = []
    for name in DOCUMENTS:
        for number, block in enumerate(PYTHON.findall((ROOT / name).read_text("utf-8"))):
            if "local-dir" not in block:
                found.append(pytest.param(block, id=f"{name}:{number}"))
    return found


def test_pages_have_python_samples():
    pages = {parameter.id.split(":")[0] for parameter in samples()}
    folders = ("losses", "data", "training", "evaluation", "study")
    assert pages >= {"README.md", *(f"distill/{folder}/README.md" for folder in folders)}


@pytest.mark.slow
@pytest.mark.parametrize("block", samples())
def test_a_python_sample_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    exec(compile(block, "README.md", "exec"), {})


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs and list items of a page, without code, tables, headings, pictures."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.DOTALL)
    found = []
    for part in text.split("\n\n"):
        if part.startswith("    ") or part.lstrip().startswith(("|", "#", "!")):
            continue
        found += re.split(r"^(?:-|\d+\.) ", part, flags=re.MULTILINE)
    return [part for part in found if part.strip()]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_paragraph_is_long(name):
    text = (ROOT / name).read_text("utf-8")
    found = paragraphs(text)
    assert found
    long = [part[:60] for part in found if len(part.split()) > LONGEST_PARAGRAPH]
    assert not long


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("https://"):
            assert ((ROOT / name).parent / target).exists(), target
