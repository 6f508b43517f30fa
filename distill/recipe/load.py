"""From a recipe's file to its arms: axes are multiplied out, and every problem is told at once."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distill.errors import RecipeError, UserError, suggest
from distill.recipe.expand import _short_names, axis_text, expand
from distill.recipe.loss_terms import Terms, loss_settings_model, needs_teacher
from distill.recipe.schema import Analysis, Arm, ArmSettings, Augment, Data, Document, Recipe, Train
from distill.recipe.validation import check
from distill.recipe.yaml_reader import Key, Problems, override, read_yaml


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
        raise UserError(
            f"cannot read the recipe {path}: {getattr(error, 'strerror', None) or error}"
        ) from None
    problems = Problems(str(path))
    document = read_yaml(text, problems)
    if not isinstance(document, dict):
        raise RecipeError(
            f"{path}: expected a mapping with data, train, teachers, students; got {document!r}"
        )
    override(document, overrides, problems)
    recipe = build(path.stem, document, terms, problems)
    problems.stop()
    return recipe


def data_settings(assignments: Iterable[str]) -> dict[str, Any]:
    """Keys of `data`, as ``KEY=VALUE`` texts give them.

    Raises:
        RecipeError: with every problem found.
    """
    document: dict[str, Any] = {}
    problems = Problems("data")
    override(document, [text.removeprefix("data.") for text in assignments], problems)
    check(Data, {"source": "digits", **document}, (), problems)
    problems.stop()
    return document


def build(name: str, document: dict[str, Any], terms: Terms, problems: Problems) -> Recipe:
    """Check a document and expand its arms; problems are noted, not raised."""
    top = check(Document, document, (), problems)
    raw = {k: v if isinstance(v, dict) else {} for k, v in document.items()}
    train_raw = raw.get("train", {})
    if isinstance(document.get("train"), dict):
        check(Train, train_raw, ("train",), problems)
    data = (
        check(Data, raw.get("data", {}), ("data",), problems)
        if isinstance(document.get("data"), dict)
        else None
    )
    if data:
        _check_data(data, problems)
    analysis = check(Analysis, raw.get("analysis", {}), ("analysis",), problems)
    augment_raw = raw.get("data", {}).get("augment")
    common = (train_raw, augment_raw if isinstance(augment_raw, dict) else {})

    written = {}
    for role in ("teachers", "students"):
        for group, arm in raw.get(role, {}).items():
            if role == "students" and group in raw.get("teachers", {}):
                problems.add((role, group), "a teacher has this name already")
            if isinstance(arm, dict):
                written[role, group] = expand(arm, (role, group), problems)
    names = _short_names(
        {path for arms in written.values() for picked, _ in arms for path in picked}
    )
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
    return Recipe(
        name,
        data,
        [a for group in teachers.values() for a in group],
        students,
        seeds,
        top.check_teachers if top else True,
        analysis or Analysis(),
        document,
    )


def _seeds(seeds: int | list[int], problems: Problems) -> list[int]:
    if isinstance(seeds, int):
        seeds = list(range(min(seeds, 10_001)))
    if (
        not seeds
        or len(set(seeds)) != len(seeds)
        or min(seeds) < 0
        or max(seeds) >= 2**31
        or len(seeds) > 10_000
    ):
        problems.add(
            ("seeds",),
            "expected a count from 1 to 10000, or a list of different whole numbers from 0",
        )
    return seeds


def _check_data(data: Data, problems: Problems) -> None:
    known = ("digits", "synthetic", "folder", "tar")
    if data.source not in known and "/" not in data.source:
        problems.add(
            ("data", "source"), f"unknown source '{data.source}'; {suggest(data.source, known)}"
        )
    if data.source in ("folder", "tar") and not data.root:
        problems.add(("data", "source"), f"source '{data.source}' needs data.root")
    for name in ("image_size", "channels", "crop_pct"):
        if data.source in ("digits", "synthetic") and getattr(data, name) not in (None, 1.0):
            problems.add(
                ("data", name), f"source '{data.source}' has images of its own size and channels"
            )
    for role in ("validation", "test"):
        if data.source in ("digits", "synthetic") and isinstance(getattr(data, role), str):
            problems.add(
                ("data", role), f"source '{data.source}' has no named splits; give a fraction"
            )
    if data.synthetic and data.source != "synthetic":
        problems.add(("data", "synthetic"), "only source: synthetic has this key")
    if (data.mean is None) != (data.std is None):
        problems.add(("data",), "mean and std stand together or not at all")
    if data.std and min(data.std) <= 0:
        problems.add(("data", "std"), "must be positive")


def _arms(
    role: str,
    group: str,
    axes: dict[str, Any],
    settings: dict[str, Any],
    common: tuple[dict, dict],
    teachers: dict[str, list[Arm]],
    terms: Terms,
    problems: Problems,
) -> list[Arm]:
    """The arms of one expanded setting: one, or one for each arm of the teacher that it names."""
    key = (role, group)
    arm = check(ArmSettings, settings, key, problems)
    settings = {
        name: settings.get(name) if isinstance(settings.get(name), dict) else {}
        for name in ("loss", "train", "augment")
    }
    train = check(
        Train,
        {**common[0], **settings["train"]},
        (*key, "train"),
        _only(problems, settings["train"]),
    )
    augment = check(
        Augment,
        {**common[1], **settings["augment"]},
        (*key, "augment"),
        _only(problems, settings["augment"]),
    )
    loss = {
        name: _term(name, value, (*key, "loss", name), terms, problems)
        for name, value in settings["loss"].items()
    }
    if arm is None or train is None or augment is None or None in loss.values():
        return []
    model = arm.model if isinstance(arm.model, dict) else {"name": arm.model}
    if not isinstance(model.get("name"), str):
        problems.add((*key, "model"), "expected a name, or a mapping with the key name")
        return []
    _check_arm(role, arm, model, loss, key, terms, problems)
    made = []
    for chosen in itertools.product(*_named_teachers(arm, teachers, (*key, "teacher"), problems)):
        if len({t.name for t in chosen}) < len(chosen):
            problems.add(
                (*key, "teacher"),
                "an ensemble needs different teachers, but these names share an arm",
            )
            continue
        prefix = (
            ["teacher"] if len(chosen) == 1 else [f"teacher{n}" for n, _ in enumerate(chosen, 1)]
        )
        full = axes | {
            f"{of}.{k}": v for of, t in zip(prefix, chosen, strict=True) for k, v in t.axes.items()
        }
        full = {k: axis_text(v) if isinstance(v, dict | list) else v for k, v in full.items()}
        name = "/".join([group, *(f"{k}={axis_text(v)}" for k, v in full.items())])
        made.append(
            Arm(
                "teacher" if role == "teachers" else "student",
                name,
                full,
                model["name"],
                {k: v for k, v in model.items() if k != "name"},
                arm.pretrained,
                arm.checkpoint,
                arm.input_size,
                tuple(teacher.name for teacher in chosen),
                loss or None,
                train,
                augment,
            )
        )
    return made


def _named_teachers(
    arm: ArmSettings, teachers: dict[str, list[Arm]], key: Key, problems: Problems
) -> list[list[Arm]]:
    """For each teacher that an arm names, the arms that the name stands for: those of its group, or the one."""
    names = (
        []
        if arm.teacher is None
        else [arm.teacher]
        if isinstance(arm.teacher, str)
        else arm.teacher
    )
    if isinstance(arm.teacher, list) and (len(names) < 2 or len(set(names)) < len(names)):
        problems.add(key, "an ensemble needs at least two different teachers")
    found = []
    for name in names:
        found.append(
            teachers.get(name) or [a for arms in teachers.values() for a in arms if a.name == name]
        )
        if not found[-1] and name not in teachers:  # else its own problems are told
            problems.add(key, f"unknown teacher '{name}'; {suggest(name, teachers)}")
    return found


def _check_arm(
    role: str,
    arm: ArmSettings,
    model: dict[str, Any],
    loss: dict[str, Any],
    key: Key,
    terms: Terms,
    problems: Problems,
) -> None:
    """What no single key shows: weights to start from, a loss to train with, a teacher and who needs it."""
    for name in {
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "checkpoint_path",
        "num_classes",
        "in_chans",
    } & set(model):
        problems.add(
            (*key, "model", name),
            "not an argument here: weights come by pretrained or checkpoint beside "
            "model, classes and channels from the data",
        )
    if role == "students" and not loss:
        problems.add(key, "a student needs a loss; known terms: " + ", ".join(sorted(terms)))
    if not loss and not (arm.pretrained or arm.checkpoint):
        problems.add(
            key,
            "needs a loss to be trained with, or pretrained: true or checkpoint: PATH to be given",
        )
    needing = [name for name in loss if needs_teacher(terms[name])]
    if needing and arm.teacher is None:
        problems.add(
            (*key, "loss", needing[0]), "this term needs a teacher; name one with the key teacher"
        )
    if arm.teacher is not None and not needing:
        problems.add(
            (*key, "teacher"),
            "no term of the loss learns from it; add kd, dkd, logit_mse or another",
        )


def _only(problems: Problems, own: dict[str, Any]) -> Problems:
    """Where an arm says nothing of its own, the common block has been checked already: stay silent."""
    return problems if own else Problems("")


def _term(
    name: str, value: Any, key: Key, terms: Terms, problems: Problems
) -> dict[str, Any] | None:
    """Return all settings of a loss term, defaults filled in; None if there is a problem."""
    if name not in terms:
        problems.add(key, f"unknown loss term; {suggest(name, terms)}")
        return None
    if not isinstance(value, dict):
        problems.add(key, "expected a mapping; write {} for the defaults")
        return None
    checked = check(loss_settings_model(terms[name]), value, key, problems)
    return checked.model_dump() if checked else None
