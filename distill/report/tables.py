"""The tables of a report, in HTML and in the terminal: mean ± standard deviation over seeds."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from distill.evaluation.statistics import mean_interval
from distill.storage.study_results import Comparison, QuestionCode, RunResult, StudyResults

Value = Callable[[RunResult], float | None]

MOST_COMPARISONS = 18  # shown at once; the page has the others folded
NO_VALUE = "–"
# Comparisons are listed in this order of their questions, then by question.
FIRST_QUESTIONS = (
    QuestionCode.DISTILLATION,
    QuestionCode.TEACHER_SMOOTHING_ON_STUDENT,
    QuestionCode.STUDENT_SMOOTHING,
    QuestionCode.TEACHER_SMOOTHING,
)


@dataclass(frozen=True)
class Column:
    """A column of a table of arms.

    Attributes:
        heading: of the column.
        value: the number of a run, None where it has none.
        factor: multiplies the number, as in 100 for percentages.
        decimals: shown.
        is_setting: whether the number is the same in all runs of an arm. It has no standard
            deviation, and an arm that has nothing but settings is left out of the table.
    """

    heading: str
    value: Value
    factor: float = 1
    decimals: int = 2
    is_setting: bool = False


@dataclass(frozen=True)
class Row:
    """One arm of a table, with the text of its cells."""

    arm: str
    role: str
    model: str
    seeds: int
    cells: list[str]


@dataclass(frozen=True)
class ArmTable:
    """A table with a row for each arm; columns without any number are left out."""

    headings: list[str]
    rows: list[Row]


def metric(split: str, name: str) -> Value:
    """Return the function that reads a metric of a run on a split."""
    return lambda run: getattr(run.metrics[split], name)


def last_information(run: RunResult) -> float | None:
    """Return I(X; Y) at the end of training, in nats."""
    return run.information[-1].nats if run.information else None


ACCURACY = Column("accuracy, %", metric("test", "top1"), 100)
NLL = Column("NLL, nats", metric("test", "nll"), decimals=4)
ECE = Column("ECE, %", metric("test", "ece"), 100)
ECE_SCALED = Column("ECE scaled, %", metric("test", "ece_scaled"), 100)
FITTED_TEMPERATURE = Column("fitted T", metric("test", "fitted_temperature"))
AGREEMENT = Column("agreement, %", metric("test", "agreement"), 100)
KL_TO_TEACHER = Column("KL to teacher, nats", metric("test", "kl_to_teacher"), decimals=4)
EFFECTIVE_SMOOTHING = Column("γ", metric("train", "effective_smoothing"), decimals=3)

ARMS = [
    Column("weights, millions", lambda run: run.parameters, 1e-6, 3, is_setting=True),
    ACCURACY,
    NLL,
    ECE,
    ECE_SCALED,
    AGREEMENT,
    EFFECTIVE_SMOOTHING,
]
TERMINAL = [ACCURACY, NLL, ECE, ECE_SCALED, AGREEMENT, EFFECTIVE_SMOOTHING]
CALIBRATION = [
    Column("smoothing", lambda run: run.smoothing, is_setting=True),
    ECE,
    Column("ECE, equal mass, %", metric("test", "ece_equal_mass"), 100),
    Column("ECE, classwise, %", metric("test", "ece_classwise"), 100),
    NLL,
    FITTED_TEMPERATURE,
    ECE_SCALED,
    Column("NLL scaled, nats", metric("test", "nll_scaled"), decimals=4),
]
FEATURES = [
    Column("images per class (train)", metric("train", "examples"), 1, 0, is_setting=True),
    Column("images per class (val.)", metric("validation", "examples"), 1, 0, is_setting=True),
    Column("within/ between (train)", metric("train", "within_between_templates"), decimals=3),
    Column("within/ between (val.)", metric("validation", "within_between_templates"), decimals=3),
    Column("within/ between, all dimensions", metric("train", "within_between")),
    Column("R²", metric("train", "class_separation")),
    Column("NC1", metric("train", "nc1")),
    Column("spread of wrong templates", metric("train", "wrong_template_spread"), decimals=3),
    Column("spread of template norms", lambda run: run.template_spread),
    Column("logit gap, mean", metric("train", "logit_gap")),
    Column("logit gap, std.", metric("train", "logit_gap_sd")),
    Column("optimal logit gap", lambda run: run.optimal_gap, is_setting=True),
]
INFORMATION = [Column("I(X; Y), nats", last_information, decimals=3)]
FIDELITY = [
    AGREEMENT,
    Column("agreement, control, %", metric("test", "agreement_control"), 100),
    KL_TO_TEACHER,
    Column("KL to control, nats", metric("test", "kl_control"), decimals=4),
    Column("stability (train)", metric("train", "stability"), decimals=4),
    Column("stability (test)", metric("test", "stability"), decimals=4),
    Column("diffusion", lambda run: run.diffusion, decimals=3),
]
ROBUSTNESS = [
    Column("no attack, %", metric("test", "unattacked"), 100, 1),
    Column("FGSM, %", metric("test", "fgsm"), 100, 1),
    Column("PGD L∞, %", metric("test", "pgd_linf"), 100, 1),
    Column("margin L∞, %", metric("test", "margin_linf"), 100, 1),
    Column("transfer L∞, %", metric("test", "transfer"), 100, 1),
    Column("all L∞, %", metric("test", "worst_linf"), 100, 1),
    Column("PGD L2, %", metric("test", "pgd_l2"), 100, 1),
    Column("zero gradient, %", metric("test", "zero_gradient"), 100, 1),
]


def arm_table(results: StudyResults, columns: list[Column]) -> ArmTable | None:
    """Return a table with a row for each arm that has a number; None if no arm has any."""
    rows = []
    for arm, runs in results.arms().items():
        cells = [_cell(runs, column) for column in columns]
        has_number = False
        for cell, column in zip(cells, columns, strict=True):
            if cell != NO_VALUE and not column.is_setting:
                has_number = True
        if has_number:
            rows.append(Row(arm, runs[0].role, runs[0].model, len(runs), cells))
    if not rows:
        return None
    used = []
    for i in range(len(columns)):
        if any(row.cells[i] != NO_VALUE for row in rows):
            used.append(i)
    shown = []
    for row in rows:
        shown.append(replace(row, cells=[row.cells[i] for i in used]))
    return ArmTable([columns[i].heading for i in used], shown)


def accuracy_comparisons(results: StudyResults) -> list[Comparison]:
    """Return the comparisons of accuracy, those on distillation and smoothing first.

    Those of one question stand together, the smallest p-value first.
    """
    order = {code: number for number, code in enumerate(FIRST_QUESTIONS)}

    def rank(comparison: Comparison) -> tuple[int, str, float]:
        p_value = 1.0 if comparison.p_value is None else comparison.p_value
        first = order.get(comparison.question_code, len(order))
        return first, comparison.question, p_value

    return sorted((one for one in results.comparisons if one.metric == "top1"), key=rank)


def _cell(runs: list[RunResult], column: Column) -> str:
    values = [column.value(run) for run in runs]
    if None in values:
        return NO_VALUE
    mean, sd, _ = mean_interval([column.factor * value for value in values])
    spread = "" if column.is_setting else spread_text(sd, column.decimals)
    return f"{mean:.{column.decimals}f}{spread}"


def spread_text(sd: float, decimals: int) -> str:
    """Return a standard deviation as it follows a mean; nothing where there is no spread."""
    if sd == 0:
        return ""
    text = f"{sd:.{decimals}f}"
    if float(text) == 0:
        text = f"<{10**-decimals:.{decimals}f}"
    return f" ± {text}"


def spread_note(results: StudyResults) -> str:
    """Return what the numbers of a table are: means over seeds, or those of one seed."""
    if len(results.seeds) == 1:
        return "one seed"
    return f"mean ± standard deviation over {len(results.seeds)} seeds"
