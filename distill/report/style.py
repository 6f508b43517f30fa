"""What all figures share: colours, markers, and how they are saved."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot: no screen is needed

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision, and a marker for each
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
    """Of the number-th thing that is drawn; from the ninth on the marker differs too."""
    return COLOURS[number % len(COLOURS)]


def marker(number: int) -> str:
    """Of the number-th thing: 64 pairs of colour and marker."""
    return MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write `name`.png and `name`.svg; the same figure makes the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        figure.savefig(
            folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight", pad_inches=0.05
        )
        figure.savefig(
            folder / f"{name}.png",
            metadata={"Software": None},
            bbox_inches="tight",
            pad_inches=0.05,
        )
    plt.close(figure)
    return folder / f"{name}.svg"


def label(name: str) -> str:
    """A name for a legend, which would leave out one that begins with "_"."""
    return f"\u200b{name}" if name.startswith("_") else name


def shortened(name: str, most: int = 24) -> str:
    """A name that leaves room for others."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def wrapped(text: str, width: int) -> str:
    """An arm's name over several lines, broken between its axes."""
    lines = [""]
    for part in text.replace("/", "/\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
