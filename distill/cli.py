"""The command line: ``distill run``, ``report``, ``clusters``, ``evaluate``, ``export`` and others.

Commands are thin. They import what they need when they run, so that `distill --help` answers at
once, without importing torch.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill.report.terminal import (
    plan_lines,
    print_results,
    print_tables,
    results_json,
)

if TYPE_CHECKING:
    from distill.storage.study_results import StudyResults

app = typer.Typer(
    name="distill",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Distil image classifiers and study label smoothing: train teachers and students from a "
    "recipe, and compare them with paired statistics.",
)

STOPPED = (
    "distill: stopped; the same command continues: finished runs are stored, and others go on from "
    "their last checkpoint, if they have one"
)
STOPPED_IN_ANALYSIS = (
    "distill: stopped; {report} has the results; the same command continues the analysis"
)
RUN_HELP = "A run's folder, the beginning of its id, or STUDY:ARM (the arm's first seed)."

Out = Annotated[Path, typer.Option("--out", help="Folder of all studies and runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@app.command()
def run(
    recipe: Annotated[
        str,
        typer.Argument(
            help="YAML file of the study, or the name of a recipe that is included in distill "
            "(listed by `distill recipes`)."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Values that replace those of the recipe, as in train.epochs=3 seeds=1 "
            "data.root=/data.",
        ),
    ] = None,
    out: Out = Path("runs"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and its cost; train nothing.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Run as job I of N (1/8 to 8/8). The jobs share the runs of the study and need a "
            "common folder --out.",
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TRACKER",
            help="Log every epoch of every run to one of accelerate's trackers: tensorboard, "
            "wandb, mlflow, trackio, …; separate several with commas.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train the runs of a study that are missing, evaluate all, and write the report.

    The same command resumes after an interruption.
    """
    from distill.recipe.included import find_recipe

    path = find_recipe(recipe)  # a misspelt name is refused before torch is imported

    from distill.study import run_study as study
    from distill.study.dry_run import dry_run as plan_study
    from distill.study.run_locks import parse_shard

    loaded = study.load_recipe(path, overrides or [])
    if dry_run:
        plan = plan_study(loaded, out)
        print(json.dumps(plan, indent=1) if as_json else "\n".join(plan_lines(plan)))
        return
    # Several names may be in one word, as in accelerate's own options.
    trackers = [name for names in track or [] for name in names.lower().replace(",", " ").split()]
    accelerator = study.make_accelerator(study.study_precision(loaded), trackers, out)

    def show(results: "StudyResults") -> None:
        """Print the tables, and say from now on that stopping loses no results."""
        if not as_json:
            print_results(results)
        report = out / results.study / "report.html"
        _stop_on_signals(STOPPED_IN_ANALYSIS.format(report=report))

    shard_of_job = parse_shard(shard) if shard else None
    results = study.run_study(loaded, out, accelerator, shard_of_job, show)
    if accelerator.is_main_process and results and as_json:
        print(results_json(results, indent=1))
    accelerator.end_training()


@app.command()
def report(
    studies: Annotated[
        list[str], typer.Argument(help="Names of studies in the folder --out, or their folders.")
    ],
    out: Out = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Print the tables of stored studies and write their reports anew; nothing is trained."""
    from distill.report.html import refuse_damage, write_report
    from distill.storage.run_store import RunStore
    from distill.storage.study_results import read_results

    for name in studies:
        has_results = (Path(name) / "results.json").is_file()
        folder = Path(name) if has_results else out / name
        results = read_results(folder)
        store = RunStore(folder.resolve().parent)
        with store.lock_study(folder.resolve().name):
            refuse_damage(results, store)
            write_report(folder, results, store)
        if as_json:
            # One line for each study.
            print(results_json(results))
        else:
            print_results(results)
            print(f"report: {folder / 'report.html'}")


@app.command()
def clusters(
    runs: Annotated[list[str], typer.Argument(help=RUN_HELP)],
    classes: Annotated[
        list[str] | None,
        typer.Option(
            help="Three class names, separated by commas. For names with commas, give the option "
            "three times."
        ),
    ] = None,
    view: Annotated[
        list[str] | None,
        typer.Option(
            help="Projection of the features: plane (through three templates), pca, tsne or umap; "
            "can be given several times. Default: plane."
        ),
    ] = None,
    to: Annotated[
        Path, typer.Option(help="Folder for the figures (PNG, SVG) and the page clusters.html.")
    ] = Path("."),
    out: Out = Path("runs"),
) -> None:
    """Plot the penultimate features of runs side by side, with a page to inspect single images."""
    from distill.evaluation.project_features import feature_plot_of_runs
    from distill.report.drawing import draw_features
    from distill.report.html import write_explorer

    if classes and len(classes) == 1:
        classes = [name.strip() for name in classes[0].split(",")]
    views = list(dict.fromkeys(view or ["plane"]))
    feature_plot = feature_plot_of_runs(runs, out, classes, views)
    for name in draw_features(feature_plot, to):
        print(to / f"{name}.png")
    write_explorer(feature_plot, to / "clusters.html")
    print(to / "clusters.html")


@app.command()
def evaluate(
    network: Annotated[
        str,
        typer.Argument(
            help="A run's folder, the beginning of its id, STUDY:ARM, an ONNX file, or the name of "
            "a network in timm."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Folder or archive of images, an image, a list of images (.txt or .csv: a path "
            "and perhaps a class on each line), or a source as in a recipe (torch/mnist)."
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Keys of the recipe's data, as in image_size=256 root=/data.",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="all, train, validation or test. Default: test, or all for a folder without "
            "splits."
        ),
    ] = None,
    out: Out = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Evaluate a stored run, or any pretrained network of timm, on any images.

    Images with classes give metrics and a table of classes; images without give predictions.
    """
    import torch

    from distill.evaluation.evaluate import evaluate_network
    from distill.evaluation.evaluation_images import open_evaluation_images
    from distill.evaluation.evaluation_networks import find_networks
    from distill.recipe.load import data_settings
    from distill.report.terminal_tables import evaluation_tables
    from distill.storage.run_store import RunStore

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    own_settings = data_settings(settings or [], data)
    found = {}
    for target in find_networks(network, RunStore(out)):
        images = open_evaluation_images(target, data, own_settings, split)
        found[target.name] = evaluate_network(target, images, device)
        for note in (images.description, found[target.name].get("note")):
            if note:
                print(note, file=sys.stderr)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print_tables(evaluation_tables(found))


@app.command()
def export(
    run: Annotated[str, typer.Argument(help=RUN_HELP)],
    to: Annotated[Path, typer.Option(help="The ONNX file to write.")],
    out: Out = Path("runs"),
) -> None:
    """Write a run as an ONNX file and compare its outputs with those of PyTorch.

    The file takes pixels and returns logits and calibrated probabilities.
    """
    from distill.evaluation.metrics import fitted_temperature
    from distill.export.onnx import about_run, export_onnx
    from distill.models.class_names import stored_names
    from distill.models.factory import load_run_model
    from distill.storage.find_runs import find_runs
    from distill.storage.run_store import RunStore

    store = RunStore(out)
    run_id = find_runs(store, run)[0]
    model = load_run_model(store.folder(run_id))
    temperature = fitted_temperature(store.predictions(run_id))
    class_names = stored_names(model.pretrained_cfg) or []
    crop_pct = model.pretrained_cfg.get("crop_pct") or 1.0
    about = about_run(run_id, class_names, temperature, crop_pct)
    difference = export_onnx(model, to, temperature, about)
    print(f"{to}: run {run_id}; its outputs differ from PyTorch's by at most {difference:.1e}")


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Name of the recipe to print.")] = None,
) -> None:
    """List the included recipes, or print one, as in `distill recipes digits > my.yaml`."""
    from distill.recipe.included import find_recipe, included_recipes

    if name:
        print(find_recipe(name).read_text("utf-8"), end="")
        return
    for recipe_name, path in included_recipes().items():
        title = path.read_text("utf-8").splitlines()[0].lstrip("# ")
        print(f"{recipe_name:24}  {title}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, with which editors complete keys."""
    from distill.losses import LOSSES
    from distill.recipe.json_schema import json_schema

    print(json.dumps(json_schema(LOSSES), indent=2))


def main() -> None:
    """Run the command line and exit with its status.

    The status is 0 for success, 2 for a mistake that the user can fix, 1 for an error of the
    program (with a traceback), and 130 or 143 after Ctrl-C or a termination signal.
    """
    from distill.errors import UserError

    _stop_on_signals(STOPPED)
    try:
        app(standalone_mode=True)
    except UserError as error:
        print(f"distill: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        # For instance a full disk, or a folder without permission to write.
        message = f"distill: {error.strerror or error}"
        if error.filename:
            message += f": {error.filename}"
        print(message, file=sys.stderr)
        sys.exit(2)


def _stop_on_signals(message: str) -> None:
    """End the process at once, with a message, on Ctrl-C and when a scheduler terminates the job.

    An exception might be raised in the middle of any library's import. Ending at once is safe,
    because every file is either complete or absent.
    """
    main_process = os.getpid()
    is_first_rank = os.environ.get("RANK", "0") == "0"

    def stop(number: int, _: object) -> None:
        # Processes that decode images inherit this handler; only the main process prints.
        if os.getpid() == main_process and is_first_rank:
            # Progress bars hide the cursor.
            show_cursor = "\033[?25h\n" if os.isatty(2) else ""
            os.write(2, f"{show_cursor}{message}\n".encode())
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    # Ctrl-C is ignored in a job that a shell has put into the background; leave that as it is.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, stop)
