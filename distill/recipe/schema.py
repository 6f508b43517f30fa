"""The types of a recipe.

A recipe has two forms. `Document` and `ArmSettings` describe what a YAML file can contain. These
pydantic models check the file, and the JSON Schema and the tables of recipes/README.md are made
from them. The rest of the package works with `Recipe` and `Arm`: complete settings, with every
sweep multiplied out.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from distill.recipe.analysis_schema import Analysis
from distill.recipe.data_schema import Augment, Data, Synthetic
from distill.recipe.strict import FilePath, Name, Strict, raise_for_keys, recipe_error
from distill.recipe.train_schema import NOT_IN_FINGERPRINT, Train

__all__ = [
    "NOT_IN_FINGERPRINT",
    "Analysis",
    "Arm",
    "ArmSettings",
    "Augment",
    "Data",
    "Document",
    "Recipe",
    "Strict",
    "Synthetic",
    "Train",
]

MAX_SEEDS = 10_000

RESERVED_MODEL_ARGS = (
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "num_classes",
    "in_chans",
)
"""Arguments of timm.create_model that distill sets itself."""


@dataclass(frozen=True)
class Arm:
    """One setting of a teacher or a student, complete except for the seed: each seed gives a run.

    Attributes:
        role: other arms can learn from a teacher; students are compared with each other.
        name: the name in the recipe, followed by ``/key=value`` for each swept value.
        axes: swept values by the shortest unique name of their key, including those of the teacher
            as ``teacher.key``.
        model: name of the network in timm or in `distill.models`.
        model_args: further arguments of the network.
        pretrained: whether to start from timm's weights.
        checkpoint: weights to start from, if any: a folder of a run or of timm, or a file.
        input_size: side in pixels to which views are resized for this network; None keeps the size
            of the views.
        teachers: names of the arms that it learns from; several names are an ensemble.
        loss: settings of every loss term, by the name of the term; None for a frozen network.
        train: how it is trained.
        augment: how training images are augmented.
    """

    role: Literal["teacher", "student"]
    name: str
    axes: dict[str, Any]
    model: str
    model_args: dict[str, Any]
    pretrained: bool
    checkpoint: str | None
    input_size: int | None
    teachers: tuple[str, ...]
    loss: dict[str, dict[str, Any]] | None
    train: Train
    augment: Augment

    @property
    def frozen(self) -> bool:
        """Return whether the network is used as it is: it has no loss and is not trained."""
        return self.loss is None


@dataclass(frozen=True)
class Recipe:
    """One study: data, arms and seeds.

    Attributes:
        name: the name of the study, which is the name of the file.
        data: where images come from.
        teachers: all teacher arms, in the order of the recipe.
        students: all student arms, in the order of the recipe.
        seeds: each arm is trained once for each seed.
        check_teachers: whether to stop when a teacher is not better than chance.
        analysis: how trained networks are analysed.
        source: the document with overrides applied, to be stored with the results.
    """

    name: str
    data: Data
    teachers: list[Arm]
    students: list[Arm]
    seeds: list[int]
    check_teachers: bool
    analysis: Analysis
    source: dict[str, Any] = field(repr=False)

    @property
    def arms(self) -> list[Arm]:
        """Return all arms: teachers, then students."""
        return self.teachers + self.students

    def arm(self, name: str) -> Arm:
        """Return the arm with that full name.

        Raises:
            KeyError: if there is none.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(name)


class ArmSettings(Strict):
    """One arm as written in a recipe, with one value chosen from every sweep."""

    model: str | dict[str, Any] = Field(
        description="Name of the network, from timm or from distill. To set arguments, write a "
        "mapping, as in {name: resnet18, drop_rate: 0.5}."
    )
    pretrained: bool = Field(
        default=False,
        description="Start from timm's pretrained weights. If the data have another number of "
        "classes, a new classifier replaces the pretrained one (for a frozen teacher, this is an "
        "error).",
    )
    checkpoint: FilePath | None = Field(
        None,
        description="Start from these weights: the folder of a run, a folder in timm's format, or "
        "a file (.safetensors, .pth, .pt, .bin, .ckpt) with weights by name. A classifier for "
        "other classes is replaced.",
    )
    input_size: int | None = Field(
        None,
        ge=1,
        description="Side in pixels to which views are resized for this network. By default, views "
        "keep their size; for a frozen teacher, they get the size that it was trained with.",
    )
    teacher: Name | list[Name] | None = Field(
        None,
        description="Name of the teacher's arm. [[a, b]] is an ensemble, which averages the "
        "teachers' probabilities.",
    )
    loss: dict[str, Any] | None = Field(
        None,
        description="Terms of the loss by name, each with its own keys (see below). A teacher "
        "without a loss is frozen: it is used as it is and not trained.",
    )
    train: dict[str, Any] = Field(
        {}, description="Keys of train that have other values for this arm."
    )
    augment: dict[str, Any] = Field(
        {}, description="Keys of data.augment that have other values for this arm."
    )

    @property
    def model_name(self) -> str:
        """Return the name of the network."""
        return self.model if isinstance(self.model, str) else self.model["name"]

    @property
    def model_args(self) -> dict[str, Any]:
        """Return the arguments of the network, without its name."""
        if isinstance(self.model, str):
            return {}
        return {key: value for key, value in self.model.items() if key != "name"}

    @property
    def teacher_names(self) -> list[str]:
        """Return the names of the teachers: none, one, or those of an ensemble."""
        if self.teacher is None:
            return []
        return [self.teacher] if isinstance(self.teacher, str) else self.teacher

    @field_validator("model")
    @classmethod
    def _check_model(cls, model: str | dict[str, Any]) -> str | dict[str, Any]:
        if isinstance(model, str):
            return model
        if not isinstance(model.get("name"), str):
            raise recipe_error("invalid_model", "must be a name, or a mapping with the key 'name'")
        message = (
            "this argument cannot be set here; the keys pretrained and checkpoint beside model "
            "choose the weights, and the data determine the numbers of classes and channels"
        )
        raise_for_keys((name, "reserved", message) for name in RESERVED_MODEL_ARGS if name in model)
        return model

    @field_validator("teacher")
    @classmethod
    def _check_ensemble(cls, teacher: str | list[str] | None) -> str | list[str] | None:
        if isinstance(teacher, list):
            has_repetitions = len(set(teacher)) < len(teacher)
            if len(teacher) < 2 or has_repetitions:
                message = "an ensemble needs at least two different teachers"
                raise recipe_error("invalid_ensemble", message)
        return teacher


def _list_of_seeds(seeds: int | list[int]) -> list[int]:
    """Return the seeds as a list: a count n becomes 0, …, n - 1."""
    if isinstance(seeds, int):
        # A huge count must not make a huge list; the check below refuses it.
        seeds = list(range(min(seeds, MAX_SEEDS + 1)))
    is_valid = (
        1 <= len(seeds) <= MAX_SEEDS
        and len(set(seeds)) == len(seeds)
        and all(0 <= seed < 2**31 for seed in seeds)
    )
    if not is_valid:
        raise recipe_error(
            "invalid_seeds",
            f"must be a count from 1 to {MAX_SEEDS}, or a list of different whole numbers from 0 "
            f"to {2**31 - 1}",
        )
    return seeds


class Document(Strict):
    """The top level of a recipe as written in YAML.

    Arms are plain mappings here, because a list in an arm may be a sweep. `ArmSettings` checks each
    arm that the sweeps make.
    """

    data: Data = Field(description="Where images come from; see the keys of data below.")
    train: Train = Field(description="How networks are trained; see the keys of train below.")
    analysis: Analysis = Field(
        Analysis(),
        description="How trained networks are analysed; see the keys of analysis below.",
    )
    teachers: dict[str, dict[str, Any]] = Field(
        {}, description="Arms that other arms can learn from, by name."
    )
    students: dict[str, dict[str, Any]] = Field(
        {}, validate_default=True, description="Arms that are compared with each other, by name."
    )
    seeds: Annotated[int | list[int], AfterValidator(_list_of_seeds)] = Field(
        1,
        validate_default=True,
        description="Number of seeds, or a list of seeds. Each arm is trained once for each seed.",
    )
    check_teachers: bool = Field(
        default=True, description="Stop when a teacher's validation accuracy is not above chance."
    )

    @field_validator("students")
    @classmethod
    def _check_that_there_are_arms(
        cls, students: dict[str, dict[str, Any]], info: ValidationInfo
    ) -> dict[str, dict[str, Any]]:
        # The teachers are missing from the data if they have problems of their own.
        no_teachers = info.data.get("teachers") == {}
        if no_teachers and not students:
            message = "nothing to train: add at least one arm under teachers or students"
            raise recipe_error("no_arms", message)
        return students
