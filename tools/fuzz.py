"""Try random wrong input: each must end in an error message, and none in a traceback.

    python tools/fuzz.py [--cases 10000] [--seed 0]

There are three kinds of cases:

- Recipes of `recipes/` with one to four random edits of their text or their values, and random
  overrides. An error message must name the recipe's file or the override.
- Image files with some bytes changed, or cut off.
- Whole command lines, one for every hundred of the other cases, mostly with --dry-run.
"""

import argparse
import contextlib
import io
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from fuzz_edits import ODD_TEXTS, edit_text, edit_values
from PIL import Image

from distill import load_recipe
from distill.cli import main as run_command_line
from distill.data.decoding import ImageFormat
from distill.data.image_dataset import ImageDataset, ImageReader
from distill.errors import UserError

RECIPE_FOLDER = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(RECIPE_FOLDER.rglob("*.yaml"))

OVERRIDE_KEYS = (
    "train.lr",
    "seeds",
    "data.source",
    "students",
    "teachers.hard.loss",
    "train",
    "x",
    "",
    ".",
    "train..lr",
    "=",
    "students.a.loss.kd.temperature",
    "analysis.pair",
    "[0]",
    "train.optimizer.name",
    "\0",
)

STUDY_NAMES = ("x", "x:y", ":", "..", "../x:y", "/", "\0", "")
"""Arguments of commands on stored studies and runs, none of which exists."""

IMAGE_KINDS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO")
IMAGE_SIDE = 24

# ------------------------------------------------------------------------------------------ cases


def write_wrong_recipe(folder: Path, dice: random.Random) -> Path:
    """Write an edited recipe into a folder and return its path."""
    text = dice.choice(RECIPES).read_text()
    edit = edit_text if dice.random() < 0.6 else edit_values
    # An earlier edit may have left nothing to edit. Then the text stays as it is.
    with contextlib.suppress(yaml.YAMLError, IndexError, KeyError, TypeError):
        text = edit(text, dice)
    path = folder / "wrong.yaml"
    path.write_bytes(to_bytes(text))
    return path


def to_bytes(text: str) -> bytes:
    """Encode a text in UTF-8, surrogates included, which UTF-8 does not allow."""
    return text.encode("utf-8", "surrogatepass")


def wrong_override(dice: random.Random) -> str:
    """Return a random KEY=VALUE."""
    return (
        dice.choice(OVERRIDE_KEYS) + dice.choice(("=", "=", "=", "", "==")) + dice.choice(ODD_TEXTS)
    )


def load_case(folder: Path, dice: random.Random) -> str:
    """Load a wrong recipe, or a good one with wrong overrides."""
    overrides = []
    if dice.random() < 0.3:
        path = dice.choice(RECIPES)
        overrides = [wrong_override(dice) for _ in range(dice.randint(1, 3))]
    else:
        path = write_wrong_recipe(folder, dice)
    try:
        load_recipe(path, overrides)
    except UserError as error:
        known_locations = [path.name, "override", *(text.split("=")[0] for text in overrides)]
        for line in str(error).split("\n"):
            if not any(location in line for location in known_locations):
                raise AssertionError(f"a message without a location: {line!r}") from None
        return "refused"
    return "loaded"


def image_case(folder: Path, dice: random.Random) -> str:
    """Read a damaged image file."""
    path = folder / "image"
    path.write_bytes(damaged_image(dice))

    def read(_: int) -> Image.Image:
        with path.open("rb") as file:
            image = Image.open(file)
            image.load()
        return image

    images = ImageDataset(
        torch.zeros(1).long(),
        name=lambda _: "image",
        reader=ImageReader(read),
        format=ImageFormat(3, (16, 16)),
    )
    image = images[0]
    if isinstance(image, str):
        assert "image" in image
        return "refused"
    assert tuple(image.shape) == (3, 16, 16)
    return "read"


def damaged_image(dice: random.Random) -> bytes:
    """Return the content of an image file with up to eight bytes changed, and maybe cut off."""
    kind = dice.choice(IMAGE_KINDS)
    mode = "L" if kind == "GIF" else dice.choice(("L", "RGB"))
    pixels = dice.randbytes(IMAGE_SIDE * IMAGE_SIDE * len(mode))
    file = io.BytesIO()
    Image.frombytes(mode, (IMAGE_SIDE, IMAGE_SIDE), pixels).save(file, kind)
    content = bytearray(file.getvalue())
    for _ in range(dice.randint(1, 8)):
        content[dice.randrange(len(content))] = dice.randrange(256)
    if dice.random() < 0.3:
        del content[dice.randrange(len(content)) :]
    return bytes(content)


def command_case(folder: Path, dice: random.Random) -> str:
    """Run a whole command line: its status must be 0 or 2, without a traceback."""
    words = wrong_command(folder, dice)
    sys.argv = ["distill", *words]
    if len(words) > 1:
        sys.argv += ["--out", str(folder / "runs")]
    output = io.StringIO()
    status = 0
    with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
        try:
            run_command_line()
        except SystemExit as stop:
            status = stop.code or 0
    if status not in (0, 2) or "Traceback" in output.getvalue():
        raise AssertionError(f"{words}: status {status}: {output.getvalue()[-500:]}")
    return "done" if status == 0 else "refused"


def wrong_command(folder: Path, dice: random.Random) -> list[str]:
    """Return random arguments of `distill`, with a recipe in a folder."""
    recipe = write_wrong_recipe(folder, dice)
    content = recipe.read_bytes()
    # Other data sets than digits would have to be downloaded, and long recipes are slow to plan.
    if b"digits" not in content or len(content) > 6000:
        text = edit_text((RECIPE_FOLDER / "digits.yaml").read_text(), dice)
        recipe.write_bytes(to_bytes(text))
    dry_run = ["run", str(recipe), "--dry-run"]
    name = dice.choice(STUDY_NAMES)
    commands = (
        dry_run,
        dry_run,
        dry_run,
        [*dry_run, wrong_override(dice)],
        ["run", str(folder), "--dry-run"],
        ["run", "/dev/null"],
        ["report", name],
        ["clusters", name],
        ["clusters", name, "--view", name],
        ["run"],
        ["--what"],
        ["evaluate"],
        [],
    )
    return dice.choice(commands)


# --------------------------------------------------------------------------------------- the tool

Case = Callable[[Path, random.Random], str]


def fuzz(case: Case, count: int, seed: int) -> int:
    """Run `count` cases of one kind and print what happened.

    Returns:
        The number of cases that raised an exception.
    """
    counts: Counter[str] = Counter()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            dice = random.Random(f"{case.__name__} {seed} {number}")
            try:
                counts[case(Path(folder), dice)] += 1
            except Exception:
                failed += 1
                print(f"{case.__name__} {number}:\n{traceback.format_exc()}", flush=True)
    print(f"{case.__name__}: {count} cases, {dict(counts)}, {failed} tracebacks", flush=True)
    return failed


def main() -> None:
    """Run all kinds of cases; exit with status 1 if any of them raised an exception."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="number of recipes and of images")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    failed = fuzz(load_case, arguments.cases, arguments.seed)
    failed += fuzz(image_case, arguments.cases, arguments.seed)
    failed += fuzz(command_case, arguments.cases // 100, arguments.seed)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
