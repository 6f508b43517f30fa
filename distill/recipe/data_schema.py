"""The keys of `data`: the source of the images, their splits, and their augmentation."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from distill.errors import suggest
from distill.recipe.strict import FilePath, Fraction, Strict, raise_for_keys, recipe_error

BUILT_IN_SOURCES = ("digits", "synthetic")
"""Sources without files: their images have one size, and their splits have no names."""

FILE_SOURCES = ("folder", "tar")
"""Sources that need `data.root`."""


class Augment(Strict):
    """How a training image becomes a view.

    The randomness of a view is a function of (seed, epoch, index of the image) alone.
    """

    shift: int = Field(
        0,
        ge=0,
        description="Largest random translation in pixels, in x and in y, with black padding. "
        "shift: 4 is the usual pad-and-crop for CIFAR.",
    )
    crop: int | None = Field(
        None,
        ge=1,
        description="Side of a random square crop, in pixels. Evaluation uses the centre crop.",
    )
    scale: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Smallest area of a random resized crop, as a fraction of the image's area; 1 "
        "turns the crop off.",
    )
    flip: bool = Field(
        default=False,
        description="Flip images horizontally, with probability 0.5.",
    )
    mixup: float = Field(
        0.0, ge=0, description="Parameter α of mixup's Beta(α, α) distribution; 0 turns mixup off."
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        description="Parameter α of cutmix's Beta(α, α) distribution; 0 turns cutmix off. If mixup "
        "and cutmix are both on, each image uses one of them, with equal probability.",
    )

    @property
    def moves(self) -> bool:
        """Return whether two views of one image can differ before mixup and cutmix."""
        return self.shift > 0 or self.crop is not None or self.scale < 1 or self.flip

    @property
    def mixes(self) -> bool:
        """Return whether mixup or cutmix is on, which makes labels soft."""
        return self.mixup > 0 or self.cutmix > 0


class Synthetic(Strict):
    """The size of ``source: synthetic``: noise with random labels (torchvision's FakeData)."""

    shape: tuple[int, int, int] = Field(
        (3, 32, 32), strict=False, description="Channels, height and width of an image."
    )
    classes: int = Field(10, ge=2, description="Number of classes.")
    train: int = Field(1000, ge=1, description="Number of training images.")
    test: int = Field(200, ge=1, description="Number of test images.")


class Data(Strict):
    """The source of the images, their splits, and how they are read."""

    source: str = Field(
        description="Name of the data set: digits (included in scikit-learn), synthetic (noise), "
        "folder or tar (both need root, a folder or an archive), or a name that "
        "timm.data.create_dataset knows: torch/NAME, hfds/NAME, hfids/NAME, wds/NAME, tfds/NAME."
    )
    root: FilePath | None = Field(
        None,
        description="Folder or archive (.tar, .tar.gz, .zip, …) that contains the data. A folder "
        "directly in it, or in its split, is a class.",
    )
    train: str = Field("train", description="Name of the training split.")
    validation: str | Fraction = Field(
        0.1,
        description="Name of the validation split, or the fraction of the training images to hold "
        "out for it. Held-out images are stratified by class, and are the same in every run.",
    )
    test: str | Fraction | None = Field(
        None,
        description="Name of the test split, or the fraction of the images to hold out for it. The "
        "default is the source's own test split. If the source has none, a fifth of the images is "
        "held out (a third of digits).",
    )
    image_size: int | None = Field(
        None,
        ge=1,
        description="Side in pixels to which images are resized. By default, images of equal size "
        "up to 96×96 keep their size. Other images get the size that the study's pretrained "
        "networks were trained with, or 224.",
    )
    crop_pct: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Fraction of the resized image's side that the centre crop keeps, as in timm's "
        "configurations of pretrained networks.",
    )
    channels: Literal[1, 3] | None = Field(
        None,
        description="Number of channels: 1 reads images as grey, 3 as RGB. By default, grey images "
        "of torch/NAME stay grey, and all other stored images become RGB.",
    )
    bit_depth: int | None = Field(
        None,
        ge=8,
        le=16,
        description="Number of bits that the pixels of 16-bit grey images use (cameras and "
        "scanners write 10, 12 or 14). By default, it is measured on a sample of the training "
        "images.",
    )
    image_key: str | None = Field(
        None,
        description="Which part of an example is the image, if there are several: a column of "
        "hfds/NAME, or the ending of a file in wds/NAME, as in left.png.",
    )
    label_key: str | None = Field(
        None,
        description="Which part of an example is the class: a column of hfds/NAME, or the ending "
        "of a file in wds/NAME. The default is cls in wds/NAME, and a column with a usual name in "
        "hfds/NAME, as label or fine_label.",
    )
    mean: list[float] | None = Field(
        None,
        description="Mean of each channel for normalisation, for pixels in [0, 1]. By default, it "
        "is measured on the training images.",
    )
    std: list[Annotated[float, Field(gt=0)]] | None = Field(
        None,
        description="Standard deviation of each channel for normalisation. Set it together with "
        "mean.",
    )
    augment: Augment = Field(
        Augment(), description="Augmentation of training images. An arm can have its own values."
    )
    synthetic: Synthetic | None = Field(
        None, description="Number and shape of the images, only for source: synthetic."
    )
    background: bool = Field(
        default=False,
        description="Add a background class without examples as class 0, as in the 1001-class "
        "ImageNet networks of TF-slim. Label smoothing gives mass to this class, too.",
    )
    resident_gb: float = Field(
        4.0,
        ge=0,
        description="Keep the decoded images (uint8) of all splits on the training device if they "
        "take at most this many GB. Otherwise, decode them in every epoch.",
    )
    on_error: Literal["fail", "skip"] = Field(
        "fail",
        description="What to do with an image that cannot be read. fail stops. skip leaves the "
        "image out and reports it; to find such images, it reads every image once before training.",
    )
    logit_cache: Literal["exact", "float16"] | Annotated[int, Field(ge=1)] = Field(
        "exact",
        description="Precision of cached teacher logits: exact, float16, or a whole number k, "
        "which keeps the k largest logits and the remaining probability mass. float16 and k lose "
        "information and change training.",
    )
    logit_cache_gb: float = Field(
        4.0,
        ge=0,
        description="Maximum size of the teacher logit cache, in GB; 0 turns the cache off.",
    )
    workers: int = Field(2, ge=0, description="Number of processes that decode images.")

    @field_validator("source")
    @classmethod
    def _check_source(cls, source: str) -> str:
        known = (*BUILT_IN_SOURCES, *FILE_SOURCES)
        if source not in known and "/" not in source:
            raise recipe_error(
                "unknown_source",
                f"unknown source '{source}'; {suggest(source, known)} "
                "(names of timm have a prefix, as in torch/cifar10)",
            )
        return source

    @model_validator(mode="after")
    def _check_keys_together(self) -> Self:
        raise_for_keys([*self._source_conflicts(), *self._normalisation_conflicts()])
        return self

    def _source_conflicts(self) -> Iterator[tuple[str, str, str]]:
        """Yield (key, code, message) for every key that does not fit the source."""
        if self.source in FILE_SOURCES and not self.root:
            yield "root", "missing", f"this key is missing: source '{self.source}' needs data.root"
        if self.synthetic and self.source != "synthetic":
            message = f"this key is only for source 'synthetic', not for source '{self.source}'"
            yield "synthetic", "conflict", message
        if self.source not in BUILT_IN_SOURCES:
            return
        message = (
            f"source '{self.source}' has a fixed image size and number of channels; remove this key"
        )
        if self.image_size is not None:
            yield "image_size", "conflict", message
        if self.channels is not None:
            yield "channels", "conflict", message
        if self.crop_pct != 1.0:
            yield "crop_pct", "conflict", message
        message = f"source '{self.source}' has no named splits; give a fraction, such as 0.1"
        if isinstance(self.validation, str):
            yield "validation", "conflict", message
        if isinstance(self.test, str):
            yield "test", "conflict", message

    def _normalisation_conflicts(self) -> Iterator[tuple[str, str, str]]:
        """Yield a problem if only one of mean and std is set."""
        if self.mean is not None and self.std is None:
            yield "std", "missing", "this key is missing: set mean and std together"
        if self.std is not None and self.mean is None:
            yield "mean", "missing", "this key is missing: set mean and std together"
