"""Which arms of a study answer a question, in which words; and the ranking of its students."""

import textwrap

import numpy as np
import pytest
from helpers.recipes import ROOT
from scipy import stats

from distill import load_recipe
from distill.evaluation.comparisons import (
    ANOTHER_KD,
    ANOTHER_LOSS,
    DISTILLED,
    answer,
    compare_arms,
    find_pairs,
    rank_students,
)


def test_which_arms_compare(tmp_path):
    recipe = load_recipe(ROOT / "recipes" / "digits.yaml")
    pairs = {(q, a.name, b.name) for q, a, b in find_pairs(recipe)}
    assert pairs == {
        ("Does label smoothing help the teacher itself?", "hard", "smoothed"),
        ("Does label smoothing help the student?", "alone/smoothing=0", "alone/smoothing=0.1"),
        *(
            (
                "Does label smoothing in the teacher help its student?",
                f"distilled/teacher=hard/temperature={t}",
                f"distilled/teacher=smoothed/temperature={t}",
            )
            for t in (1, 4)
        ),
        *(
            (
                "Does a higher temperature help the student?",
                f"distilled/teacher={t}/temperature=1",
                f"distilled/teacher={t}/temperature=4",
            )
            for t in ("hard", "smoothed")
        ),
        *(
            (
                "Does distillation help the student?",
                "alone/smoothing=0",
                f"distilled/teacher={t}/temperature={n}",
            )
            for t in ("hard", "smoothed")
            for n in (1, 4)
        ),
    }


def test_students_of_two_kinds_of_teachers_compare_within_each_kind(tmp_path):
    """Hard and smoothed, without and with dropout: four pairs a student, none of which changes two things."""
    (tmp_path / "r.yaml").write_text(
        "data: {source: digits}\ntrain: {epochs: 1}\nteachers:\n"
        "  t: {model: {name: mlp_16, drop_rate: [0.0, 0.5]}, loss: {cross_entropy: {smoothing: [0.0, 0.1]}}}\n"
        "students:\n  s: {model: mlp_16, teacher: t, loss: {kd: {temperature: [1, 4]}}}\n"
    )
    pairs = find_pairs(load_recipe(tmp_path / "r.yaml"))
    found = {(q, a.name, b.name) for q, a, b in pairs if "=4/" in a.name}
    name = "s/temperature=4/teacher.drop_rate={}/teacher.smoothing={}".format
    smoothing = "Does label smoothing in the teacher help its student?"
    assert found == {
        (smoothing, name(0, 0), name(0, 0.1)),
        (smoothing, name(0.5, 0), name(0.5, 0.1)),
        ("Which teacher has the better student?", name(0, 0), name(0.5, 0)),
        ("Which teacher has the better student?", name(0, 0.1), name(0.5, 0.1)),
    }


def test_an_interval_over_images_averages_each_image_over_seeds():
    """Three seeds, their rows in another order than the recipe's: the runs of one arm, image by image."""
    recipe = load_recipe(ROOT / "recipes" / "losses_digits.yaml", ["seeds=3"])
    rows = [
        row | {"id": f"{row['arm']}{row['seed']}"}
        for row in rows_of({"focal": [0.8] * 3, "hard": [0.9] * 3})
    ][::-1]
    rng = np.random.default_rng(0)
    right = {row["id"]: rng.random(400) < 0.85 for row in rows}
    found = compare_arms(recipe, rows, right)
    top1 = next(c for c in found if c["metric"] == "top1" and (c["a"], c["b"]) == ("hard", "focal"))
    gains = [
        sum(int(right[f"focal{s}"][i]) - int(right[f"hard{s}"][i]) for s in range(3)) / 3
        for i in range(400)
    ]
    assert top1["ci95_images"] == pytest.approx(
        tuple(stats.ttest_1samp(gains, 0).confidence_interval(0.95))
    )


def test_an_interval_over_images_of_one_seed_is_that_of_paired_proportions():
    """Of N images, b alone are right in b's network and c in a's: Wald's interval of (b - c) / N."""
    recipe = load_recipe(ROOT / "recipes" / "losses_digits.yaml", ["seeds=1"])
    rows = [row | {"id": row["arm"]} for row in rows_of({"hard": [0.9], "focal": [0.8]})]
    a, b = (
        np.array([1] * 700 + [0] * 40 + [1] * 15 + [0] * 45),
        np.array([1] * 700 + [1] * 40 + [0] * 15 + [0] * 45),
    )
    found = compare_arms(recipe, rows, {"hard": a == 1, "focal": b == 1})
    n, gained, lost = 800, 40, 15
    difference, error = (gained - lost) / n, np.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    top1 = next(c for c in found if c["metric"] == "top1" and c["b"] == "focal")
    assert top1["ci95_images"] == pytest.approx(
        (difference - 1.963 * error, difference + 1.963 * error), rel=2e-3
    )
    assert top1["ci95"] is None and all(
        c["ci95_images"] is None for c in found if c["metric"] != "top1"
    )


def test_a_difference_that_other_images_may_not_have_is_said():
    sure = {
        "question": "Does it help?",
        "difference": 0.01,
        "ci95": [0.005, 0.015],
        "p_holm": 0.01,
        "seeds": 5,
    }
    assert "other test images" not in answer(sure | {"ci95_images": [0.002, 0.018]})
    assert answer(sure | {"ci95_images": [-0.002, 0.022]}).endswith(
        "other test images may say otherwise"
    )


@pytest.mark.parametrize(
    ("difference", "ci95", "p_holm", "seeds", "words"),
    [
        (0.01, None, None, 1, "answers nothing yet"),
        (0.01, [0.005, 0.015], 0.01, 5, "yes: +1.00 points"),
        (-0.01, [-0.015, -0.005], 0.01, 5, "no, it hurts: -1.00"),
        (0.01, [-0.01, 0.03], 0.3, 5, "no difference that"),
        (0.01, [0.001, 0.019], 0.2, 5, "not sure among so many"),
        (0.01, [-0.01, 0.03], 0.3, 2, "fewer than 3 seeds"),
        (0.01, None, None, 4, "in every one of 4 seeds"),
    ],
)
def test_answers_say_how_sure_they_are(difference, ci95, p_holm, seeds, words):
    numbers = {"difference": difference, "ci95": ci95, "p_holm": p_holm, "seeds": seeds}
    assert words in answer({"question": "Does it help?"} | numbers)
    assert "yes" not in answer({"question": "Which is better?"} | numbers)


def test_the_smaller_number_and_the_less_smoothed_teacher_are_compared_against(tmp_path):
    text = """
    data: {source: digits}
    train: {epochs: 1, lr: 0.1}
    teachers:
      smoothed: {model: mlp_16, loss: {cross_entropy: {smoothing: 0.1}}}
      hard: {model: mlp_16, loss: {cross_entropy: {}}}
    students:
      alone: {model: mlp_16, loss: {cross_entropy: {smoothing: [0.1, 0.0]}}}
      taught: {model: mlp_32, teacher: [smoothed, hard], loss: {kd: {temperature: 4}}}
    """
    (tmp_path / "r.yaml").write_text(textwrap.dedent(text))
    pairs = {(a.name, b.name) for _, a, b in find_pairs(load_recipe(tmp_path / "r.yaml"))}
    assert pairs == {
        ("hard", "smoothed"),
        ("alone/smoothing=0", "alone/smoothing=0.1"),
        ("taught/teacher=hard", "taught/teacher=smoothed"),
    }


def test_other_losses_compare_with_plain_cross_entropy(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "data: {source: digits}\ntrain: {epochs: 1}\n"
        "teachers: {t: {model: mlp_32, loss: {cross_entropy: {}}}}\nstudents:\n"
        "  hard: {model: mlp_16, loss: {cross_entropy: {}}}\n"
        "  smoothed: {model: mlp_16, loss: {cross_entropy: {smoothing: 0.1}}}\n"
        "  others: {model: mlp_16, loss: {cross_entropy: {smoothing: 0.1, over: others}}}\n"
        "  focal: {model: mlp_16, loss: {focal: {}}}\n"
        "  larger: {model: mlp_32, loss: {focal: {}}}\n"
        "  margin: {model: {name: cosine_head, base: mlp_16}, loss: {arcface: {}}}\n"
        "  kd: {model: mlp_16, teacher: t, loss: {cross_entropy: {weight: 0.1}, kd: {}}}\n"
        "  dkd: {model: mlp_16, teacher: t, loss: {dkd: {}}}\n"
        "  hint: {model: mlp_16, teacher: t, loss: {kd: {}, hint: {}}}\n"
        "  mixed: {model: mlp_16, teacher: t, loss: {kd: {}, max_sup: {}}, train: {epochs: 2}}\n"
    )
    recipe = load_recipe(tmp_path / "r.yaml")
    pairs = {(a.name, b.name): q for q, a, b in find_pairs(recipe)}
    expected = {
        ("hard", "others"),
        ("hard", "focal"),
        ("hard", "margin"),
    }  # a cosine head is part of its loss
    assert {p for p, q in pairs.items() if q == ANOTHER_LOSS} == expected
    assert {p for p, q in pairs.items() if q == ANOTHER_KD} == {("kd", "dkd"), ("kd", "hint")}
    assert {p for p, q in pairs.items() if q == DISTILLED} == {
        ("hard", "kd"),
        ("hard", "dkd"),
        ("hard", "hint"),
    }
    assert pairs["hard", "smoothed"] == "Does label smoothing help the student?"
    assert (
        pairs["smoothed", "others"]
        == "What does loss.cross_entropy.smooth_over change for the student?"
    )


def rows_of(values):
    return [
        {
            "arm": name,
            "seed": seed,
            "role": "student",
            "metrics": {"test": dict.fromkeys(("top1", "nll", "ece"), v)},
        }
        for name, line in values.items()
        for seed, v in enumerate(line)
    ]


def test_students_are_ranked_with_their_paired_distance_to_the_best(tmp_path):
    recipe = load_recipe(ROOT / "recipes" / "losses_digits.yaml", ["seeds=4"])
    values = {
        "focal": [0.90, 0.91, 0.92, 0.95],
        "hard": [0.93, 0.95, 0.94, 0.96],
        "zipf": [0.5, 0.7, 0.6, 0.4],
    }
    teachers = [row | {"role": "teacher"} for row in rows_of({"large": [1] * 4})]
    ranking = rank_students(recipe, rows_of(values) + teachers)
    assert [(r["rank"], r["arm"]) for r in ranking] == [(1, "hard"), (2, "focal"), (3, "zipf")]
    assert ranking[0]["difference"] == 0 and ranking[0]["p_adjusted"] is None
    for row in ranking[1:]:
        test = stats.ttest_rel(values[row["arm"]], values["hard"])
        assert row["difference"] == pytest.approx(np.mean(values[row["arm"]]) - 0.945)
        assert row["difference_ci"] == pytest.approx(tuple(test.confidence_interval(1 - 0.05 / 3)))
        assert row["p_adjusted"] == pytest.approx(
            min(1, 3 * test.pvalue)
        )  # three pairs: the best is picked by them
    assert ranking[0]["ci95"] == pytest.approx(
        stats.t.interval(0.95, 3, np.mean(values["hard"]), stats.sem(values["hard"]))
    )
    assert (
        compare_arms(recipe, rows_of({"hard": [0.9] * 4, "focal": [0.8] * 4}))[0]["question"]
        == ANOTHER_LOSS
    )
