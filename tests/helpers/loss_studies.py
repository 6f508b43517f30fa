"""A study with every kind of loss term: with modules, state, features or several teachers."""

from typing import Any

ALL_TERMS: dict[str, Any] = {
    "data": {"source": "digits", "augment": {"shift": 1}},
    "train": {"epochs": 3, "batch_size": 128, "lr": 0.05, "checkpoint_minutes": 0},
    "teachers": {
        "hard": {"model": "mlp_32", "loss": {"cross_entropy": {}}},
        "soft": {"model": "mlp_64", "loss": {"cross_entropy": {"smoothing": 0.1}}},
    },
    "students": {
        "online": {
            "model": "mlp_16",
            "loss": {"cross_entropy": {"weight": 0.5}, "online_smoothing": {"weight": 0.5}},
        },
        "hinted": {
            "model": "mlp_16",
            "teacher": "hard",
            "loss": {"cross_entropy": {}, "hint": {}},
        },
        "related": {
            "model": "mlp_16",
            "teacher": "hard",
            "loss": {"kd": {"temperature": 1}, "rkd": {"weight": 5}},
        },
        "margin": {
            "model": {"name": "cosine_head", "base": "mlp_16", "scale": 8},
            "loss": {"am_softmax": {"margin": 0.2}},
        },
        "sphere": {
            "model": {"name": "cosine_head", "base": "mlp_16", "scale": 0},
            "loss": {"a_softmax": {"margin": 2}},
        },
        "large": {"model": "mlp_16", "loss": {"l_softmax": {"margin": 2}}},
        "penalised": {
            "model": "mlp_16",
            "loss": {"cross_entropy": {}, "l2_penalty": {"weight": 0.001}},
            "train": {"weight_norms": True},
        },
        "both": {
            "model": "mlp_16",
            "teacher": [["hard", "soft"]],
            "loss": {"kd": {"temperature": 1}, "dkd": {"weight": 0.1, "warmup": 0.5}},
        },
    },
    "seeds": [3],
    "check_teachers": False,
}
"""Two teachers and eight students on the embedded digits, all with seed 3."""
