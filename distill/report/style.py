"""Share colours, markers and the way of saving between all figures."""

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot is imported: no screen is needed

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from distill.report.arm_names import SEPARATOR

# the palette of Okabe and Ito, distinguishable with any colour vision
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C00"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "distill",
    "figure.constrained_layout.use": True,
    "text.parse_math": False,
    "savefig.dpi": 150,
}


def colour(number: int) -> str:
    """Return the colour of the number-th item; they repeat after eight items."""
    return COLOURS[number % len(COLOURS)]


def marker(number: int) -> str:
    """Return the marker of the number-th item: 64 items have different (colour, marker) pairs."""
    return MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write `name`.png and `name`.svg, and return the latter; equal figures make equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    layout = {"bbox_inches": "tight", "pad_inches": 0.05}
    with plt.rc_context(STYLE):
        # without these metadata the files hold neither the date nor the version of matplotlib
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, **layout)
        figure.savefig(folder / f"{name}.png", metadata={"Software": None}, **layout)
    plt.close(figure)
    return folder / f"{name}.svg"


def label(name: str) -> str:
    """Return a name for a legend; matplotlib leaves out names that begin with an underscore."""
    return f"\u200b{name}" if name.startswith("_") else name


def shortened(name: str, most: int = 24) -> str:
    """Return a name of at most that many characters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def wrapped(text: str, width: int) -> str:
    """Return an arm's name in lines of about that width, broken between its parts."""
    parts = re.split(f"(?<={SEPARATOR})", text)
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
