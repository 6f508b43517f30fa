"""What the README prints is what a person can run."""

import importlib
import json
import re
import statistics

import numpy as np
import pytest
from helpers.recipes import ROOT
from scipy import stats

TEXT = (ROOT / "README.md").read_text()
WITHIN = "within_between_templates"


def test_its_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    blocks = [b for b in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "local-dir" not in b]
    assert len(blocks) == 5
    blocks += re.findall(
        r"```python\n(.*?)```", (ROOT / "distill" / "losses" / "README.md").read_text(), re.S
    )
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "runs" / "digits" / "report.html").is_file()


def test_its_recipe_is_the_shipped_one():
    shipped = (ROOT / "recipes" / "mnist.yaml").read_text().split("data:", 1)[1]
    assert re.search(r"```yaml\n(.*?)```", TEXT, re.S).group(1).split("data:", 1)[1] == shipped


def test_its_table_of_recipes_is_complete():
    named = set(re.findall(r"^\| `([\w/]+)` \|", TEXT, re.M))
    paths = [
        p.relative_to(ROOT / "recipes").with_suffix("") for p in (ROOT / "recipes").rglob("*.yaml")
    ]
    assert named == {path.as_posix() for path in paths}
    assert len({path.name for path in paths}) == len(paths), (
        "a study's folder is named after its recipe"
    )


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
        **{
            f"KD, T = {t}": f"distilled/teacher={kind}/temperature={t}/teacher.smoothing={{}}"
            for t in (1, 4, 20)
        },
    }


CIFAR = {"the teacher itself": "{}"} | {
    f"KD, T = {t}": f"distilled/teacher={{}}/temperature={t}" for t in (1, 2, 4)
}


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
def test_a_table_of_results_is_what_scipy_makes_of_the_kept_runs(
    study, metric, table, first, arms, two
):
    """By arm mean and standard deviation, and the paired interval, straight from the file."""
    results = json.loads((ROOT / "tools" / "results" / f"{study}.json").read_text())
    lines = TEXT.split(f"| {table} | hard | smoothed |")[1].split("\n\n")[0]
    factor, rounding = (100, 0.00501) if metric == "top1" else (1, 0.0501)
    for row, start in arms.items():
        cells = (
            re.search(rf"^\| {re.escape(row)} \| (.*) \|$", lines, re.M)
            .group(1)
            .split(" | ")[first:]
        )
        hard, smoothed = (
            [factor * r["metrics"]["test"][metric] for seed in results["seeds"] for r in results["runs"]
             if r["arm"] == start.format(value) and r["seed"] == seed]
            for value in two
        )  # fmt: skip
        assert len(hard) == len(smoothed) == len(results["seeds"]) >= 3
        for cell, values in zip(cells, (hard, smoothed), strict=False):
            assert numbers(cell) == pytest.approx(
                [np.mean(values), np.std(values, ddof=1)], abs=rounding
            )
        test = stats.ttest_rel(smoothed, hard)
        expected = [np.mean(smoothed) - np.mean(hard), *test.confidence_interval(0.95)]
        assert numbers(cells[2]) == pytest.approx(expected, abs=rounding)
        assert cells[2].startswith("**") == (test.pvalue < 0.05)


@pytest.fixture(scope="module")
def section4():
    """A metric of an arm's five runs, by seed, from the kept file alone."""
    runs = json.loads((ROOT / "tools" / "results" / "section4.json").read_text())["runs"]

    def values(arm, split="test", metric="errors"):
        found = {r["seed"]: r["metrics"][split][metric] for r in runs if r["arm"] == arm}
        assert sorted(found) == [0, 1, 2, 3, 4]
        return np.array([found[seed] for seed in range(5)])

    values.runs = runs
    return values


SAID = " ".join(TEXT.split())
MATCHED = "matched/teacher={}/over_classes={}/teacher.smoothing={}".format
KD = "distilled/teacher={}/temperature={}/teacher.smoothing={}".format
BOTH = ("plain", "dropout")


def test_what_is_said_of_teachers_that_help_holds_for_each_student(section4):
    arms = list(dict.fromkeys(r["arm"] for r in section4.runs))
    taught = [arm for arm in arms if arm.startswith(("matched/", "distilled/"))]
    alone, smoothed_alone = (section4(f"alone/smoothing={s}") for s in (0, 0.1))
    p = [stats.ttest_rel(section4(arm), alone).pvalue for arm in taught]
    fewer = [np.mean(alone - section4(arm)) for arm in taught]
    assert min(fewer) > 0 and max(p) < 0.05
    assert (
        f"{len(taught)} of {len(taught)} students make fewer errors than the one that learned alone"
        in SAID
    )
    assert (
        f"by {min(fewer):.0f} to {max(fewer):.0f}: each with p = {max(p):.2g} or less by itself"
        in SAID
    )
    against = [stats.ttest_rel(section4(arm), smoothed_alone) for arm in taught]
    better, worse = (
        sum(bool(t.pvalue < 0.05 and sign * t.statistic > 0) for t in against) for sign in (-1, 1)
    )
    assert f"{better} make fewer errors, {worse} make more (" in SAID
    assert f"of the other {len(taught) - better - worse} it cannot be told" in SAID
    for kind in BOTH:
        by_kd = np.mean([section4(KD(kind, t, 0.1)) for t in (1, 4, 20)], 0)
        assert stats.ttest_rel(by_kd, smoothed_alone).pvalue > 0.05  # "not measurably better"


def test_what_is_said_of_smoothed_teachers_holds(section4):
    def interval(a, b):
        return stats.ttest_rel(section4(b), section4(a)).confidence_interval(0.95)

    itself = section4("plain/smoothing=0.1") - section4("dropout/smoothing=0")
    for how in (
        "sum",
        "mean",
    ):  # "by the mean over classes it did, and by the sum it seems so", "beyond"
        student = section4(MATCHED("plain", how, 0.1)) - section4(MATCHED("dropout", how, 0))
        for change in (student, student - itself):
            test = stats.ttest_1samp(change, 0)
            low, high = test.confidence_interval(0.95)
            assert low > 0
            assert f"**+{change.mean():.1f} (+{low:.1f} to +{high:.1f})**" in SAID
        assert (
            f"{student.std(ddof=1):.0f}{' errors here' if how == 'sum' else ''} by the {how}"
            in SAID
        )
    effects = {(kind, how): interval(MATCHED(kind, how, 0), MATCHED(kind, how, 0.1))
               for kind in BOTH for how in ("sum", "mean")}  # fmt: skip
    assert all(effects[kind, "sum"].low < 0 < effects[kind, "sum"].high for kind in BOTH)
    for kind in BOTH:  # by the mean more than by the sum
        change = {
            how: section4(MATCHED(kind, how, 0.1)) - section4(MATCHED(kind, how, 0))
            for how in ("sum", "mean")
        }
        assert stats.ttest_rel(change["mean"], change["sum"]).confidence_interval(0.95).low > 0
    pairs = [
        (MATCHED(kind, how, 0), MATCHED(kind, how, 0.1)) for kind in BOTH for how in ("sum", "mean")
    ]
    pairs += [(KD(kind, t, 0), KD(kind, t, 0.1)) for kind in BOTH for t in (1, 4, 20)]
    hurt, helped = (sum(bool(end > 0) for end in ends) for ends in zip(
        *((interval(*pair).low, -interval(*pair).high) for pair in pairs), strict=True))  # fmt: skip
    assert f"errors in {hurt} of {len(pairs)} pairs and saves some in {helped} (" in SAID


def test_what_is_said_of_cifar10_holds():
    results = json.loads((ROOT / "tools" / "results" / "cifar10_small.json").read_text())

    def change(start):
        hard, smoothed = (
            [r["metrics"]["test"]["top1"] for seed in results["seeds"] for r in results["runs"]
             if r["arm"] == start.format(kind) and r["seed"] == seed] for kind in ("hard", "smoothed")
        )  # fmt: skip
        return stats.ttest_rel(smoothed, hard).confidence_interval(0.95)

    intervals = {t: change(f"distilled/teacher={{}}/temperature={t}") for t in (1, 2, 4)}
    worse = " and ".join(str(t) for t, interval in intervals.items() if interval.high < 0)
    assert f"worse than that of the hard one at T = {worse}, while the teachers" in SAID
    assert change("{}").low < 0 < change("{}").high


def test_what_is_said_of_clusters_calibration_and_information_holds_in_every_seed(section4):
    for kind, words in (
        ("plain", "is lower in 5 of 5 seeds"),
        ("dropout", "With dropout it is lower in 5 of 5 too"),
    ):
        hard, smoothed = (section4(f"{kind}/smoothing={s}", "train", WITHIN) for s in (0, 0.1))
        assert (smoothed < hard).all() and words in SAID
        assert f"{np.exp(np.mean(np.log(smoothed / hard))):.2f} times what it was" in SAID
        ratio = section4(f"{kind}/smoothing=0.1", "test", "ece").mean() / (0.1 * 9 / 10)
        assert 1 / 1.5 < ratio < 1.5
        assert f"{'here it is' if kind == 'plain' else 'with dropout'} {ratio:.2f} times" in SAID
        assert (
            section4(f"{kind}/smoothing=0.1", "test", "fitted_temperature").max() < 1
        )  # underconfident
        assert (
            section4(f"{kind}/smoothing=0.1", "test", "ece_scaled").max() < 0.005
        )  # one temperature mends it
    for smoothing, words in ((0, "with hard labels"), (0.1, "with smoothed ones: no fall")):
        runs = [
            r["information"] for r in section4.runs if r["arm"] == f"plain/smoothing={smoothing}"
        ]
        nats = np.array([[state["nats"] for state in states] for states in runs])
        assert nats[:, 1:].min() > 1.2 * np.log(2)  # "well above log 2 all the way"
        change = nats[:, -1] - nats[:, 1]
        high = stats.ttest_1samp(change, 0).confidence_interval(0.95).high
        assert (
            high > 0 and f"{change.mean():+.2f} (".replace("-", "−") in SAID.split(words)[0][-60:]
        )


def test_speeds_are_those_that_were_measured():
    results = json.loads((ROOT / "tools" / "results" / "cpu.json").read_text())
    columns = (
        "live / plain",
        "stored / plain",
        "live / bare",
        "cost of stored / alone",
        "cost of six / six alone",
    )
    measured = [
        [f"{statistics.median(job['ratios'][name]):.2f}" for name in columns]
        for name, job in results["jobs"].items()
        if "-" in name
    ]
    table = (
        (ROOT / "README.md")
        .read_text()
        .split("| on two CPU cores")[1]
        .split("\n\n")[0]
        .splitlines()[2:]
    )
    assert (
        measured and [[cell.strip() for cell in row.split("|")[2:-1]] for row in table] == measured
    )
