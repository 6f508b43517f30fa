"""The forest plot of a report: every comparison of accuracy on one axis."""

from dataclasses import dataclass

from distill.report.arm_names import PairLabel, pair_label, short_names
from distill.report.tables import MOST_COMPARISONS, NO_VALUE, accuracy_comparisons
from distill.report.wording import interval_points, p_value_text, points, verdict_sentence
from distill.storage.study_results import Comparison, Interval, StudyResults, Verdict

# An interval over two seeds can be a hundred times as wide as the differences; what reaches further
# than this many times the largest difference is cut off, with an arrow.
REACH = 2.5
MARGIN = 0.04  # of the axis, at both ends

ANSWERS = {
    Verdict.BETTER: "higher",
    Verdict.WORSE: "lower",
    Verdict.MAYBE_BETTER: "perhaps higher",
    Verdict.MAYBE_WORSE: "perhaps lower",
    Verdict.NO_DIFFERENCE: "not significant",
    Verdict.ONE_SEED: "one seed",
    Verdict.NO_SPREAD: "no spread",
}


@dataclass(frozen=True)
class Span:
    """An interval on the axis.

    Attributes:
        left, right: its ends in percent of the axis.
        cut_left, cut_right: whether it reaches beyond the axis.
    """

    left: float
    right: float
    cut_left: bool
    cut_right: bool


@dataclass(frozen=True)
class ForestRow:
    """One comparison of the forest plot.

    Attributes:
        question: that it answers.
        label: names of its arms.
        comparison: its numbers.
        at: the difference, in percent of the axis.
        over_seeds: the 95% interval over seeds, if there is one.
        over_images: the 95% interval over test images, if there is one.
        difference, seeds, images, p_value: texts of the numbers.
        answer: the verdict in one or two words.
        sentence: the verdict as a sentence.
    """

    question: str
    label: PairLabel
    comparison: Comparison
    at: float
    over_seeds: Span | None
    over_images: Span | None
    difference: str
    seeds: str
    images: str
    p_value: str
    answer: str
    sentence: str


@dataclass(frozen=True)
class Forest:
    """The rows of a forest plot, in the report's order of questions, and its axis.

    Attributes:
        first: the rows that are shown at once: of each question the surest.
        others: the rest.
        zero: the place of no difference, in percent of the axis.
        ticks: places in percent of the axis, with their labels.
    """

    first: list[ForestRow]
    others: list[ForestRow]
    zero: float
    ticks: list[tuple[float, str]]

    @property
    def rows(self) -> list[ForestRow]:
        """Return all rows."""
        return self.first + self.others


def make_forest(results: StudyResults) -> Forest | None:
    """Return the forest plot of all comparisons of accuracy; None if there are none."""
    comparisons = accuracy_comparisons(results)
    if not comparisons:
        return None
    axis = _Axis(comparisons)
    names = short_names(results)
    rows = []
    for one in comparisons:
        row = ForestRow(
            question=one.question,
            label=pair_label(names.get(one.a, one.a), names.get(one.b, one.b)),
            comparison=one,
            at=axis.percent(one.difference),
            over_seeds=axis.span(one.ci95),
            over_images=axis.span(one.ci95_images),
            difference=points(one.difference),
            seeds=interval_points(one.ci95) if one.ci95 else NO_VALUE,
            images=interval_points(one.ci95_images) if one.ci95_images else NO_VALUE,
            p_value=NO_VALUE if one.p_holm is None else p_value_text(one.p_holm),
            answer=ANSWERS[one.verdict],
            sentence=verdict_sentence(one, results),
        )
        rows.append(row)
    first, others = _split(rows)
    return Forest(first, others, axis.percent(0), axis.ticks())


def _split(rows: list[ForestRow]) -> tuple[list[ForestRow], list[ForestRow]]:
    """Return the rows to show at once and the rest; each question has as many as fit."""
    if len(rows) <= MOST_COMPARISONS:
        return rows, []
    questions = dict.fromkeys(row.question for row in rows)
    room = max(1, MOST_COMPARISONS // len(questions))
    first = []
    others = []
    for question in questions:
        of_question = [row for row in rows if row.question == question]
        first += of_question[:room]
        others += of_question[room:]
    return first, others


class _Axis:
    """The axis of a forest plot: differences of accuracy, as fractions."""

    def __init__(self, comparisons: list[Comparison]) -> None:
        differences = [0.0]
        ends = []
        for one in comparisons:
            differences.append(one.difference)
            ends += [*(one.ci95 or ()), *(one.ci95_images or ())]
        reach = REACH * max(abs(value) for value in differences)
        low = max(min(differences + ends), -reach)
        high = min(max(differences + ends), reach)
        margin = MARGIN * (high - low) or 0.01  # one point, if all differences are zero
        self.low = low - margin
        self.high = high + margin

    def percent(self, value: float) -> float:
        """Return where a value is, in percent of the axis; beyond its ends, the nearer end."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 2)

    def span(self, interval: Interval | None) -> Span | None:
        """Return the places of an interval's ends."""
        if interval is None:
            return None
        low, high = interval
        return Span(self.percent(low), self.percent(high), low < self.low, high > self.high)

    def ticks(self) -> list[tuple[float, str]]:
        """Return about six round values in points, with their places."""
        from matplotlib.ticker import MaxNLocator  # takes a second to import

        values = MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(100 * self.low, 100 * self.high)
        inside = [value for value in values if 100 * self.low <= value <= 100 * self.high]
        texts = [
            f"{value:+.3g}".replace("-", "−") if abs(value) > 1e-9 else "0" for value in inside
        ]
        places = [self.percent(value / 100) for value in inside]
        return list(zip(places, texts, strict=True))
