"""Pictures of penultimate features: rows are networks, columns splits, axes and scale are shared in a plane."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from distill.evaluation.feature_plot import KINDS, SPLITS, FeaturePlot, FeatureView
from distill.report.style import STYLE, colour, label, marker, shortened, wrapped

MANY = 400  # points of a panel from which on they are drawn as pixels: a shape each would make a heavy file


def features(feature_plot: FeaturePlot, view: FeatureView) -> Figure:
    """One view of the finished networks."""
    plane = view.kind == "plane"
    rows = len(feature_plot.networks)
    low, high = _bounds(feature_plot, view) if plane else (np.zeros(2), np.array([1.0, 0.8]))
    aspect = float(np.clip((high - low)[1] / (high - low)[0], 0.3, 1.5))
    with plt.rc_context(STYLE):
        size = (
            7.6,
            0.9 + (0.6 + 3.3 * aspect) * rows,
        )  # as high as the panels are: they keep the scale of the data
        figure, axes = plt.subplots(
            rows, 2, figsize=size, squeeze=False, sharex=plane, sharey=plane
        )
        for row, (network, line) in enumerate(zip(feature_plot.networks, axes, strict=True)):
            for split, axis in zip(SPLITS, line, strict=True):
                points = view.points[row][split][-1].numpy()
                labels = feature_plot.labels[split][view.example_indices[split]].numpy()
                for number, k in enumerate(view.classes):
                    own = points[labels == k]
                    axis.plot(
                        own[:, 0],
                        own[:, 1],
                        marker(number),
                        color=colour(number),
                        markersize=3.2,
                        alpha=0.5,
                        markeredgewidth=0,
                        label=label(feature_plot.class_names[k]),
                        rasterized=len(points) > MANY,
                    )
                title = f"{wrapped(network.title, 44)} · {split}"
                if plane:
                    for number, (x, y) in enumerate(view.templates[row][-1].numpy()):
                        axis.plot(
                            x,
                            y,
                            marker(number),
                            color=colour(number),
                            markersize=9,
                            markeredgecolor="black",
                        )
                    ratio = view.ratios[row][split][-1].item()
                    title += (
                        f"\nwithin/between {ratio:.3g}"
                        if np.isfinite(ratio)
                        else "\nno within/between"
                    )
                    axis.set_aspect("equal", adjustable="box")
                else:
                    axis.set_xticks([])
                    axis.set_yticks([])
                axis.set_title(title, fontsize=8)
        if plane:  # one scale for all panels, so that tightness compares
            for axis in axes.flat:
                axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(
            handles,
            [shortened(name) for name in names],
            fontsize=7,
            frameon=False,
            markerscale=1.6,
            loc="outside upper center",
            ncols=min(5, len(names)),
        )
        figure.supxlabel(KINDS[view.kind], fontsize=8)
    return figure


def _bounds(feature_plot: FeaturePlot, view: FeatureView) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest of all points and templates, and some room."""
    every = [
        view.points[row][split][-1].numpy()
        for row in range(len(feature_plot.networks))
        for split in SPLITS
    ]
    every += [templates[-1].numpy() for templates in view.templates]
    low, high = np.concatenate(every).min(0), np.concatenate(every).max(0)
    edge = max(0.04 * (high - low).max(), 1e-6)
    return low - edge, high + edge
