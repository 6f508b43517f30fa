"""Read what a study has stored, without the code that has written it."""

import csv
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

RUN_FILES = {
    "config.json",
    "model.safetensors",
    "run.json",
    "history.jsonl",
    "predictions.safetensors",
    "README.md",
}


def results_json(out: Path, study: str = "tiny") -> dict[str, Any]:
    """Return the content of `results.json`."""
    return json.loads((out / study / "results.json").read_text())


def csv_rows(out: Path, study: str = "tiny") -> list[dict[str, str]]:
    """Return the rows of `results.csv`."""
    return list(csv.DictReader((out / study / "results.csv").read_text().splitlines()))


def page(out: Path, study: str = "tiny") -> str:
    """Return the text of `report.html`."""
    return (out / study / "report.html").read_text()


def history(out: Path, run_id: str) -> list[dict[str, Any]]:
    """Return the entries of a run's `history.jsonl`."""
    lines = (out / "models" / run_id / "history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def record(out: Path, run_id: str) -> dict[str, Any]:
    """Return a run's `run.json`."""
    return json.loads((out / "models" / run_id / "run.json").read_text())


def predictions(out: Path, run_id: str) -> dict[str, Tensor]:
    """Return a run's stored logits and labels."""
    return load_file(out / "models" / run_id / "predictions.safetensors")


def weights(out: Path) -> dict[str, dict[str, Tensor]]:
    """Return the weights of all finished runs, by id."""
    paths = (out / "models").glob("*/model.safetensors")
    return {path.parent.name: load_file(path) for path in paths}


def finished_runs(out: Path) -> set[str]:
    """Return the ids of all finished runs."""
    return {path.parent.name for path in (out / "models").glob("*/run.json")}


def figures(out: Path, study: str = "tiny") -> set[str]:
    """Return the names of a study's figures, without suffix."""
    return {path.stem for path in (out / study / "figures").iterdir()}
