"""The report's page: complete, escaped, made again from stored files, and refused when damaged."""

import html
import re

import pytest
from helpers.recipes import TINY, make_recipe, merge

from distill import run_study
from distill.errors import UserError
from distill.report.html import refuse_damage
from distill.storage.run_store import RunStore
from distill.storage.study_results import read_results

pytestmark = pytest.mark.slow

NAME = "a<b>&c"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a finished study whose name and arm are HTML."""
    analysis = {"num_attacked": 20, "num_views": 2, "steps": 2, "examples": 0}
    document = merge(TINY, {"train": {"epochs": 1, "snapshots": 1}, "analysis": analysis})
    alone = document["students"].pop("alone")
    document["students"]["<i>x"] = alone | {"loss": {"cross_entropy": {}}}
    out = tmp_path_factory.mktemp("page") / "runs"
    run_study(make_recipe(document, name=NAME), out)
    return out / NAME


def test_the_page_has_every_comparison_figure_and_arm(study):
    page = html.unescape((study / "report.html").read_text()).replace("\u200b", "")
    results = read_results(study)
    for run in results.runs:
        assert run.arm in page
    for comparison in results.comparisons:
        assert comparison.question in page
    figures = list((study / "figures").glob("*.svg"))
    assert len(figures) >= 5
    assert page.count("data:image/svg+xml") == len(figures)


def test_names_stay_text_and_the_page_needs_no_network(study):
    page = (study / "report.html").read_text()
    assert "<i>x" not in page
    assert "<b>&" not in page
    assert not re.search(r'(src|href)="?https?:', page)
    assert "None" not in re.sub(r"<(pre|script).*?</\1>", "", page, flags=re.DOTALL)


def test_no_paragraph_of_the_page_is_long(study):
    page = (study / "report.html").read_text()
    paragraphs = re.findall(r"<(p|li|dd|figcaption)\b[^>]*>((?:(?!<p\b).)*?)</\1>", page, re.DOTALL)
    texts = [html.unescape(re.sub(r"<[^>]+>", "", text)).split() for _, text in paragraphs]
    assert len(texts) > 15
    assert max(map(len, texts)) <= 60


def test_a_run_that_was_changed_is_refused(study):
    results = read_results(study)
    store = RunStore(study.parent)
    refuse_damage(results, store)
    history = store.folder(results.runs[0].id) / "history.jsonl"
    content = history.read_bytes()
    history.write_bytes(content + b"{}\n")
    with pytest.raises(UserError, match=r"history.jsonl"):
        refuse_damage(results, store)
    history.write_bytes(content)
