"""Export a network as an ONNX file: pixels in, logits and calibrated probabilities out."""

import json
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill.data.augment import normalise
from distill.errors import UserError
from distill.models.factory import blank_images, input_config
from distill.storage.files import atomic_write

if TYPE_CHECKING:  # optional packages
    import onnx
    import onnxruntime

# Largest accepted difference between the outputs of torch and of the ONNX file. For logits it is
# relative to the largest absolute logit, or to 1 if that is smaller.
TOLERANCE = 1e-4
CHECKED_BATCH_SIZES = (1, 2, 5)


class DeployedModel(nn.Module):
    """A network with its normalisation before it and its calibrated softmax after it."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model = model.eval()
        self.temperature = temperature
        mean, std, _ = input_config(model)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``[B, K]``, and probabilities at the calibration temperature.

        Args:
            pixels: ``[B, C, H, W]`` in [0, 1].
        """
        logits = self.model((pixels - self.mean) / self.std)
        return logits, torch.softmax(logits / self.temperature, 1)


def export_onnx(
    model: nn.Module, to: Path, temperature: float = 1.0, about: dict[str, str] | None = None
) -> float:
    """Write a network to an ONNX file for batches of any size, and check it against torch.

    Args:
        model: on the CPU, with the size and normalisation of its input in `pretrained_cfg`.
        to: the file, which must end in ``.onnx``.
        temperature: divides the logits, for calibrated probabilities.
        about: metadata to store in the file.

    Returns:
        the largest difference between the outputs of torch and of onnxruntime; see `TOLERANCE`.

    Raises:
        UserError: if a package is missing, the network cannot be exported, or the outputs differ by
            more than `TOLERANCE`.
    """
    if to.suffix != ".onnx":
        raise UserError(f"--to {to}: expected a file that ends in .onnx")
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx.export needs it)
    except ImportError as error:
        raise UserError(
            f"export needs {error.name}: pip install onnx onnxscript onnxruntime"
        ) from None
    deployed = DeployedModel(model, temperature)
    to.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(to) as temporary:
        proto = _to_onnx(deployed)
        for key, value in (about or {}).items():
            proto.metadata_props.add(key=key, value=value)
        onnx.save(proto, temporary)
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        difference = max(_difference(deployed, session, size) for size in CHECKED_BATCH_SIZES)
        if difference > TOLERANCE:
            raise UserError(
                f"{to} was not written: its outputs differ from torch's by {difference:.1e} of "
                f"the largest logit ({TOLERANCE:g} is allowed)"
            )
    return difference


def about_run(
    run_id: str, classes: list[str], temperature: float, crop_pct: float
) -> dict[str, str]:
    """Return the metadata of an ONNX file for a run.

    Args:
        run_id: the run.
        classes: names of its classes.
        temperature: its calibration temperature.
        crop_pct: fraction of the resized image's side that the centre crop keeps.
    """
    return {
        "distill_run": run_id,
        "classes": json.dumps(classes),
        "calibration_temperature": f"{temperature:.6g}",
        "crop_pct": f"{crop_pct:.6g}",
        "pixels": (
            "RGB or greyscale in [0, 1], with the input's height and width: resize the short side "
            "(bicubic) and crop the centre, as in training; the network normalises its input"
        ),
    }


def _to_onnx(deployed: DeployedModel) -> "onnx.ModelProto":
    """Convert a network with torch.onnx; turn any exception into a UserError."""
    example = torch.rand_like(blank_images(deployed.model, 2))
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program = torch.onnx.export(
                deployed,
                (example,),
                input_names=["pixels"],
                output_names=["logits", "probabilities"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
    # torch.onnx may raise any exception for an operation that ONNX lacks
    except Exception as error:
        raise UserError(
            f"{type(deployed.model).__name__} cannot be exported to ONNX: "
            f"{str(error).strip()[:600]}"
        ) from None
    return program.model_proto


@torch.no_grad()
def _difference(
    deployed: DeployedModel, session: "onnxruntime.InferenceSession", batch_size: int
) -> float:
    """Return the largest difference between torch's and the file's outputs on random pixels."""
    generator = torch.Generator().manual_seed(batch_size)
    shape = blank_images(deployed.model, batch_size).shape
    pixels = torch.rand(shape, generator=generator)
    mean, std, _ = input_config(deployed.model)
    # call the network itself, not `deployed`, so that this checks the normalisation as well
    expected = deployed.model(normalise(255 * pixels, mean, std))
    outputs: list[Any] = session.run(None, {"pixels": pixels.numpy()})
    logits = torch.from_numpy(outputs[0])
    probabilities = torch.from_numpy(outputs[1])
    largest = expected.abs().max().clamp(min=1)
    logit_difference = (logits - expected).abs().max() / largest
    expected_probabilities = torch.softmax(expected / deployed.temperature, 1)
    probability_difference = (probabilities - expected_probabilities).abs().max()
    return max(logit_difference.item(), probability_difference.item())
