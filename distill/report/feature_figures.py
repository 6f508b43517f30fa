"""Figures of penultimate features: a row for each network, a column for each split."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distill.evaluation.feature_plot import KINDS, SPLITS, FeaturePlot, FeatureView
from distill.report.style import STYLE, colour, label, marker, shortened, wrapped

# With more points a panel is drawn as pixels: a shape for each would make a heavy file.
MOST_SHAPES = 400


def features(feature_plot: FeaturePlot, view: FeatureView) -> Figure:
    """Draw one view of the finished networks.

    All panels of a plane share one scale, so that the tightness of clusters can be compared.
    """
    is_plane = view.kind == "plane"
    rows = len(feature_plot.networks)
    low = np.zeros(2)
    high = np.array([1.0, 0.8])
    if is_plane:
        low, high = _bounds(feature_plot, view)
    width, height = high - low
    aspect = float(np.clip(height / width, 0.3, 1.5))
    with plt.rc_context(STYLE):
        # as high as the panels are, since they keep the scale of the data
        size = (7.6, 0.9 + (0.6 + 3.3 * aspect) * rows)
        figure, axes = plt.subplots(
            rows, len(SPLITS), figsize=size, squeeze=False, sharex=is_plane, sharey=is_plane
        )
        for row in range(rows):
            for split, axis in zip(SPLITS, axes[row], strict=True):
                _draw_examples(axis, feature_plot, view, row, split)
                title = f"{wrapped(feature_plot.networks[row].title, 44)} · {split}"
                if is_plane:
                    _draw_templates(axis, view, row)
                    title += f"\n{_ratio_text(view, row, split)}"
                    axis.set_aspect("equal", adjustable="box")
                    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
                else:
                    axis.set_xticks([])
                    axis.set_yticks([])
                axis.set_title(title, fontsize=8)
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


def _draw_examples(
    axis: Axes, feature_plot: FeaturePlot, view: FeatureView, row: int, split: str
) -> None:
    """Draw a point for each image, with a colour and a marker for each class."""
    points = view.points[row][split][-1].numpy()
    labels = feature_plot.labels[split][view.example_indices[split]].numpy()
    for number, class_index in enumerate(view.classes):
        own = points[labels == class_index]
        axis.plot(
            own[:, 0],
            own[:, 1],
            marker(number),
            color=colour(number),
            markersize=3.2,
            alpha=0.5,
            markeredgewidth=0,
            label=label(feature_plot.class_names[class_index]),
            rasterized=len(points) > MOST_SHAPES,
        )


def _draw_templates(axis: Axes, view: FeatureView, row: int) -> None:
    """Draw the three templates of a plane as large markers."""
    for number, (x, y) in enumerate(view.templates[row][-1].numpy()):
        axis.plot(
            x,
            y,
            marker(number),
            color=colour(number),
            markersize=9,
            markeredgecolor="black",
        )


def _ratio_text(view: FeatureView, row: int, split: str) -> str:
    ratio = view.ratios[row][split][-1].item()
    return f"within/between {ratio:.3g}" if np.isfinite(ratio) else "no within/between"


def _bounds(feature_plot: FeaturePlot, view: FeatureView) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest coordinates of all points and templates, with a margin."""
    coordinates = [templates[-1].numpy() for templates in view.templates]
    for row in range(len(feature_plot.networks)):
        for split in SPLITS:
            coordinates.append(view.points[row][split][-1].numpy())
    low = np.concatenate(coordinates).min(0)
    high = np.concatenate(coordinates).max(0)
    margin = max(0.04 * (high - low).max(), 1e-6)
    return low - margin, high + margin
