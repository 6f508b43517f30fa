"""Write the pages' results from stored studies, so that no measured number is typed by hand.

    python tools/paper.py keep runs/section4 …    stores a study's results in tools/results/
    python tools/paper.py                         writes the pages' marked parts from them

`paper.md.jinja` has the text. Its numbers and tables come from `paper_section4.py` and
`paper_studies.py`.
"""

import json
import re
import shutil
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
from paper_numbers import KEPT, ROOT, difference, interval
from paper_section4 import inside, section4
from paper_studies import cifar10, digits, peers, the_map

from distill.evaluation.feature_plot import load_feature_plot
from distill.report.feature_figures import features
from distill.report.wording import p_text

FIGURES = {"section4": ["information"], "map": ["temperature_map", "equivalent_smoothing"]}
# What is read here and by the report's sentences. Attacks are left out of these studies.
STUDY_KEYS = ("study", "versions", "data", "precision", "device", "seeds")
RUN_KEYS = (
    "id",
    "role",
    "arm",
    "axes",
    "seed",
    "model",
    "parameters",
    "teacher",
    "epochs",
    "seconds",
    "hardware",
    "smoothing",
    "temperature",
    "information",
)
METRICS = {
    "test": (
        "top1",
        "errors",
        "count",
        "ece",
        "ece_scaled",
        "fitted_temperature",
        "agreement",
        "agreement_control",
    ),
    "train": (
        "top1",
        "effective_smoothing",
        "within_between_templates",
        "class_separation",
        "nc1",
        "wrong_template_spread",
    ),
    "validation": ("top1", "within_between_templates"),
}
WIDTH = 135  # characters of a line of a page
PAGES = {
    "README.md": ("digits", "peers", "findings"),
    "recipes/paper/README.md": ("results",),
}


def keep(study: Path, to: Path = KEPT) -> None:
    """Store the parts of a study's `results.json` that this tool reads, and the study's figures.

    Args:
        study: the study's folder.
        to: the folder of kept results.
    """
    results = json.loads((study / "results.json").read_text("utf-8"))
    kept = {key: results[key] for key in STUDY_KEYS}
    kept["runs"] = [_kept_run(run) for run in results["runs"]]
    kept["comparisons"] = [one for one in results["comparisons"] if one["metric"] == "top1"]
    name = kept["study"]
    (to / f"{name}.json").write_text(to_lines(rounded(kept)), "utf-8")
    for figure in FIGURES.get(name, ()):
        shutil.copyfile(study / "figures" / f"{figure}.png", to / f"{name}_{figure}.png")
    if name == "section4":
        _keep_teachers_plane(study, to / "section4_features_plane.png")


def rounded(value: Any) -> Any:
    """Round floats in JSON values to 7 significant digits, more than any of them is exact to."""
    if isinstance(value, dict):
        return {key: rounded(child) for key, child in value.items()}
    if isinstance(value, list):
        return [rounded(child) for child in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def to_lines(kept: dict[str, Any]) -> str:
    """Return kept results as JSON with a line for each key, run and comparison."""
    parts = []
    for key, value in kept.items():
        text = json.dumps(value, ensure_ascii=False)
        if key in ("runs", "comparisons"):
            rows = [json.dumps(row, ensure_ascii=False) for row in value]
            text = "[\n" + ",\n".join(rows) + "\n]"
        parts.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _kept_run(run: dict[str, Any]) -> dict[str, Any]:
    kept = {key: run[key] for key in RUN_KEYS}
    kept["metrics"] = {}
    for split, names in METRICS.items():
        kept["metrics"][split] = {name: run["metrics"][split][name] for name in names}
    return kept


def _keep_teachers_plane(study: Path, to: Path) -> None:
    """Draw the first view of the two teachers; their students would take too much room."""
    feature_plot = load_feature_plot(study / "features.safetensors")
    if feature_plot is None:
        return
    hard, smoothed = feature_plot.networks[:2]
    teachers = [
        replace(hard, title="hard teacher, seed 0"),
        replace(smoothed, title="smoothed teacher, seed 0"),
    ]
    figure = features(replace(feature_plot, networks=teachers), feature_plot.views[0])
    figure.savefig(to, dpi=110, bbox_inches="tight", metadata={"Software": None})


def rendered(page: str, text: str) -> str:
    """Return a page with its marked parts replaced by the blocks of the template.

    Args:
        page: a key of `PAGES`.
        text: the page as it is.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "difference": difference,
        "interval": interval,
        "p_text": p_text,
    }
    template = environment.get_template("paper.md.jinja")
    studies = {
        "digits": digits,
        "peers": peers,
        "section4": section4,
        "inside": inside,
        "the_map": the_map,
        "cifar10": cifar10,
    }
    for name in PAGES[page]:
        start = f"<!-- {name} -->\n"
        end = f"<!-- end of {name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"{page} needs {start.strip()} and {end}, once each")
        content = "".join(template.blocks[name](template.new_context(studies)))
        paragraphs = [wrapped(part) for part in content.strip().split("\n\n")]
        before, rest = text.split(start)
        after = rest.split(end)[1]
        text = before + start + "\n\n".join(paragraphs) + "\n" + end + after
    return text


def wrapped(part: str) -> str:
    """Wrap a paragraph or a list to the pages' width; leave tables, headings and pictures."""
    part = part.strip("\n")
    if part.startswith(("|", "#", "!", "    ")):
        return part
    if not part.startswith("- "):
        return _filled(part)
    items = part.removeprefix("- ").split("\n- ")
    return "\n".join(_filled(item, "- ") for item in items)


def _filled(text: str, bullet: str = "") -> str:
    # A line does not break within code: its spaces are hidden from textwrap.
    one_line = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), " ".join(text.split()))
    filled = textwrap.fill(
        one_line,
        WIDTH,
        initial_indent=bullet,
        subsequent_indent=" " * len(bullet),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.replace("\0", " ")


def main() -> None:
    """Run the command that the arguments name."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["keep"] and arguments[1:]:
        for folder in arguments[1:]:
            keep(Path(folder))
    elif arguments:
        print(__doc__)
        sys.exit(arguments != ["--help"])
    else:
        for page in PAGES:
            path = ROOT / page
            path.write_text(rendered(page, path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
