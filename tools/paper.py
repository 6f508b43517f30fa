"""The README's results, from what studies found: no number that was measured is typed by hand.

    python tools/paper.py keep runs/section4 …    takes over what a study found, into tools/results/
    python tools/paper.py                         writes the README's marked parts from there

The words stand in `paper.md.jinja`; the numbers and tables in them are made here.
"""

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from distill.evaluation.feature_plot import load_feature_plot
from distill.evaluation.statistics import Paired, compare, mean_interval
from distill.report.captions import figure_captions, temperature_map_caption
from distill.report.feature_figures import features
from distill.report.tables import last_information

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "tools" / "results"
FIGURES = {"section4": ["information"], "map": ["temperature_map", "equivalent_smoothing"]}
# what is read of a run, here and by the report's sentences; attacks are left out of these studies, and null
METRICS = {
    "test": [
        "top1",
        "errors",
        "count",
        "ece",
        "ece_scaled",
        "fitted_temperature",
        "agreement",
        "agreement_control",
        "num_attacked",
    ],
    "train": [
        "top1",
        "effective_smoothing",
        "within_between_templates",
        "class_separation",
        "nc1",
        "wrong_template_spread",
    ],
    "validation": ["top1", "within_between_templates"],
}
RUN = [
    "id",
    "role",
    "arm",
    "axes",
    "seed",
    "model",
    "parameters",
    "teacher",
    "epochs",
    "seconds",
    "hardware",
    "smoothing",
    "temperature",
    "information",
]
STUDY = ["study", "versions", "data", "precision", "device", "seeds"]
# section 4: how its students are taught, by group and axes, and by which teacher: its smoothing, by kind of teacher
SQUARED, READINGS = "squared logit difference, {}", ("sum", "mean")
TAUGHT: dict[str, tuple[str, dict[str, Any]]] = {
    **{SQUARED.format(how): ("matched", {"over_classes": how}) for how in READINGS},
    **{f"KD, T = {t}": ("distilled", {"temperature": t}) for t in (1, 4, 20)},
}
TEACHERS = {"hard": 0.0, "smoothed": 0.1}
KINDS = {"plain": "", "dropout": " with dropout"}

Run = dict[str, Any]
Results = dict[str, Any]
Values = Callable[[list[Run]], list[float]]


# ------------------------------------------------------------------------------------------------------- keeping


def rounded(value: Any) -> Any:
    """JSON values with floats at 7 significant digits, which is more than any of them is known to."""
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def keep(study: Path) -> None:
    """Take over what is read here of a study's `results.json`, a line a run, and the figures that are shown."""
    results = json.loads((study / "results.json").read_text("utf-8"))
    kept = {key: results[key] for key in STUDY} | {
        "ranking": [],
        "runs": [
            {key: run[key] for key in RUN}
            | {
                "metrics": {
                    split: {name: run["metrics"][split][name] for name in own}
                    for split, own in METRICS.items()
                }
            }
            for run in results["runs"]
        ],
        "comparisons": [c for c in results["comparisons"] if c["metric"] == "top1"],
    }
    parts = []
    for key, value in rounded(kept).items():
        text = json.dumps(value, ensure_ascii=False)
        if key in ("runs", "comparisons"):
            text = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in value) + "\n]"
        parts.append(f"{json.dumps(key)}: {text}")
    (KEPT / f"{kept['study']}.json").write_text("{\n" + ",\n".join(parts) + "\n}\n", "utf-8")
    for name in FIGURES.get(kept["study"], ()):
        shutil.copyfile(study / "figures" / f"{name}.png", KEPT / f"{kept['study']}_{name}.png")
    feature_plot = (
        load_feature_plot(study / "features.safetensors") if kept["study"] == "section4" else None
    )
    if feature_plot:  # its rows are two teachers, and a student of each, which is more than a page of text should show
        teachers = [
            replace(network, title=f"{kind} teacher, seed 0")
            for kind, network in zip(TEACHERS, feature_plot.networks, strict=False)
        ]
        figure = features(replace(feature_plot, networks=teachers), feature_plot.views[0])
        figure.savefig(
            KEPT / "section4_features_plane.png",
            dpi=110,
            bbox_inches="tight",
            metadata={"Software": None},
        )


def load(name: str) -> Results:
    """What was kept of a study."""
    return json.loads((KEPT / f"{name}.json").read_text("utf-8"))


# ------------------------------------------------------------------------------------------------------- numbers


def arm(results: Results, group: str, **axes: Any) -> list[Run]:
    """The runs of an arm, by seed: its first word and its axes, `teacher_smoothing` for `teacher.smoothing`."""
    wanted = {key.replace("teacher_", "teacher."): value for key, value in axes.items()}
    found = [
        run
        for run in results["runs"]
        if run["arm"].split("/")[0] == group
        and all(run["axes"].get(key) == value for key, value in wanted.items())
    ]
    if len(found) != len(results["seeds"]):
        raise ValueError(f"{results['study']} has {len(found)} runs of {group} {wanted}")
    return sorted(found, key=lambda run: run["seed"])


def of(split: str, metric: str, factor: float = 1.0) -> Values:
    """A metric of runs, in their order."""
    return lambda runs: [factor * run["metrics"][split][metric] for run in runs]


errors, accuracy = of("test", "errors"), of("test", "top1", 100)


def spread(values: Iterable[float], decimals: int = 1) -> str:
    """Mean ± standard deviation."""
    mean, sd, _ = mean_interval(list(values))
    return f"{mean:.{decimals}f} ± {sd:.{decimals}f}"


def signed(value: float, decimals: int = 1) -> str:
    """A number with its sign, a minus as it is printed."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def chance(p: float | None) -> str:
    """A p-value."""
    return "no p" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def beyond_chance(test: Paired) -> bool:
    """Whether the interval leaves out zero."""
    return bool(test.ci95 and test.ci95[0] * test.ci95[1] > 0)


def interval(test: Paired, decimals: int = 1) -> str:
    """The 95% interval of a difference."""
    return " to ".join(signed(bound, decimals) for bound in test.ci95) if test.ci95 else "no spread"


def difference(test: Paired, decimals: int = 1, images: list[float] | None = None) -> str:
    """A difference with its interval; bold where that leaves out zero, † where that over images does not."""
    text = f"{signed(test.difference, decimals)} ({interval(test, decimals)})"
    if not beyond_chance(test):
        return text
    return f"**{text}**" + (" †" if images and images[0] <= 0 <= images[1] else "")


def between(results: Results, a: list[Run], b: list[Run]) -> dict[str, Any]:
    """The study's own comparison of the accuracies of two arms."""
    return next(c for c in results["comparisons"] if (c["a"], c["b"]) == (a[0]["arm"], b[0]["arm"]))


def table(headings: list[str], rows: Iterable[list[str]]) -> str:
    """A table of Markdown."""
    line = "| {} |".format
    return "\n".join(
        [
            line(" | ".join(headings)),
            "|" + "---|" * len(headings),
            *(line(" | ".join(r)) for r in rows),
        ]
    )


def cost(results: Results) -> str:
    """Seeds, runs, time, hardware and precision of a study."""
    seconds = sum(run["seconds"] for run in results["runs"])
    time = (
        f"{seconds / 3600:.1f} hours"
        if seconds >= 3600
        else f"{seconds / 60:.0f} minutes"
        if seconds >= 120
        else f"{seconds:.0f} seconds"
    )
    machine = " and ".join(sorted({run["hardware"] for run in results["runs"]}))
    precision = {"no": "float32", "bf16": "bf16"}[results["precision"]]
    return f"{len(results['seeds'])} seeds, {len(results['runs'])} runs, {time} of training on {machine}, {precision}"


def plain(sentence: str) -> str:
    """A report's sentence in the README's words."""
    for name, short in (
        ("plain/smoothing=0.1", "the smoothed teacher"),
        ("plain/smoothing=0", "the hard teacher"),
    ):
        sentence = sentence.replace(name, short)
    return re.sub(r"(?<![\w.])-(?=\d)", "−", sentence)


# ------------------------------------------------------------------------------------------------ what is reported


def digits() -> dict[str, Any]:
    """The quick start: its table, and the student of the smoothed teacher against that of the hard one at T = 4."""
    results = load("digits")
    arms = {
        "teacher, hard labels": arm(results, "hard"),
        "teacher, smoothing 0.1": arm(results, "smoothed"),
        "student alone, hard labels": arm(results, "alone", smoothing=0.0),
        "student alone, smoothing 0.1": arm(results, "alone", smoothing=0.1),
    }
    arms |= {
        f"student of the {t} teacher, T = {n}": arm(results, "distilled", teacher=t, temperature=n)
        for t in ("hard", "smoothed")
        for n in (1, 4)
    }

    def row(name: str, runs: list[Run]) -> list[str]:
        taught, teaches = runs[0]["teacher"], runs[0]["role"] == "teacher"
        return [
            name,
            spread(accuracy(runs), 2),
            f"{np.mean(of('test', 'ece', 100)(runs)):.2f}",
            f"{np.mean(of('test', 'agreement', 100)(runs)):.1f}" if taught else "",
            f"{np.mean(of('train', 'gamma')(runs)):.3f}" if taught or teaches else "",
        ]

    pair = [arms[f"student of the {t} teacher, T = 4"] for t in ("hard", "smoothed")]
    headings = ["arm", "test accuracy, %", "ECE, %", "agreement, %", "effective_smoothing"]
    return {
        "table": table(headings, [row(*one) for one in arms.items()]),
        "cost": cost(results),
        "images": pair[0][0]["metrics"]["test"]["count"],
        "test": compare(*map(accuracy, pair)),
        "p_holm": between(results, *pair)["p_holm"],
        "comparisons": len(results["comparisons"]),
    }


def section4() -> dict[str, Any]:
    """Errors on MNIST, by teacher and by how the student is taught."""
    results = load("section4")
    teachers = {
        kind: [arm(results, kind, smoothing=s) for s in TEACHERS.values()] for kind in KINDS
    }
    students = {
        kind: {
            name: [
                arm(results, group, teacher=kind, teacher_smoothing=s, **axes)
                for s in TEACHERS.values()
            ]
            for name, (group, axes) in TAUGHT.items()
        }
        for kind in KINDS
    }
    alone = [arm(results, "alone", smoothing=s) for s in (0.0, 0.1)]

    def cells(pair: list[list[Run]]) -> list[str]:
        test, images = compare(*map(errors, pair)), between(results, *pair)["ci95_images"]
        return [*(spread(errors(runs)) for runs in pair), difference(test, 1, images)]

    def row(name: str, *pairs: list[list[Run]]) -> list[str]:
        return [name, *(cell for pair in pairs for cell in cells(pair))]

    plain, dropped = students.values()
    by_kd = [
        [errors(taught[1]) for name, taught in own.items() if name.startswith("KD")]
        for own in students.values()
    ]
    rows = [
        row("the teacher itself", *teachers.values()),
        *(row(name, plain[name], dropped[name]) for name in TAUGHT),
        [*row("alone", alone), "", "", ""],
    ]
    headings = [
        f"{name}{kind}" for kind in ("", ", dropout") for name in (*TEACHERS, "smoothed − hard")
    ]
    return {
        "cost": cost(results),
        "table": table(["errors of 10,000", *headings], rows),
        "teachers": {kind: cells(own)[-1] for kind, own in teachers.items()},
        "no_more": [compare(errors(alone[1]), np.mean(own, axis=0)) for own in by_kd],
        "richer": {
            kind: {
                how: compare(errors(alone[1]), errors(own[SQUARED.format(how)][1]))
                for how in READINGS
            }
            for kind, own in students.items()
        },
        **effects_of_smoothing(results, students),
        **effects_of_teaching(results, alone, students),
        **as_the_paper_pairs(teachers, students),
        "family": len(results["comparisons"]),
        "epochs": [
            runs[0]["epochs"] for runs in (teachers["plain"][0], teachers["dropout"][0], alone[0])
        ],
        "right": [
            np.mean(of("train", "top1", 100)(runs))
            for runs in (plain["KD, T = 20"][1], teachers["plain"][1])
        ],
        "scale": np.divide(
            *(np.mean(of("test", "fitted_temperature")(runs)) for runs in teachers["plain"])
        ),
        "training": results["data"]["train"],
    }


def as_the_paper_pairs(
    teachers: dict[str, list[list[Run]]], students: dict[str, dict[str, list[list[Run]]]]
) -> dict[str, Any]:
    """Smoothing instead of dropout: the hard teacher has dropout, the smoothed one has not; logits are matched."""
    itself = [teachers["dropout"][0], teachers["plain"][1]]
    taught = {
        how: [
            students["dropout"][SQUARED.format(how)][0],
            students["plain"][SQUARED.format(how)][1],
        ]
        for how in READINGS
    }
    changes = {
        name: np.subtract(errors(b), errors(a))
        for name, (a, b) in {"teacher": itself, **taught}.items()
    }
    beside = [
        [
            f"here, {how} over classes",
            *(spread(errors(runs)) for both in zip(itself, own, strict=True) for runs in both),
        ]
        for how, own in taught.items()
    ]
    return {
        "instead": {
            name: compare(np.zeros(len(change)), change) for name, change in changes.items()
        },
        "beyond": {how: compare(changes["teacher"], changes[how]) for how in READINGS},
        "single": {how: np.std(changes[how], ddof=1) for how in READINGS},
        "beside": table(
            [
                "errors of 10,000",
                "hard teacher with dropout",
                "its student",
                "smoothed teacher without",
                "its student",
            ],
            [
                ["the paper", "67", "74", "59", "91"],
                ["the replication (by another loss)", "81", "93", "69", "105"],
                *beside,
            ],
        ),
    }


def effects_of_smoothing(
    results: Results, students: dict[str, dict[str, list[list[Run]]]]
) -> dict[str, Any]:
    """What smoothing the teacher, and nothing else, did to its students."""
    pairs = {
        f"{name}{KINDS[kind]}": pair for kind, own in students.items() for name, pair in own.items()
    }
    effects = {name: np.subtract(errors(b), errors(a)) for name, (a, b) in pairs.items()}
    told: dict[int, list[str]] = {1: [], -1: []}
    surely: dict[int, int] = {1: 0, -1: 0}
    for name, pair in pairs.items():
        test, own = compare(*map(errors, pair)), between(results, *pair)
        if beyond_chance(test):
            sign = int(np.sign(test.difference))
            told[sign].append(
                name + (" †" if own["ci95_images"][0] <= 0 <= own["ci95_images"][1] else "")
            )
            surely[sign] += own["p_holm"] < 0.05
    return {
        "pairs": len(pairs),
        "hurt": told[1],
        "helped": told[-1],
        "surely_hurt": surely[1],
        "surely_helped": surely[-1],
        "readings": [
            compare(*(effects[SQUARED.format(how) + words] for how in READINGS))
            for words in KINDS.values()
        ],
    }


def effects_of_teaching(
    results: Results, alone: list[list[Run]], students: dict[str, dict[str, list[list[Run]]]]
) -> dict[str, Any]:
    """How students with a teacher compare with those that learned alone, from hard and from smoothed labels."""
    taught = {
        f"{name} of the {smoothing} teacher{KINDS[kind]}": runs
        for kind, own in students.items()
        for name, pair in own.items()
        for smoothing, runs in zip(TEACHERS, pair, strict=True)
    }
    hard = [compare(errors(alone[0]), errors(runs)) for runs in taught.values()]
    tests = [between(results, alone[0], runs) for runs in taught.values()]
    smoothed = {name: compare(errors(alone[1]), errors(runs)) for name, runs in taught.items()}
    return {
        "taught": len(taught),
        "fewer": sum(t.difference < 0 for t in hard),
        "largest_p": max(t.p_value for t in hard),
        "surely": sum(t["p_holm"] < 0.05 for t in tests),
        "over_images": sum(t["ci95_images"][0] > 0 for t in tests),  # of accuracies
        "least": -max(t.difference for t in hard),
        "most": -min(t.difference for t in hard),
        "fewer_still": sum(beyond_chance(t) and t.difference < 0 for t in smoothed.values()),
        "more": [name for name, t in smoothed.items() if beyond_chance(t) and t.difference > 0],
    }


def course(runs: list[Run]) -> dict[str, Any]:
    """How the information about single images changes from the second of the epochs looked at to the last."""
    epochs = [state["epoch"] for state in runs[0]["information"]]
    nats = np.array([[state["nats"] for state in run["information"]] for run in runs])
    return {
        "epochs": epochs,
        "change": compare(nats[:, 1], nats[:, -1]),
        "lowest": nats[:, 1:].min(),
    }


def inside() -> dict[str, Any]:
    """Clusters, calibration and information of section 4's teachers."""
    results = load("section4")
    teachers = {
        f"{name}{words}": arm(results, kind, smoothing=s)
        for kind, words in KINDS.items()
        for name, s in TEACHERS.items()
    }
    columns: dict[str, tuple[Values, int]] = {
        "ECE, test, %": (of("test", "ece", 100), 2),
        "after scaling": (of("test", "ece_scaled", 100), 2),
        "fitted T": (of("test", "fitted_temperature"), 2),
        "within/between, train": (of("train", "within_between_templates"), 4),
        "within/between, validation": (of("validation", "within_between_templates"), 4),
        "R², train": (of("train", "class_separation"), 3),
        "NC1, train": (of("train", "nc1"), 3),
        "I(X; Y), nats": (lambda runs: [last_information(run) for run in runs], 2),
    }
    expected = 0.1 * 9 / 10
    within = [
        np.log(of("train", "within_between_templates")(teachers[f"{name} with dropout"]))
        for name in TEACHERS
    ]
    dropped = compare(*within)
    told = figure_captions(results, {})
    return {
        "table": table(
            ["teacher", *columns],
            (
                [name, *(spread(value(runs), d) for value, d in columns.values())]
                for name, runs in teachers.items()
            ),
        ),
        "expected": f"{100 * expected:.0f}%",
        "ratios": [
            np.mean(of("test", "ece")(teachers[name])) / expected
            for name in ("smoothed", "smoothed with dropout")
        ],
        "dropped": [np.exp(value) for value in (dropped.difference, *dropped.ci95)],
        "lower": f"{np.sum(within[1] < within[0])} of {len(within[0])}",
        "features": plain(told["features_plane"]),
        "calibration": plain(told["reliability"]),
        "information": plain(told["information"]),
        "course": [course(teachers[name]) for name in TEACHERS],
        "examples": teachers["hard"][0]["information"][-1]["examples"],
    }


def the_map() -> dict[str, Any]:
    """Accuracy, agreement and γ of students by their teacher's smoothing and temperature; the curves of figure 5."""
    results = load("map")
    taught = [run["axes"] for run in results["runs"] if run["arm"].startswith("distilled/")]
    smoothings, temperatures = (
        sorted({axes[key] for axes in taught}) for key in ("teacher.smoothing", "temperature")
    )
    cells = {
        (s, t): arm(results, "distilled", teacher_smoothing=s, temperature=t)
        for s in smoothings
        for t in temperatures
    }
    alone = {s: arm(results, "alone", smoothing=s) for s in smoothings}
    teachers = {s: arm(results, "teacher", smoothing=s) for s in smoothings}

    def cell(runs: list[Run]) -> str:
        agreement, gamma = (
            np.mean(of("test", "agreement", 100)(runs)),
            np.mean(of("train", "effective_smoothing")(runs)),
        )
        return f"{np.mean(accuracy(runs)):.2f} · {agreement:.1f} · {gamma:.2f}"

    rows = [
        [
            f"{s:g}",
            spread(accuracy(teachers[s]), 2),
            spread(accuracy(alone[s]), 2),
            *(cell(cells[s, t]) for t in temperatures),
        ]
        for s in smoothings
    ]

    def at_equal_gamma(runs: list[Run]) -> Paired | None:
        """Against the student alone, seed by seed, its curve interpolated at this γ; None beyond the curve's end."""
        curves = np.transpose([accuracy(alone[s]) for s in smoothings])
        gammas = of("train", "effective_smoothing")(runs)
        if max(gammas) > smoothings[-1]:
            return None
        return compare(
            [np.interp(g, smoothings, own) for g, own in zip(gammas, curves, strict=True)],
            accuracy(runs),
        )

    headings = ["smoothing", "teacher, %", "alone, %", *(f"T = {t:g}" for t in temperatures)]
    return {
        "cost": cost(results),
        "table": table(headings, rows),
        "map": plain(temperature_map_caption(cells)),
        "seeds": len(results["seeds"]),
        "smoothings": smoothings,
        "temperatures": temperatures,
        "best": f"{max(smoothings, key=lambda s: np.mean(accuracy(teachers[s]))):g}",
        "by_smoothing": tally([at_equal_gamma(cells[s, 1]) for s in smoothings]),
        "by_temperature": tally([at_equal_gamma(cells[0.0, t]) for t in temperatures]),
    }


def tally(tests: list[Paired | None]) -> str:
    """How many differences of accuracy are gains and how many losses, each by its own interval."""
    told = [test for test in tests if test]
    better, worse = (
        sum(beyond_chance(t) and sign * t.difference > 0 for t in told) for sign in (1, -1)
    )
    return f"better at {better} of {len(told)} points, worse at {worse}"


def cifar10() -> dict[str, Any]:
    """Accuracy of ResNet-8 on CIFAR-10, by teacher and temperature."""
    results = load("cifar10_small")
    teachers = [arm(results, name) for name in TEACHERS]
    alone = [arm(results, "alone", smoothing=s) for s in TEACHERS.values()]
    students = {
        t: [arm(results, "distilled", teacher=name, temperature=t) for name in TEACHERS]
        for t in (1, 2, 4)
    }

    def gain(a: list[Run], b: list[Run]) -> str:
        return difference(
            compare(accuracy(a), accuracy(b)), 2, between(results, a, b)["ci95_images"]
        )

    def row(name: str, pair: list[list[Run]]) -> list[str]:
        return [name, *(spread(accuracy(runs), 2) for runs in pair), gain(*pair)]

    rows = [
        [*row("the teacher itself", teachers), "", ""],
        *(
            [*row(f"KD, T = {t}", pair), *(gain(alone[0], runs) for runs in pair)]
            for t, pair in students.items()
        ),
        [*row("alone", alone), "", ""],
    ]
    headings = [
        "test accuracy, %",
        *TEACHERS,
        "smoothed − hard",
        "hard − alone",
        "smoothed − alone",
    ]
    worse = [
        t
        for t, pair in students.items()
        if (test := compare(*map(accuracy, pair))).difference < 0 and beyond_chance(test)
    ]
    return {
        "cost": cost(results),
        "table": table(headings, rows),
        "epochs": alone[0][0]["epochs"],
        "worse": worse,
        "seeds": len(results["seeds"]),
    }


def wrapped(part: str) -> str:
    """A paragraph in lines of one width; tables, headings, pictures and commands as they are."""
    if part.lstrip("\n").startswith(("|", "#", "!", "    ")):
        return part.strip("\n")
    return textwrap.fill(
        " ".join(part.split()), 135, break_long_words=False, break_on_hyphens=False
    )


def rendered(text: str) -> str:
    """The README with its marked parts, the blocks of the template, made anew."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "difference": difference,
        "interval": interval,
        "signed": signed,
        "chance": chance,
    }
    template = environment.get_template("paper.md.jinja")
    studies = {
        "digits": digits,
        "section4": section4,
        "inside": inside,
        "the_map": the_map,
        "cifar10": cifar10,
    }
    for name, block in template.blocks.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"README.md needs {start.strip()} and {end}, once each")
        before, rest = text.split(start)
        parts = "".join(block(template.new_context(studies))).strip().split("\n\n")
        text = before + start + "\n\n".join(map(wrapped, parts)) + "\n" + end + rest.split(end)[1]
    return text


if __name__ == "__main__":
    if sys.argv[1:2] == ["keep"] and sys.argv[2:]:
        for folder in sys.argv[2:]:
            keep(Path(folder))
    elif sys.argv[1:]:
        print(__doc__)
        sys.exit(sys.argv[1:] != ["--help"])
    else:
        path = ROOT / "README.md"
        path.write_text(rendered(path.read_text("utf-8")), "utf-8")
