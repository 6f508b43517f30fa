"""Figures of a study's results: accuracy, calibration, curves, the map over smoothing and temperature."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from distill.evaluation.calibration import Reliability
from distill.evaluation.statistics import mean_interval
from distill.report.style import COLOURS, STYLE, colour, label, marker, wrapped


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
        axis.set_ylim(len(arms) - 0.5, -0.5)
        axis.set_xlabel("test accuracy, % (dots: seeds; diamond: mean; bar: 95% interval)")
        axis.grid(axis="x", alpha=0.3)
    return figure


def reliability(diagrams: Mapping[str, tuple[Reliability, Reliability]]) -> Figure:
    """Accuracy against confidence before and after temperature scaling, one panel an arm, over shares of examples."""
    columns = min(4, max(1, len(diagrams)))
    rows = -(-len(diagrams) // columns)
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
            bins = len(pair[0].count)
            axis.bar(
                (np.arange(bins) + 0.5) / bins,
                pair[0].count / pair[0].count.sum(),
                1 / bins,
                color="0.85",
                label="share of examples",
            )
            axis.plot(
                [0, 1], [0, 1], color="0.4", linewidth=0.8, linestyle="--", label="calibrated"
            )
            for number, (diagram, title) in enumerate(
                zip(pair, ("as trained", "scaled"), strict=True)
            ):
                filled = diagram.count > 0
                axis.plot(
                    diagram.confidence[filled],
                    diagram.accuracy[filled],
                    "-:"[number],
                    color=colour(number),
                    marker=marker(number),
                    markersize=3.5,
                    linewidth=1.2,
                    label=title,
                )
            axis.set(xlim=(0, 1), ylim=(0, 1.02))
            axis.set_title(wrapped(name, 34), fontsize=7.5)
        for axis in axes[:, 0]:
            axis.set_ylabel("accuracy")
        for axis in axes.flat[len(diagrams) - columns : len(diagrams)]:  # the lowest of each column
            axis.set_xlabel("confidence")
            axis.xaxis.set_tick_params(labelbottom=True)
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(),
            fontsize=7,
            frameon=False,
            loc="outside upper center",
            ncols=4 if columns > 2 else 2,
        )
    return figure


def learning_curves(arms: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Validation accuracy by epoch: mean over the seeds, with the range of the seeds shaded (up to 6 arms)."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 3.8))
        lowest, highest = 100.0, 0.0
        for number, (name, seeds) in enumerate(arms.items()):
            curves = 100 * np.asarray(seeds)
            epochs = np.arange(1, curves.shape[1] + 1)
            dash = ["-", "--", ":"][number // len(COLOURS) % 3]
            axis.plot(
                epochs,
                curves.mean(0),
                dash,
                color=colour(number),
                marker=marker(number),
                linewidth=1.3,
                markevery=max(1, len(epochs) // 8),
                markersize=4,
                label=label(name),
            )
            if len(arms) <= 6:  # more would cover each other
                axis.fill_between(
                    epochs,
                    curves.min(0),
                    curves.max(0),
                    color=colour(number),
                    alpha=0.12,
                    linewidth=0,
                )
            highest = max(highest, curves.max())
            lowest = min(
                lowest, curves.mean(0)[len(epochs) // 4 :].min()
            )  # the first epochs may lie far below
        room = max(0.2, 0.2 * (highest - lowest))
        axis.set(
            xlabel="epoch",
            ylabel="validation accuracy, %",
            ylim=(lowest - room, min(highest + room, 100.4)),
        )
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def information(arms: Mapping[str, Sequence[Sequence[tuple[int, float]]]], examples: int) -> Figure:
    """I(X; Y) by epoch: mean over the seeds, their range shaded (up to 6 arms); each seed a list of (epoch, nats)."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 3.8))
        for number, (name, seeds) in enumerate(arms.items()):
            epochs = [epoch for epoch, _ in seeds[0]]
            nats = np.asarray([[value for _, value in seed] for seed in seeds])
            axis.plot(
                epochs,
                nats.mean(0),
                color=colour(number),
                marker=marker(number),
                linewidth=1.3,
                markersize=4,
                label=label(name),
            )
            if len(arms) <= 6:
                axis.fill_between(
                    epochs, nats.min(0), nats.max(0), color=colour(number), alpha=0.12, linewidth=0
                )
        limits = [
            (np.log(2), "log 2: the class alone"),
            (np.log(examples), f"log {examples}: every image"),
        ]
        reached = max(value for seeds in arms.values() for seed in seeds for _, value in seed)
        for height, text in limits if reached > 0.6 * np.log(examples) else limits[:1]:
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
        axis.set(xlabel="epoch", ylabel="I(X; Y), nats")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def robustness(arms: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Accuracy under each attack, a row an arm: mean over the seeds, their range a line."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 1.1 + 0.42 * len(arms)))
        attacks = list(dict.fromkeys(attack for shares in arms.values() for attack in shares))
        told: set[str] = set()
        for row, shares in enumerate(arms.values()):
            for number, attack in enumerate(attacks):
                values = [100 * value for value in shares.get(attack, ())]
                if values:
                    height = row + (number - (len(attacks) - 1) / 2) * 0.11
                    axis.plot(
                        [min(values), max(values)], [height] * 2, color=colour(number), linewidth=1
                    )
                    axis.plot(
                        [np.mean(values)],
                        [height],
                        marker(number),
                        color=colour(number),
                        markersize=5,
                        label=None if attack in told else attack,
                    )
                    told.add(attack)
        axis.set_yticks(range(len(arms)), [wrapped(name, 44) for name in arms])
        axis.set_ylim(len(arms) - 0.5, -0.5)
        axis.set(xlabel="accuracy on attacked test images, %", xlim=(-2, 102))
        axis.grid(axis="x", alpha=0.3)
        figure.legend(
            *axis.get_legend_handles_labels(),
            fontsize=7,
            frameon=False,
            loc="outside upper center",
            ncols=len(attacks),
        )
    return figure


class Cell(NamedTuple):
    """One setting of the map: accuracies of the student by seed, and what its teacher's answers amount to."""

    accuracy: Sequence[float]
    effective_smoothing: float


def temperature_map(cells: Mapping[tuple[float, float], Cell], title: str) -> Figure:
    """Student accuracy by the teacher's smoothing (rows) and temperature (columns)."""
    smoothings, temperatures = (sorted({key[i] for key in cells}) for i in (0, 1))
    table = np.full((len(smoothings), len(temperatures)), np.nan)
    for (smoothing, temperature), cell in cells.items():
        table[smoothings.index(smoothing), temperatures.index(temperature)] = 100 * np.mean(
            cell.accuracy
        )
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(
            figsize=(1.6 + 0.95 * len(temperatures), 1.3 + 0.55 * len(smoothings))
        )
        image = axis.imshow(table, cmap="cividis", aspect="auto")
        middle = (np.nanmin(table) + np.nanmax(table)) / 2
        for (smoothing, temperature), cell in cells.items():
            row, column = smoothings.index(smoothing), temperatures.index(temperature)
            axis.text(
                column,
                row,
                f"{table[row, column]:.2f}\nγ {cell.effective_smoothing:.2f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if table[row, column] < middle else "black",
            )
        axis.set_xticks(range(len(temperatures)), [f"{t:g}" for t in temperatures])
        axis.set_yticks(range(len(smoothings)), [f"{s:g}" for s in smoothings])
        axis.set(xlabel="temperature of the teacher", ylabel="smoothing of the teacher")
        axis.set_title(title, fontsize=8)
        axis.spines[:].set_visible(False)
        figure.colorbar(image, ax=axis, label="test accuracy of the student, %", shrink=0.9)
    return figure


def equivalent_smoothing(curves: Mapping[str, Sequence[Cell]]) -> Figure:
    """Figure 5 of the paper: accuracy against γ, mean over the seeds, with their range."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 4.2))
        for number, (name, points) in enumerate(curves.items()):
            ordered = sorted(points, key=lambda cell: cell.effective_smoothing)
            gamma, percent = (
                [c.effective_smoothing for c in ordered],
                [100 * np.asarray(c.accuracy) for c in ordered],
            )
            mean = [values.mean() for values in percent]
            reach = [
                [m - values.min() for m, values in zip(mean, percent, strict=True)],
                [values.max() - m for m, values in zip(mean, percent, strict=True)],
            ]
            axis.errorbar(
                gamma,
                mean,
                reach,
                color=colour(number),
                marker=marker(number),
                markersize=5,
                capsize=2,
                linestyle=["-", "-", "--", "--"][number % 4],
                linewidth=1.3,
                elinewidth=0.8,
                label=name,
            )
        axis.set(xlabel="γ, equivalent label smoothing", ylabel="test accuracy, %")
        axis.grid(alpha=0.3)
        figure.legend(fontsize=7, frameon=False, loc="outside lower center", ncols=2)
    return figure
