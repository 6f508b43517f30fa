"""The numbers of the pages are those that were measured, by scipy from the kept runs."""

import importlib
import json
import re
import statistics

import numpy as np
import pytest
from helpers.recipes import ROOT
from scipy import stats

TEXT = (ROOT / "recipes" / "paper" / "README.md").read_text()
SPEED = (ROOT / "tools" / "README.md").read_text()
KEPT = ROOT / "tools" / "results"
REDUCTIONS = ("sum", "mean")
KINDS = ("plain", "dropout")
TEMPERATURES = (1, 4, 20)
SMOOTHINGS = (0, 0.1)


@pytest.fixture(scope="module")
def tools():
    """The modules of `tools/` that make the pages' results."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(ROOT / "tools")
        yield {
            name: importlib.import_module(name)
            for name in ("paper", "paper_section4", "paper_studies")
        }


class Kept:
    """The kept runs of a study, read from its file alone."""

    def __init__(self, study):
        self.results = json.loads((KEPT / f"{study}.json").read_text())
        self.runs = self.results["runs"]

    def values(self, arm, split="test", metric="errors"):
        """Return a metric of an arm, by seed."""
        found = {}
        for run in self.runs:
            if run["arm"] == arm:
                found[run["seed"]] = run["metrics"][split][metric]
        assert sorted(found) == self.results["seeds"]
        return np.array([found[seed] for seed in self.results["seeds"]])


@pytest.fixture(scope="module")
def section4():
    return Kept("section4")


@pytest.fixture(scope="module")
def said(tools):
    """What the page's text on section 4 is made of."""
    return tools["paper_section4"].section4()


def matched(kind, how, smoothing):
    return f"matched/teacher={kind}/over_classes={how}/teacher.smoothing={smoothing}"


def kd(kind, temperature, smoothing):
    return f"distilled/teacher={kind}/temperature={temperature}/teacher.smoothing={smoothing}"


def taught_arms(kind, smoothing):
    """Return all students of one teacher of section 4."""
    arms = [matched(kind, how, smoothing) for how in REDUCTIONS]
    return arms + [kd(kind, t, smoothing) for t in TEMPERATURES]


def interval_of(change):
    return tuple(stats.ttest_1samp(change, 0).confidence_interval(0.95))


def assert_is_test_of(test, change):
    """Check a paired comparison against scipy's test of the differences."""
    assert test.difference == pytest.approx(np.mean(change))
    assert test.ci95 == pytest.approx(interval_of(change))
    assert test.p_value == pytest.approx(stats.ttest_1samp(change, 0).pvalue)


def numbers(cell):
    """Return the numbers of a table's cell, which has typographic minus signs."""
    return [float(n) for n in re.findall(r"[+-]?\d+(?:\.\d+)?", cell.replace("−", "-"))]


def test_the_pages_are_current(tools):
    """Their marked parts are what `python tools/paper.py` makes of tools/results."""
    for page in tools["paper"].PAGES:
        text = (ROOT / page).read_text()
        assert tools["paper"].rendered(page, text) == text


def mnist(kind):
    rows = {"the teacher itself": f"{kind}/smoothing={{}}"}
    for how in REDUCTIONS:
        rows[f"squared logit difference, {how}"] = matched(kind, how, "{}")
    for t in TEMPERATURES:
        rows[f"KD, T = {t}"] = kd(kind, t, "{}")
    return rows


ALONE = {"alone": "alone/smoothing={}"}
CIFAR = {"the teacher itself": "{}"} | {
    f"KD, T = {t}": f"distilled/teacher={{}}/temperature={t}" for t in (1, 2, 4)
}


@pytest.mark.parametrize(
    ("study", "metric", "table", "first", "arms", "two"),
    [
        ("section4", "errors", "errors of 10,000", 0, mnist("plain"), SMOOTHINGS),
        ("section4", "errors", "errors of 10,000", 3, mnist("dropout"), SMOOTHINGS),
        ("section4", "errors", "errors of 10,000", 0, ALONE, SMOOTHINGS),
        ("cifar10_small", "top1", "test accuracy, %", 0, CIFAR, ("hard", "smoothed")),
        ("cifar10_small", "top1", "test accuracy, %", 0, ALONE, SMOOTHINGS),
    ],
    ids=["plain", "dropout", "alone", "cifar10", "cifar10-alone"],
)
def test_a_table_of_results_is_what_scipy_makes_of_the_kept_runs(
    study, metric, table, first, arms, two
):
    """By arm mean and standard deviation, and the paired interval, straight from the file."""
    kept = Kept(study)
    lines = TEXT.split(f"| {table} | hard | smoothed |")[1].split("\n\n")[0]
    factor, rounding = (100, 0.00501) if metric == "top1" else (1, 0.0501)
    for row, arm in arms.items():
        line = re.search(rf"^\| {re.escape(row)} \| (.*) \|$", lines, re.M).group(1)
        cells = line.split(" | ")[first:]
        hard, smoothed = (factor * kept.values(arm.format(value), metric=metric) for value in two)
        for cell, values in zip(cells, (hard, smoothed), strict=False):
            expected = [np.mean(values), np.std(values, ddof=1)]
            assert numbers(cell) == pytest.approx(expected, abs=rounding)
        change = smoothed - hard
        expected = [np.mean(change), *interval_of(change)]
        assert numbers(cells[2]) == pytest.approx(expected, abs=rounding)
        assert cells[2].startswith("**") == (stats.ttest_1samp(change, 0).pvalue < 0.05)


def test_teachers_help_every_student(section4, said):
    alone = section4.values("alone/smoothing=0")
    smoothed_alone = section4.values("alone/smoothing=0.1")
    arms = [arm for kind in KINDS for s in SMOOTHINGS for arm in taught_arms(kind, s)]
    p_values = [stats.ttest_rel(section4.values(arm), alone).pvalue for arm in arms]
    fewer = [np.mean(alone - section4.values(arm)) for arm in arms]
    assert said["taught"] == said["fewer"] == len(arms) == 20
    assert said["least"] == pytest.approx(min(fewer))
    assert said["most"] == pytest.approx(max(fewer))
    assert said["largest_p"] == pytest.approx(max(p_values))
    # "all with p = … or less on their own"
    assert max(p_values) < 0.05

    tests = [stats.ttest_rel(section4.values(arm), smoothed_alone) for arm in arms]
    better = sum(test.pvalue < 0.05 and test.statistic < 0 for test in tests)
    worse = sum(test.pvalue < 0.05 and test.statistic > 0 for test in tests)
    assert said["fewer_still"] == better
    assert len(said["more"]) == worse
    assert said["unclear"] == len(arms) - better - worse


def test_students_by_kd_from_a_smoothed_teacher_do_not_beat_the_smoothed_student(section4, said):
    alone = section4.values("alone/smoothing=0.1")
    for kind, test in zip(KINDS, said["by_kd"], strict=True):
        by_kd = np.mean([section4.values(kd(kind, t, 0.1)) for t in TEMPERATURES], axis=0)
        assert_is_test_of(test, by_kd - alone)
        # "not significantly better"
        assert test.p_value > 0.05
        for how in REDUCTIONS:
            change = section4.values(matched(kind, how, 0.1)) - alone
            assert_is_test_of(said["by_matching"][kind][how], change)


def test_smoothing_instead_of_dropout_hurts_students_beyond_the_teacher(section4, said):
    itself = section4.values("plain/smoothing=0.1") - section4.values("dropout/smoothing=0")
    assert_is_test_of(said["instead"]["teacher"], itself)
    for how in REDUCTIONS:
        smoothed = section4.values(matched("plain", how, 0.1))
        change = smoothed - section4.values(matched("dropout", how, 0))
        assert_is_test_of(said["instead"][how], change)
        assert_is_test_of(said["beyond"][how], change - itself)
        assert said["single"][how] == pytest.approx(np.std(change, ddof=1))
        # "averaged over classes it does; summed it appears to", and both beyond the teacher
        assert said["instead"][how].ci95[0] > 0
        assert said["beyond"][how].ci95[0] > 0


def test_smoothing_alone_is_counted_as_hurting_and_helping(section4, said):
    hurt = 0
    helped = 0
    for kind in KINDS:
        for hard, smoothed in zip(taught_arms(kind, 0), taught_arms(kind, 0.1), strict=True):
            low, high = interval_of(section4.values(smoothed) - section4.values(hard))
            hurt += low > 0
            helped += high < 0
    assert (said["pairs"], len(said["hurt"]), len(said["helped"])) == (10, hurt, helped)
    for kind, test in zip(KINDS, said["mean_against_sum"], strict=True):
        change = {}
        for how in REDUCTIONS:
            smoothed = section4.values(matched(kind, how, 0.1))
            change[how] = smoothed - section4.values(matched(kind, how, 0))
        low, high = interval_of(change["sum"])
        # "with summed classes there is no significant effect"
        assert low < 0 < high
        assert_is_test_of(test, change["mean"] - change["sum"])
        assert test.ci95[0] > 0


def test_clusters_tighten_in_every_seed_and_calibration_is_off_by_the_smoothing(section4, tools):
    inside = tools["paper_section4"].inside()
    for kind, ece_ratio in zip(KINDS, inside["ece_ratios"], strict=True):
        hard = f"{kind}/smoothing=0"
        smoothed = f"{kind}/smoothing=0.1"
        ratios = section4.values(smoothed, "train", "within_between_templates")
        ratios = ratios / section4.values(hard, "train", "within_between_templates")
        assert (ratios < 1).all()
        geometric = np.exp(np.mean(np.log(ratios)))
        if kind == "dropout":
            assert inside["dropout_ratio"][0] == pytest.approx(geometric)
        else:
            assert inside["plain_ratio"][0] == pytest.approx(geometric)
            assert f"{geometric:.2f}×" in inside["features"]
        ratio = section4.values(smoothed, metric="ece").mean() / (0.1 * 9 / 10)
        assert ece_ratio == pytest.approx(ratio)
        assert 1 / 1.5 < ratio < 1.5
        # underconfident, and corrected by one temperature
        assert section4.values(smoothed, metric="fitted_temperature").max() < 1
        assert section4.values(smoothed, metric="ece_scaled").max() < 0.005


def test_information_does_not_fall_significantly_and_stays_above_log_2(section4, tools):
    course = tools["paper_section4"].inside()["course"]
    for smoothing, found in zip(SMOOTHINGS, course, strict=True):
        arm = f"plain/smoothing={smoothing}"
        runs = [run["information"] for run in section4.runs if run["arm"] == arm]
        nats = np.array([[state["nats"] for state in states] for states in runs])
        assert_is_test_of(found["change"], nats[:, -1] - nats[:, 1])
        assert found["change"].ci95[1] > 0
        assert nats[:, 1:].min() > 1.2 * np.log(2)


def test_on_cifar10_students_of_the_smoothed_teacher_are_worse_at_some_temperatures(tools):
    kept = Kept("cifar10_small")

    def change(arm):
        smoothed = kept.values(arm.format("smoothed"), metric="top1")
        return smoothed - kept.values(arm.format("hard"), metric="top1")

    worse = []
    for t in (1, 2, 4):
        if interval_of(change(f"distilled/teacher={{}}/temperature={t}"))[1] < 0:
            worse.append(t)
    assert tools["paper_studies"].cifar10()["worse"] == worse
    low, high = interval_of(change("{}"))
    # "the two teachers do not differ significantly"
    assert low < 0 < high


def test_the_map_counts_points_against_the_student_alone_at_equal_gamma(tools):
    kept = Kept("map")
    said = tools["paper_studies"].the_map()
    smoothings = said["smoothings"]
    alone = np.array([kept.values(f"alone/smoothing={s:g}", metric="top1") for s in smoothings])

    def counts(arms):
        better = worse = total = 0
        for arm in arms:
            gammas = kept.values(arm, "train", "effective_smoothing")
            if max(gammas) > smoothings[-1]:
                continue
            at_gamma = [
                np.interp(gamma, smoothings, alone[:, seed]) for seed, gamma in enumerate(gammas)
            ]
            low, high = interval_of(kept.values(arm, metric="top1") - at_gamma)
            total += 1
            better += low > 0
            worse += high < 0
        return [better, total, worse]

    name = "distilled/temperature={:g}/teacher.smoothing={:g}".format
    by_temperature = counts([name(t, 0) for t in said["temperatures"]])
    by_smoothing = counts([name(1, s) for s in smoothings])
    assert numbers(said["by_temperature"]) == by_temperature
    assert numbers(said["by_smoothing"]) == by_smoothing


def test_the_example_is_what_scipy_makes_of_the_kept_runs(tools):
    kept = Kept("digits")
    alone = kept.values("alone", metric="top1")
    found = tools["paper_studies"].digits()
    for line, teacher in zip(found["table"].splitlines()[3:], ("hard", "smoothed"), strict=True):
        student = kept.values(f"distilled/teacher={teacher}", metric="top1")
        change = 100 * (student - alone)
        mean, sd, *test = numbers(line)
        assert [mean, sd] == pytest.approx(
            [100 * np.mean(student), 100 * np.std(student, ddof=1)], abs=0.00501
        )
        assert test == pytest.approx([np.mean(change), *interval_of(change)], abs=0.00501)
        assert ("**" in line) == (stats.ttest_1samp(change, 0).pvalue < 0.05)


def test_the_verdicts_of_the_example_are_the_same_with_other_threads_and_seeds(tools):
    """The README says so of both students."""
    checks = json.loads((KEPT / "showcase.json").read_text())
    settings = {(check["threads"], check["first_seed"]) for check in checks}
    assert len(settings) == len(checks) == 6
    for teacher, verdict in (("hard", "better"), ("smoothed", "worse")):
        name = f"distilled/teacher={teacher} against alone"
        assert {check["verdicts"][name]["verdict"] for check in checks} == {verdict}
    kept = {
        f"{one['b']} against {one['a']}": one["verdict"]
        for one in Kept("digits").results["comparisons"]
    }
    assert kept["distilled/teacher=hard against alone"] == "better"
    assert kept["distilled/teacher=smoothed against alone"] == "worse"


def test_speeds_are_those_that_were_measured():
    results = json.loads((KEPT / "cpu.json").read_text())
    columns = (
        "live / plain",
        "stored / plain",
        "live / bare",
        "cost of stored / alone",
        "cost of six / six alone",
    )
    measured = []
    for name, job in results["jobs"].items():
        if "-" in name:
            ratios = [statistics.median(job["ratios"][column]) for column in columns]
            measured.append([f"{ratio:.2f}" for ratio in ratios])
    rows = SPEED.split("| on two CPU cores")[1].split("\n\n")[0].splitlines()[2:]
    assert measured
    assert [[cell.strip() for cell in row.split("|")[2:-1]] for row in rows] == measured
