"""The tables of a report: a row an arm, mean ± standard deviation over its seeds."""

from typing import Any

from rich.table import Table

from distill.evaluation.comparisons import DISTILLED, SMOOTHING, answer
from distill.evaluation.statistics import mean_interval

Columns = dict[str, tuple[str, float, int]]  # where a run has the number: heading, factor, decimals

ARMS: Columns = {
    "parameters": ("million weights", 1e-6, 3),
    "test.top1": ("accuracy, %", 100, 2),
    "test.nll": ("NLL, nats", 1, 4),
    "test.ece": ("ECE, %", 100, 2),
    "test.ece_scaled": ("ECE scaled, %", 100, 2),
    "test.fitted_temperature": ("fitted T", 1, 2),
    "test.agreement": ("agreement, %", 100, 2),
    "test.kl_to_teacher": ("KL to teacher", 1, 4),
    "train.effective_smoothing": ("effective_smoothing", 1, 3),
}
CALIBRATION: Columns = {
    "smoothing": ("smoothing", 1, 2),
    "test.ece": ("ECE, %", 100, 2),
    "test.ece_equal_mass": ("ECE, equal mass, %", 100, 2),
    "test.ece_classwise": ("ECE, classwise, %", 100, 2),
    "test.nll": ("NLL, nats", 1, 4),
    "test.fitted_temperature": ("fitted T", 1, 2),
    "test.ece_scaled": ("ECE scaled, %", 100, 2),
    "test.nll_scaled": ("NLL scaled, nats", 1, 4),
}
FEATURES: Columns = {
    "train.examples": ("images a class, train", 1, 0),
    "validation.examples": ("validation", 1, 0),
    "train.within_between_templates": ("within/ between, train", 1, 3),
    "validation.within_between_templates": ("within/ between, validation", 1, 3),
    "train.within_between": ("of whole features, train", 1, 3),
    "train.class_separation": ("R², train", 1, 3),
    "train.nc1": ("NC1, train", 1, 3),
    "train.wrong_template_spread": ("wrong templates, train", 1, 3),
    "template_spread": ("template norms", 1, 3),
    "train.logit_gap": ("logit gap, train", 1, 2),
    "train.logit_gap_sd": ("its spread", 1, 2),
    "optimal_gap": ("its optimum", 1, 2),
}
INFORMATION: Columns = {"information": ("I(X; Y), nats", 1, 3)}
FIDELITY: Columns = {
    "test.agreement": ("agreement, %", 100, 2),
    "test.agreement_control": ("with another's, %", 100, 2),
    "test.kl_to_teacher": ("KL to teacher", 1, 4),
    "test.kl_control": ("KL to another's", 1, 4),
    "train.stability": ("stability, train", 1, 4),
    "test.stability": ("stability, test", 1, 4),
    "diffusion": ("diffusion", 1, 3),
}
ROBUSTNESS: Columns = {
    "test.unattacked": ("no attack, %", 100, 1),
    "test.fgsm": ("FGSM, %", 100, 1),
    "test.pgd_linf": ("PGD L∞, %", 100, 1),
    "test.margin_linf": ("margin L∞, %", 100, 1),
    "test.transfer": ("transfer L∞, %", 100, 1),
    "test.worst_linf": ("all L∞, %", 100, 1),
    "test.pgd_l2": ("PGD L2, %", 100, 1),
    "test.zero_gradient": ("no gradient, %", 100, 1),
}


MOST = 18  # comparisons that are told one by one; of the others there is a table in the page
# of an arm, the same in all of its runs
SETTINGS = ("parameters", "smoothing", "optimal_gap", "train.examples", "validation.examples")


def arms_of(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each arm, in the recipe's order."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for run in results["runs"]:
        arms.setdefault(run["arm"], []).append(run)
    return arms


def summary(results: dict[str, Any], columns: Columns = ARMS) -> list[dict[str, Any]]:
    """A row an arm that has one of the numbers, its numbers by column; what does not apply is a dash."""
    rows = []
    for name, runs in arms_of(results).items():
        row: dict[str, Any] = {
            "arm": name,
            "role": runs[0]["role"],
            "model": runs[0]["model"],
            "seeds": len(runs),
        }
        row |= {
            path: _cell([_number(run, path) for run in runs], *columns[path][1:], path in SETTINGS)
            for path in columns
        }
        if any(row[path] != "–" for path in columns if path not in SETTINGS):
            rows.append(row)
    return rows


def used(rows: list[dict[str, Any]], columns: Columns) -> Columns:
    """The columns in which some row has a number."""
    return {
        path: column for path, column in columns.items() if any(row[path] != "–" for row in rows)
    }


def last_information(run: dict[str, Any]) -> float | None:
    """I(X; Y) at the end of training, in nats."""
    return run["information"][-1]["nats"] if run["information"] else None


def _number(run: dict[str, Any], path: str) -> float | None:
    if path == "information":
        return last_information(run)
    split, _, metric = path.rpartition(".")
    return run["metrics"][split][metric] if split else run[metric]


def _cell(values: list[float | None], factor: float, decimals: int, setting: bool) -> str:
    if None in values:
        return "–"
    mean, sd, _ = mean_interval([factor * v for v in values])
    return f"{mean:.{decimals}f}" + (
        f" ± {sd:.{decimals}f}" if len(values) > 1 and not setting else ""
    )


def headline(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The accuracies' comparisons, those on smoothing and distillation first and the surest of a question first."""
    order = {question: number for number, question in enumerate((*SMOOTHING, DISTILLED))}
    chosen = [c | {"answer": answer(c)} for c in results["comparisons"] if c["metric"] == "top1"]

    def place(c: dict[str, Any]) -> tuple[int, str, float]:
        return (
            order.get(c["question"], len(order)),
            c["question"],
            1.0 if c["p_value"] is None else c["p_value"],
        )

    return sorted(chosen, key=place)


def metrics_table(found: dict[str, dict[str, Any]]) -> Table:
    """Every metric of some networks, by their names, a row a metric."""
    table = Table(title="fractions, and nats", title_justify="left")
    for heading in ("", *found):
        table.add_column(heading, justify="right" if heading else "left", overflow="fold")
    for metric in next(iter(found.values()), {}):
        values = [one[metric] for one in found.values()]
        table.add_row(
            metric,
            *("–" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v) for v in values),
        )
    return table


def terminal_tables(results: dict[str, Any]) -> list[Table]:
    """What the report says, for a terminal."""
    accuracy = Table(
        title=f"{results['study']}: test split, mean ± standard deviation", title_justify="left"
    )
    rows, columns = (
        summary(results),
        [
            "test.top1",
            "test.nll",
            "test.ece",
            "test.ece_scaled",
            "test.agreement",
            "train.effective_smoothing",
        ],
    )
    columns = list(used(rows, {metric: ARMS[metric] for metric in columns}))
    accuracy.add_column("arm", overflow="fold")
    for metric in columns:
        accuracy.add_column(ARMS[metric][0], justify="right")
    accuracy.add_column("seeds", justify="right")
    for row in rows:
        accuracy.add_row(row["arm"], *(row[m] for m in columns), str(row["seeds"]))
    questions = Table(
        title="comparisons of accuracy, b against a, paired by seed", title_justify="left"
    )
    for heading in ("question", "a", "b", "answer"):
        questions.add_column(heading, overflow="fold")
    answers = headline(results)
    for comparison in answers[:MOST]:
        questions.add_row(*(comparison[key] for key in ("question", "a", "b", "answer")))
    if len(answers) > MOST:
        questions.caption = f"{len(answers) - MOST} more stand in the report"
    return [accuracy, questions] if results["comparisons"] else [accuracy]
