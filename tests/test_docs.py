"""Every command that the documents print is run, with its placeholders filled in; what is generated is current."""

import re
import shlex
import subprocess
import sys

import pytest
from helpers.photos import write_photos as photos
from helpers.recipes import ROOT, TINY_YAML
from typer.testing import CliRunner

from distill import load_recipe, run_study
from distill.cli import app

DOCUMENTS = [
    "README.md",
    "recipes/README.md",
    "distill/report/README.md",
    "distill/losses/README.md",
]
PROGRAMS = (
    "distill",
    "accelerate launch",
    "torchrun",
    "python tools/",
    "python -m distill",
)
# What stands for a reader's own, and what makes a large study small enough to be planned (--dry-run) or run here
FILLED = {
    "RECIPE": "tiny.yaml", "NAME": "digits", "STUDY…": "tiny", "STUDY": "tiny", "RUN…": "tiny:hard", "RUN": "tiny:hard",
    "[KEY=VALUE…]": "", "KEY=VALUE…": "seeds=[0]", "[NAME]": "", "FILE.onnx": "hard.onnx", "IMAGES": "digits",
    "SHARED": "runs", "$SLURM_ARRAY_TASK_ID/8": "1/1", "my.yaml": "tiny.yaml", "RANK": "0",
    **{f"data.root={word}": "data.root=photos" for word in ("PHOTOS", "IMAGENET", "FOLDER", "/data")},
}  # fmt: skip
SMALL = {
    "folder": [*(f"{arm}.pretrained=false" for arm in ("teachers.hard", "teachers.smoothed", "students.alone",
                                                       "students.distilled")), "data.image_size=32"],
    "imagenet_map": ["data.image_size=40", "data.augment.crop=32", "train.precision=no"],
    "imagenet_r34_r18": ["data.image_size=40", "data.augment.crop=32", "train.precision=no", "teachers.frozen.loss="
                         "{cross_entropy: {}}", "teachers.frozen.pretrained=false"],
    "imagenet_matching": ["data.image_size=40", "data.augment.crop=32", "train.precision=no", "teachers.frozen.model="
                          "resnet18", "teachers.frozen.loss={cross_entropy: {}}", "teachers.frozen.pretrained=false",
                          "students.matched.model=resnet18", "students.matched.input_size=32"],
}  # fmt: skip
SYNTHETIC = {
    "cifar10": [3, 32, 32],
    "cifar100": [3, 32, 32],
    "function_matching": [3, 32, 32],
    "mnist": [1, 28, 28],
    "paper/section4": [1, 28, 28],
    "paper/map": [1, 28, 28],
    "paper/figure5": [3, 32, 32],
    "paper/cifar10_kd": [3, 32, 32],
    "paper/cifar10_small": [3, 32, 32],
}


def commands(path):
    """What a document prints to be typed: indented lines, code spans, and the commands in a recipe's comments."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    if path.suffix == ".yaml":
        found = re.findall(r"^#   +(.*)$", text, re.M)
    else:
        found = re.findall(r"^    (.*)$", text, re.M)
        found += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    found = [part.strip() for line in found for part in line.split("&&")]
    named = re.compile(
        r"distill (run|report|export|clusters|evaluate)"
    )  # a mention of the command, not a use
    return [
        line.split("    (")[0]
        for line in found
        if line.startswith(PROGRAMS) and " " in line and not named.fullmatch(line)
    ]


def all_commands():
    paths = [ROOT / name for name in DOCUMENTS] + sorted((ROOT / "recipes").rglob("*.yaml"))
    return list(dict.fromkeys(line for path in paths for line in commands(path)))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the documents speak of: a study named tiny, photographs, the recipes."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "tools").symlink_to(ROOT / "tools")
    (folder / "tiny.yaml").write_text(TINY_YAML)
    photos(folder / "photos", 12, (50, 40))
    run_study(load_recipe(folder / "tiny.yaml"), folder / "runs")
    return folder


def test_there_are_commands_to_run():
    lines = all_commands()
    assert len(lines) > 30 and any(line.startswith("torchrun") for line in lines)
    assert {line.split()[1] for line in lines if line.startswith("distill ")} >= {
        "run", "report", "clusters", "evaluate", "export", "recipes", "schema",
    }  # fmt: skip


@pytest.mark.parametrize("line", all_commands())
def test_a_printed_command_runs(place, monkeypatch, line):
    monkeypatch.chdir(place)
    words = [word for word in shlex.split(line.split(">")[0]) if FILLED.get(word) != ""]
    words = [FILLED.get(word, word) for word in words]
    if words[0] == "python" and words[1].startswith("tools/"):
        done = subprocess.run(
            [sys.executable, words[1], "--help"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return
    after = words[1:] if words[0] == "distill" else words[words.index("distill") + 1 :]
    name = (
        next((re.sub(r"^recipes/|\.yaml$", "", w) for w in after[1:2]), "")
        if after[:1] == ["run"]
        else ""
    )
    if name and name != "tiny":
        small = list(SMALL.get(name, []))
        if name in SYNTHETIC:
            small += [
                "data.source=synthetic",
                f"data.synthetic={{train: 64, shape: {SYNTHETIC[name]}}}",
                "data.root=",
            ]
            small += ["data.validation=0.2"]
        after = [*after, *small, "seeds=[0]"] + (["--dry-run"] if "--dry-run" not in after else [])
    result = CliRunner().invoke(app, after or ["--help"])
    assert result.exit_code == 0, (line, after, result.output, result.exception)


def test_the_page_of_keys_is_current():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from recipe_keys import page
    finally:
        sys.path.pop(0)
    assert (ROOT / "recipes" / "README.md").read_text() == page()
    assert not re.search(
        r"\| \|$", "\n".join(line for line in page().splitlines() if line.startswith("| `")), re.M
    )
