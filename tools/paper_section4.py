"""The README's numbers on section 4 of the paper: hard and smoothed teachers on MNIST."""

from typing import Any

import numpy as np
from paper_numbers import (
    Pair,
    Runs,
    Values,
    arm,
    compare_runs,
    cost,
    difference,
    errors,
    is_gain,
    is_loss,
    is_significant,
    load,
    mean_of,
    metric,
    plain,
    spread,
    study_comparison,
    table,
)

from distill.evaluation.comparisons import excludes_zero
from distill.evaluation.statistics import compare
from distill.report.captions import figure_captions
from distill.report.tables import last_information
from distill.storage.study_results import StudyResults

SMOOTHING = 0.1
KINDS = {"plain": "", "dropout": " with dropout"}  # of teachers, and how a table names them
REDUCTIONS = ("sum", "mean")  # of the squared logit difference, over classes
TEMPERATURES = (1, 4, 20)
ECE = metric("test", "ece")
WITHIN_BETWEEN = metric("train", "within_between_templates")

# how a student is trained (group of arms, and axes) by its name in the table
TRAINING: dict[str, tuple[str, dict[str, Any]]] = {}
for _how in REDUCTIONS:
    TRAINING[f"squared logit difference, {_how}"] = ("matched", {"over_classes": _how})
for _t in TEMPERATURES:
    TRAINING[f"KD, T = {_t}"] = ("distilled", {"temperature": _t})

Students = dict[str, dict[str, Pair]]  # by kind of teacher, and by training


def section4() -> dict[str, Any]:
    """Return the errors on MNIST, by teacher and by how the student is trained."""
    results = load("section4")
    teachers = _teachers(results)
    students = _students(results)
    alone = Pair(arm(results, "alone", smoothing=0.0), arm(results, "alone", smoothing=SMOOTHING))
    plain_teachers = teachers["plain"]
    fitted = metric("test", "fitted_temperature")
    trained = metric("train", "top1", 100)
    return {
        "cost": cost(results),
        "table": _table(results, teachers, students, alone),
        "teachers": {kind: _cells(results, pair)[-1] for kind, pair in teachers.items()},
        **_effects_of_smoothing(results, students),
        **_effects_of_teaching(results, alone, students),
        **_paired_as_in_the_paper(teachers, students),
        **_smoothed_students_against_alone(alone, students),
        "kd": {t: compare_runs(*students["plain"][f"KD, T = {t}"], errors) for t in TEMPERATURES},
        "teacher": compare_runs(*teachers["plain"], errors),
        "family": len(results.comparisons),
        "epochs": [
            teachers["plain"].hard[0].epochs,
            teachers["dropout"].hard[0].epochs,
            alone.hard[0].epochs,
        ],
        "train_accuracy": [
            mean_of(trained, students["plain"]["KD, T = 20"].smoothed),
            mean_of(trained, plain_teachers.smoothed),
        ],
        "scale": mean_of(fitted, plain_teachers.hard) / mean_of(fitted, plain_teachers.smoothed),
        "training": results.data.train,
    }


def inside() -> dict[str, Any]:
    """Return clusters, calibration and information of section 4's teachers."""
    results = load("section4")
    teachers = {}
    for kind, words in KINDS.items():
        pair = _teachers(results)[kind]
        teachers[f"hard{words}"] = pair.hard
        teachers[f"smoothed{words}"] = pair.smoothed
    # a network that fits smoothed labels and is always correct has this calibration error
    expected_ece = SMOOTHING * 9 / 10
    ratios = {}
    for words in KINDS.values():
        before = np.log(WITHIN_BETWEEN(teachers[f"hard{words}"]))
        after = np.log(WITHIN_BETWEEN(teachers[f"smoothed{words}"]))
        ratio = compare(before, after)
        ratios[words] = [np.exp(value) for value in (ratio.difference, *ratio.ci95)]
        lower = f"{np.sum(after < before)} of {len(before)}"
    captions = figure_captions(results, {})
    return {
        "table": _inside_table(teachers),
        "expected": f"{100 * expected_ece:.0f}%",
        "ece_ratios": [
            mean_of(ECE, teachers["smoothed"]) / expected_ece,
            mean_of(ECE, teachers["smoothed with dropout"]) / expected_ece,
        ],
        "plain_ratio": ratios[""],
        "dropout_ratio": ratios[" with dropout"],
        "dropout_lower": lower,
        "features": plain(captions["features_plane"]),
        "calibration": plain(captions["reliability"]),
        "information": plain(captions["information"]),
        "course": [_information_course(teachers[name]) for name in ("hard", "smoothed")],
        "examples": teachers["hard"][0].information[-1].examples,
    }


# --------------------------------------------------------------------------------------------- arms


def _teachers(results: StudyResults) -> dict[str, Pair]:
    teachers = {}
    for kind in KINDS:
        hard = arm(results, kind, smoothing=0.0)
        teachers[kind] = Pair(hard, arm(results, kind, smoothing=SMOOTHING))
    return teachers


def _students(results: StudyResults) -> Students:
    students: Students = {}
    for kind in KINDS:
        students[kind] = {}
        for name, (group, axes) in TRAINING.items():
            hard = arm(results, group, teacher=kind, teacher_smoothing=0.0, **axes)
            smoothed = arm(results, group, teacher=kind, teacher_smoothing=SMOOTHING, **axes)
            students[kind][name] = Pair(hard, smoothed)
    return students


def _matched(students: Students, kind: str, how: str) -> Pair:
    return students[kind][f"squared logit difference, {how}"]


# ------------------------------------------------------------------------------------------- tables


def _table(
    results: StudyResults, teachers: dict[str, Pair], students: Students, alone: Pair
) -> str:
    """Return errors by training (rows) and by kind of teacher (columns)."""

    def row(name: str, *pairs: Pair) -> list[str]:
        cells = [name]
        for pair in pairs:
            cells += _cells(results, pair)
        return cells

    rows = [row("the teacher itself", *teachers.values())]
    for name in TRAINING:
        rows.append(row(name, students["plain"][name], students["dropout"][name]))
    rows.append([*row("alone", alone), "", "", ""])
    headings = ["errors of 10,000"]
    for words in ("", ", dropout"):
        headings += [f"hard{words}", f"smoothed{words}", f"smoothed − hard{words}"]
    return table(headings, rows)


def _cells(results: StudyResults, pair: Pair) -> list[str]:
    """Return the errors of both arms and their difference."""
    images = study_comparison(results, *pair).ci95_images
    test = compare_runs(*pair, errors)
    return [spread(errors(pair.hard)), spread(errors(pair.smoothed)), difference(test, 1, images)]


def _inside_table(teachers: dict[str, Runs]) -> str:
    def information(runs: Runs) -> list[float]:
        return [last_information(run) for run in runs]

    columns: dict[str, tuple[Values, int]] = {
        "ECE, test, %": (metric("test", "ece", 100), 2),
        "after scaling": (metric("test", "ece_scaled", 100), 2),
        "fitted T": (metric("test", "fitted_temperature"), 2),
        "within/between, train": (WITHIN_BETWEEN, 4),
        "within/between, validation": (metric("validation", "within_between_templates"), 4),
        "R², train": (metric("train", "class_separation"), 3),
        "NC1, train": (metric("train", "nc1"), 3),
        "I(X; Y), nats": (information, 2),
    }
    rows = []
    for name, runs in teachers.items():
        cells = [spread(values(runs), decimals) for values, decimals in columns.values()]
        rows.append([name, *cells])
    return table(["teacher", *columns], rows)


# ------------------------------------------------------------------------------------------ effects


def _paired_as_in_the_paper(teachers: dict[str, Pair], students: Students) -> dict[str, Any]:
    """Compare a hard teacher with dropout and a smoothed one without, and their students."""
    teacher_hard = teachers["dropout"].hard
    teacher_smoothed = teachers["plain"].smoothed
    teacher_change = np.subtract(errors(teacher_smoothed), errors(teacher_hard))
    changes = {"teacher": teacher_change}
    rows = [
        ["the paper", "67", "74", "59", "91"],
        ["the replication (by another loss)", "81", "93", "69", "105"],
    ]
    for how in REDUCTIONS:
        student_hard = _matched(students, "dropout", how).hard
        student_smoothed = _matched(students, "plain", how).smoothed
        changes[how] = np.subtract(errors(student_smoothed), errors(student_hard))
        arms = [teacher_hard, student_hard, teacher_smoothed, student_smoothed]
        cells = [spread(errors(runs)) for runs in arms]
        rows.append([f"here, {how} over classes", *cells])
    headings = [
        "errors of 10,000",
        "hard teacher with dropout",
        "its student",
        "smoothed teacher without",
        "its student",
    ]
    zero = np.zeros(len(teacher_change))
    return {
        "instead": {name: compare(zero, change) for name, change in changes.items()},
        "beyond": {how: compare(teacher_change, changes[how]) for how in REDUCTIONS},
        "single": {how: np.std(changes[how], ddof=1) for how in REDUCTIONS},
        "beside": table(headings, rows),
    }


def _effects_of_smoothing(results: StudyResults, students: Students) -> dict[str, Any]:
    """Return what smoothing the teacher, and nothing else, does to its students."""
    hurt: list[str] = []
    helped: list[str] = []
    surely_hurt = 0
    surely_helped = 0
    num_pairs = 0
    reductions = []
    for kind, by_training in students.items():
        for name, pair in by_training.items():
            num_pairs += 1
            test = compare_runs(*pair, errors)
            comparison = study_comparison(results, *pair)
            is_sure = comparison.p_holm < 0.05
            dagger = "" if excludes_zero(comparison.ci95_images) else " †"
            if is_gain(test):  # of errors
                hurt.append(f"{name}{KINDS[kind]}{dagger}")
                surely_hurt += is_sure
            elif is_loss(test):
                helped.append(f"{name}{KINDS[kind]}{dagger}")
                surely_helped += is_sure
        effects = []
        for how in REDUCTIONS:
            pair = _matched(students, kind, how)
            effects.append(np.subtract(errors(pair.smoothed), errors(pair.hard)))
        reductions.append(compare(*effects))
    return {
        "pairs": num_pairs,
        "hurt": hurt,
        "helped": helped,
        "surely_hurt": surely_hurt,
        "surely_helped": surely_helped,
        "mean_against_sum": reductions,
    }


def _effects_of_teaching(results: StudyResults, alone: Pair, students: Students) -> dict[str, Any]:
    """Compare all students with those that are trained alone, on hard and on smoothed labels."""
    taught = {}
    for kind, by_training in students.items():
        for name, pair in by_training.items():
            taught[f"{name} of the hard teacher{KINDS[kind]}"] = pair.hard
            taught[f"{name} of the smoothed teacher{KINDS[kind]}"] = pair.smoothed
    against_hard = [compare_runs(alone.hard, runs, errors) for runs in taught.values()]
    against_smoothed = {
        name: compare_runs(alone.smoothed, runs, errors) for name, runs in taught.items()
    }
    comparisons = [study_comparison(results, alone.hard, runs) for runs in taught.values()]
    return {
        "taught": len(taught),
        "fewer": sum(test.difference < 0 for test in against_hard),
        "largest_p": max(test.p_value for test in against_hard),
        "surely": sum(one.p_holm < 0.05 for one in comparisons),
        # these are intervals of accuracy
        "over_images": sum(one.ci95_images[0] > 0 for one in comparisons),
        "least": -max(test.difference for test in against_hard),
        "most": -min(test.difference for test in against_hard),
        "fewer_still": sum(is_loss(test) for test in against_smoothed.values()),
        "more": [name for name, test in against_smoothed.items() if is_gain(test)],
        "unclear": sum(not is_significant(test) for test in against_smoothed.values()),
    }


def _smoothed_students_against_alone(alone: Pair, students: Students) -> dict[str, Any]:
    """Compare students of smoothed teachers with the student alone on smoothed labels."""
    by_kd = []
    by_matching: dict[str, dict[str, Any]] = {}
    for kind, by_training in students.items():
        of_temperatures = []
        for t in TEMPERATURES:
            of_temperatures.append(errors(by_training[f"KD, T = {t}"].smoothed))
        by_kd.append(compare(errors(alone.smoothed), np.mean(of_temperatures, axis=0)))
        by_matching[kind] = {}
        for how in REDUCTIONS:
            pair = _matched(students, kind, how)
            by_matching[kind][how] = compare_runs(alone.smoothed, pair.smoothed, errors)
    return {"by_kd": by_kd, "by_matching": by_matching}


def _information_course(runs: Runs) -> dict[str, Any]:
    """Return how the information changes from the second epoch with an estimate to the last."""
    nats = np.array([[one.nats for one in run.information] for run in runs])
    return {
        "epochs": [one.epoch for one in runs[0].information],
        "change": compare(nats[:, 1], nats[:, -1]),
        "lowest": nats[:, 1:].min(),
    }
