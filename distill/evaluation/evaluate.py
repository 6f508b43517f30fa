"""Any stored run or network of timm's, judged on any images."""

from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models import is_model
from torch import Tensor, nn

from distill.data.datasets import open_dataset
from distill.data.splits import Split, Splits, load_splits
from distill.errors import UserError, suggest
from distill.evaluation.metrics import own_metrics
from distill.evaluation.predict import predict
from distill.models.factory import load_run_model
from distill.recipe.schema import Augment, Data
from distill.storage.find_runs import find_runs
from distill.storage.run_store import RunStore

SPLITS = ("all", "train", "validation", "test")


class EvalTarget(NamedTuple):
    """A network that is to be judged, and how it is shown images."""

    name: str
    model: nn.Module
    classes: list[str] | None
    temperature: float | None  # of its calibration
    augment: Augment
    size: dict[str, Any]  # keys of `Data`, unless the caller says otherwise
    splits: dict[str, Any]  # keys of `Data` for its own source: how that was split


def find_networks(name: str, store: RunStore) -> list[EvalTarget]:
    """The stored runs, or the one network of timm's, that a name means.

    Args:
        name: a run's folder, the beginning of its id, ``STUDY:ARM``, or a name of timm's, ``hf-hub:`` included.
        store: where runs lie.

    Raises:
        UserError: if there is no such thing.
    """
    if name.startswith(("hf-hub:", "local-dir:")) or is_model(name.split(".")[0]):
        try:
            model = timm.create_model(name, pretrained=True).eval()
        except Exception as error:
            raise UserError(f"cannot load {name}: {error}") from None
        cfg = model.pretrained_cfg
        size = {
            "image_size": max(cfg["input_size"][1:]),
            "crop_pct": cfg.get("crop_pct") or 1.0,
            "channels": cfg["input_size"][0],
        }
        names, subset = cfg.get("label_names"), infer_imagenet_subset(model)
        if not names and subset:
            names = ImageNetInfo(subset).label_names()  # WordNet's, as ImageNet's folders are named
        return [EvalTarget(name, model, list(names) if names else None, None, Augment(), size, {})]
    found = []
    try:
        ids = dict.fromkeys(find_runs(store, name))
    except UserError as error:
        raise UserError(f"{error}; and timm has no network of that name") from None
    for run_id in ids:
        record, model = store.record(run_id), load_run_model(store.folder(run_id))
        data = record["settings"]["data"]
        channels, height, width = data["shape"]
        size = {"channels": channels, "crop_pct": data.get("crop_pct", 1.0)}
        size |= {"image_size": height} if height == width else {}
        splits = {
            key: data[key] for key in ("train", "validation", "test") if data[key] is not None
        }
        names = model.pretrained_cfg.get("label_names")
        found.append(
            EvalTarget(
                _title(run_id, record),
                model,
                list(names) if names else None,
                record.get("calibration_temperature"),
                Augment(**record["settings"]["augment"]),
                size,
                {"source": data["source"], **splits},
            )
        )
    return found


def _title(run_id: str, record: dict[str, Any]) -> str:
    seed = record["settings"].get("seed")
    return f"{record['model']} {run_id}" + ("" if seed is None else f" (seed {seed})")


def open_evaluation_images(
    network: EvalTarget, place: str, settings: dict[str, Any], split: str | None
) -> tuple[Splits, Split, str]:
    """The images to evaluate_network a network on, at the size that it was trained with, and a sentence that says which they are.

    Args:
        network: that is to be judged.
        place: a folder, a tar file, or a source as in a recipe's ``data.source``.
        settings: of ``data``, as in a recipe.
        split: one of `SPLITS`; None for the test split, or for all of a folder that has no splits.

    Raises:
        UserError: if there are no such images.
    """
    if split not in (None, *SPLITS):
        raise UserError(f"--split {split}: expected one of {', '.join(SPLITS)}")
    local = Path(place).exists()
    if not local and "/" not in place and place not in ("digits", "synthetic"):
        raise UserError(
            f"--data {place}: there is no such folder or file; a source is written as in a recipe, as in "
            "torch/mnist"
        )
    source = (
        {"source": "folder" if Path(place).is_dir() else "tar", "root": place}
        if local
        else {"source": place}
    )
    size = {} if place in ("digits", "synthetic") else network.size
    own = network.splits if source["source"] == network.splits.get("source") else {}
    data = Data(**{**own, **source, **size, **settings})
    unnamed = (
        []
        if network.classes
        else ["the network's classes have no names, and are taken in the order of these"]
    )
    if split == "all" or (split is None and local):
        opened, names, notes = open_dataset(data)
        if split == "all" and len(opened) > 1:
            raise UserError(f"--split all: {place} has splits ({', '.join(opened)}); name one")
        if len(opened) == 1:
            everything = Split(opened["train"], torch.arange(len(opened["train"])))
            names = names or [str(i) for i in range(int(everything.labels.max()) + 1)]
            told = f"all {len(everything)} images of {place}; if any were trained on, --split test was held out"
            splits = Splits(data, everything, everything, everything, names, "")
            return splits, everything, "; ".join([told, *notes, *unnamed])
    splits = load_splits(data)
    chosen = getattr(splits, split or "test")
    told = f"{len(chosen)} images, the {split or 'test'} split of {place}"
    return splits, chosen, "; ".join([told, *splits.notes, *unnamed])


def evaluate_network(
    network: EvalTarget, splits: Splits, split: Split, device: torch.device
) -> dict[str, Any]:
    """Every metric that a network's answers alone tell, as in `results.json`.

    Raises:
        UserError: if the classes of network and images differ.
    """
    labels = map_labels(
        network.classes, network.model.num_classes, splits.class_names, split.labels
    )
    logits = predict(network.model.to(device), splits, split, network.augment, device)
    return own_metrics(logits.numpy(), labels.numpy(), network.temperature)


def map_labels(known: list[str] | None, count: int, names: list[str], labels: Tensor) -> Tensor:
    """Labels of images in the order of the network's classes: by name where it has names, else as they stand.

    Args:
        known: the names of the network's classes.
        count: of its classes.
        names: of the images' classes; some of the network's are enough.
        labels: ``[N]``, by these.

    Raises:
        UserError: if a class is not the network's.
    """
    if known and set(names) <= set(known):
        return torch.tensor([known.index(name) for name in names])[labels]
    if not known and len(names) == count:
        return labels
    if not known:
        raise UserError(
            f"the network has {count} classes without names, the images have {len(names)}: which is which "
            "cannot be told"
        )
    strange = next(name for name in names if name not in known)
    raise UserError(
        f"the images have a class '{strange}', unknown to the network ({suggest(strange, known)}): "
        "rename it, or leave it out"
    )
