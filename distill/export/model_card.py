"""The model card of a run, `README.md` in its folder: what the network is, learned from, and is worth."""

import json
from importlib.resources import files
from typing import Any

import jinja2
from torch import Tensor

from distill.data.splits import Splits
from distill.evaluation.metrics import own_metrics
from distill.storage.run import Run

SHOWN = 50  # class names


def model_card(
    run: Run,
    record: dict[str, Any],
    predictions: dict[str, Tensor],
    splits: Splits,
    teachers: dict[str, float],
) -> str:
    """Markdown with the metadata that the Hugging Face hub reads, from a run's own predictions.

    Args:
        run: that is stored.
        record: its `model`, its number of `parameters`, its `calibration_temperature`.
        predictions: of the run, as `distill.evaluation.predict_all` returns them.
        splits: of its study.
        teachers: accuracy on the test split of the networks that it learned from, by id.
    """
    temperature = record["calibration_temperature"]
    judged = {
        split: own_metrics(
            predictions[f"{split}.logits"].numpy(),
            predictions[f"{split}.labels"].numpy(),
            temperature,
        )
        for split in ("test", "validation", "train")
    }
    names = ", ".join(map(_code, splits.class_names[:SHOWN]))
    more = len(splits.class_names) - SHOWN
    template = jinja2.Template(
        files("distill.export").joinpath("model_card.md.jinja").read_text("utf-8"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return template.render(
        run=run,
        record=record,
        splits=splits,
        judged=judged,
        temperature=temperature,
        names=names + (f" and {more} more" if more > 0 else ""),
        loss=_code(json.dumps(run.settings["loss"])) if run.arm.loss else "",
        teachers=teachers,
        settings=_code(json.dumps(run.settings.get("train", {}))),
        augment=_code(json.dumps(run.settings["augment"])),
        title=_code(run.arm.name),
        source=_code(splits.settings.source),
        model=_code(record["model"]),
    )


def _code(text: str) -> str:
    """Text of any origin as Markdown that shows it and does nothing else."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"
