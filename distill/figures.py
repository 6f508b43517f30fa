"""Figures, each a function from numbers to a matplotlib figure; readable without colour."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")  # before pyplot: no screen is needed

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from distill.analysis.calibration import Reliability
from distill.analysis.statistics import mean_interval

# Okabe and Ito's colours, told apart with any colour vision, and a marker for each
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C00"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "distill",
         "figure.constrained_layout.use": True, "text.parse_math": False, "savefig.dpi": 150}


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write `name`.png and `name`.svg; the same figure makes the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    plt.close(figure)
    return folder / f"{name}.svg"


def accuracy(arms: Mapping[str, Sequence[float]]) -> Figure:
    """Test accuracy of each arm: a dot a seed, the mean, and its 95% interval."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 0.8 + 0.3 * len(arms)))
        for row, values in enumerate(arms.values()):
            percent = [100 * v for v in values]
            mean, _, interval = mean_interval(percent)
            axis.plot(percent, [row] * len(percent), "o", color="0.65", markersize=4, zorder=1)
            if interval:
                axis.plot(interval, [row, row], color=COLOURS[0], linewidth=2, zorder=2)
            axis.plot([mean], [row], "D", color=COLOURS[0], markersize=6, zorder=3)
        axis.set_yticks(range(len(arms)), list(arms))
        axis.invert_yaxis()
        axis.set_xlabel("test accuracy, % (dots: seeds; diamond: mean; bar: 95% interval)")
        axis.grid(axis="x", alpha=0.3)
    return figure


def reliability(diagrams: Mapping[str, Reliability]) -> Figure:
    """Accuracy against confidence, one panel an arm, with the share of examples of each bin below."""
    columns = min(4, max(1, len(diagrams)))
    rows = -(-len(diagrams) // columns)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(2.6 * columns, 2.7 * rows), squeeze=False,
                                    sharex=True, sharey=True)
        for axis in axes.flat:
            axis.set_visible(False)
        for axis, (name, diagram) in zip(axes.flat, diagrams.items(), strict=False):
            axis.set_visible(True)
            bins = len(diagram.count)
            centre, filled = (np.arange(bins) + 0.5) / bins, diagram.count > 0
            axis.bar(centre, diagram.count / diagram.count.sum(), 1 / bins, color="0.85", label="share of examples")
            axis.plot([0, 1], [0, 1], color="0.4", linewidth=0.8, linestyle="--", label="calibrated")
            axis.plot(diagram.confidence[filled], diagram.accuracy[filled], color=COLOURS[0], marker="o",
                      markersize=3.5, linewidth=1.2, label="accuracy")
            axis.set(xlim=(0, 1), ylim=(0, 1.02))
            axis.set_title("\n".join(_wrapped(name, 34)), fontsize=7.5)
        for axis in axes[:, 0]:
            axis.set_ylabel("accuracy")
        for axis in axes[-1]:
            axis.set_xlabel("confidence")
        axes[0, 0].legend(fontsize=6, frameon=False, loc="upper left")
    return figure


def learning_curves(arms: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Validation accuracy by epoch: mean over the seeds, with the range of the seeds shaded (up to 6 arms)."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 3.8))
        lowest, highest = 1.0, 0.0
        for number, (name, seeds) in enumerate(arms.items()):
            curves = 100 * np.asarray(seeds)
            epochs = np.arange(1, curves.shape[1] + 1)
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            dash = ["-", "--", ":"][number // len(COLOURS) % 3]
            axis.plot(epochs, curves.mean(0), dash, color=colour, marker=marker, linewidth=1.3,
                      markevery=max(1, len(epochs) // 8), markersize=4, label=name)
            if len(arms) <= 6:  # more would cover each other
                axis.fill_between(epochs, curves.min(0), curves.max(0), color=colour, alpha=0.12, linewidth=0)
            highest = max(highest, curves.max())
            lowest = min(lowest, curves.mean(0)[len(epochs) // 4:].min() / 100)
        axis.set(xlabel="epoch", ylabel="validation accuracy, %", ylim=(100 * lowest - 3, min(highest + 1, 100.4)))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


class Cloud(NamedTuple):
    """Points of one network in the plane through three templates, to be drawn in one row.

    Attributes:
        title: what the row shows.
        templates: ``[3, 2]``.
        panels: by split, points ``[N, 2]`` and which of the three classes each has ``[N]``.
        ratio: by split, within/between of the points' features.
    """

    title: str
    templates: NDArray
    panels: dict[str, tuple[NDArray, NDArray]]
    ratio: dict[str, float]


def clusters(rows: Sequence[Cloud], class_names: Sequence[str]) -> Figure:
    """Rows are networks, columns are splits; all share axes and scale, so that tightness compares."""
    splits = list(rows[0].panels)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(rows), len(splits), figsize=(3.4 * len(splits), 3.2 * len(rows)),
                                    squeeze=False, sharex=True, sharey=True)
        for row, line in zip(rows, axes, strict=True):
            for split, axis in zip(splits, line, strict=True):
                points, which = row.panels[split]
                for number, name in enumerate(class_names):
                    own = points[which == number]
                    axis.plot(own[:, 0], own[:, 1], MARKERS[number], color=COLOURS[number], markersize=3,
                              alpha=0.45, markeredgewidth=0, label=name)
                for number, (x, y) in enumerate(row.templates):
                    axis.plot(x, y, MARKERS[number], color=COLOURS[number], markersize=10, markeredgecolor="black")
                axis.set_title(f"{row.title} · {split}\nwithin/between {row.ratio[split]:.3g}", fontsize=8)
                axis.set_aspect("equal", adjustable="box")
        axes[0, 0].legend(fontsize=7, frameon=False)
        figure.supxlabel("plane through the three templates (large markers)", fontsize=8)
    return figure


def _wrapped(text: str, width: int) -> list[str]:
    """An arm's name over several lines, broken between its axes."""
    lines: list[Any] = [""]
    for part in text.replace("/", "/\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return lines
