"""The content of a study's `results.json` as types, and how that file is read and written."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.storage.files import has_valid_checksum, with_checksum, write_text_atomically
from distill.storage.run_metrics import Metrics

Interval = tuple[float, float]
REMEDY = "`distill run` of the recipe writes it"


class QuestionCode(StrEnum):
    """What a comparison of two arms is about; `distill.report.wording` has the sentences."""

    DISTILLATION = "distillation"
    STUDENT_SMOOTHING = "student_smoothing"
    MORE_STUDENT_SMOOTHING = "more_student_smoothing"  # arm a is smoothed already
    TEACHER_SMOOTHING_ON_STUDENT = "teacher_smoothing_on_student"
    TEACHER_SMOOTHING = "teacher_smoothing"
    MORE_TEACHER_SMOOTHING = "more_teacher_smoothing"
    TEMPERATURE = "temperature"
    LOSS_VS_CROSS_ENTROPY = "loss_vs_cross_entropy"
    LOSS_VS_KD = "loss_vs_kd"
    STUDENT_MODEL = "student_model"
    TEACHER_MODEL = "teacher_model"
    TEACHER = "teacher"
    SETTING = "setting"  # any other setting, named in `Comparison.setting`


class Verdict(StrEnum):
    """What a comparison shows about arm b against arm a.

    "Significant" means that the 95% interval of the paired difference excludes 0. `better` and
    `worse` respect the metric: a lower NLL or ECE is better.
    """

    BETTER = "better"  # significant, also after Holm's adjustment
    WORSE = "worse"
    MAYBE_BETTER = "maybe_better"  # significant on its own, not after Holm's adjustment
    MAYBE_WORSE = "maybe_worse"
    NO_DIFFERENCE = "no_difference"  # not significant: no proof that the two arms are equal
    ONE_SEED = "one_seed"  # no test is possible
    NO_SPREAD = "no_spread"  # the difference is the same in every seed, so there is no test


@dataclass(frozen=True)
class InformationEstimate:
    """I(X; Y) about single training images at one epoch, in nats; None if it is not finite."""

    epoch: int
    nats: float | None
    examples: int


@dataclass(frozen=True)
class DataSummary:
    """Where the images come from, and how many each split has."""

    source: str
    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class RunResult:
    """One trained (or frozen) network of a study.

    Attributes:
        id: of the run, and name of its folder.
        role: "teacher" or "student".
        arm: full name of the arm.
        axes: the values of the arm's sweeps, by their short names.
        seed: None for a frozen network.
        model: name of the network.
        parameters: number of its weights.
        teacher: id of the teacher's run, a list of ids for an ensemble, None without a teacher.
        epochs: passes over the training split.
        seconds: of training.
        hardware: on which it was trained.
        metrics: by split.
        loss: every term with its full settings, defaults included; None for a frozen network.
        smoothing: label smoothing of the loss, None if no term has that setting.
        temperature: of the loss, None if no term has one. The last one if it changes in training.
        template_spread: standard deviation over mean of the templates' squared norms.
        optimal_gap: logit gap at which a smoothed cross-entropy, as the only term, is smallest.
        information: estimates of I(X; Y) by epoch, the finished network last.
        diffusion: log ratio by which similar classes came nearer than others, relative to T = 1.
    """

    id: str
    role: str
    arm: str
    axes: dict[str, Any]
    seed: int | None
    model: str
    parameters: int
    teacher: str | list[str] | None
    epochs: int
    seconds: float
    hardware: str
    metrics: dict[str, Metrics]
    loss: dict[str, dict[str, Any]] | None = None
    smoothing: float | None = None
    temperature: float | None = None
    template_spread: float | None = None
    optimal_gap: float | None = None
    information: list[InformationEstimate] = field(default_factory=list)
    diffusion: float | None = None

    @property
    def test(self) -> Metrics:
        """Return the metrics of the test split."""
        return self.metrics["test"]

    @property
    def validation(self) -> Metrics:
        """Return the metrics of the validation split."""
        return self.metrics["validation"]

    @property
    def train(self) -> Metrics:
        """Return the metrics of the training split."""
        return self.metrics["train"]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunResult":
        """Return the run that a JSON object describes."""
        known = _known_fields(cls, values)
        known["metrics"] = {
            split: Metrics(**_known_fields(Metrics, values))
            for split, values in known["metrics"].items()
        }
        estimates = known.get("information", [])
        known["information"] = [InformationEstimate(**estimate) for estimate in estimates]
        return cls(**known)


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of two arms on the test split, over seeds.

    Attributes:
        question_code: what the two arms answer.
        question: the same as a sentence.
        role: "teacher" or "student": what both arms are.
        setting: dotted key of the one setting in which the arms differ, as in
            "loss.kd.temperature"; None where they differ in a whole loss or in having a teacher.
        a: name of the arm that is compared against.
        b: name of the other arm.
        metric: "top1", "nll" or "ece".
        mean_a, mean_b: means over the seeds.
        difference: mean of b - a.
        ci95: 95% interval of the difference over seeds; None with one seed or without spread.
        ci95_images: 95% interval over test images, with these networks; only of accuracies.
        p_value: of this comparison alone.
        p_holm: adjusted for all comparisons of this metric in the study.
        seeds: number of seeds.
        verdict: what follows from all this.
    """

    question_code: QuestionCode
    question: str
    role: str
    setting: str | None
    a: str
    b: str
    metric: str
    mean_a: float
    mean_b: float
    difference: float
    ci95: Interval | None
    ci95_images: Interval | None
    p_value: float | None
    p_holm: float | None
    seeds: int
    verdict: Verdict

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Comparison":
        """Return the comparison that a JSON object describes."""
        known = _known_fields(cls, values)
        known["question_code"] = QuestionCode(known["question_code"])
        known["verdict"] = Verdict(known["verdict"])
        known["ci95"] = _interval(known["ci95"])
        known["ci95_images"] = _interval(known["ci95_images"])
        return cls(**known)


@dataclass(frozen=True)
class RankedStudent:
    """A student's rank by mean test accuracy, and its paired difference to the best student.

    The best student is picked by these same numbers. So `difference_ci` and `p_adjusted` are
    adjusted as if all pairs of students had been compared (Bonferroni). Both are None for the best
    student, with one seed, and without spread over the seeds.
    """

    rank: int
    arm: str
    mean: float
    sd: float
    ci95: Interval | None
    difference: float
    difference_ci: Interval | None
    p_adjusted: float | None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RankedStudent":
        """Return the row that a JSON object describes."""
        known = _known_fields(cls, values)
        known["ci95"] = _interval(known["ci95"])
        known["difference_ci"] = _interval(known["difference_ci"])
        return cls(**known)


@dataclass(frozen=True)
class StudyResults:
    """Everything that a study found.

    Attributes:
        study: name of the recipe.
        versions: of the libraries, and the hardware.
        data: source and sizes of the splits.
        precision: "no" (float32), "bf16" or "fp16".
        device: type of the device, "cpu" or "cuda".
        seeds: of the recipe.
        runs: teachers before students, each arm by seed.
        comparisons: of all pairs of arms to compare, for each metric.
        ranking: students by mean test accuracy, best first.
        classes: names of the classes.
        analysis: settings of the analysis, with the counts that its budget allows.
        unanalysed: number of runs whose analysis is still to come.
        notes: whole sentences on the data, the recipe and failed training.
        untrained: arms with runs that are no better than chance on the validation split.
    """

    study: str
    versions: dict[str, str]
    data: DataSummary
    precision: str
    device: str
    seeds: list[int]
    runs: list[RunResult]
    comparisons: list[Comparison]
    ranking: list[RankedStudent] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    analysis: dict[str, Any] = field(default_factory=dict)
    unanalysed: int = 0
    notes: list[str] = field(default_factory=list)
    untrained: list[str] = field(default_factory=list)

    def arms(self) -> dict[str, list[RunResult]]:
        """Return the runs of each arm by its name, in the recipe's order."""
        arms: dict[str, list[RunResult]] = {}
        for run in self.runs:
            arms.setdefault(run.arm, []).append(run)
        return arms

    def to_dict(self) -> dict[str, Any]:
        """Return the results as values that `json.dumps` writes."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "StudyResults":
        """Return the results that a JSON object describes; unknown keys are ignored.

        Raises:
            KeyError, TypeError, ValueError: if the object has another layout.
        """
        known = _known_fields(cls, values)
        known["data"] = DataSummary(**known["data"])
        known["runs"] = [RunResult.from_dict(run) for run in known["runs"]]
        known["comparisons"] = [Comparison.from_dict(one) for one in known["comparisons"]]
        known["ranking"] = [RankedStudent.from_dict(row) for row in known.get("ranking", [])]
        return cls(**known)


def read_results(study: Path) -> StudyResults:
    """Read a study's `results.json`.

    Raises:
        UserError: if the file is missing, damaged, or of another version.
    """
    path = study / "results.json"
    try:
        values = json.loads(path.read_text("utf-8"))
        if not isinstance(values, dict) or not {"study", "runs", "comparisons"} <= values.keys():
            raise ValueError("it does not hold the results of a study")
        if not has_valid_checksum(values):
            raise ValueError("its content was changed, the checksum does not match")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {REMEDY}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable: {error}; {REMEDY}") from None
    try:
        return StudyResults.from_dict(values)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is of another version ({error}); {REMEDY}") from None


def write_results(study: Path, results: StudyResults) -> None:
    """Write a study's `results.json`, whole or not at all."""
    text = json.dumps(with_checksum(results.to_dict()), indent=1, allow_nan=False)
    write_text_atomically(study / "results.json", text + "\n")


def _known_fields(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a JSON object that are fields of a dataclass."""
    return {item.name: values[item.name] for item in fields(cls) if item.name in values}


def _interval(bounds: list[float] | None) -> Interval | None:
    """Return an interval from JSON, which has lists for tuples."""
    return None if bounds is None else (bounds[0], bounds[1])
