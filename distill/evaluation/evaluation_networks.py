"""Find the networks that `distill evaluate` can evaluate: stored runs, timm's, and ONNX files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import is_model
from torch import Tensor, nn

from distill.errors import UserError
from distill.evaluation.metrics import fitted_temperature
from distill.models.class_names import names_of_outputs, stored_names
from distill.models.factory import load_run_model
from distill.recipe.schema import Augment, Data
from distill.storage.find_runs import find_runs
from distill.storage.run_store import RunStore


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


def find_networks(name: str, store: RunStore) -> list[EvalTarget]:
    """Find the timm network or the stored runs (one per seed) that a name stands for.

    Args:
        name: a run's folder, the beginning of a run id, ``STUDY:ARM``, an ONNX file, or the name
            of a timm network, ``hf-hub:`` included.
        store: where runs are.

    Raises:
        UserError: if there is no such run or network.
    """
    if name.endswith(".onnx"):
        return [_onnx_target(Path(name))]
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
        temperature=fitted_temperature(store.predictions(run_id)),
        augment=Augment(**settings["augment"]),
        image_settings=image_settings,
        split_settings=split_settings,
    )


# ------------------------------------------------------------------------ ONNX


class OnnxNetwork(nn.Module):
    """An ONNX file that takes pixels in [0, 1] and gives logits, as `distill export` writes it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError:
            raise UserError("an ONNX file needs onnxruntime: pip install onnxruntime") from None
        # A file may be missing, damaged, or of another kind.
        try:
            self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise UserError(f"cannot open {path}: {error}") from None
        self.about = self.session.get_modelmeta().custom_metadata_map
        (image_input, *others) = self.session.get_inputs()
        shape = image_input.shape
        if others or len(shape) != 4 or not all(isinstance(side, int) for side in shape[1:]):
            raise UserError(
                f"{path} takes {[one.shape for one in self.session.get_inputs()]}; expected one "
                "input [batch, channels, height, width] of a fixed size, as `distill export` writes"
            )
        self.input_name = image_input.name
        names = [one.name for one in self.session.get_outputs()]
        self.output_name = "logits" if "logits" in names else names[0]
        self.num_classes = int(self.session.get_outputs()[names.index(self.output_name)].shape[1])
        # The file normalises its input itself.
        self.pretrained_cfg = {
            "input_size": tuple(shape[1:]),
            "mean": (0.0,) * shape[1],
            "std": (1.0,) * shape[1],
        }

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits ``[B, K]`` of pixels in [0, 1]."""
        (logits,) = self.session.run([self.output_name], {self.input_name: pixels.cpu().numpy()})
        return torch.from_numpy(logits).to(pixels.device)


def _onnx_target(path: Path) -> EvalTarget:
    """Return the network of an ONNX file."""
    model = OnnxNetwork(path)
    temperature = model.about.get("calibration_temperature")
    channels, height, width = model.pretrained_cfg["input_size"]
    return EvalTarget(
        name=path.name,
        model=model.eval(),
        class_names=json.loads(model.about.get("classes", "[]")) or None,
        temperature=float(temperature) if temperature else None,
        augment=Augment(),
        image_settings={
            "image_size": max(height, width),
            "crop_pct": float(model.about.get("crop_pct", 1.0)),
            "channels": channels,
        },
        split_settings={},
    )
