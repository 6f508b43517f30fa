"""The metrics of a run from its predictions: what applies, and what is None."""

import pytest
import torch
from helpers.clusters import random_logits

from distill.evaluation import calibration, fidelity
from distill.evaluation.metrics import metrics

FIDELITY = ("agreement", "kl_to_teacher")
CONTROL = ("agreement_control", "kl_control")


def predictions(seed, classes=7):
    stored = {}
    for number, split in enumerate(("test", "validation", "train")):
        logits, labels = random_logits(seed + number, count=50, classes=classes)
        stored[f"{split}.logits"] = torch.tensor(logits, dtype=torch.float32)
        stored[f"{split}.labels"] = torch.tensor(labels)
    return stored


def test_a_run_without_teacher_has_its_own_smoothing_and_no_fidelity():
    own = predictions(0)
    found = metrics(own)
    assert list(found) == ["test", "validation", "train"]
    test = found["test"]
    logits, labels = own["test.logits"].numpy(), own["test.labels"].numpy()
    assert test["effective_smoothing"] == calibration.effective_smoothing(logits, labels)
    assert [test[name] for name in FIDELITY + CONTROL] == [None] * 4
    assert test["errors"] == round((1 - test["top1"]) * test["count"])
    validation = calibration.fit_temperature(
        own["validation.logits"].numpy(), own["validation.labels"].numpy()
    )
    assert {values["fitted_temperature"] for values in found.values()} == {validation}
    assert test["nll_scaled"] == calibration.nll(logits, labels, validation)


def test_a_student_has_its_teachers_smoothing_at_the_temperature_of_its_loss():
    own, teacher, control = predictions(0), predictions(10), predictions(20)
    test = metrics(own, teacher, 4.0, control)["test"]
    student_logits = own["test.logits"].numpy()
    teacher_logits = teacher["test.logits"].numpy()
    labels = own["test.labels"].numpy()
    expected = calibration.effective_smoothing(teacher_logits, labels, 4.0)
    assert test["effective_smoothing"] == expected
    assert test["agreement"] == fidelity.agreement(student_logits, teacher_logits)
    assert test["kl_to_teacher"] == fidelity.kl_to_teacher(student_logits, teacher_logits)
    control_logits = control["test.logits"].numpy()
    assert test["kl_control"] == fidelity.kl_to_teacher(student_logits, control_logits)
    assert metrics(own, teacher, None)["test"]["effective_smoothing"] is None


@pytest.mark.parametrize(("classes", "applies"), [(5, False), (6, True)])
def test_top5_needs_more_than_five_classes(classes, applies):
    assert (metrics(predictions(0, classes))["test"]["top5"] is not None) == applies
