"""The recipe: a YAML file that states one study, read strictly and expanded into arms.

In reading order: the types of a recipe; the terms of its losses; axes; loading, which reports every
problem at once; the JSON Schema. Nothing here imports torch: the terms are handed in as a table of
functions and checked by their signatures.
"""

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from distill.document import Key, Problems, RecipeError, UserError, check, dotted, nearest, override, read_yaml

Terms = Mapping[str, Callable[..., Any]]


# ---------------------------------------------------------------------------------------------- the types


class Strict(BaseModel):
    """Unknown keys and other types than the stated ones are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Fraction = Annotated[float, Field(gt=0, lt=1)]


class Augment(Strict):
    """What makes a view of an image; every draw is a function of (seed, epoch, index)."""

    shift: int = Field(0, ge=0, description="random translation by up to this many pixels in x and y, black "
                       "beyond the edge; the pad-and-crop of the CIFAR recipes is shift: 4")
    crop: int | None = Field(None, ge=1, description="random square crop of this side; the centre at evaluation")
    scale: float = Field(1.0, gt=0, le=1, description="smallest area of a random resized crop; 1 is off")
    flip: bool = Field(False, description="mirror left-right, half of the time")
    mixup: float = Field(0.0, ge=0, description="mixup's Beta parameter; 0 is off")
    cutmix: float = Field(0.0, ge=0, description="cutmix's Beta parameter; with mixup, either is drawn evenly")


class Synthetic(Strict):
    """The size of ``source: synthetic`` (torchvision's FakeData: noise with random labels)."""

    shape: tuple[int, int, int] = Field((3, 32, 32), strict=False, description="channels, height, width")
    classes: int = Field(10, ge=2)
    train: int = Field(1000, ge=1)
    test: int = Field(200, ge=1)


class Data(Strict):
    """Where the images are, how they are split, and how they are seen."""

    source: str = Field(description="digits, synthetic, or what timm.data.create_dataset takes: 'folder' or "
                        "'tar' (with root), torch/NAME, hfds/NAME, hfids/NAME, wds/NAME, tfds/NAME")
    root: str | None = Field(None, description="folder or tar file of the data")
    train: str = Field("train", description="name of the training split")
    validation: str | Fraction = Field(0.1, description="a split's name, or the fraction of the training data "
                                       "held out: stratified, always the same")
    test: str | Fraction | None = Field(None, description="a split's name or a fraction held out; found by itself")
    image_size: int | None = Field(None, ge=1, description="side that images are resized to; the images' own "
                                   "where they are small and equal, else 224")
    channels: Literal[1, 3] | None = None
    mean: list[float] | None = Field(None, description="per channel, of pixels in [0, 1]; measured by default")
    std: list[float] | None = None
    augment: Augment = Augment()
    synthetic: Synthetic | None = None
    resident_gb: float = Field(4.0, ge=0, description="splits up to this size live on the device as uint8")
    workers: int = Field(2, ge=0, description="processes that decode images")


class Train(Strict):
    """How a network is trained. Fields named in `NOT_IN_FINGERPRINT` do not change its weights."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(128, ge=1, description="images an optimizer step, over all processes")
    optimizer: str | dict[str, Any] = Field("sgd", description="timm's name (sgd is Nesterov's, momentum is "
                                            "plain), or {name: …, momentum: …} with timm's keyword arguments")
    lr: float = Field(0.1, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: str | dict[str, Any] = Field("cosine", description="timm's name, or {name: …} with the keyword "
                                           "arguments of timm's create_scheduler_v2; 'none' holds the rate")
    clip_grad: float | None = Field(None, gt=0, description="largest norm of the gradient")
    accumulate: int = Field(1, ge=1, description="parts in which a batch goes through the network")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of an average of the weights, which is "
                              "then what is stored and evaluated")
    precision: Literal["no", "bf16", "fp16"] | None = Field(None, description="the launcher's by default")
    spread: Literal["auto", "runs", "data"] = Field("auto", description="what several processes share out: "
                                                    "whole runs, or each batch")
    checkpoint_minutes: float = Field(1.0, ge=0, description="at most this much work is lost to a kill, and "
                                      "the epoch under way")


NOT_IN_FINGERPRINT = {"spread", "checkpoint_minutes"}


class ArmSettings(Strict):
    """One arm as written, after its axes are expanded."""

    model: str | dict[str, Any]
    pretrained: bool = False
    checkpoint: str | None = None
    teacher: str | None = None
    loss: dict[str, dict[str, Any]] | None = None
    train: dict[str, Any] = {}
    augment: dict[str, Any] = {}


class Document(Strict):
    """The top level of a recipe."""

    data: dict[str, Any]
    train: dict[str, Any]
    teachers: dict[str, dict[str, Any]] = {}
    students: dict[str, dict[str, Any]] = {}
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
    teacher: str | None
    loss: dict[str, dict[str, Any]] | None
    train: Train
    augment: Augment

    @property
    def given(self) -> bool:
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
    source: dict[str, Any] = field(repr=False)  # the document after overrides, for recipe.yaml

    def arm(self, name: str) -> Arm:
        """The arm of that full name; KeyError if there is none."""
        return next(a for a in self.teachers + self.students if a.name == name)


@cache
def term_model(function: Callable[..., Any]) -> type[BaseModel]:
    """The keys of a loss term: the keyword-only arguments of its function, and a weight."""
    hints = get_type_hints(function, include_extras=True)
    keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    fields: dict[str, Any] = {p.name: (hints[p.name], ... if p.default is p.empty else p.default) for p in keywords}
    weight = (Annotated[float, Field(ge=0, description="what the term is multiplied by")], 1.0)
    return pydantic.create_model(function.__name__, __base__=Strict, weight=weight, **fields)


def needs_teacher(function: Callable[..., Any]) -> bool:
    """Whether a term has no meaning without a teacher: its `teacher` has no default."""
    return inspect.signature(function).parameters["teacher"].default is inspect.Parameter.empty


# ------------------------------------------------------------------------------------------------------ axes


def expand(arm: dict[str, Any], key: Key, problems: Problems) -> list[tuple[dict[Key, Any], dict[str, Any]]]:
    """The product of an arm's lists: ``(axis values by path, the arm without lists)`` for each arm.

    A list stands for an axis wherever one value is expected; a list that is itself a value is nested,
    ``[[…]]``. A list of mappings is an axis only as `model`.
    """
    axes: dict[Key, list[Any]] = {}

    def find(value: Any, path: Key) -> None:
        if isinstance(value, dict):
            for name, child in value.items():
                find(child, (*path, name))
        elif isinstance(value, list):
            if path in [(), ("loss",), ("train",), ("augment",)] or (path[:1] == ("loss",) and len(path) == 2):
                problems.add((*key, *path), "expected a mapping (KEY: VALUE), got a list: no axis may stand here")
            elif not value:
                problems.add((*key, *path), "an axis needs at least one value")
            elif path != ("model",) and any(isinstance(v, dict) for v in value):
                problems.add((*key, *path), "an axis is a list of plain values, not of mappings")
            elif any(value.index(v) != i for i, v in enumerate(value)):
                problems.add((*key, *path), "the same value stands twice in this axis")
            else:
                axes[path] = value

    find(arm, ())
    size = 1
    for values in axes.values():
        size *= len(values)
    if size > 10_000:
        problems.add(key, f"its axes make {size} arms; at most 10000 are allowed")
        return []
    result = []
    for choice in itertools.product(*axes.values()):
        picked = dict(zip(axes, choice, strict=True))
        result.append((picked, _replace(arm, (), picked)))
    return result


def _replace(value: Any, path: Key, picked: dict[Key, Any]) -> Any:
    if path in picked:
        return picked[path]
    if isinstance(value, dict):
        return {name: _replace(child, (*path, name), picked) for name, child in value.items()}
    return value


def axis_text(value: Any) -> str:
    """An axis value as it stands in an arm's name."""
    if isinstance(value, dict):
        rest = ",".join(f"{k}={axis_text(v)}" for k, v in value.items() if k != "name")
        return f"{value.get('name')}({rest})" if rest else str(value.get("name"))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _short_names(paths: set[Key]) -> dict[Key, str]:
    """Each axis by the last word of its path, by more words where that would name two."""
    names = {}
    for path in paths:
        length = 1
        while any(other[-length:] == path[-length:] for other in paths - {path}) and length < len(path):
            length += 1
        names[path] = dotted(path[-length:])
    return names


# --------------------------------------------------------------------------------------------------- loading


def load(path: str | Path, terms: Terms, overrides: Iterable[str] = ()) -> Recipe:
    """The study that a YAML file states.

    Args:
        path: the recipe.
        terms: loss terms by name; the recipe's terms are checked by these functions' signatures.
        overrides: ``KEY=VALUE`` texts, applied before anything is checked.

    Raises:
        RecipeError: with every problem found, each with its place.
        UserError: if the file cannot be read or an override is not one.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the recipe {path}: {getattr(error, 'strerror', None) or error}") from None
    problems = Problems(str(path))
    document = read_yaml(text, problems)
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: expected a mapping with data, train, teachers, students; got {document!r}")
    override(document, overrides, problems)
    recipe = build(path.stem, document, terms, problems)
    problems.stop()
    return recipe


def build(name: str, document: dict[str, Any], terms: Terms, problems: Problems) -> Recipe:
    """Check a document and expand its arms; problems are noted, not raised."""
    top = check(Document, document, (), problems)
    raw = {k: v if isinstance(v, dict) else {} for k, v in document.items()}
    train_raw = raw.get("train", {})
    if isinstance(document.get("train"), dict):
        check(Train, train_raw, ("train",), problems)
    data = check(Data, raw.get("data", {}), ("data",), problems) if isinstance(document.get("data"), dict) else None
    if data:
        _check_data(data, problems)
    augment_raw = raw.get("data", {}).get("augment")
    common = (train_raw, augment_raw if isinstance(augment_raw, dict) else {})

    written = {}
    for role in ("teachers", "students"):
        for group, arm in raw.get(role, {}).items():
            if role == "students" and group in raw.get("teachers", {}):
                problems.add((role, group), "a teacher has this name already")
            if isinstance(arm, dict):
                written[role, group] = expand(arm, (role, group), problems)
    names = _short_names({path for arms in written.values() for picked, _ in arms for path in picked})
    teachers: dict[str, list[Arm]] = {}
    students: list[Arm] = []
    for (role, group), arms in written.items():
        made: list[Arm] = []
        for picked, settings in arms:
            axes = {names[path]: value for path, value in picked.items()}
            made += _arms(role, group, axes, settings, common, teachers, terms, problems)
        if role == "teachers":
            teachers[group] = made
        else:
            students += made
    seeds = _seeds(top.seeds if top else 1, problems)
    if top and not written:
        problems.add((), "nothing to train: name at least one arm under teachers or students")
    return Recipe(name, data, [a for group in teachers.values() for a in group], students, seeds,
                  top.check_teachers if top else True, document)


def _seeds(seeds: int | list[int], problems: Problems) -> list[int]:
    if isinstance(seeds, int):
        seeds = list(range(min(seeds, 10_001)))
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0 or max(seeds) >= 2**31 or len(seeds) > 10_000:
        problems.add(("seeds",), "expected a count from 1 to 10000, or a list of different whole numbers from 0")
    return seeds


def _check_data(data: Data, problems: Problems) -> None:
    known = ("digits", "synthetic", "folder", "tar")
    if data.source not in known and "/" not in data.source:
        problems.add(("data", "source"), f"unknown source '{data.source}'; {nearest(data.source, known)}")
    if data.source in ("folder", "tar") and not data.root:
        problems.add(("data", "source"), f"source '{data.source}' needs data.root")
    for name in ("image_size", "channels"):
        if data.source in ("digits", "synthetic") and getattr(data, name) is not None:
            problems.add(("data", name), f"source '{data.source}' has images of its own size and channels")
    for role in ("validation", "test"):
        if data.source in ("digits", "synthetic") and isinstance(getattr(data, role), str):
            problems.add(("data", role), f"source '{data.source}' has no named splits; give a fraction")
    if data.synthetic and data.source != "synthetic":
        problems.add(("data", "synthetic"), "only source: synthetic has this key")
    if (data.mean is None) != (data.std is None):
        problems.add(("data",), "mean and std stand together or not at all")
    if data.std and min(data.std) <= 0:
        problems.add(("data", "std"), "must be positive")


def _arms(role: str, group: str, axes: dict[str, Any], settings: dict[str, Any], common: tuple[dict, dict],
          teachers: dict[str, list[Arm]], terms: Terms, problems: Problems) -> list[Arm]:
    """The arms of one expanded setting: one, or one for each arm of the teacher that it names."""
    key = (role, group)
    arm = check(ArmSettings, settings, key, problems)
    settings = {name: settings.get(name) if isinstance(settings.get(name), dict) else {}
                for name in ("loss", "train", "augment")}
    train = check(Train, {**common[0], **settings["train"]}, (*key, "train"), _only(problems, settings["train"], key))
    augment = check(Augment, {**common[1], **settings["augment"]}, (*key, "augment"),
                    _only(problems, settings["augment"], key))
    loss = {name: _term(name, value, (*key, "loss", name), terms, problems) for name, value in settings["loss"].items()}
    if arm is None or train is None or augment is None or None in loss.values():
        return []
    model = arm.model if isinstance(arm.model, dict) else {"name": arm.model}
    if not isinstance(model.get("name"), str):
        problems.add((*key, "model"), "expected a name, or a mapping with the key name")
        return []
    for name in {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "num_classes",
                 "in_chans"} & set(model):
        problems.add((*key, "model", name), "not an argument here: weights come by pretrained or checkpoint beside "
                     "model, classes and channels from the data")
    if role == "students" and not loss:
        problems.add(key, "a student needs a loss; known terms: " + ", ".join(sorted(terms)))
    if not loss and not (arm.pretrained or arm.checkpoint):
        problems.add(key, "needs a loss to be trained with, or pretrained: true or checkpoint: PATH to be given")
    needing = [name for name in loss if needs_teacher(terms[name])]
    if needing and arm.teacher is None:
        problems.add((*key, "loss", needing[0]), "this term needs a teacher; name one with the key teacher")
    if arm.teacher is not None and not needing:
        problems.add((*key, "teacher"), "no term of the loss learns from it; add kd, logit_mse or hard_label")
    options: list[Arm | None] = [None]
    if arm.teacher is not None:
        single = [a for arms in teachers.values() for a in arms if a.name == arm.teacher]
        options = list(teachers.get(arm.teacher) or single)
        if not options:
            known = ", ".join(teachers) or "none is defined above"
            problems.add((*key, "teacher"), f"unknown teacher '{arm.teacher}'; {nearest(arm.teacher, teachers)}"
                         if teachers else f"unknown teacher '{arm.teacher}'; {known}")
    made = []
    for teacher in options:
        full = axes | ({f"teacher.{k}": v for k, v in teacher.axes.items()} if teacher else {})
        full = {k: axis_text(v) if isinstance(v, dict) else v for k, v in full.items()}
        name = "/".join([group, *(f"{k}={axis_text(v)}" for k, v in full.items())])
        made.append(Arm("teacher" if role == "teachers" else "student", name, full, model["name"],
                        {k: v for k, v in model.items() if k != "name"}, arm.pretrained, arm.checkpoint,
                        teacher.name if teacher else None, loss or None, train, augment))
    return made


def _only(problems: Problems, own: dict[str, Any], key: Key) -> Problems:
    """Where an arm says nothing of its own, the common block has been checked already: stay silent."""
    return problems if own else Problems("")


def _term(name: str, value: Any, key: Key, terms: Terms, problems: Problems) -> dict[str, Any] | None:
    """A term's keys without those at their defaults, so that a default written out is the same run."""
    if name not in terms:
        problems.add(key, f"unknown loss term; {nearest(name, terms)}")
        return None
    if not isinstance(value, dict):
        problems.add(key, "expected a mapping; write {} for the defaults")
        return None
    checked = check(term_model(terms[name]), value, key, problems)
    return checked.model_dump(exclude_defaults=True) if checked else None


# ---------------------------------------------------------------------------------------------------- schema


def json_schema(terms: Terms) -> dict[str, Any]:
    """JSON Schema of recipes, for completion in editors; in an arm, a list of values is an axis."""

    def inline(model: type[BaseModel]) -> dict[str, Any]:
        schema = model.model_json_schema()
        definitions = schema.pop("$defs", {})

        def resolve(node: Any) -> Any:
            if isinstance(node, dict):
                if "$ref" in node:
                    return resolve(definitions[node["$ref"].rsplit("/", 1)[1]])
                return {k: resolve(v) for k, v in node.items()}
            return [resolve(v) for v in node] if isinstance(node, list) else node

        return resolve(schema)

    def with_axes(schema: dict[str, Any]) -> dict[str, Any]:
        fields = {k: {"anyOf": [v, {"type": "array", "items": v, "minItems": 1}]}
                  for k, v in schema["properties"].items()}
        return schema | {"properties": fields, "required": []}

    arm = with_axes(inline(ArmSettings)) | {"required": ["model"]}
    losses = {name: with_axes(inline(term_model(function))) for name, function in terms.items()}
    arm["properties"] |= {
        "loss": {"type": "object", "properties": losses, "additionalProperties": False},
        "train": with_axes(inline(Train)), "augment": with_axes(inline(Augment)),
    }
    top = inline(Document)
    arms = {"type": "object", "additionalProperties": arm}
    top["properties"] |= {"data": inline(Data), "train": inline(Train), "teachers": arms, "students": arms}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top, "title": "distill recipe"}
