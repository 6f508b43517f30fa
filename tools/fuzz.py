"""Wrong recipes, overrides, command lines and images, made at random: each must end in a sentence, none in a traceback.

    python tools/fuzz.py [--cases 10000] [--seed 0]

Recipes are those of `recipes/`, changed by one to four random edits of their text or their values; a message must name
the recipe and a line, or the override. One case in a hundred goes through the whole command, with --dry-run.
"""

import argparse
import contextlib
import copy
import io
import random
import re
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import yaml
from PIL import Image

from distill import load_recipe
from distill.cli import main as distill
from distill.data.decoding import ImageFormat
from distill.data.image_dataset import ImageDataset, ImageReader
from distill.errors import UserError

RECIPES = sorted((Path(__file__).parent.parent / "recipes").rglob("*.yaml"))
NASTY = [
    *(
        "null",
        "true",
        "-1",
        "0",
        "1e400",
        ".nan",
        "-.inf",
        "1e-320",
        "9" * 30,
        "''",
        "[]",
        "{}",
        "[[]]",
        "[null]",
    ),
    *(
        "!!python/object/apply:os.system [exit]",
        "!!binary aGk=",
        "!!set {a}",
        "&a [*a]",
        "*a",
        "<<: {a: 1}",
        "{a: 1}",
    ),
    *(
        "2026-11-21",
        "0x1F",
        "~",
        "'../../etc/passwd'",
        '"a\\0b"',
        "'<script>'",
        "'%s%n'",
        "\u202e",
        "ß🙂",
        "a" * 5000,
    ),
    *(
        "@",
        "`",
        "%YAML 1.1",
        "--- a",
        "? [a]",
        "|",
        ">",
        "{",
        "]",
        "'",
        '"',
        "\t",
        "\0",
        "\ufeff",
        "\x85",
    ),
    *("local-dir:/", "hf-hub:../x", "__import__('os')"),
]
KEYS = ["train.lr", "seeds", "data.source", "students", "teachers.hard.loss", "train", "x", "", ".", "train..lr", "=",
        "students.a.loss.kd.temperature", "analysis.pair", "[0]", "train.optimizer.name", "\0"]  # fmt: skip


def edited_text(text: str, dice: random.Random) -> str:
    """A recipe's text with a few characters, words or lines changed."""
    for _ in range(dice.randint(1, 4)):
        lines, i = text.split("\n"), dice.randrange(len(text) or 1)
        j = min(len(text), i + dice.choice((1, 1, 2, 5, 20)))
        row = dice.randrange(len(lines))
        how = dice.randrange(7)
        if how == 0:
            text = text[:i] + text[j:]
        elif how == 1:
            text = text[:i] + dice.choice(NASTY) + text[i:]
        elif how == 2:
            text = text[:i] + text[i:j] * dice.choice((2, 3, 50)) + text[j:]
        elif how == 3:
            text = "\n".join(
                [*lines[:row], " " * dice.randrange(5) + lines[row], *lines[row + 1 :]]
            )
        elif how == 4:
            text = "\n".join([*lines[:row], dice.choice(lines), *lines[row:]])
        elif how == 5:
            text = re.sub(
                r"(?<=: )[\w.\-]+",
                lambda m: dice.choice(NASTY) if dice.random() < 0.2 else m[0],
                text,
            )
        else:
            text = (
                text[:i]
                + chr(dice.choice((dice.randrange(32, 127), dice.randrange(0xD7FF))))
                + text[j:]
            )
    return text


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Keys of all values within a document."""
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(place for key, child in pairs for place in places(child, (*path, key)))]


def edited_values(text: str, dice: random.Random) -> str:
    """A recipe with one or two of its values put in another's place, dropped, or replaced."""
    document = yaml.safe_load(text)
    for _ in range(dice.randint(1, 2)):
        here = dice.choice([place for place in places(document) if place])
        other = dice.choice(places(document))
        value = document
        for key in other:
            value = value[key]
        parent = document
        for key in here[:-1]:
            parent = parent[key]
        how = dice.randrange(4)
        if how == 0:
            del parent[here[-1]]
        elif how == 1:
            parent[here[-1]] = copy.deepcopy(value)
        elif how == 2:
            parent[here[-1]] = dice.choice(
                (None, -1, 0, 1e308, float("nan"), "", [], {}, [1, 2], "x", True, [[1]], {"a": {}})
            )
        elif isinstance(parent, dict):
            key = dice.choice(
                ("x", "teacher", "loss", "", 3, "smoothing", "temperature", "a.b", "a=b")
            )
            parent[key] = copy.deepcopy(value)
    return yaml.safe_dump(document, allow_unicode=True)


def recipe_case(folder: Path, dice: random.Random) -> Path:
    """A wrong recipe as a file."""
    text = dice.choice(RECIPES).read_text()
    with contextlib.suppress(yaml.YAMLError, IndexError, KeyError, TypeError):
        text = (edited_text if dice.random() < 0.6 else edited_values)(text, dice)
    path = folder / "wrong.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def override_case(dice: random.Random) -> str:
    """A wrong KEY=VALUE."""
    return dice.choice(KEYS) + dice.choice(("=", "=", "=", "", "==")) + dice.choice(NASTY)


def load_case(folder: Path, dice: random.Random) -> str:
    """Load a wrong recipe: loads, or is refused with its place."""
    with_override = dice.random() < 0.3
    path = dice.choice(RECIPES) if with_override else recipe_case(folder, dice)
    overrides = [override_case(dice) for _ in range(dice.randint(1, 3))] if with_override else []
    try:
        load_recipe(path, overrides)
        return "loaded"
    except UserError as error:
        for line in str(error).split("\n"):
            if not (
                path.name in line
                or "override" in line
                or any(o.split("=")[0] in line for o in overrides)
            ):
                raise AssertionError(f"a message without a place: {line!r}") from None
        return "refused"


def command_case(folder: Path, dice: random.Random) -> str:
    """A whole command line: its status must be 0 or 2, its words no traceback."""
    recipe = recipe_case(folder, dice)
    text = recipe.read_bytes()
    if b"digits" not in text or len(text) > 6000:
        recipe.write_bytes(
            edited_text((RECIPES[0].parent / "digits.yaml").read_text(), dice).encode(
                "utf-8", "surrogatepass"
            )
        )
    dry, odd = (
        ["run", str(recipe), "--dry-run"],
        dice.choice(("x", "x:y", ":", "..", "../x:y", "/", "\0", "")),
    )
    words = dice.choice(
        (dry, dry, dry, [*dry, override_case(dice)], ["run", str(folder), "--dry-run"], ["run", "/dev/null"],
         ["report", odd], ["clusters", odd], ["clusters", odd, "--view", odd], ["run"], ["--what"], ["evaluate"], [])
    )  # fmt: skip
    sys.argv, told = (
        ["distill", *words, *(["--out", str(folder / "runs")] if len(words) > 1 else [])],
        io.StringIO(),
    )
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
        try:
            distill()
        except SystemExit as stop:
            status = stop.code or 0
    if status not in (0, 2) or "Traceback" in told.getvalue():
        raise AssertionError(f"{words}: status {status}: {told.getvalue()[-500:]}")
    return "done" if status == 0 else "refused"


def image_case(folder: Path, dice: random.Random) -> str:
    """An image file with some bytes changed, cut off or repeated."""
    file, kind = (
        io.BytesIO(),
        dice.choice(("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO")),
    )
    mode = dice.choice(("L", "RGB")) if kind != "GIF" else "L"
    Image.frombytes(
        mode, (24, 24), dice.randbytes(24 * 24 * len(mode) if mode == "RGB" else 576)
    ).save(file, kind)
    data = bytearray(file.getvalue())
    for _ in range(dice.randint(1, 8)):
        data[dice.randrange(len(data))] = dice.randrange(256)
    data = data[: dice.randrange(len(data))] if dice.random() < 0.3 else data
    path = folder / "image"
    path.write_bytes(bytes(data))
    import torch

    images = ImageDataset(
        torch.zeros(1).long(),
        name=lambda _: "image",
        reader=ImageReader(lambda _: _opened(path)),
        format=ImageFormat(3, (16, 16)),
    )
    got = images[0]
    if isinstance(got, str):
        assert "image" in got
        return "refused"
    assert tuple(got.shape) == (3, 16, 16)
    return "read"


def _opened(path: Path) -> Image.Image:
    with path.open("rb") as file:
        image = Image.open(file)
        image.load()
    return image


def fuzz(case: Callable[[Path, random.Random], str], count: int, seed: int) -> int:
    """Run a kind of case so often; prints what happened, returns how many ended in anything but a sentence."""
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
    """All kinds of cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    shares = (
        (load_case, chosen.cases),
        (image_case, chosen.cases),
        (command_case, chosen.cases // 100),
    )
    sys.exit(sum(fuzz(case, count, chosen.seed) for case, count in shares) > 0)


if __name__ == "__main__":
    main()
