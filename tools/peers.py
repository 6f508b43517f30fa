"""Compute the distillation loss of one batch with other libraries.

    pip install keras==3.15.1 nvidia-modelopt==0.47.0 torchdistill==1.1.5
    KERAS_BACKEND=torch python tools/peers.py --json tools/results/peers.json

The batch has 4 examples of 10 classes; the temperature is 4. The reference is T² times the mean of
KL(teacher ‖ student), in float64. Each library's loss has its default settings, and others where
these differ. A library that is not installed is left out.
"""

import argparse
import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.special import log_softmax
from torch import Tensor, nn

TEMPERATURE = 4.0


def batch() -> tuple[Tensor, Tensor]:
    """Return logits of a student and of a teacher ``[4, 10]``."""
    generator = torch.Generator().manual_seed(0)
    student = 3 * torch.randn(4, 10, generator=generator)
    return student, 3 * torch.randn(4, 10, generator=generator)


def reference(student: Tensor, teacher: Tensor) -> float:
    """Return the loss as Hinton et al. (2015) define it, by numpy and scipy in float64."""
    log_p = log_softmax(student.double().numpy() / TEMPERATURE, axis=1)
    log_q = log_softmax(teacher.double().numpy() / TEMPERATURE, axis=1)
    return float(TEMPERATURE**2 * (np.exp(log_q) * (log_q - log_p)).sum(1).mean())


def of_distill(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """Return the value of `distill.losses.kd`."""
    from distill.losses import kd

    return {"default": kd(student, teacher, temperature=TEMPERATURE).mean().item()}


def of_timm(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """Return the value of timm's `LogitDistillationTask`, with networks that return the logits."""
    from timm.task import LogitDistillationTask

    class Fixed(nn.Module):
        num_classes = 10
        in_chans = 3
        pretrained_cfg: ClassVar[dict[str, Any]] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}

        def __init__(self, logits: Tensor) -> None:
            super().__init__()
            self.logits = nn.Parameter(logits.clone())

        def forward(self, images: Tensor) -> Tensor:
            return self.logits + 0 * images.sum()

    task = LogitDistillationTask(
        Fixed(student),
        Fixed(teacher),
        criterion=nn.CrossEntropyLoss(),
        temperature=TEMPERATURE,
        verbose=False,
    )
    output = task(torch.zeros(4, 3, 1, 1), torch.zeros(4, dtype=torch.long))
    return {"default": output["kd_loss"].item()}


def of_torchdistill(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """Return the value of torchdistill's `KDLoss` with weight 1 on the teacher."""
    from torchdistill.losses.mid_level import KDLoss

    values = {}
    # alpha is the weight of the labels, and has no default. At 0 the factor T² is left out.
    for name, label_weight in (("alpha=0", 0.0), ("alpha>0", 1e-12)):
        loss = KDLoss("m", "output", "m", "output", TEMPERATURE, alpha=label_weight, beta=1.0)
        labels = torch.zeros(4, dtype=torch.long)
        outputs = ({"m": {"output": student}}, {"m": {"output": teacher}})
        values[name] = loss(*outputs, labels).item()
    return values


def of_keras(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """Return the value of Keras' `LogitsDistillation`."""
    import keras
    from keras.distillation import LogitsDistillation

    default = LogitsDistillation(temperature=TEMPERATURE)
    mended = LogitsDistillation(temperature=TEMPERATURE, loss=keras.losses.KLDivergence())
    return {
        "default": float(default.compute_loss(teacher, student)),
        "loss=KLDivergence()": float(mended.compute_loss(teacher, student)),
    }


def of_modelopt(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """Return the value of ModelOpt's `LogitsDistillationLoss`."""
    from modelopt.torch.distill import LogitsDistillationLoss

    default = LogitsDistillationLoss(temperature=TEMPERATURE)
    mended = LogitsDistillationLoss(temperature=TEMPERATURE, reduction="batchmean")
    return {
        "default": default(student, teacher).item(),
        'reduction="batchmean"': mended(student, teacher).item(),
    }


LIBRARIES: dict[str, Callable[[Tensor, Tensor], dict[str, float]]] = {
    "distill": of_distill,
    "timm": of_timm,
    "torchdistill": of_torchdistill,
    "keras": of_keras,
    "nvidia-modelopt": of_modelopt,
}


def main() -> None:
    """Print the value of every installed library, and write them if a file is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write")
    arguments = parser.parse_args()
    student, teacher = batch()
    found = {"temperature": TEMPERATURE, "reference": reference(student, teacher), "libraries": {}}
    for name, function in LIBRARIES.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            print(f"{name} is not installed")
            continue
        values = function(student, teacher)
        found["libraries"][name] = {"version": installed, "values": values}
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
