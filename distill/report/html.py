"""The HTML report of a study, from what is stored beside its runs."""

import base64
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from distill.errors import UserError, pluralize
from distill.evaluation.feature_plot import FeaturePlot, load_feature_plot
from distill.report import tables
from distill.report.arm_names import short_names
from distill.report.forest import make_forest
from distill.report.summary import summarise
from distill.report.terminal import best_student
from distill.report.wording import interval_points, p_value_text, points
from distill.storage.files import write_text_atomically
from distill.storage.run_store import RunStore
from distill.storage.study_results import StudyResults


def write_report(study: Path, results: StudyResults, store: RunStore) -> None:
    """Write `figures/` and `report.html` of a study's folder.

    The page contains everything it shows: it needs no other file and no network.

    Args:
        study: the study's folder, with its recipe.
        results: of the study.
        store: where its runs are: predictions and training histories are read from them.
    """
    from distill.report.drawing import draw

    try:
        feature_plot = load_feature_plot(study / "features.safetensors")
    except ValueError as error:
        raise UserError(f"{error}; `distill run` of the recipe makes it again") from None
    captions = draw(results, store, study / "figures", feature_plot)
    template = _environment().get_template("report.html.jinja")
    page = template.render(
        captions=captions,
        figures=_encoded_figures(study / "figures"),
        views=_views_by_name(feature_plot),
        explorer=_explorer(feature_plot),
        recipe=(study / "recipe.yaml").read_text(encoding="utf-8"),
        forest=make_forest(results),
        **_first_screen(results),
        **_cost(results),
    )
    write_text_atomically(study / "report.html", page)


def results_html(results: StudyResults) -> str:
    """Return the summary of a study and its table of arms, as a notebook shows them."""
    template = _environment().get_template("notebook.html.jinja")
    return template.render(**_first_screen(results))


def refuse_damage(results: StudyResults, store: RunStore) -> None:
    """Check that the files of all runs of a study are what was written.

    `distill run` needs no such check: it looks for damaged runs first and trains them again.

    Raises:
        UserError: if a file was changed or cannot be read.
    """
    run_ids = dict.fromkeys(run.id for run in results.runs)
    for run_id in run_ids:
        damage = store.damage(run_id)
        if damage:
            raise UserError(f"{damage}; `distill run` of the recipe trains that run again")


def write_explorer(feature_plot: FeaturePlot, to: Path) -> None:
    """Write a page that shows a feature plot alone, as the report does."""
    template = _environment().get_template("explorer.page.html.jinja")
    write_text_atomically(to, template.render(explorer=_explorer(feature_plot)))


def _encoded_figures(folder: Path) -> dict[str, str]:
    """Return the SVG figures of a folder in base64, by name."""
    return {
        path.stem: base64.b64encode(path.read_bytes()).decode() for path in folder.glob("*.svg")
    }


def _views_by_name(feature_plot: FeaturePlot | None) -> dict[str, Any]:
    if feature_plot is None:
        return {}
    return dict(zip(feature_plot.view_names(), feature_plot.views, strict=True))


def _explorer(feature_plot: FeaturePlot | None) -> dict[str, Any] | None:
    from distill.report.explorer import explorer_data

    return explorer_data(feature_plot) if feature_plot else None


def _first_screen(results: StudyResults) -> dict[str, Any]:
    """Return what the summary and the table of arms need."""
    return {
        "results": results,
        "summary": summarise(results),
        "names": short_names(results),
        "spread_note": tables.spread_note(results),
        "best": best_student(results),
    }


def _cost(results: StudyResults) -> dict[str, Any]:
    """Return the minutes of training, each run counted once, and the machines."""
    seconds_by_id = {run.id: run.seconds for run in results.runs}
    return {
        "minutes": sum(seconds_by_id.values()) / 60,
        "hardware": sorted({run.hardware for run in results.runs}),
    }


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_template_source),
    )
    environment.filters |= {
        "breakable": _breakable,
        "code": _code,
        "interval": _interval,
        "interval_points": interval_points,
        "p_value": p_value_text,
        "percent": _percent,
        "points": points,
        "sentence": _sentence,
    }
    environment.globals |= {
        "tables": tables,
        "arm_table": tables.arm_table,
        "plural": pluralize,
    }
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "allow_nan": False}
    return environment


def _template_source(name: str) -> str:
    return files("distill.report").joinpath("templates", name).read_text("utf-8")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _interval(bounds: tuple[float, float]) -> str:
    """Return an interval of fractions in percent."""
    low, high = bounds
    return f"{_percent(low)} to {_percent(high)}"


def _breakable(name: str) -> str:
    """Return an arm's name in which a line may break after each slash."""
    return name.replace("/", "/\u200b")


def _code(text: str) -> Markup:
    """Return a text as HTML, with what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _sentence(text: str) -> str:
    """Return a text with a full stop at its end, if it has none."""
    return text if text.endswith((".", "!", "?")) else f"{text}."
