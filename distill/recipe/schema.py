"""The recipe: the types of what a YAML file may state, the terms of a loss, and the JSON Schema.

Nothing here imports torch: the terms are handed in as a table of functions, and their keys are their
signatures.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

# ---------------------------------------------------------------------------------------------- the types


class Strict(BaseModel):
    """Unknown keys and other types than the stated ones are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Fraction = Annotated[float, Field(gt=0, lt=1)]


class Augment(Strict):
    """What makes a view of an image; every draw is a function of (seed, epoch, index)."""

    shift: int = Field(
        0,
        ge=0,
        description="random translation by up to this many pixels in x and y, black "
        "beyond the edge; the pad-and-crop of the CIFAR recipes is shift: 4",
    )
    crop: int | None = Field(
        None, ge=1, description="random square crop of this side; the centre at evaluation"
    )
    scale: float = Field(
        1.0, gt=0, le=1, description="smallest area of a random resized crop; 1 is off"
    )
    flip: bool = Field(False, description="mirror left-right, half of the time")
    mixup: float = Field(0.0, ge=0, description="mixup's Beta parameter; 0 is off")
    cutmix: float = Field(
        0.0, ge=0, description="cutmix's Beta parameter; with mixup, either is drawn evenly"
    )

    @property
    def moves(self) -> bool:
        """Whether views of one image differ without another image's help."""
        return self.shift > 0 or self.crop is not None or self.scale < 1 or self.flip

    @property
    def mixes(self) -> bool:
        """Return whether a view is mixed with that of another image (mixup, cutmix)."""
        return self.mixup > 0 or self.cutmix > 0


class Synthetic(Strict):
    """The size of ``source: synthetic`` (torchvision's FakeData: noise with random labels)."""

    shape: tuple[int, int, int] = Field(
        (3, 32, 32), strict=False, description="channels, height, width"
    )
    classes: int = Field(10, ge=2, description="of its labels")
    train: int = Field(1000, ge=1, description="images")
    test: int = Field(200, ge=1, description="images")


class Data(Strict):
    """Where the images are, how they are split, and how they are seen."""

    source: str = Field(
        description="digits, synthetic, or what timm.data.create_dataset takes: 'folder' or "
        "'tar' (with root), torch/NAME, hfds/NAME, hfids/NAME, wds/NAME, tfds/NAME"
    )
    root: str | None = Field(None, description="folder or tar file of the data")
    train: str = Field("train", description="name of the training split")
    validation: str | Fraction = Field(
        0.1,
        description="a split's name, or the fraction of the training data "
        "held out: stratified, always the same",
    )
    test: str | Fraction | None = Field(
        None, description="a split's name or a fraction held out; found by itself"
    )
    image_size: int | None = Field(
        None,
        ge=1,
        description="side that images are resized to; the images' own "
        "where they are small and equal, else that of the pretrained networks, else 224",
    )
    crop_pct: float = Field(
        1.0,
        gt=0,
        le=1,
        description="the share of the resized image's side that is cut out of its "
        "centre, as timm's pretrained networks name it",
    )
    channels: Literal[1, 3] | None = Field(
        None,
        description="1 reads images as grey, 3 in colour; by default as the "
        "source has them (folders in colour)",
    )
    mean: list[float] | None = Field(
        None, description="per channel, of pixels in [0, 1]; measured by default"
    )
    std: list[float] | None = Field(None, description="see mean; both or neither")
    augment: Augment = Field(
        Augment(), description="how training sees images; an arm may have its own"
    )
    synthetic: Synthetic | None = Field(None, description="its size, for that source")
    background: bool = Field(
        False,
        description="put a class without examples before the others, as TF-slim's "
        "1001-class ImageNet networks have it; it takes a share of a smoothed target",
    )
    resident_gb: float = Field(
        4.0, ge=0, description="splits up to this size live on the device as uint8"
    )
    on_error: Literal["fail", "skip"] = Field(
        "fail",
        description="skip leaves out images that cannot be read, and "
        "says so; for that every image is read once before anything is trained",
    )
    logit_cache: Literal["exact", "float16"] | Annotated[int, Field(ge=1)] = Field(
        "exact",
        description="how teachers' answers to training views are kept for later studies: as they are, "
        "rounded, or the so many largest logits and the mass of the others; the last two change what students learn",
    )
    logit_cache_gb: float = Field(
        4.0, ge=0, description="GB that all kept answers may take; 0 keeps none"
    )
    workers: int = Field(2, ge=0, description="processes that decode images")


class Train(Strict):
    """How a network is trained. Fields named in `NOT_IN_FINGERPRINT` do not change its weights."""

    epochs: int = Field(ge=1, description="passes over the training split")
    batch_size: int = Field(128, ge=1, description="images an optimizer step, over all processes")
    optimizer: str | dict[str, Any] = Field(
        "sgd",
        description="timm's name (sgd is Nesterov's, momentum is "
        "plain), or {name: …, momentum: …} with timm's keyword arguments",
    )
    lr: float = Field(
        0.1, gt=0, description="learning rate, for the whole batch: it is not scaled by anything"
    )
    weight_decay: float = Field(
        0.0, ge=0, description="of weights but biases and norms, as timm's optimizers take it"
    )
    schedule: str | dict[str, Any] = Field(
        "cosine",
        description="timm's name, or {name: …} with the keyword "
        "arguments of timm's create_scheduler_v2; 'none' holds the rate",
    )
    clip_grad: float | None = Field(None, gt=0, description="largest norm of the gradient")
    accumulate: int = Field(1, ge=1, description="parts in which a batch goes through the network")
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of an average of the weights, which is "
        "then what is stored and evaluated",
    )
    channels_last: bool = Field(
        False,
        description="images and weights with channels innermost: faster for "
        "convolutions in half precision",
    )
    compile: bool = Field(
        False, description="torch.compile; half a minute or more for each kind of network, once"
    )
    precision: Annotated[
        Literal["no", "bf16", "fp16"] | None, BeforeValidator(lambda p: "no" if p is False else p)
    ] = Field(None, description="the launcher's by default")  # YAML reads no as false
    weight_norms: bool = Field(
        False,
        description="log the norms of every layer's weights, and how far they are from "
        "the start, each epoch",
    )
    snapshots: int = Field(
        0,
        ge=0,
        description="so many states of the network on the way, from the first weights on, "
        "are kept with the run, to be looked at later",
    )
    parallelism: Literal["auto", "runs", "batches"] = Field(
        "auto", description="what several processes share out: whole runs, or each batch"
    )
    checkpoint_minutes: float = Field(
        1.0, ge=0, description="at most about this much work is lost to a kill"
    )

    @property
    def snapshot_epochs(self) -> set[int]:
        """After how many epochs a state is kept: evenly spread, the first weights among them and the last not."""
        return {i * self.epochs // self.snapshots for i in range(self.snapshots)}


NOT_IN_FINGERPRINT = {"parallelism", "checkpoint_minutes", "weight_norms", "snapshots"}


# YAML reads the names of digits as numbers
ClassNames = list[
    Annotated[str, BeforeValidator(lambda name: str(name) if type(name) is int else name)]
]


class Analysis(Strict):
    """How far trained networks are looked into. Nothing here changes a weight."""

    examples: int = Field(
        100,
        ge=0,
        description="images of each class whose features are looked at (10,000 in all "
        "at most); 0 for none",
    )
    classes: ClassNames | None = Field(
        None,
        min_length=3,
        max_length=3,
        description="the three classes that are "
        "drawn; by default those confused most, and the most confused pair with one far "
        "from it",
    )
    num_attacked: int = Field(500, ge=0, description="test images that are attacked; 0 for none")
    eps_linf: float = Field(
        8 / 255, gt=0, le=1, description="how far an attack may move each pixel, of [0, 1]"
    )
    eps_l2: float = Field(
        0.5,
        gt=0,
        description="how far an attack may move a whole image (Euclidean), pixels in [0, 1]",
    )
    steps: int = Field(20, ge=1, description="of projected gradient ascent")
    num_views: int = Field(
        40,
        ge=0,
        description="views of each image for the mean answer, where information about "
        "single images is estimated (it comes out about 1 / 2 draws nats too low); 0 for none",
    )
    pair: ClassNames | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="the two classes that are told "
        "apart there; by default one of the most confused and one far from it",
    )


class ArmSettings(Strict):
    """One arm as written, after its axes are expanded."""

    model: str | dict[str, Any] = Field(
        description="timm's name, or {name: …, drop_rate: 0.5} with its arguments"
    )
    pretrained: bool = Field(
        False, description="start from timm's weights; a head of other classes is replaced"
    )
    checkpoint: str | None = Field(
        None,
        description="start from these weights: a run's folder, a timm folder or a "
        ".safetensors file",
    )
    input_size: int | None = Field(
        None,
        ge=1,
        description="side that this network is shown views at, resized; by "
        "default the views' own, and for a given network what it was trained with",
    )
    teacher: str | list[str] | None = Field(
        None,
        description="an arm of teachers; [[a, b]] is an ensemble, the mean of their probabilities",
    )
    loss: dict[str, dict[str, Any]] | None = Field(
        None,
        description="terms by name, each with its keys; a teacher "
        "without a loss is given, not trained",
    )
    train: dict[str, Any] = Field({}, description="keys of train that this arm has its own of")
    augment: dict[str, Any] = Field(
        {}, description="keys of data.augment that this arm has its own of"
    )


class Document(Strict):
    """The top level of a recipe."""

    data: dict[str, Any] = Field(description="the images; keys below")
    train: dict[str, Any] = Field(description="how networks are trained; keys below")
    analysis: dict[str, Any] = Field({}, description="how far they are looked into; keys below")
    teachers: dict[str, dict[str, Any]] = Field(
        {}, description="arms that others may learn from, by name"
    )
    students: dict[str, dict[str, Any]] = Field({}, description="arms that are compared, by name")
    seeds: int | list[int] = Field(1, description="a count or a list")
    check_teachers: bool = Field(True, description="stop when a teacher is no better than chance")


@dataclass(frozen=True)
class Arm:
    """One teacher or student setting, complete: what a run needs beside its seed."""

    role: Literal["teacher", "student"]
    name: str
    axes: dict[str, Any]
    model: str
    model_args: dict[str, Any]
    pretrained: bool
    checkpoint: str | None
    input_size: int | None
    teachers: tuple[str, ...]  # more than one are an ensemble
    loss: dict[str, dict[str, Any]] | None
    train: Train
    augment: Augment

    @property
    def frozen(self) -> bool:
        """Whether the network is taken as it is (no loss to train it with)."""
        return self.loss is None


@dataclass(frozen=True)
class Recipe:
    """One study: common data, arms in the recipe's order, seeds."""

    name: str
    data: Data
    teachers: list[Arm]
    students: list[Arm]
    seeds: list[int]
    check_teachers: bool
    analysis: Analysis
    source: dict[str, Any] = field(repr=False)  # the document after overrides, for recipe.yaml

    @property
    def arms(self) -> list[Arm]:
        """Teachers, then students."""
        return self.teachers + self.students

    def arm(self, name: str) -> Arm:
        """The arm of that full name; KeyError if there is none."""
        return next(a for a in self.arms if a.name == name)
