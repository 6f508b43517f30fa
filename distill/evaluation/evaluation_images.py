"""Evaluate any stored run, or any timm network, on any images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import is_model
from torch import nn

from distill.data.datasets import open_dataset
from distill.data.splits import Split, Splits, load_splits
from distill.errors import UserError
from distill.evaluation.metrics import own_metrics
from distill.evaluation.predict import predict
from distill.models.class_names import match_classes, names_of_outputs, stored_names
from distill.models.factory import load_run_model
from distill.recipe.schema import Augment, Data
from distill.storage.find_runs import find_runs
from distill.storage.run_store import RunStore

SPLITS = ("all", "train", "validation", "test")
EMBEDDED = ("digits", "synthetic")  # built-in data, without a folder or a "/" in the name


@dataclass(frozen=True)
class EvalTarget:
    """A network to evaluate, and how images are prepared for it.

    Attributes:
        name: its name in tables.
        model: the network, in eval mode.
        class_names: names of its classes, in the order of its logits; None if unknown.
        temperature: its calibration temperature; None if it has none.
        augment: its augmentation, whose crop decides how images are cropped.
        image_settings: keys of `Data` for the size and the channels of images.
        split_settings: keys of `Data` for its training data: the source, and how it was split.
    """

    name: str
    model: nn.Module
    class_names: list[str] | None
    temperature: float | None
    augment: Augment
    image_settings: dict[str, Any]
    split_settings: dict[str, Any]


# ------------------------------------------------------------------------ networks


def find_networks(name: str, store: RunStore) -> list[EvalTarget]:
    """Find the timm network or the stored runs (one per seed) that a name stands for.

    Args:
        name: a run's folder, the beginning of a run id, ``STUDY:ARM``, or the name of a timm
            network, ``hf-hub:`` included.
        store: where runs are.

    Raises:
        UserError: if there is no such run or network.
    """
    if name.startswith(("hf-hub:", "local-dir:")) or is_model(name.split(".")[0]):
        return [_timm_target(name)]
    try:
        ids = dict.fromkeys(find_runs(store, name))
    except UserError as error:
        raise UserError(f"{error}; timm has no network of that name either") from None
    return [_run_target(run_id, store) for run_id in ids]


def _timm_target(name: str) -> EvalTarget:
    """Return a pretrained timm network."""
    try:
        model = timm.create_model(name, pretrained=True).eval()
    except Exception as error:
        raise UserError(f"cannot load {name}: {error}") from None
    cfg = model.pretrained_cfg
    return EvalTarget(
        name=name,
        model=model,
        class_names=names_of_outputs(model),
        temperature=None,
        augment=Augment(),
        image_settings={
            "image_size": max(cfg["input_size"][1:]),
            "crop_pct": cfg.get("crop_pct") or 1.0,
            "channels": cfg["input_size"][0],
        },
        split_settings={},
    )


def _run_target(run_id: str, store: RunStore) -> EvalTarget:
    """Return the network of a stored run."""
    record = store.record(run_id)
    model = load_run_model(store.folder(run_id))
    settings = record["settings"]
    data = settings["data"]

    channels, height, width = data["shape"]
    image_settings = {"channels": channels, "crop_pct": data.get("crop_pct", 1.0)}
    if height == width:
        image_settings["image_size"] = height

    # Leave out settings at their default. If `train: train` is written out, the data must have a
    # folder of that name, which a folder of classes lacks.
    split_settings = {"source": data["source"]}
    for key in ("train", "validation", "test"):
        if data[key] != Data.model_fields[key].default:
            split_settings[key] = data[key]

    title = f"{record['model']} {run_id}"
    if settings.get("seed") is not None:
        title += f" (seed {settings['seed']})"
    return EvalTarget(
        name=title,
        model=model,
        class_names=stored_names(model.pretrained_cfg),
        temperature=record.get("calibration_temperature"),
        augment=Augment(**settings["augment"]),
        image_settings=image_settings,
        split_settings=split_settings,
    )


# ------------------------------------------------------------------------ images


def open_evaluation_images(
    network: EvalTarget, source: str, settings: dict[str, Any], split: str | None
) -> tuple[Splits, Split, str]:
    """Open the images to evaluate a network on, at the size that it was trained with.

    Args:
        network: the network.
        source: a folder, a tar file, or a source as in a recipe's ``data.source``.
        settings: more keys of ``data``, as in a recipe.
        split: one of `SPLITS`; None for the test split, or for all images of a folder or file.

    Returns:
        the data, the split, and a description of these images.

    Raises:
        UserError: if there are no such images.
    """
    if split not in (None, *SPLITS):
        raise UserError(f"--split {split}: expected one of {', '.join(SPLITS)}")
    data = _data_settings(network, source, settings)
    notes = []
    if not network.class_names:
        notes = [
            "the network's classes have no names; they are assumed to be the images' classes, in "
            "the same order"
        ]

    if split == "all" or (split is None and Path(source).exists()):
        everything = _open_everything(data, source, must_be_one=split == "all")
        if everything:
            splits, description = everything
            return splits, splits.test, "; ".join([description, *splits.notes, *notes])

    splits = load_splits(data)
    chosen = getattr(splits, split or "test")
    description = f"{len(chosen)} images, the {split or 'test'} split of {source}"
    return splits, chosen, "; ".join([description, *splits.notes, *notes])


def _data_settings(network: EvalTarget, source: str, settings: dict[str, Any]) -> Data:
    """Return the data settings for a source; the caller's override the network's own."""
    where: dict[str, Any] = {"source": source}
    if Path(source).exists():
        where = {"source": "folder" if Path(source).is_dir() else "tar", "root": source}
    elif "/" not in source and source not in EMBEDDED:
        raise UserError(
            f"--data {source}: there is no such folder, file or source; write a source as in a "
            "recipe, for example torch/mnist"
        )
    combined: dict[str, Any] = {}
    if where["source"] == network.split_settings.get("source"):
        combined |= network.split_settings
    combined |= where
    if source not in EMBEDDED:
        combined |= network.image_settings
    combined |= settings
    return Data(**combined)


def _open_everything(data: Data, source: str, *, must_be_one: bool) -> tuple[Splits, str] | None:
    """Open a source that has no splits as one split, with a description.

    Returns:
        None if the source has splits.

    Raises:
        UserError: if the source has splits and `must_be_one`.
    """
    opened, class_names, notes = open_dataset(data)
    if len(opened) > 1:
        if must_be_one:
            raise UserError(f"--split all: {source} has splits; choose one of {', '.join(opened)}")
        return None
    images = opened["train"]
    everything = Split(images, torch.arange(len(images)))
    if not class_names:
        class_names = [str(i) for i in range(int(everything.labels.max()) + 1)]
    description = (
        f"all {len(everything)} images of {source}; if the network was trained on some of them, "
        "use --split test for those that were held out"
    )
    return Splits(data, everything, everything, everything, class_names, "", notes), description


# ------------------------------------------------------------------------ evaluation


def evaluate_network(
    network: EvalTarget, splits: Splits, split: Split, device: torch.device
) -> dict[str, Any]:
    """Compute the metrics that need only a network's own logits, as in `results.json`.

    Args:
        network: the network.
        splits: the data that the split belongs to.
        split: the images, with labels.
        device: where the network runs.

    Returns:
        the metrics by name, see `metrics.own_metrics`.

    Raises:
        UserError: if the classes of network and images differ.
    """
    match = match_classes(network.class_names, network.model.num_classes, splits.class_names)
    labels = torch.tensor(match.outputs)[split.labels]
    logits = predict(network.model.to(device), splits, split, network.augment, device)
    return own_metrics(logits.numpy(), labels.numpy(), network.temperature)
