"""What the README prints is what a person can run."""

import importlib
import json
import re
import statistics

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

TEXT = (ROOT / "README.md").read_text()
WITHIN = "within_between_templates"


def test_its_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    blocks = [b for b in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "local-dir" not in b]
    assert len(blocks) == 5
    blocks += re.findall(r"```python\n(.*?)```", (ROOT / "distill" / "losses" / "README.md").read_text(), re.S)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "runs" / "digits" / "report.html").is_file()


def test_its_recipe_is_the_shipped_one():
    shipped = (ROOT / "recipes" / "mnist.yaml").read_text().split("data:", 1)[1]
    assert re.search(r"```yaml\n(.*?)```", TEXT, re.S).group(1).split("data:", 1)[1] == shipped


def test_its_table_of_recipes_is_complete():
    named = set(re.findall(r"^\| `([\w/]+)` \|", TEXT, re.M))
    paths = [p.relative_to(ROOT / "recipes").with_suffix("") for p in (ROOT / "recipes").rglob("*.yaml")]
    assert named == {path.as_posix() for path in paths}
    assert len({path.name for path in paths}) == len(paths), "a study's folder is named after its recipe"


@pytest.fixture
def paper(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("paper")


def test_its_results_are_those_that_were_found(paper):
    """Word for word what `python tools/paper.py` makes of tools/results."""
    assert paper.rendered(TEXT) == TEXT


def numbers(cell):
    """The numbers of a table's cell, with the minus as it is printed."""
    return [float(n) for n in re.findall(r"[+-]?\d+(?:\.\d+)?", cell.replace("−", "-"))]


def mnist(kind):
    return {
        "the teacher itself": f"{kind}/smoothing={{}}",
        "squared logit difference, sum": f"matched/teacher={kind}/over_classes=sum/teacher.smoothing={{}}",
        "squared logit difference, mean": f"matched/teacher={kind}/over_classes=mean/teacher.smoothing={{}}",
        **{f"KD, T = {t}": f"distilled/teacher={kind}/temperature={t}/teacher.smoothing={{}}" for t in (1, 4, 20)},
    }


CIFAR = {"the teacher itself": "{}"} | {f"KD, T = {t}": f"distilled/teacher={{}}/temperature={t}" for t in (1, 2, 4)}


@pytest.mark.parametrize(
    ("study", "metric", "table", "first", "arms", "two"),
    [
        ("section4", "errors", "errors of 10,000", 0, mnist("plain"), (0, 0.1)),
        ("section4", "errors", "errors of 10,000", 3, mnist("dropout"), (0, 0.1)),
        ("section4", "errors", "errors of 10,000", 0, {"alone": "alone/smoothing={}"}, (0, 0.1)),
        ("cifar10_small", "top1", "test accuracy, %", 0, CIFAR, ("hard", "smoothed")),
        ("cifar10_small", "top1", "test accuracy, %", 0, {"alone": "alone/smoothing={}"}, (0, 0.1)),
    ],
    ids=["plain", "dropout", "alone", "cifar10", "cifar10-alone"],
)
def test_a_table_of_results_is_what_scipy_makes_of_the_kept_runs(study, metric, table, first, arms, two):
    """By arm mean and standard deviation, and the paired interval, straight from the file."""
    results = json.loads((ROOT / "tools" / "results" / f"{study}.json").read_text())
    lines = TEXT.split(f"| {table} | hard | smoothed |")[1].split("\n\n")[0]
    factor, rounding = (100, 0.00501) if metric == "top1" else (1, 0.0501)
    for row, start in arms.items():
        cells = re.search(rf"^\| {re.escape(row)} \| (.*) \|$", lines, re.M).group(1).split(" | ")[first:]
        hard, smoothed = (
            [factor * r["metrics"]["test"][metric] for seed in results["seeds"] for r in results["runs"]
             if r["arm"] == start.format(value) and r["seed"] == seed]
            for value in two
        )  # fmt: skip
        assert len(hard) == len(smoothed) == len(results["seeds"]) >= 3
        for cell, values in zip(cells, (hard, smoothed), strict=False):
            assert numbers(cell) == pytest.approx([np.mean(values), np.std(values, ddof=1)], abs=rounding)
        test = stats.ttest_rel(smoothed, hard)
        expected = [np.mean(smoothed) - np.mean(hard), *test.confidence_interval(0.95)]
        assert numbers(cells[2]) == pytest.approx(expected, abs=rounding)
        assert cells[2].startswith("**") == (test.pvalue < 0.05)


def test_what_is_said_of_section_4_holds_for_each_run():
    """By scipy and plain loops, from the kept file alone: who beat whom, how surely, and in every seed."""
    runs = json.loads((ROOT / "tools" / "results" / "section4.json").read_text())["runs"]

    def values(arm, split, metric):
        found = {r["seed"]: r["metrics"][split][metric] for r in runs if r["arm"] == arm}
        assert sorted(found) == [0, 1, 2, 3, 4]
        return [found[seed] for seed in range(5)]

    arms = list(dict.fromkeys(r["arm"] for r in runs))
    taught = [arm for arm in arms if arm.startswith(("matched/", "distilled/"))]
    alone, smoothed_alone = (values(f"alone/smoothing={s}", "test", "errors") for s in (0, 0.1))
    p = [stats.ttest_rel(values(arm, "test", "errors"), alone).pvalue for arm in taught]
    fewer = [np.mean(alone) - np.mean(values(arm, "test", "errors")) for arm in taught]
    assert min(fewer) > 0 and max(p) < 0.05
    text = " ".join(TEXT.split())
    assert f"{len(taught)} of {len(taught)} students make fewer errors than the one that learned alone" in text
    assert f"by {min(fewer):.0f} to {max(fewer):.0f}, " in text
    against = [stats.ttest_rel(values(arm, "test", "errors"), smoothed_alone) for arm in taught]
    better = sum(bool(t.pvalue < 0.05 and t.statistic < 0) for t in against)
    assert f"alone from smoothed labels {better} make fewer beyond chance" in text
    assert f"each with p = {max(p):.2g} or less by itself" in text

    def pair(how, hard, smoothed):
        start = (
            "{}/smoothing={}"
            if how == "teacher"
            else "matched/teacher={}/over_classes=" + how + "/teacher.smoothing={}"
        )
        a, b = (values(start.format(*end), "test", "errors") for end in ((hard, 0), (smoothed, 0.1)))
        return stats.ttest_rel(b, a).confidence_interval(0.95)

    instead = {how: pair(how, "dropout", "plain") for how in ("teacher", "sum", "mean")}
    assert instead["sum"].low > 0 and instead["mean"].low > 0 and "by matching logits, it did" in text
    assert "though the teacher itself" in text and instead["teacher"].low < 0 < instead["teacher"].high
    assert "By the sum it cannot be told, without dropout or with it" in text
    assert all(pair("sum", kind, kind).low < 0 < pair("sum", kind, kind).high for kind in ("plain", "dropout"))
    for kind in ("plain", "dropout"):
        by_kd = [
            values(f"distilled/teacher={kind}/temperature={t}/teacher.smoothing=0.1", "test", "errors")
            for t in (1, 4, 20)
        ]
        assert stats.ttest_rel(np.mean(by_kd, 0), smoothed_alone).confidence_interval(0.95).high > 0
    assert "Students by KD from a smoothed teacher are no better than the student alone on smoothed labels" in text

    hard, smooth = (
        [values(f"plain/smoothing={s}", *of) for of in (("test", "ece"), ("train", WITHIN))] for s in (0, 0.1)
    )
    assert all(b < a for a, b in zip(hard[1], smooth[1], strict=True)) and "is lower in 5 of 5 seeds" in text
    dropped = [values(f"dropout/smoothing={s}", "train", WITHIN) for s in (0, 0.1)]
    assert all(b < a for a, b in zip(*dropped, strict=True)) and "With dropout it is lower in 5 of 5 too" in text
    ratio = np.mean(smooth[0]) / (0.1 * 9 / 10)
    assert 1 / 1.5 < ratio < 1.5 and f"here it is {ratio:.2f} times that" in text
    ratio = np.mean(values("dropout/smoothing=0.1", "test", "ece")) / (0.1 * 9 / 10)
    assert 1 / 1.5 < ratio < 1.5 and f"with dropout {ratio:.2f} times" in text
    nats = {}
    for r in runs:
        if r["arm"] == "plain/smoothing=0.1":
            for state in r["information"]:
                nats.setdefault(state["epoch"], []).append(state["nats"])
    means = {epoch: np.mean(of_seeds) for epoch, of_seeds in nats.items()}
    top, last = max(means, key=means.get), max(means)
    assert f"after epoch {top} with smoothed ones ({means[top]:.2f}, at the end {means[last]:.2f})" in text


def test_speeds_are_those_that_were_measured():
    results = json.loads((ROOT / "tools" / "results" / "cpu.json").read_text())
    columns = ("live / plain", "stored / plain", "live / bare", "cost of stored / alone", "cost of six / six alone")
    measured = [
        [f"{statistics.median(job['ratios'][name]):.2f}" for name in columns]
        for name, job in results["jobs"].items()
        if "-" in name
    ]
    table = (ROOT / "README.md").read_text().split("| on two CPU cores")[1].split("\n\n")[0].splitlines()[2:]
    assert measured and [[cell.strip() for cell in row.split("|")[2:-1]] for row in table] == measured
