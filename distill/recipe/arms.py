"""Build the arms of a recipe: multiply out sweeps, check every setting, find teachers by name."""

import itertools
from typing import Any

from distill.errors import suggest
from distill.recipe.expand import SweepPoint, expand, short_names, sweep_value_text
from distill.recipe.loss_terms import Terms, loss_settings_model, needs_teacher
from distill.recipe.problems import Key, Problems
from distill.recipe.schema import Arm, ArmSettings, Augment, Train
from distill.recipe.validation import check

ROLES = {"teachers": "teacher", "students": "student"}
"""Role of the arms under each of these keys of the document."""


class ArmBuilder:
    """Builds the arms of one document and collects their problems.

    Attributes:
        teachers: the teacher arms built so far, by their name in the document. A name has several
            arms if the arm has sweeps.
        students: the student arms built so far.
    """

    def __init__(self, document: dict[str, Any], terms: Terms, problems: Problems) -> None:
        """Prepare to build the arms of a document.

        Args:
            document: the recipe as written, which may have problems anywhere.
            terms: the known loss terms.
            problems: collects the problems of the arms.
        """
        self.document = document
        self.terms = terms
        self.problems = problems
        self.teachers: dict[str, list[Arm]] = {}
        self.students: list[Arm] = []
        data = _mapping_or_empty(document, "data")
        self._common_train = _mapping_or_empty(document, "train")
        self._common_augment = _mapping_or_empty(data, "augment")

    def build(self) -> None:
        """Build all arms: teachers first, in the order of the document."""
        expanded: dict[Key, list[SweepPoint]] = {}
        for section in ROLES:
            for name, arm in _mapping_or_empty(self.document, section).items():
                key = (section, name)
                if section == "students" and name in _mapping_or_empty(self.document, "teachers"):
                    message = "a teacher already has this name; choose another name"
                    self.problems.add(key, "duplicate_name", message)
                if isinstance(arm, dict):
                    expanded[key] = expand(arm, key, self.problems)

        sweeps = {path for points in expanded.values() for point in points for path in point.values}
        names = short_names(sweeps)

        for (section, name), points in expanded.items():
            arms: list[Arm] = []
            for point in points:
                axes = {names[path]: value for path, value in point.values.items()}
                arms += self._arms((section, name), axes, point.settings)
            if section == "teachers":
                self.teachers[name] = arms
            else:
                self.students += arms

    def _arms(self, key: Key, axes: dict[str, Any], settings: dict[str, Any]) -> list[Arm]:
        """Return the arms of one sweep combination: one for each arm of the teacher it names.

        Args:
            key: path of the arm in the document.
            axes: the values of its sweeps, by their short names.
            settings: the arm as written, with these values.
        """
        arm = check(ArmSettings, settings, key, self.problems)
        train = self._merged(Train, self._common_train, settings, (*key, "train"))
        augment = self._merged(Augment, self._common_augment, settings, (*key, "augment"))
        loss = self._loss(settings, (*key, "loss"))
        if arm is None or train is None or augment is None or loss is None:
            return []

        self._check_loss_and_teacher(arm, loss, key)
        section, group = key
        arms = []
        for teachers in self._teacher_choices(arm, (*key, "teacher")):
            all_axes = axes | _axes_of_teachers(teachers)
            values = [f"{name}={sweep_value_text(value)}" for name, value in all_axes.items()]
            built = Arm(
                role=ROLES[section],
                name="/".join([group, *values]),
                axes={name: _plain_value(value) for name, value in all_axes.items()},
                model=arm.model_name,
                model_args=arm.model_args,
                pretrained=arm.pretrained,
                checkpoint=arm.checkpoint,
                input_size=arm.input_size,
                teachers=tuple(teacher.name for teacher in teachers),
                loss=loss or None,
                train=train,
                augment=augment,
            )
            arms.append(built)
        return arms

    def _merged(
        self,
        model: type[Train] | type[Augment],
        common: dict[str, Any],
        settings: dict[str, Any],
        key: Key,
    ) -> Any:
        """Return the common settings of `train` or `augment` with the arm's own values.

        This adds only problems of the arm's own keys. Problems of common keys are reported for the
        common settings.
        """
        own = _mapping_or_empty(settings, str(key[-1]))
        return check(model, {**common, **own}, key, self.problems, only=own)

    def _loss(self, settings: dict[str, Any], key: Key) -> dict[str, dict[str, Any]] | None:
        """Return all settings of every loss term, defaults included; None if there are problems."""
        loss = {}
        for name, written in _mapping_or_empty(settings, "loss").items():
            loss[name] = self._loss_term(name, written, (*key, name))
        return None if None in loss.values() else loss

    def _loss_term(self, name: str, written: Any, key: Key) -> dict[str, Any] | None:
        if name not in self.terms:
            message = f"unknown loss term; {suggest(name, self.terms)}"
            self.problems.add(key, "unknown_term", message)
            return None
        if not isinstance(written, dict):
            message = "must be a mapping (KEY: VALUE); write {} to use the defaults"
            self.problems.add(key, "dict_type", message)
            return None
        checked = check(loss_settings_model(self.terms[name]), written, key, self.problems)
        return checked.model_dump() if checked else None

    def _check_loss_and_teacher(
        self, arm: ArmSettings, loss: dict[str, dict[str, Any]], key: Key
    ) -> None:
        """Check that the arm is trained or frozen, and that its loss fits its teacher."""
        section = key[0]
        if not loss and section == "students":
            message = f"a student needs a loss; known terms: {', '.join(sorted(self.terms))}"
            self.problems.add((*key, "loss"), "needs_loss", message)
        elif not loss and not (arm.pretrained or arm.checkpoint):
            message = (
                "a teacher needs a loss to be trained; a frozen teacher without a loss needs "
                "pretrained: true or checkpoint: PATH"
            )
            self.problems.add((*key, "loss"), "needs_loss", message)

        distilling = [name for name in loss if needs_teacher(self.terms[name])]
        if distilling and arm.teacher is None:
            message = "this term needs a teacher; name one with the key 'teacher'"
            self.problems.add((*key, "loss", distilling[0]), "needs_teacher", message)
        if arm.teacher is not None and not distilling:
            message = (
                "no term of the loss uses the teacher; add kd, dkd, logit_mse or another "
                "distillation term, or remove this key"
            )
            self.problems.add((*key, "teacher"), "unused_teacher", message)

    def _teacher_choices(self, arm: ArmSettings, key: Key) -> list[tuple[Arm, ...]]:
        """Return every choice of teachers: one arm for each name, in all combinations.

        Args:
            arm: the arm that names its teachers.
            key: path of its key `teacher`.

        Returns:
            one empty choice if it names no teacher; no choice if there are problems.
        """
        candidates = [self._arms_named(name, key) for name in arm.teacher_names]
        choices = []
        for choice in itertools.product(*candidates):
            different = {teacher.name for teacher in choice}
            if len(different) == len(choice):
                choices.append(choice)
            else:
                message = "an ensemble needs different teachers, but two of these are the same arm"
                self.problems.add(key, "repeated_teacher", message)
        return choices

    def _arms_named(self, name: str, key: Key) -> list[Arm]:
        """Return all arms of a teacher by its name in the document, or one arm by its full name."""
        if name in self.teachers:
            # This is empty if the teacher has problems, which are already reported.
            return self.teachers[name]
        for arms in self.teachers.values():
            for arm in arms:
                if arm.name == name:
                    return [arm]
        message = f"unknown teacher '{name}'; {suggest(name, self.teachers)}"
        if name in _mapping_or_empty(self.document, "students"):
            message = f"'{name}' is a student; only an arm under teachers can be a teacher"
        self.problems.add(key, "unknown_teacher", message)
        return []


def _mapping_or_empty(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the mapping under a key; an empty one if it is missing or has another type."""
    value = mapping.get(key)
    return value if isinstance(value, dict) else {}


def _axes_of_teachers(teachers: tuple[Arm, ...]) -> dict[str, Any]:
    """Return the sweeps of teachers under the names in their student: ``teacher.smoothing``.

    The teachers of an ensemble are numbered: ``teacher1.smoothing``, ``teacher2.smoothing``.
    """
    axes = {}
    for number, teacher in enumerate(teachers, 1):
        prefix = "teacher" if len(teachers) == 1 else f"teacher{number}"
        for name, value in teacher.axes.items():
            axes[f"{prefix}.{name}"] = value
    return axes


def _plain_value(value: Any) -> Any:
    """Return a swept value for tables and JSON, with lists and mappings as text."""
    return sweep_value_text(value) if isinstance(value, dict | list) else value
