"""A network as an ONNX file: pixels in, logits and calibrated probabilities out, checked against torch."""

import json
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.data.augment import normalise
from distill.errors import UserError
from distill.models.factory import blank_images, input_config
from distill.storage.files import atomic_write

TOLERANCE = 1e-4  # between torch's logits and the file's, of the largest logit, or of 1 where all are smaller


class Deployed(nn.Module):
    """A network with what belongs to it: ``pixels [B, C, H, W]`` in [0, 1] -> logits and probabilities ``[B, K]``."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model.eval(), temperature
        mean, std, _ = input_config(model)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the softmax of them at the calibration temperature."""
        logits = self.model((pixels - self.mean) / self.std)
        return logits, torch.softmax(logits / self.temperature, 1)


def export_onnx(
    model: nn.Module, to: Path, temperature: float = 1.0, about: dict[str, str] | None = None
) -> float:
    """Write a network to an ONNX file for batches of any size, and compare its answers with torch's.

    Args:
        model: on the CPU; normalisation and size of its input are in its `pretrained_cfg`.
        to: ends in ``.onnx``.
        temperature: of its calibration.
        about: goes into the file's metadata.

    Returns:
        the largest difference between the logits of torch and of onnxruntime, of the largest logit, or of 1.

    Raises:
        UserError: if the packages are missing, the network cannot be exported, or the answers differ by more than
            `TOLERANCE`.
    """
    if to.suffix != ".onnx":
        raise UserError(f"--to {to}: expected a file that ends in .onnx")
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch needs it)
    except ImportError as error:
        raise UserError(f"export needs {error.name}: pip install 'distill[onnx]'") from None
    deployed, example = Deployed(model, temperature), torch.rand_like(blank_images(model, 2))
    to.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(to) as aside:
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
        except Exception as error:  # whatever operation has no form in ONNX
            raise UserError(
                f"{type(model).__name__} cannot be written as ONNX: {str(error).strip()[:600]}"
            ) from None
        proto = program.model_proto
        for key, value in (about or {}).items():
            proto.metadata_props.add(key=key, value=value)
        onnx.save(proto, aside)
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        difference = max(_difference(deployed, session, count) for count in (1, 2, 5))
        if difference > TOLERANCE:
            raise UserError(
                f"{to} is not written: its answers differ from torch's by {difference:.1e} of the largest "
                f"logit ({TOLERANCE:g} is allowed)"
            )
    return difference


@torch.no_grad()
def _difference(deployed: Deployed, session: object, count: int) -> float:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.rand(blank_images(deployed.model, count).shape, generator=generator)
    mean, std, _ = input_config(deployed.model)
    expected = deployed.model(
        normalise(255 * pixels, mean, std)
    )  # as it is evaluated, not as it is wrapped
    logits, probabilities = map(torch.from_numpy, session.run(None, {"pixels": pixels.numpy()}))
    scaled = torch.softmax(expected / deployed.temperature, 1)
    return max(
        ((logits - expected).abs().max() / expected.abs().max().clamp(min=1)).item(),
        (probabilities - scaled).abs().max().item(),
    )


def about_run(run_id: str, classes: list[str], temperature: float) -> dict[str, str]:
    """What an ONNX file of a run says of itself."""
    return {
        "distill_run": run_id,
        "classes": json.dumps(classes),
        "calibration_temperature": f"{temperature:.6g}",
        "pixels": "RGB or grey, in [0, 1], of the stated height and width: short side resized (bicubic), centre "
        "cut out, as in training; normalisation is in the network",
    }
