"""The keys of `data`: where images come from, how they are split, and how they are augmented."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from distill.errors import suggest
from distill.recipe.strict import Fraction, Strict, raise_for_keys, recipe_error

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
        description="Largest random translation in pixels, in x and in y; pixels from beyond the "
        "edge are black. The pad-and-crop of the usual CIFAR recipes is shift: 4.",
    )
    crop: int | None = Field(
        None,
        ge=1,
        description="Side of a random square crop, in pixels. At evaluation the centre is cropped.",
    )
    scale: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Smallest area of a random resized crop, as a fraction of the image; 1 turns "
        "it off.",
    )
    flip: bool = Field(
        default=False,
        description="Mirror images left to right, each with a probability of one half.",
    )
    mixup: float = Field(
        0.0, ge=0, description="Parameter of mixup's Beta distribution; 0 turns mixup off."
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        description="Parameter of cutmix's Beta distribution; 0 turns cutmix off. With mixup and "
        "cutmix, each batch uses one of them, with equal probability.",
    )

    @property
    def moves(self) -> bool:
        """Whether two views of one image can differ before images are mixed."""
        return self.shift > 0 or self.crop is not None or self.scale < 1 or self.flip

    @property
    def mixes(self) -> bool:
        """Return whether a view is mixed with that of another image, so that labels are soft."""
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
    """Where images come from, how they are split, and how they are read."""

    source: str = Field(
        description="Where images come from: digits (included in scikit-learn), synthetic (noise), "
        "folder or tar (both need root), or a name of timm.data.create_dataset: torch/NAME, "
        "hfds/NAME, hfids/NAME, wds/NAME, tfds/NAME."
    )
    root: str | None = Field(None, description="Folder or tar file that has the data.")
    train: str = Field("train", description="Name of the training split.")
    validation: str | Fraction = Field(
        0.1,
        description="Name of the validation split, or the fraction of the training images to hold "
        "out for it. The held-out images are stratified by class and the same in every run.",
    )
    test: str | Fraction | None = Field(
        None,
        description="Name of the test split, or the fraction of the images to hold out for it. By "
        "default the source's own test split or, if it has none, a fifth of the images (a third of "
        "digits).",
    )
    image_size: int | None = Field(
        None,
        ge=1,
        description="Side in pixels to which images are resized. By default small images of one "
        "size keep it; others get the size of the pretrained networks, or 224.",
    )
    crop_pct: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Fraction of the resized image's side that the central crop keeps, as in "
        "timm's configurations of pretrained networks.",
    )
    channels: Literal[1, 3] | None = Field(
        None,
        description="1 reads images in grey, 3 in colour. By default as the source has them; "
        "folders are read in colour.",
    )
    mean: list[float] | None = Field(
        None,
        description="Mean of each channel for normalisation, of pixels in [0, 1]. By default it "
        "is measured on the training images.",
    )
    std: list[Annotated[float, Field(gt=0)]] | None = Field(
        None, description="Standard deviation of each channel; set it together with mean."
    )
    augment: Augment = Field(
        Augment(), description="Augmentation of training images; an arm can have its own."
    )
    synthetic: Synthetic | None = Field(
        None, description="Size of the data set; only with source: synthetic."
    )
    background: bool = Field(
        default=False,
        description="Add a class without examples before the others, as in the 1001-class "
        "ImageNet networks of TF-slim. Label smoothing gives it its share, too.",
    )
    resident_gb: float = Field(
        4.0,
        ge=0,
        description="Keep all splits decoded (uint8) on the training device if they take at most "
        "this many GB.",
    )
    on_error: Literal["fail", "skip"] = Field(
        "fail",
        description="What to do with an image that cannot be read: stop, or leave it out and "
        "report it. skip reads every image once before training starts.",
    )
    logit_cache: Literal["exact", "float16"] | Annotated[int, Field(ge=1)] = Field(
        "exact",
        description="Precision of cached teacher logits: exact, float16, or a whole number k (the "
        "k largest logits and the remaining probability mass). float16 and k lose information and "
        "change training.",
    )
    logit_cache_gb: float = Field(
        4.0,
        ge=0,
        description="Largest size of the teacher logit cache, in GB; 0 turns the cache off.",
    )
    workers: int = Field(2, ge=0, description="Number of processes that decode images.")

    @field_validator("source")
    @classmethod
    def _check_source(cls, source: str) -> str:
        known = (*BUILT_IN_SOURCES, *FILE_SOURCES)
        if source not in known and "/" not in source:
            raise recipe_error(
                "unknown_source", f"unknown source '{source}'; {suggest(source, known)}"
            )
        return source

    @model_validator(mode="after")
    def _check_keys_together(self) -> Self:
        raise_for_keys([*self._source_conflicts(), *self._normalisation_conflicts()])
        return self

    def _source_conflicts(self) -> Iterator[tuple[str, str, str]]:
        """Yield (key, code, message) of every key that does not fit the source."""
        if self.source in FILE_SOURCES and not self.root:
            yield "root", "missing", f"this key is missing: source '{self.source}' needs data.root"
        if self.synthetic and self.source != "synthetic":
            message = f"this key is only for source 'synthetic', not for source '{self.source}'"
            yield "synthetic", "conflict", message
        if self.source not in BUILT_IN_SOURCES:
            return
        message = f"source '{self.source}' has images of its own size and channels"
        if self.image_size is not None:
            yield "image_size", "conflict", message
        if self.channels is not None:
            yield "channels", "conflict", message
        if self.crop_pct != 1.0:
            yield "crop_pct", "conflict", message
        message = f"source '{self.source}' has no named splits; give a fraction"
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
