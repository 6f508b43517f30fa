"""No metric depends on the size of the chunks in which rows are worked on."""

import numpy as np
import pytest
from helpers.clusters import clusters, random_logits

from distill.evaluation import arrays, calibration, fidelity, geometry


def test_chunks_cover_all_rows_once(monkeypatch):
    monkeypatch.setattr(arrays, "CHUNK_VALUES", 4 * 7 + 1)
    rows = np.arange(60)
    parts = [rows[chunk] for chunk in arrays.row_chunks(np.zeros((60, 4)))]
    assert np.concatenate(parts).tolist() == rows.tolist()
    assert {len(part) for part in parts[:-1]} == {7}


def test_metrics_do_not_depend_on_the_size_of_chunks(monkeypatch):
    random, labels = random_logits(3)
    logits = random.astype(np.float32)
    other = random_logits(4)[0].astype(np.float32)
    features, classes = clusters(0, count=60)
    few = (3 * features[:, :4]).astype(np.float32)

    def all_metrics():
        return [
            calibration.top_k_correct(logits, labels, 2).sum(),
            calibration.nll(logits, labels),
            calibration.brier(logits, labels),
            calibration.ece(logits, labels),
            calibration.ece(logits, labels, temperature=3.0),
            calibration.ece_equal_mass(few, classes),
            calibration.ece_classwise(few, classes),
            calibration.effective_smoothing(logits, labels),
            calibration.fit_temperature(logits, labels),
            fidelity.kl_to_teacher(logits, other),
            fidelity.stability(few, classes),
            *geometry.logit_gap(few, classes),
            *geometry.shared_probability(few, classes).ravel(),
        ]

    expected = all_metrics()
    divided = calibration.ece(logits.astype(np.float64) / 3, labels)
    assert expected[4] == pytest.approx(divided, abs=1e-12)
    monkeypatch.setattr(arrays, "CHUNK_VALUES", 31)  # 4 rows of 7 classes, 7 rows of 4
    assert all_metrics() == pytest.approx(expected, rel=1e-6)
