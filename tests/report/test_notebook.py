"""A notebook shows the summary and the table of arms of a study's results."""

import html

from helpers.results import make_comparison, make_results, runs_of

from distill.report.notebook import NotebookResults
from distill.report.summary import summarise

RESULTS = make_results(
    runs_of("<i>alone", [0.9, 0.92]) + runs_of("distilled", [0.93, 0.95]),
    comparisons=[make_comparison(a="<i>alone", b="distilled")],
)


def test_a_notebook_shows_summary_and_arms():
    shown = NotebookResults.of(RESULTS)._repr_html_()
    page = html.unescape(shown)
    assert "<i>alone" not in shown and "<i>alone" in page
    assert "91.00 ± 1.41" in page and "94.00 ± 1.41" in page
    summary = summarise(RESULTS)
    assert all(sentence in page for sentence in (*summary.findings, summary.asked))
    assert "<script" not in shown


def test_the_results_are_the_same_with_a_display():
    shown = NotebookResults.of(RESULTS)
    assert shown.to_dict() == RESULTS.to_dict()
    assert shown == RESULTS and shown == RESULTS
    assert shown != make_results(RESULTS.runs)
