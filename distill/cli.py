"""The command line. Commands are thin, and import what they need when they run: `--help` needs no torch."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(name="distill", no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False,
                  help="Distil image classifiers and study label smoothing, from a recipe to an honest comparison.")

STOPPED = "distill: stopped; the same command goes on from the last checkpoint"
Out = Annotated[Path, typer.Option("--out", help="The folder of all studies and runs.")]


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="The YAML file that states the study.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace "
                         "the recipe's, as in train.epochs=3 seeds=1 data.root=/data.")] = None,
    out: Out = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost, train nothing.")] = False,
) -> None:
    """Train what is not trained yet, evaluate, and write the report. The same command resumes."""
    try:
        from distill import planning, study

        plan = study.load_recipe(recipe, overrides or [])
        if dry_run:
            _print_plan(planning.dry_run(plan, out))
            return
        accelerator = study.make_accelerator(study.precision_of(plan))
        results = study.run_study(plan, out, accelerator)
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        raise typer.Exit(130) from None
    if accelerator.is_main_process:
        _print_results(results)
    accelerator.end_training()


@app.command()
def report(
    studies: Annotated[list[str], typer.Argument(help="Names of studies below --out, or their folders.")],
    out: Out = Path("runs"),
) -> None:
    """Render tables and figures again from what is stored, several studies side by side."""
    from distill.report import refuse_damage, write_report
    from distill.runs import Store, read_results

    for name in studies:
        folder = Path(name) if (Path(name) / "results.json").is_file() else out / name
        results = read_results(folder)
        store = Store(folder.resolve().parent)
        with store.locked(folder.resolve().name):
            refuse_damage(results, store)
            write_report(folder, store)
        _print_results(results)
        print(f"report: {folder / 'report.html'}")


@app.command()
def clusters(
    runs: Annotated[list[str], typer.Argument(help="Run folders, beginnings of ids, or STUDY:ARM (its first seed).")],
    classes: Annotated[list[str] | None, typer.Option(help="Three class names, separated by commas; or the option "
                                                      "three times, for names with commas.")] = None,
    view: Annotated[list[str] | None, typer.Option(help="How to see them: plane (through three templates), pca, tsne, "
                                                    "umap; may be given several times. By default plane.")] = None,
    to: Annotated[Path, typer.Option(help="Folder for the figures (PNG, SVG) and the page clusters.html.")] = Path("."),
    out: Out = Path("runs"),
) -> None:
    """Draw the penultimate features of runs, side by side: figures, and a page to look at single images."""
    from distill.explain.pictures import picture_of_runs
    from distill.report import write_explorer
    from distill.report.drawing import draw_features

    chosen = [name.strip() for name in classes[0].split(",")] if classes and len(classes) == 1 else classes
    picture = picture_of_runs(runs, out, chosen, list(dict.fromkeys(view or ["plane"])))
    for name in draw_features(picture, to):
        print(to / f"{name}.png")
    write_explorer(picture, to / "clusters.html")
    print(to / "clusters.html")


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for completion in editors."""
    from distill.losses import TERMS
    from distill.recipe import json_schema

    print(json.dumps(json_schema(TERMS), indent=2))


def _print_results(results: dict[str, Any]) -> None:
    from rich.console import Console

    from distill.report.tables import terminal_tables

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
    for table in terminal_tables(results):
        if not sys.stdout.isatty():
            table.box = None  # lines help the eye, not a pipe
        console.print(table)


def _print_plan(plan: dict[str, Any]) -> None:
    stored = sum(run["stored"] for run in plan["runs"])
    print(f"{len(plan['runs'])} runs, {stored} of them stored:")
    for run in plan["runs"]:
        print(f"  {run['id']}  {'stored' if run['stored'] else '      '}  {run['name']}")
    print(f"{len(plan['cohorts'])} cohorts to train:")
    for cohort in plan["cohorts"]:
        runs, answers = cohort["runs"], cohort["answers"]
        others = f"; and {len(runs) - 4} others" if len(runs) > 4 else ""
        print(f"  {len(runs)} runs, {cohort['epochs']} epochs, about {_time(cohort['seconds'])}: "
              f"{'; '.join(runs[:4])}{others}")
        if answers:
            print(f"    of {len(answers)} teachers, {sum(kept['stored'] for kept in answers)} of "
                  f"{cohort['epochs'] * len(answers)} epochs of answers are stored; "
                  f"{sum(kept['bytes'] for kept in answers) / 1e6:,.3g} MB will be written")
    for note in plan["notes"]:
        print(f"note: {note}")
    saved = sum(cohort["saved"] for cohort in plan["cohorts"])
    print(f"about {_time(plan['seconds'])} of training on this machine"
          + (f"; stored answers of teachers save about {_time(saved)}" if saved >= 0.5 else ""))


def _time(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def main() -> None:
    """The program: 0 when all went well, 2 for what a person can mend, 1 for a fault of ours, 130 or 143 if stopped."""
    from distill.document import UserError

    own = os.getpid()

    def terminated(*_: object) -> None:
        if os.getpid() == own:  # not a process that decodes images
            os.write(2, f"{STOPPED}\n".encode())
        os._exit(143)  # at once: files are whole or absent, and an exception may come amid any library's import

    signal.signal(signal.SIGTERM, terminated)  # as a scheduler ends a job
    try:
        app(standalone_mode=True)
    except UserError as error:
        print(f"distill: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"distill: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        sys.exit(2)
