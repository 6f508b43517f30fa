"""Pictures of penultimate features: rows are networks, columns splits, axes and scale are shared in a plane."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from distill.figures.style import STYLE, colour, label, marker, wrapped
from distill.pictures import KINDS, SPLITS, Picture, View

MANY = 400  # points of a panel from which on they are drawn as pixels: a shape each would make a heavy file


def features(picture: Picture, view: View) -> Figure:
    """One view of the finished networks."""
    plane = view.kind == "plane"
    rows = len(picture.networks)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, 2, figsize=(7.6, 0.5 + 3.0 * rows), squeeze=False, sharex=plane, sharey=plane)
        for row, (network, line) in enumerate(zip(picture.networks, axes, strict=True)):
            for split, axis in zip(SPLITS, line, strict=True):
                points = view.points[row][split][-1].numpy()
                labels = picture.labels[split][view.members[split]].numpy()
                for number, k in enumerate(view.classes):
                    own = points[labels == k]
                    axis.plot(own[:, 0], own[:, 1], marker(number), color=colour(number), markersize=3.2, alpha=0.5,
                              markeredgewidth=0, label=label(picture.class_names[k]), rasterized=len(points) > MANY)
                title = f"{wrapped(network.title, 44)} · {split}"
                if plane:
                    for number, (x, y) in enumerate(view.templates[row][-1].numpy()):
                        axis.plot(x, y, marker(number), color=colour(number), markersize=9, markeredgecolor="black")
                    ratio = view.ratios[row][split][-1].item()
                    title += f"\nwithin/between {ratio:.3g}" if np.isfinite(ratio) else "\nno within/between"
                    axis.set_aspect("equal", adjustable="box")
                else:
                    axis.set_xticks([])
                    axis.set_yticks([])
                axis.set_title(title, fontsize=8)
        if plane:
            _share_limits(axes, picture, view)
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, fontsize=7, frameon=False, loc="outside right upper", markerscale=1.6)
        figure.supxlabel(KINDS[view.kind], fontsize=8)
    return figure


def _share_limits(axes: np.ndarray, picture: Picture, view: View) -> None:
    """One scale for all panels, so that tightness compares."""
    every = [view.points[row][split][-1].numpy() for row in range(len(picture.networks)) for split in SPLITS]
    every += [templates[-1].numpy() for templates in view.templates]
    low, high = np.concatenate(every).min(0), np.concatenate(every).max(0)
    edge = 0.04 * (high - low).max()
    for axis in axes.flat:
        axis.set(xlim=(low[0] - edge, high[0] + edge), ylim=(low[1] - edge, high[1] + edge))
