"""The keys of `train`: how a network is trained."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from distill.recipe.strict import Strict

NOT_IN_FINGERPRINT = {"parallelism", "checkpoint_minutes", "weight_norms", "snapshots"}
"""Keys of `train` that do not change the trained weights: changing them retrains no run."""


def _no_from_yaml(value: Any) -> Any:
    """Return ``"no"`` for False, because YAML 1.1 reads the word no as false."""
    return "no" if value is False else value


class Train(Strict):
    """How a network is trained."""

    epochs: int = Field(ge=1, description="Number of passes over the training split.")
    batch_size: int = Field(
        128, ge=1, description="Number of images per optimizer step, over all processes together."
    )
    optimizer: str | dict[str, Any] = Field(
        "sgd",
        description="Name of a timm optimizer (sgd has Nesterov momentum, momentum has plain "
        "momentum), or a mapping {name: …, momentum: …} with its arguments.",
    )
    lr: float = Field(
        0.1,
        gt=0,
        description="Learning rate. It is not scaled with the batch size or the number of "
        "processes.",
    )
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="Weight decay. By default, timm's optimizers do not apply it to biases and "
        "normalisation layers.",
    )
    schedule: str | dict[str, Any] = Field(
        "cosine",
        description="Name of a timm learning rate schedule, or a mapping {name: …} with arguments "
        "of timm's create_scheduler_v2. none keeps the learning rate constant.",
    )
    clip_grad: float | None = Field(
        None,
        gt=0,
        description="Maximum norm of the gradient of the network and of trained loss modules "
        "together. Larger gradients are scaled down to this norm.",
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="Number of micro-batches into which a batch is split to save memory. Their "
        "gradients are accumulated.",
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of an exponential moving average of the weights. If it is set, the "
        "averaged weights are stored and evaluated.",
    )
    channels_last: bool = Field(
        default=False,
        description="Keep images and weights in channels-last memory format, which makes "
        "convolutions in half precision faster.",
    )
    compile: bool = Field(
        default=False,
        description="Compile networks with torch.compile. This takes half a minute or more for "
        "each kind of network.",
    )
    precision: Annotated[Literal["no", "bf16", "fp16"] | None, BeforeValidator(_no_from_yaml)] = (
        Field(
            None,
            description="Mixed precision: bf16, fp16, or no (float32). The default is the setting "
            "of accelerate's launcher.",
        )
    )
    weight_norms: bool = Field(
        default=False,
        description="After each epoch, log the norm of every layer's weights and their distance "
        "from the initial weights.",
    )
    snapshots: int = Field(
        0,
        ge=0,
        description="Number of snapshots (intermediate checkpoints) to keep for the analysis. They "
        "are evenly spaced and include the initial weights.",
    )
    parallelism: Literal["auto", "runs", "batches"] = Field(
        "auto",
        description="How several processes share the work. runs: each process trains whole runs. "
        "batches: all processes share every batch. auto chooses one of the two.",
    )
    checkpoint_minutes: float = Field(
        1.0,
        ge=0,
        description="Minutes between checkpoints. A killed process loses at most about this much "
        "work.",
    )

    @property
    def snapshot_epochs(self) -> set[int]:
        """Return the finished epochs at each snapshot: evenly spaced from 0, without the last."""
        return {i * self.epochs // self.snapshots for i in range(self.snapshots)}
