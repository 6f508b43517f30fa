"""What analyses put into the results of a study."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from distill import run_study

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", [0, 1])
def test_fidelity_is_compared_with_that_to_a_teacher_of_another_seed(analysed_study, seed):
    def test_logits(arm, seed):
        return analysed_study.predictions(arm, seed)["test.logits"].double().numpy()

    def probabilities(logits):
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    result = analysed_study.result("distilled/temperature=4", seed)
    assert result["teacher"] == analysed_study.run("hard", seed).id
    student = test_logits("distilled/temperature=4", seed)
    teachers = {
        ("agreement", "kl_to_teacher"): test_logits("hard", seed),
        ("agreement_control", "kl_control"): test_logits("hard", 1 - seed),
    }
    for (agreement, divergence), teacher in teachers.items():
        test = result["metrics"]["test"]
        assert test[agreement] == pytest.approx((teacher.argmax(1) == student.argmax(1)).mean())
        kl = stats.entropy(probabilities(teacher), probabilities(student), axis=1)
        assert test[divergence] == pytest.approx(kl.mean())


def test_numbers_that_do_not_apply_are_none(analysed_study):
    assert analysed_study.result("distilled/temperature=4")["diffusion"] is not None
    assert analysed_study.result("distilled/temperature=1")["diffusion"] is None
    alone = analysed_study.result("alone/smoothing=0")
    assert alone["metrics"]["test"]["agreement_control"] is None
    assert analysed_study.result("hard")["optimal_gap"] is None
    smoothed = analysed_study.result("smoothed")
    assert smoothed["optimal_gap"] == pytest.approx(math.log((10 - 9 * 0.1) / 0.1))


def test_a_finished_study_is_not_analysed_again(analysed_study):
    files = list((analysed_study.store.root / "analysis").iterdir())
    assert len(files) == len(analysed_study.runs)
    before = {path: path.stat().st_mtime_ns for path in files}
    results = analysed_study.results()
    run_study(analysed_study.recipe, analysed_study.store.root)
    assert json.dumps(analysed_study.results()) == json.dumps(results)
    assert {path: path.stat().st_mtime_ns for path in files} == before
