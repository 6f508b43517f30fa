"""Find the pairs of arms that a study compares, and the question that each pair answers."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from distill.losses import LOSSES
from distill.recipe.loss_terms import loss_settings_model, needs_teacher
from distill.recipe.schema import NOT_IN_FINGERPRINT, Arm, Recipe
from distill.storage.study_results import QuestionCode

Settings = dict[str, Any]  # an arm's settings by dotted key


class Question(NamedTuple):
    """The question that a comparison of two arms answers.

    Attributes:
        code: the kind of question.
        role: "teacher" or "student": the role of both arms.
        setting: dotted key of the only setting in which they differ, None if they differ in
            several.
    """

    code: QuestionCode
    role: str
    setting: str | None = None


class ArmPair(NamedTuple):
    """Two arms to compare: b against a."""

    question: Question
    a: Arm
    b: Arm


def find_pairs(recipe: Recipe) -> list[ArmPair]:
    """Return every pair of arms of a study that answers a question.

    Arm b is compared with arm a if one of these holds:

    - They differ in one setting. If it has more than two values, each is compared with the first:
      the smallest number, or the least smoothed teacher. Students are not compared if their
      teachers differ in smoothing and in something else.
    - b is distilled, and a is trained on labels alone. The loss of a is plain cross-entropy with
      the label smoothing that b has, and all other settings are equal.
    - a is trained with plain cross-entropy and b with another loss, both without a teacher.
    - a is trained with kd and b with another loss, both with the same teacher.
    """
    trained_teachers = [arm for arm in recipe.teachers if not arm.frozen]
    pairs = list(_pairs_by_setting(recipe, "student", recipe.students))
    pairs += _alone_and_distilled(recipe.students)
    known = {(pair.a.name, pair.b.name) for pair in pairs}
    for pair in _pairs_by_loss(recipe.students):
        if (pair.a.name, pair.b.name) not in known:
            pairs.append(pair)
    pairs += _pairs_by_setting(recipe, "teacher", trained_teachers)
    return pairs


def _pairs_by_setting(recipe: Recipe, role: str, arms: list[Arm]) -> Iterator[ArmPair]:
    """Yield the pairs of arms that differ in a single setting."""
    settings = {arm.name: _flat_settings(arm) for arm in arms}
    keys = sorted({key for flat in settings.values() for key in flat})
    for key in keys:
        groups: dict[str, list[Arm]] = {}
        for arm in arms:
            flat = settings[arm.name]
            if key in flat:
                groups.setdefault(_as_text(flat, without=key), []).append(arm)
        for group in groups.values():
            group.sort(key=lambda arm: _order(recipe, key, settings[arm.name][key]))
            for first, *others in _comparable(recipe, key, group):
                for other in others:
                    yield ArmPair(_question(recipe, role, key, first, other), first, other)


def _order(recipe: Recipe, key: str, value: Any) -> float:
    """Return an arm's sort key: the number, or the teacher's smoothing; 0 for other values."""
    if key == "teacher" and value:
        return max(_smoothing(recipe.arm(name)) for name in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return value


def _smoothing(arm: Arm) -> float:
    """Return the largest label smoothing of an arm's loss."""
    terms = (arm.loss or {}).values()
    return max((settings.get("smoothing", 0.0) for settings in terms), default=0.0)


def _comparable(recipe: Recipe, key: str, group: list[Arm]) -> list[list[Arm]]:
    """Split arms that differ in one setting into lists; each list is compared with its first arm.

    Students with different teachers are compared if their teachers differ in smoothing alone, or
    have the same smoothing and differ in something else.
    """
    if key != "teacher":
        return [group]
    equal_but_smoothing: dict[str, list[Arm]] = {}
    equally_smoothed: dict[float, dict[str, Arm]] = {}
    for arm in group:
        teachers = [_flat_settings(recipe.arm(name)) for name in arm.teachers]
        kind = json.dumps([_without_smoothing(flat) for flat in teachers], sort_keys=True)
        equal_but_smoothing.setdefault(kind, []).append(arm)
        smoothing = _order(recipe, key, arm.teachers)
        equally_smoothed.setdefault(smoothing, {}).setdefault(kind, arm)
    lists = list(equal_but_smoothing.values())
    lists += [list(by_kind.values()) for by_kind in equally_smoothed.values()]
    return lists


def _alone_and_distilled(arms: list[Arm]) -> Iterator[ArmPair]:
    """Yield each distilled student, paired with the student trained on the same labels alone."""
    alone = [arm for arm in arms if not arm.teachers and set(arm.loss) == {"cross_entropy"}]
    for arm in arms:
        if not arm.teachers or not _is_distillation(arm.loss):
            continue
        own_smoothing = arm.loss.get("cross_entropy", {}).get("smoothing", 0.0)
        for base in alone:
            same_labels = base.loss["cross_entropy"].get("smoothing", 0.0) == own_smoothing
            if same_labels and _all_but_loss(base) == _all_but_loss(arm):
                yield ArmPair(Question(QuestionCode.DISTILLATION, "student"), base, arm)
                break


def _is_distillation(loss: Settings) -> bool:
    """Return whether every loss term except cross-entropy needs a teacher."""
    return all(name == "cross_entropy" or needs_teacher(LOSSES[name]) for name in loss)


def _pairs_by_loss(arms: list[Arm]) -> Iterator[ArmPair]:
    """Yield arms with another loss than a base arm: cross-entropy, or kd by the same teacher."""
    bases: dict[tuple[Any, str], Arm] = {}
    for arm in arms:
        if _has_base_loss(arm):
            bases.setdefault((arm.teachers, _all_but_loss(arm)), arm)
    for arm in arms:
        base = bases.get((arm.teachers, _all_but_loss(arm)))
        if base is None or base is arm:
            continue
        if not arm.teachers:
            yield ArmPair(Question(QuestionCode.LOSS_VS_CROSS_ENTROPY, "student"), base, arm)
        elif set(base.loss) != set(arm.loss):
            yield ArmPair(Question(QuestionCode.LOSS_VS_KD, "student"), base, arm)


def _has_base_loss(arm: Arm) -> bool:
    """Return whether an arm has the loss that others are compared with: cross-entropy, or kd."""
    if arm.teachers:
        return "kd" in arm.loss and set(arm.loss) <= {"kd", "cross_entropy"}
    defaults = loss_settings_model(LOSSES["cross_entropy"])().model_dump()
    return arm.loss == {"cross_entropy": defaults}


def _all_but_loss(arm: Arm) -> str:
    """Return everything but the loss and its teacher, as text to compare.

    A cosine head belongs to the loss that needs it, so networks with and without it count as equal.
    """
    name = arm.model
    args = dict(arm.model_args)
    if name == "cosine_head" and "base" in args:
        name = args.pop("base")
        args.pop("scale", None)
    rest = {}
    for key, value in _flat_settings(arm).items():
        if key not in ("teacher", "model") and not key.startswith("loss."):
            rest[key] = value
    return json.dumps([name, args, rest], sort_keys=True)


# --------------------------------------------------------------------------------------- questions


def _question(recipe: Recipe, role: str, key: str, a: Arm, b: Arm) -> Question:
    """Return the question that two arms answer if they differ in one setting."""
    code = QuestionCode.SETTING
    if key == "teacher" and _differ_in_smoothing(recipe, a, b):
        code = QuestionCode.TEACHER_SMOOTHING_ON_STUDENT
    elif key == "teacher" and role == "student":
        code = QuestionCode.TEACHER
    elif key == "model":
        is_student = role == "student"
        code = QuestionCode.STUDENT_MODEL if is_student else QuestionCode.TEACHER_MODEL
    elif _is_loss_setting(key, "temperature") and role == "student":
        code = QuestionCode.TEMPERATURE
    elif _is_loss_setting(key, "smoothing"):
        code = _smoothing_code(role, is_smoothed=_flat_settings(a)[key] > 0)
    return Question(code, role, key)


def _smoothing_code(role: str, *, is_smoothed: bool) -> QuestionCode:
    """Return the question of a pair that differs in label smoothing; arm a may be smoothed too."""
    if role == "student" and is_smoothed:
        return QuestionCode.MORE_STUDENT_SMOOTHING
    if role == "student":
        return QuestionCode.STUDENT_SMOOTHING
    if is_smoothed:
        return QuestionCode.MORE_TEACHER_SMOOTHING
    return QuestionCode.TEACHER_SMOOTHING


def _differ_in_smoothing(recipe: Recipe, a: Arm, b: Arm) -> bool:
    """Return whether two students have one teacher each, which differ in label smoothing alone."""
    if len(a.teachers) != 1 or len(b.teachers) != 1:
        return False
    first = _flat_settings(recipe.arm(a.teachers[0]))
    second = _flat_settings(recipe.arm(b.teachers[0]))
    return first != second and _without_smoothing(first) == _without_smoothing(second)


# ---------------------------------------------------------------------------------------- settings


def _flat_settings(arm: Arm) -> Settings:
    """Return an arm's settings by dotted key, defaults included."""
    flat: Settings = {
        "model": arm.model + json.dumps(arm.model_args, sort_keys=True),
        "teacher": list(arm.teachers),
        "start": [arm.pretrained, arm.checkpoint],
    }
    for term, settings in (arm.loss or {}).items():
        for key, value in settings.items():
            flat[f"loss.{term}.{key}"] = value
    for key, value in arm.train.model_dump(exclude=NOT_IN_FINGERPRINT).items():
        flat[f"train.{key}"] = value
    for key, value in arm.augment.model_dump().items():
        flat[f"augment.{key}"] = value
    return flat


def _is_loss_setting(key: str, name: str) -> bool:
    """Return whether a dotted key is the setting of that name of any loss term."""
    parts = key.split(".")
    return len(parts) == 3 and parts[0] == "loss" and parts[2] == name


def _without_smoothing(flat: Settings) -> Settings:
    return {key: value for key, value in flat.items() if not _is_loss_setting(key, "smoothing")}


def _as_text(flat: Settings, without: str) -> str:
    rest = {key: value for key, value in flat.items() if key != without}
    return json.dumps(rest, sort_keys=True)
