"""The commands that the documents print, and how to make them small enough for a test."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from helpers.recipes import ROOT

DOCUMENTS = tuple(
    path.relative_to(ROOT).as_posix()
    for path in sorted(ROOT.rglob("*.md"))
    if path.relative_to(ROOT).parts[0] in ("README.md", "recipes", "distill", "tools")
)
PROGRAMS = ("distill", "accelerate launch", "torchrun", "python tools/", "python -m distill")
# The name of a command alone is a mention of the command, not a use.
MENTION = re.compile(r"distill (run|report|export|clusters|evaluate)")

PLACEHOLDERS = {
    "RECIPE": ["tiny.yaml"],
    "my.yaml": ["tiny.yaml"],
    "NAME": ["digits"],
    "[NAME]": [],
    "STUDY": ["tiny"],
    "STUDY…": ["tiny"],
    "RUN": ["tiny:hard"],
    "my:distilled": ["tiny:distilled"],
    "student.onnx": ["student.onnx"],
    "RUN…": ["tiny:hard"],
    "[KEY=VALUE…]": [],
    "KEY=VALUE…": ["seeds=[0]"],
    "FILE.onnx": ["hard.onnx"],
    "IMAGES": ["digits"],
    "SHARED": ["runs"],
    "RANK": ["0"],
    "$SLURM_ARRAY_TASK_ID/8": ["1/1"],
    "data.root=PHOTOS": ["data.root=photos"],
    "data.root=IMAGENET": ["data.root=photos"],
    "data.root=FOLDER": ["data.root=photos"],
    "data.root=/data": ["data.root=photos"],
}
"""What stands for a reader's own words, in a folder with a study `tiny` and a folder `photos`."""

# Sources that need no files, or files of any kind.
SMALL_SOURCES = ("digits", "synthetic", "folder")
GREY_SOURCES = ("torch/mnist",)
LARGE_NETWORKS = ("resnet50", "resnet152")


@dataclass(frozen=True)
class Command:
    """A printed command.

    Attributes:
        launcher: the words before `distill`, as in ``accelerate launch -m``.
        words: what follows `distill`, without placeholders.
    """

    launcher: tuple[str, ...]
    words: tuple[str, ...]


def printed_lines() -> list[str]:
    """Return every command line that a document or the comment of a recipe prints, once."""
    paths = [ROOT / name for name in DOCUMENTS]
    paths += sorted((ROOT / "recipes").rglob("*.yaml"))
    lines = [line for path in paths for line in _lines_of(path)]
    return list(dict.fromkeys(lines))


def _lines_of(path: Path) -> list[str]:
    """Return indented lines, code spans and indented comments that begin with a program."""
    text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.S)
    if path.suffix == ".yaml":
        found = re.findall(r"^#   +(.*)$", text, re.M)
    else:
        spans = re.findall(r"`([^`]+)`", text)
        found = re.findall(r"^    (.*)$", text, re.M)
        found += [" ".join(span.split()) for span in spans]
    lines = []
    for line in found:
        for part in line.split("&&"):
            # An explanation may follow the command.
            command = part.strip().split("    (")[0]
            if command.startswith(PROGRAMS) and " " in command and not MENTION.fullmatch(command):
                lines.append(command)
    return lines


def tool_lines() -> list[str]:
    """Return the printed commands that run a file of `tools/`."""
    return [line for line in printed_lines() if line.startswith("python tools/")]


def commands() -> list[Command]:
    """Return the printed commands of `distill` with their placeholders filled in, each once."""
    found = [_command(line) for line in printed_lines() if not line.startswith("python tools/")]
    by_words = {command.words: command for command in found}
    return list(by_words.values())


def launchers() -> list[tuple[str, ...]]:
    """Return the launchers of all printed commands, each once."""
    found = [_command(line).launcher for line in printed_lines() if "-m distill" in line]
    return list(dict.fromkeys(found))


def _command(line: str) -> Command:
    words: list[str] = []
    for word in shlex.split(line.split(">")[0]):
        words += PLACEHOLDERS.get(word, [word])
    start = words.index("distill")
    return Command(tuple(words[:start]), tuple(words[start + 1 :]))


def recipe_of(command: Command) -> str | None:
    """Return the name of the included recipe that a command runs, None for other commands."""
    if command.words[:1] != ("run",):
        return None
    name = command.words[1].removeprefix("recipes/").removesuffix(".yaml")
    return None if name == "tiny" else name


def small_overrides(name: str) -> list[str]:
    """Return overrides that make an included recipe run on any machine, without downloads."""
    recipe = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text("utf-8"))
    data = recipe["data"]
    words = ["seeds=[0]"]
    if data["source"] not in SMALL_SOURCES:
        shape = [1, 28, 28] if data["source"] in GREY_SOURCES else [3, 32, 32]
        synthetic = f"data.synthetic={{train: 64, shape: {shape}}}"
        words += ["data.source=synthetic", synthetic, "data.root=", "data.validation=0.2"]
    elif data["source"] == "folder":
        crop = data.get("augment", {}).get("crop")
        words += ["data.image_size=40", "data.augment.crop=32"] if crop else ["data.image_size=32"]
    if "precision" in recipe["train"]:
        words.append("train.precision=no")
    for section in ("teachers", "students"):
        for arm, settings in (recipe.get(section) or {}).items():
            words += _small_arm(f"{section}.{arm}", settings)
    return words


def _small_arm(key: str, arm: dict[str, Any]) -> list[str]:
    words = []
    if arm.get("pretrained"):
        words.append(f"{key}.pretrained=false")
        if not arm.get("loss"):
            words.append(f"{key}.loss={{cross_entropy: {{}}}}")
    if str(arm["model"]).startswith(LARGE_NETWORKS):
        words.append(f"{key}.model=resnet18")
    if arm.get("input_size"):
        words.append(f"{key}.input_size=32")
    return words
