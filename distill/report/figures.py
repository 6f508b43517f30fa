"""Figures of a study's results: accuracy, calibration, curves, and the temperature map."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from distill.evaluation.calibration import Reliability
from distill.evaluation.statistics import mean_interval
from distill.report.style import COLOURS, STYLE, colour, label, marker, wrapped

MOST_SHADED = 6  # curves with a shaded range; more would cover each other
LEGEND = {"fontsize": 7, "frameon": False}
BESIDE = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
FULL_ACCURACY = 100.4  # percent, with room for the line


class Cell(NamedTuple):
    """One arm of the map: test accuracies by seed, and the smoothing of what it learns from."""

    accuracy: Sequence[float]
    effective_smoothing: float


def accuracy(arms: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the test accuracy of each arm: a dot for each seed, the mean, and its 95% interval."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 0.8 + 0.3 * len(arms)))
        for row, values in enumerate(arms.values()):
            percent = [100 * value for value in values]
            mean, _, interval = mean_interval(percent)
            axis.plot(percent, [row] * len(percent), "o", color="0.65", markersize=4, zorder=1)
            if interval:
                axis.plot(interval, [row, row], color=COLOURS[0], linewidth=2, zorder=2)
            axis.plot([mean], [row], "D", color=COLOURS[0], markersize=6, zorder=3)
        axis.set_yticks(range(len(arms)), list(arms))
        axis.set_ylim(len(arms) - 0.5, -0.5)
        axis.set_xlabel("test accuracy, % (dots: seeds; diamond: mean; bar: 95% interval)")
        axis.grid(axis="x", alpha=0.3)
    return figure


def reliability(diagrams: Mapping[str, tuple[Reliability, Reliability]]) -> Figure:
    """Draw accuracy over confidence, a panel for each arm.

    Args:
        diagrams: by arm, as trained and after temperature scaling.
    """
    # As few rows as four columns need, and no column more than these rows need.
    rows = max(1, -(-len(diagrams) // 4))
    columns = max(1, -(-len(diagrams) // rows))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(2.6 * columns, 2.7 * rows),
            squeeze=False,
            sharex=True,
            sharey=True,
        )
        for axis in axes.flat:
            axis.set_visible(False)
        for axis, (name, pair) in zip(axes.flat, diagrams.items(), strict=False):
            axis.set_visible(True)
            _reliability_panel(axis, *pair)
            axis.set_title(wrapped(name, 34), fontsize=7.5)
        for axis in axes[:, 0]:
            axis.set_ylabel("accuracy")
        # the lowest panel of each column
        for axis in axes.flat[len(diagrams) - columns : len(diagrams)]:
            axis.set_xlabel("confidence")
            axis.xaxis.set_tick_params(labelbottom=True)
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(),
            **LEGEND,
            loc="outside upper center",
            ncols=4 if columns > 2 else 2,
        )
    return figure


def learning_curves(arms: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Draw validation accuracy by epoch: the mean over the seeds, with their range shaded."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 3.8))
        lowest = 100.0
        highest = 0.0
        for number, (name, seeds) in enumerate(arms.items()):
            curves = 100 * np.asarray(seeds)
            mean = curves.mean(0)
            epochs = np.arange(1, len(mean) + 1)
            dash = ["-", "--", ":"][number // len(COLOURS) % 3]
            axis.plot(
                epochs,
                mean,
                dash,
                color=colour(number),
                marker=marker(number),
                linewidth=1.3,
                markevery=max(1, len(epochs) // 8),
                markersize=4,
                label=label(name),
            )
            if len(arms) <= MOST_SHADED:
                _shade_range(axis, epochs, curves, number)
            highest = max(highest, curves.max())
            # the first epochs may be far below
            lowest = min(lowest, mean[len(epochs) // 4 :].min())
        room = max(0.2, 0.2 * (highest - lowest))
        axis.set(
            xlabel="epoch",
            ylabel="validation accuracy, %",
            ylim=(lowest - room, min(highest + room, FULL_ACCURACY)),
        )
        _finish_curves(axis)
    return figure


def information(arms: Mapping[str, Sequence[Sequence[tuple[int, float]]]], examples: int) -> Figure:
    """Draw I(X; Y) by epoch: the mean over the seeds, with their range shaded.

    Args:
        arms: by arm and seed, a list of (epoch, nats).
        examples: number of images of which the network could know each.
    """
    highest = 0.0
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 3.8))
        for number, (name, seeds) in enumerate(arms.items()):
            epochs = [epoch for epoch, _ in seeds[0]]
            nats = np.asarray([[value for _, value in seed] for seed in seeds])
            highest = max(highest, nats.max())
            axis.plot(
                epochs,
                nats.mean(0),
                color=colour(number),
                marker=marker(number),
                linewidth=1.3,
                markersize=4,
                label=label(name),
            )
            if len(arms) <= MOST_SHADED:
                _shade_range(axis, epochs, nats, number)
        _mark_height(axis, np.log(2), "log 2: the class alone")
        if highest > 0.6 * np.log(examples):
            _mark_height(axis, np.log(examples), f"log {examples}: every image")
        axis.set(xlabel="epoch", ylabel="I(X; Y), nats")
        _finish_curves(axis)
    return figure


def robustness(arms: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Draw accuracy under each attack, a row for each arm: mean and range over the seeds."""
    attacks = list(dict.fromkeys(attack for accuracies in arms.values() for attack in accuracies))
    in_legend: set[str] = set()
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 1.1 + 0.42 * len(arms)))
        for row, accuracies in enumerate(arms.values()):
            for number, attack in enumerate(attacks):
                percent = [100 * value for value in accuracies.get(attack, ())]
                if not percent:
                    continue
                height = row + (number - (len(attacks) - 1) / 2) * 0.11
                reach = [min(percent), max(percent)]
                axis.plot(reach, [height, height], color=colour(number), linewidth=1)
                axis.plot(
                    [np.mean(percent)],
                    [height],
                    marker(number),
                    color=colour(number),
                    markersize=5,
                    label=None if attack in in_legend else attack,
                )
                in_legend.add(attack)
        axis.set_yticks(range(len(arms)), [wrapped(name, 44) for name in arms])
        axis.set_ylim(len(arms) - 0.5, -0.5)
        axis.set(xlabel="accuracy on attacked test images, %", xlim=(-2, 102))
        axis.grid(axis="x", alpha=0.3)
        handles = axis.get_legend_handles_labels()
        figure.legend(*handles, **LEGEND, loc="outside upper center", ncols=len(attacks))
    return figure


def temperature_map(cells: Mapping[tuple[float, float], Cell], title: str) -> Figure:
    """Draw student accuracy by the teacher's smoothing (rows) and the temperature (columns).

    Args:
        cells: by (smoothing, temperature).
        title: of the figure.
    """
    smoothings = sorted({smoothing for smoothing, _ in cells})
    temperatures = sorted({temperature for _, temperature in cells})
    table = np.full((len(smoothings), len(temperatures)), np.nan)
    for (smoothing, temperature), cell in cells.items():
        row = smoothings.index(smoothing)
        column = temperatures.index(temperature)
        table[row, column] = 100 * np.mean(cell.accuracy)
    middle = (np.nanmin(table) + np.nanmax(table)) / 2
    with plt.rc_context(STYLE):
        size = (1.6 + 0.95 * len(temperatures), 1.3 + 0.55 * len(smoothings))
        figure, axis = plt.subplots(figsize=size)
        image = axis.imshow(table, cmap="cividis", aspect="auto")
        for (smoothing, temperature), cell in cells.items():
            row = smoothings.index(smoothing)
            column = temperatures.index(temperature)
            axis.text(
                column,
                row,
                f"{table[row, column]:.2f}\nγ {cell.effective_smoothing:.2f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if table[row, column] < middle else "black",
            )
        axis.set_xticks(range(len(temperatures)), [f"{value:g}" for value in temperatures])
        axis.set_yticks(range(len(smoothings)), [f"{value:g}" for value in smoothings])
        axis.set(xlabel="temperature of the teacher", ylabel="smoothing of the teacher")
        axis.set_title(title, fontsize=8)
        axis.spines[:].set_visible(False)
        figure.colorbar(image, ax=axis, label="test accuracy of the student, %", shrink=0.9)
    return figure


def equivalent_smoothing(curves: Mapping[str, Sequence[Cell]]) -> Figure:
    """Draw Figure 5 of the paper: accuracy over γ, the mean over the seeds with their range."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 4.2))
        for number, (name, points) in enumerate(curves.items()):
            ordered = sorted(points, key=lambda cell: cell.effective_smoothing)
            gamma = [cell.effective_smoothing for cell in ordered]
            percent = [100 * np.asarray(cell.accuracy) for cell in ordered]
            mean = [values.mean() for values in percent]
            below = [values.mean() - values.min() for values in percent]
            above = [values.max() - values.mean() for values in percent]
            axis.errorbar(
                gamma,
                mean,
                [below, above],
                color=colour(number),
                marker=marker(number),
                markersize=5,
                capsize=2,
                linestyle=["-", "-", "--", "--"][number % 4],
                linewidth=1.3,
                elinewidth=0.8,
                label=name,
            )
        axis.set(xlabel="γ, effective label smoothing", ylabel="test accuracy, %")
        axis.grid(alpha=0.3)
        figure.legend(**LEGEND, loc="outside lower center", ncols=2)
    return figure


def _reliability_panel(axis: Axes, as_trained: Reliability, scaled: Reliability) -> None:
    """Draw one arm's reliability, over the share of images in each bin."""
    bins = len(as_trained.count)
    axis.bar(
        (np.arange(bins) + 0.5) / bins,
        as_trained.count / as_trained.count.sum(),
        1 / bins,
        color="0.85",
        label="share of images",
    )
    axis.plot([0, 1], [0, 1], color="0.4", linewidth=0.8, linestyle="--", label="calibrated")
    lines = [(as_trained, "as trained", "-"), (scaled, "scaled", ":")]
    for number, (diagram, name, dash) in enumerate(lines):
        filled = diagram.count > 0
        axis.plot(
            diagram.confidence[filled],
            diagram.accuracy[filled],
            dash,
            color=colour(number),
            marker=marker(number),
            markersize=3.5,
            linewidth=1.2,
            label=name,
        )
    axis.set(xlim=(0, 1), ylim=(0, 1.02))


def _shade_range(axis: Axes, epochs: Sequence[int], curves: np.ndarray, number: int) -> None:
    """Shade between the lowest and the highest seed of curves ``[seeds, epochs]``."""
    low = curves.min(0)
    high = curves.max(0)
    axis.fill_between(epochs, low, high, color=colour(number), alpha=0.12, linewidth=0)


def _mark_height(axis: Axes, height: float, text: str) -> None:
    """Draw a dashed horizontal line with a text at its right end."""
    axis.axhline(height, color="0.4", linestyle="--", linewidth=0.8)
    axis.annotate(
        text,
        (1, height),
        (0, 2),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=7,
        ha="right",
        color="0.3",
    )


def _finish_curves(axis: Axes) -> None:
    """Add whole epochs, a grid, and the legend beside the curves."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend(**LEGEND, **BESIDE)
