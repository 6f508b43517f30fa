"""The command line. Commands are thin, and import what they need when they run: `--help` needs no torch."""

import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from distill.storage.study_results import StudyResults

app = typer.Typer(
    name="distill",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Distil image classifiers and study label smoothing, from a recipe to an honest comparison.",
)

STOPPED = "distill: stopped; the same command goes on from the last checkpoint"
Out = Annotated[Path, typer.Option("--out", help="The folder of all studies and runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@app.command()
def run(
    recipe: Annotated[
        str,
        typer.Argument(
            help="The YAML file that states the study, or the name of one that comes "
            "with distill (`distill recipes`)."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Values that replace the recipe's, as in train.epochs=3 seeds=1 data.root=/data.",
        ),
    ] = None,
    out: Out = Path("runs"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and its cost, train nothing.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="This is the I-th of N jobs (1/8 … 8/8) that share "
            "out the runs of the study, on a folder --out that they share.",
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TRACKER",
            help="Log every epoch of every run to "
            "accelerate's tracker of that name: tensorboard, wandb, mlflow, trackio …",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train what is not trained yet, evaluate, and write the report. The same command resumes."""
    from distill.study import run as study
    from distill.study.dry_run import dry_run as plan_study
    from distill.study.run_locks import parse_shard

    plan = study.load_recipe(find_recipe(recipe), overrides or [])
    if dry_run:
        planned = plan_study(plan, out)
        print(json.dumps(planned, indent=1)) if as_json else _print_plan(planned)
        return
    accelerator = study.make_accelerator(study.study_precision(plan), track or [], out)
    results = study.run_study(plan, out, accelerator, parse_shard(shard) if shard else None)
    if accelerator.is_main_process and results:
        print(json.dumps(results.to_dict(), indent=1)) if as_json else _print_results(results)
        best = next(iter(results.ranking), None)
        if best and not as_json:
            print(
                f"best student: {best.arm}; distill export '{results.study}:{best.arm}' --to student.onnx"
            )
    accelerator.end_training()


@app.command()
def report(
    studies: Annotated[
        list[str], typer.Argument(help="Names of studies below --out, or their folders.")
    ],
    out: Out = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Render tables and figures again from what is stored, several studies side by side."""
    from distill.report.html import refuse_damage, write_report
    from distill.storage.run_store import RunStore
    from distill.storage.study_results import read_results

    for name in studies:
        folder = Path(name) if (Path(name) / "results.json").is_file() else out / name
        results = read_results(folder)
        store = RunStore(folder.resolve().parent)
        with store.lock_study(folder.resolve().name):
            refuse_damage(results, store)
            write_report(folder, store)
        if as_json:
            print(json.dumps(results.to_dict()))  # a line a study
            continue
        _print_results(results)
        print(f"report: {folder / 'report.html'}")


@app.command()
def clusters(
    runs: Annotated[
        list[str],
        typer.Argument(help="Run folders, beginnings of ids, or STUDY:ARM (its first seed)."),
    ],
    classes: Annotated[
        list[str] | None,
        typer.Option(
            help="Three class names, separated by commas; or the option "
            "three times, for names with commas."
        ),
    ] = None,
    view: Annotated[
        list[str] | None,
        typer.Option(
            help="How to see them: plane (through three templates), pca, tsne, "
            "umap; may be given several times. By default plane."
        ),
    ] = None,
    to: Annotated[
        Path, typer.Option(help="Folder for the figures (PNG, SVG) and the page clusters.html.")
    ] = Path("."),
    out: Out = Path("runs"),
) -> None:
    """Draw the penultimate features of runs, side by side: figures, and a page to look at single images."""
    from distill.evaluation.project_features import feature_plot_of_runs
    from distill.report.drawing import draw_features
    from distill.report.html import write_explorer

    chosen = (
        [name.strip() for name in classes[0].split(",")]
        if classes and len(classes) == 1
        else classes
    )
    feature_plot = feature_plot_of_runs(runs, out, chosen, list(dict.fromkeys(view or ["plane"])))
    for name in draw_features(feature_plot, to):
        print(to / f"{name}.png")
    write_explorer(feature_plot, to / "clusters.html")
    print(to / "clusters.html")


@app.command()
def evaluate(
    network: Annotated[
        str,
        typer.Argument(
            help="A run's folder, the beginning of its id, STUDY:ARM, or a name of timm's."
        ),
    ],
    data: Annotated[
        str, typer.Option(help="A folder of images, a tar file, or a source as in a recipe.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Of the recipe's data, as in image_size=256 root=/data."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="all, train, validation or test; by default test, or all of a "
            "folder that has no splits."
        ),
    ] = None,
    out: Out = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Judge any stored run, or any network of timm's, on any images."""
    import torch

    from distill.evaluation.evaluate import evaluate_network, find_networks, open_evaluation_images
    from distill.recipe.load import data_settings
    from distill.report.tables import metrics_table
    from distill.storage.run_store import RunStore

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {}
    for judged in find_networks(network, RunStore(out)):
        splits, images, told = open_evaluation_images(
            judged, data, data_settings(settings or []), split
        )
        print(told, file=sys.stderr)
        found[judged.name] = evaluate_network(judged, splits, images, device)
    print(json.dumps(found, indent=1)) if as_json else _print_tables([metrics_table(found)])


@app.command()
def export(
    run: Annotated[
        str,
        typer.Argument(
            help="A run's folder, the beginning of its id, or STUDY:ARM (its first seed)."
        ),
    ],
    to: Annotated[Path, typer.Option(help="The ONNX file.")],
    out: Out = Path("runs"),
) -> None:
    """Write a run as an ONNX file (pixels in, logits and calibrated probabilities out), checked against torch."""
    from distill.export.onnx import about_run, export_onnx
    from distill.models.factory import load_run_model
    from distill.storage.find_runs import find_runs
    from distill.storage.run_store import RunStore

    store = RunStore(out)
    run_id = find_runs(store, run)[0]
    model, temperature = (
        load_run_model(store.folder(run_id)),
        store.record(run_id).get("calibration_temperature", 1.0),
    )
    names = list(model.pretrained_cfg.get("label_names") or [])
    difference = export_onnx(model, to, temperature, about_run(run_id, names, temperature))
    print(f"{to}: run {run_id}; its answers differ from torch's by {difference:.1e} at most")


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="The recipe to print.")] = None,
) -> None:
    """List the recipes that come with distill, or print one: distill recipes digits > my.yaml."""
    if name:
        print(find_recipe(name).read_text("utf-8"), end="")
        return
    for path in sorted(recipes_folder().rglob("*.yaml")):
        first = path.read_text("utf-8").splitlines()[0].lstrip("# ")
        print(f"{path.relative_to(recipes_folder()).with_suffix('').as_posix():24}  {first}")


def recipes_folder() -> Path:
    """Where the recipes lie: in the package once it is installed, beside it in a checkout."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def find_recipe(name: str) -> Path:
    """A file of that name, or the recipe of that name that comes with distill."""
    from distill.errors import UserError, suggest

    folder = recipes_folder()
    known = {
        path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")
    }
    if name in known and not Path(name).is_file():
        return known[name]
    if not Path(name).suffix and not Path(name).exists():
        raise UserError(f"there is neither a file nor a recipe '{name}'; {suggest(name, known)}")
    return Path(name)


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for completion in editors."""
    from distill.losses import LOSSES
    from distill.recipe.json_schema import json_schema

    print(json.dumps(json_schema(LOSSES), indent=2))


def _print_results(results: "StudyResults") -> None:
    from distill.report.tables import terminal_tables

    _print_tables(terminal_tables(results))


def _print_tables(tables: Iterable["Table"]) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
    for table in tables:
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
        runs, answers = cohort["runs"], cohort["teacher_logits"]
        others = f"; and {len(runs) - 4} others" if len(runs) > 4 else ""
        print(
            f"  {len(runs)} runs, {cohort['epochs']} epochs, about {_time(cohort['seconds'])}: "
            f"{'; '.join(runs[:4])}{others}"
        )
        if answers:
            print(
                f"    of {len(answers)} teachers, {sum(kept['stored'] for kept in answers)} of "
                f"{cohort['epochs'] * len(answers)} epochs of answers are stored; "
                f"{sum(kept['bytes'] for kept in answers) / 1e6:,.3g} MB will be written"
            )
    for note in plan["notes"]:
        print(f"note: {note}")
    saved = sum(cohort["saved"] for cohort in plan["cohorts"])
    print(
        f"about {_time(plan['seconds'])} of training on this machine"
        + (f"; stored answers of teachers save about {_time(saved)}" if saved >= 0.5 else "")
        + "; looking into the networks comes after it (analysis)"
    )


def _time(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def main() -> None:
    """The program: 0 when all went well, 2 for what a person can mend, 1 for a fault of ours, 130 or 143 if stopped."""
    from distill.errors import UserError

    own = os.getpid()

    def stopped(number: int, _: object) -> None:
        if os.getpid() == own:  # not a process that decodes images
            cursor = "\033[?25h\n" if os.isatty(2) else ""  # bars hide it
            os.write(2, f"{cursor}{STOPPED}\n".encode())
        os._exit(
            128 + number
        )  # files are whole or absent, and an exception might come amid any library's import

    signal.signal(signal.SIGTERM, stopped)  # as a scheduler ends a job
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is in the background
        signal.signal(signal.SIGINT, stopped)
    try:
        app(standalone_mode=True)
    except UserError as error:
        print(f"distill: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that may not be written
        print(
            f"distill: {error.strerror or error}: {error.filename or ''}".rstrip(": "),
            file=sys.stderr,
        )
        sys.exit(2)
