"""What commands print: tables of results, JSON, and the plan of a study."""

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from distill.errors import pluralize

if TYPE_CHECKING:
    from rich.table import Table

    from distill.storage.study_results import StudyResults


def results_json(results: "StudyResults", indent: int | None = None) -> str:
    """Return the results of a study as JSON."""
    return json.dumps(results.to_dict(), indent=indent)


def best_student(results: "StudyResults") -> str | None:
    """Return `STUDY:ARM` of the student with the highest accuracy, if there is one that learned."""
    if not results.ranking or results.ranking[0].arm in results.untrained:
        return None
    return f"{results.study}:{results.ranking[0].arm}"


def print_results(results: "StudyResults") -> None:
    """Print the tables of a study's results, and what they come to in sentences."""
    from distill.report.summary import summarise
    from distill.report.terminal_tables import terminal_tables

    print_tables(terminal_tables(results))
    summary = summarise(results)
    for sentence in (*summary.findings, summary.sureness):
        print(sentence)
    if summary.choice:
        print(f"best student: {summary.choice}")
    best = best_student(results)
    if best:
        print(f"to ship it: distill export '{best}' --to student.onnx")


def print_tables(tables: Iterable["Table"]) -> None:
    """Print tables, with lines between cells only in a terminal."""
    from rich.console import Console

    # In a pipe, lines between cells would be in the way of other programs.
    in_terminal = sys.stdout.isatty()
    console = Console(highlight=False, markup=False, width=None if in_terminal else 160)
    for table in tables:
        if not in_terminal:
            table.box = None
        console.print(table)


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """Return the lines that describe a plan of `distill.study.dry_run`."""
    runs = plan["runs"]
    cohorts = plan["cohorts"]
    stored = sum(run["stored"] for run in runs)
    lines = [f"{pluralize(len(runs), 'run')}, {stored} of them stored:"]
    for run in runs:
        lines.append(f"  {run['id']}  {'stored' if run['stored'] else '      '}  {run['name']}")

    lines.append(f"{pluralize(len(cohorts), 'cohort')} to train:")
    for cohort in cohorts:
        lines += _cohort_lines(cohort)
    lines += [f"note: {note}" for note in plan["notes"]]

    total = f"about {_duration(plan['seconds'])} of training on this machine"
    saved = sum(cohort["saved"] for cohort in cohorts)
    if saved >= 0.5:
        total += f"; cached teacher logits save about {_duration(saved)}"
    analysis = f"then about {_duration(plan['analysis_seconds'])} of analysis"
    lines.append(f"{total}; {analysis}; start-up, evaluation and figures are not included")
    return lines


def _cohort_lines(cohort: dict[str, Any]) -> list[str]:
    """Return the lines that describe the runs of a cohort and the teacher logits that it uses."""
    names = cohort["runs"]
    shown = "; ".join(names[:4])
    if len(names) > 4:
        shown += f"; and {len(names) - 4} more"
    runs = pluralize(len(names), "run")
    epochs = pluralize(cohort["epochs"], "epoch")
    lines = [f"  {runs}, {epochs}, about {_duration(cohort['seconds'])}: {shown}"]

    caches = cohort["teacher_logits"]
    if caches:
        stored = sum(cache["stored"] for cache in caches)
        total = cohort["epochs"] * len(caches)
        megabytes = sum(cache["bytes"] for cache in caches) / 1e6
        teachers = pluralize(len(caches), "teacher")
        lines.append(
            f"    logits of {teachers}: {stored} of {total} epochs are cached, "
            f"{megabytes:,.3g} MB will be written"
        )
    return lines


def _duration(seconds: float) -> str:
    """Return a duration in the largest unit that it has at least 1.5 of: ``2.0 min``."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 or not seconds else "1 s"
