"""Turn a feature plot into data for the page's explorer, small enough to be part of a report."""

import base64
import io
import math
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from distill.evaluation.feature_plot import KINDS, SPLITS, FeaturePlot, FeatureView, NetworkFeatures
from distill.report.style import COLOURS

THUMBNAILS_PER_ROW = 40  # of the sheet that has them all


def explorer_data(feature_plot: FeaturePlot) -> dict[str, Any]:
    """Return everything that the explorer draws, as JSON values."""
    thumbnails = feature_plot.thumbnails
    return {
        "classes": feature_plot.class_names,
        "splits": SPLITS,
        "colours": COLOURS,
        "labels": {split: feature_plot.labels[split].tolist() for split in SPLITS},
        "sheets": {split: _thumbnail_sheet(thumbnails[split]) for split in SPLITS},
        "networks": [_network_data(network) for network in feature_plot.networks],
        "views": [_view_data(view, feature_plot.class_names) for view in feature_plot.views],
    }


def _network_data(network: NetworkFeatures) -> dict[str, Any]:
    return {
        "title": network.title,
        "epochs": network.epochs,
        "predicted": {split: network.predicted[split].tolist() for split in SPLITS},
        "confidence": {split: _rounded(network.confidence[split], 3) for split in SPLITS},
    }


def _view_data(view: FeatureView, class_names: list[str]) -> dict[str, Any]:
    """Return one view: points by network and split, and templates and ratios of a plane."""
    templates = None
    if view.templates:
        templates = [_coordinates(of_network) for of_network in view.templates]
    ratios = None
    if view.ratios:
        ratios = []
        for of_network in view.ratios:
            ratios.append({split: _rounded(of_network[split], 4) for split in SPLITS})
    points = []
    for of_network in view.points:
        points.append({split: _coordinates(of_network[split]) for split in SPLITS})
    return {
        "name": _view_name(view, class_names),
        "plane": view.kind == "plane",
        "classes": view.classes,
        "members": {split: view.example_indices[split].tolist() for split in SPLITS},
        "points": points,
        "templates": templates,
        "ratios": ratios,
    }


def _view_name(view: FeatureView, class_names: list[str]) -> str:
    if view.kind == "plane":
        return f"plane: {', '.join(class_names[index] for index in view.classes)}"
    return KINDS[view.kind]


def _coordinates(points: Tensor) -> list[Any]:
    """Return points ``[E, n, 2]`` as E flat lists x, y, x, y, …, to about 1/2000 of their range."""
    largest = 1.0
    if points.numel():
        largest = max(float(points.abs().max()), 1e-9)
    decimals = 0
    if math.isfinite(largest):
        decimals = max(0, 3 - int(np.floor(np.log10(largest))))
    return _rounded(points.flatten(1), decimals)


def _rounded(values: Tensor, decimals: int) -> Any:
    return _null_if_not_finite(np.round(values.double().numpy(), decimals).tolist())


def _null_if_not_finite(values: Any) -> Any:
    """Replace NaN and infinity in nested lists by None, since JSON has neither."""
    if isinstance(values, list):
        return [_null_if_not_finite(value) for value in values]
    return values if math.isfinite(values) else None


def _thumbnail_sheet(thumbnails: Tensor) -> dict[str, Any]:
    """Return all thumbnails ``[N, C, h, w]`` as one image, in rows of `THUMBNAILS_PER_ROW`."""
    count, channels, height, width = thumbnails.shape
    rows = math.ceil(count / THUMBNAILS_PER_ROW)
    sheet = np.zeros((rows * height, THUMBNAILS_PER_ROW * width, channels), np.uint8)
    for i, image in enumerate(thumbnails.permute(0, 2, 3, 1).numpy()):
        top = i // THUMBNAILS_PER_ROW * height
        left = i % THUMBNAILS_PER_ROW * width
        sheet[top : top + height, left : left + width] = image
    file = io.BytesIO()
    if channels == 1:
        kind = "png"
        Image.fromarray(sheet[..., 0]).save(file, "PNG")
    else:
        # photographs would take a megabyte as PNG
        kind = "jpeg"
        Image.fromarray(sheet).save(file, "JPEG")
    content = base64.b64encode(file.getvalue()).decode()
    return {
        "url": f"data:image/{kind};base64,{content}",
        "width": width,
        "height": height,
        "columns": THUMBNAILS_PER_ROW,
    }
