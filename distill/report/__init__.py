"""The report of a study: tables and figures from what is stored, in HTML and in the terminal."""

import base64
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from distill.document import UserError
from distill.files import write_aside
from distill.pictures import Picture, load_picture
from distill.report import tables
from distill.runs import Store, read_results


def write_report(study: Path, store: Store) -> None:
    """`figures/` and `report.html` of a study's folder, from its files and its runs' predictions and history.

    The page holds everything it shows: no other file, no network.
    """
    from distill.report.drawing import draw

    results = read_results(study)
    try:
        picture = load_picture(study / "features.safetensors")
    except ValueError as error:
        raise UserError(f"{error}; `distill run` of the recipe makes it again") from None
    told = draw(results, store, study / "figures", picture)
    pictures = {path.stem: base64.b64encode(path.read_bytes()).decode() for path in (study / "figures").glob("*.svg")}
    views = dict(zip(picture.view_names(), picture.views, strict=True)) if picture else {}
    page = _environment().get_template("report.html.jinja").render(
        results=results, tables=tables, summary=tables.summary, comparisons=tables.headline(results),
        pictures=pictures, told=told, views=views, explorer=_explorer(picture),
        recipe=(study / "recipe.yaml").read_text(encoding="utf-8"), few=len(results["seeds"]) < 3,
        seconds=sum({run["id"]: run["seconds"] for run in results["runs"]}.values()),
        hardware=sorted({run["hardware"] for run in results["runs"]}), tested=len(
            [c for c in results["comparisons"] if c["metric"] == "top1" and c["p_value"] is not None]))
    write_aside(study / "report.html", page)


def refuse_damage(results: dict[str, Any], store: Store) -> None:
    """UserError if a run of a study is not what was written; `distill run` has looked already, and trained it again."""
    for run_id in {run["id"]: None for run in results["runs"]}:
        damage = store.damage(run_id)
        if damage:
            raise UserError(f"{damage}; `distill run` of the recipe trains that run again")


def write_explorer(picture: Picture, to: Path) -> None:
    """A page of its own for a picture, as the report has it."""
    write_aside(to, _environment().get_template("explorer.page.html.jinja").render(explorer=_explorer(picture)))


def _explorer(picture: Picture | None) -> dict[str, Any] | None:
    from distill.report.explorer import explorer_data

    return explorer_data(picture) if picture else None


def _environment() -> jinja2.Environment:
    def template(name: str) -> str:
        return files("distill.report").joinpath(name).read_text("utf-8")

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                     loader=jinja2.FunctionLoader(template))
    environment.filters["interval"] = _interval
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "allow_nan": False}
    return environment


def _interval(bounds: list[float] | None, sign: str = "") -> str:
    """Bounds of fractions, as percentages."""
    return " to ".join(f"{100 * bound:{sign}.2f}" for bound in bounds) if bounds else "–"
