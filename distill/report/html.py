"""The report of a study: tables and figures from what is stored, in HTML and in the terminal."""

import base64
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from distill.errors import UserError
from distill.evaluation.feature_plot import FeaturePlot, load_feature_plot
from distill.report import tables
from distill.storage.files import write_text_atomically
from distill.storage.run_store import RunStore, read_results


def write_report(study: Path, store: RunStore) -> None:
    """`figures/` and `report.html` of a study's folder, from its files and its runs' predictions and history.

    The page holds everything it shows: no other file, no network.
    """
    from distill.report.drawing import draw

    results = read_results(study)
    try:
        feature_plot = load_feature_plot(study / "features.safetensors")
    except ValueError as error:
        raise UserError(f"{error}; `distill run` of the recipe makes it again") from None
    told = draw(results, store, study / "figures", feature_plot)
    pictures = {
        path.stem: base64.b64encode(path.read_bytes()).decode()
        for path in (study / "figures").glob("*.svg")
    }
    views = (
        dict(zip(feature_plot.view_names(), feature_plot.views, strict=True))
        if feature_plot
        else {}
    )
    page = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            results=results,
            tables=tables,
            summary=tables.summary,
            comparisons=tables.headline(results),
            pictures=pictures,
            told=told,
            views=views,
            explorer=_explorer(feature_plot),
            recipe=(study / "recipe.yaml").read_text(encoding="utf-8"),
            few=len(results["seeds"]) < 3,
            seconds=sum({run["id"]: run["seconds"] for run in results["runs"]}.values()),
            hardware=sorted({run["hardware"] for run in results["runs"]}),
            tested=len(
                [
                    c
                    for c in results["comparisons"]
                    if c["metric"] == "top1" and c["p_value"] is not None
                ]
            ),
        )
    )
    write_text_atomically(study / "report.html", page)


def refuse_damage(results: dict[str, Any], store: RunStore) -> None:
    """UserError if a run of a study is not what was written; `distill run` has looked already, and trained it again."""
    for run_id in {run["id"]: None for run in results["runs"]}:
        damage = store.damage(run_id)
        if damage:
            raise UserError(f"{damage}; `distill run` of the recipe trains that run again")


def write_explorer(feature_plot: FeaturePlot, to: Path) -> None:
    """A page of its own for a feature_plot, as the report has it."""
    write_text_atomically(
        to,
        _environment()
        .get_template("explorer.page.html.jinja")
        .render(explorer=_explorer(feature_plot)),
    )


def _explorer(feature_plot: FeaturePlot | None) -> dict[str, Any] | None:
    from distill.report.explorer import explorer_data

    return explorer_data(feature_plot) if feature_plot else None


def _environment() -> jinja2.Environment:
    def template(name: str) -> str:
        return files("distill.report").joinpath("templates", name).read_text("utf-8")

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(template),
    )
    environment.filters["interval"] = _interval
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "allow_nan": False}
    return environment


def _interval(bounds: list[float] | None, sign: str = "") -> str:
    """Bounds of fractions, as percentages."""
    return " to ".join(f"{100 * bound:{sign}.2f}" for bound in bounds) if bounds else "–"
