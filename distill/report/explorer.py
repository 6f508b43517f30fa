"""A feature_plot of features as data for the page that shows it: small enough to be part of a report."""

import base64
import io
import math
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from distill.evaluation.feature_plot import KINDS, SPLITS, FeaturePlot
from distill.report.style import COLOURS

COLUMNS = 40  # thumbnails in a row of their sheet


def explorer_data(feature_plot: FeaturePlot) -> dict[str, Any]:
    """Everything that the page draws, as JSON values."""
    rows = range(len(feature_plot.networks))
    return {
        "classes": feature_plot.class_names,
        "splits": SPLITS,
        "colours": COLOURS,
        "labels": {split: feature_plot.labels[split].tolist() for split in SPLITS},
        "sheets": {split: _sheet(feature_plot.thumbnails[split]) for split in SPLITS},
        "networks": [
            {
                "title": n.title,
                "epochs": n.epochs,
                "predicted": {split: n.predicted[split].tolist() for split in SPLITS},
                "confidence": {split: _rounded(n.confidence[split], 3) for split in SPLITS},
            }
            for n in feature_plot.networks
        ],
        "views": [
            {
                "name": _name(feature_plot, number),
                "plane": view.kind == "plane",
                "classes": view.classes,
                "members": {split: view.example_indices[split].tolist() for split in SPLITS},
                "points": [
                    {split: _points(view.points[row][split]) for split in SPLITS} for row in rows
                ],
                "templates": [_points(view.templates[row]) for row in rows]
                if view.templates
                else None,
                "ratios": [
                    {split: _rounded(view.ratios[row][split], 4) for split in SPLITS}
                    for row in rows
                ]
                if view.ratios
                else None,
            }
            for number, view in enumerate(feature_plot.views)
        ],
    }


def _name(feature_plot: FeaturePlot, number: int) -> str:
    view = feature_plot.views[number]
    names = ", ".join(feature_plot.class_names[k] for k in view.classes)
    return f"plane: {names}" if view.kind == "plane" else KINDS[view.kind]


def _rounded(values: Tensor, decimals: int) -> Any:
    return _finite(np.round(values.double().numpy(), decimals).tolist())


def _finite(values: Any) -> Any:
    """JSON has no infinity: null stands for what is no number."""
    if isinstance(values, list):
        return [_finite(value) for value in values]
    return values if math.isfinite(values) else None


def _points(values: Tensor) -> list[Any]:
    """Coordinates to a two-thousandth of their reach, flat by epoch: x, y, x, y, …"""
    reach = max(float(values.abs().max()), 1e-9) if values.numel() else 1.0
    decimals = max(0, 3 - int(np.floor(np.log10(reach)))) if math.isfinite(reach) else 0
    return _rounded(values.flatten(1), decimals)


def _sheet(thumbnails: Tensor) -> dict[str, Any]:
    """All thumbnails as one feature_plot, in rows of `COLUMNS`."""
    count, channels, height, width = thumbnails.shape
    lines = -(-count // COLUMNS)
    sheet = np.zeros((lines * height, COLUMNS * width, channels), np.uint8)
    for i, image in enumerate(thumbnails.permute(0, 2, 3, 1).numpy()):
        top, left = i // COLUMNS * height, i % COLUMNS * width
        sheet[top : top + height, left : left + width] = image
    file = io.BytesIO()
    # photographs would be a megabyte as PNG
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(
        file, *(("PNG",) if channels == 1 else ("JPEG",))
    )
    kind = "png" if channels == 1 else "jpeg"
    return {
        "url": f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}",
        "width": width,
        "height": height,
        "columns": COLUMNS,
    }
