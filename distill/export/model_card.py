"""The model card of a run: what the network is, how good it is, and how it was trained."""

import json
from importlib.resources import files
from typing import Any

import jinja2
from torch import Tensor

from distill.data.splits import Splits
from distill.evaluation.metrics import own_metrics
from distill.storage.run_fingerprint import Run

MOST_NAMES = 50  # largest number of class names in a card


def model_card(
    run: Run,
    record: dict[str, Any],
    predictions: dict[str, Tensor],
    splits: Splits,
    teachers: dict[str, float],
) -> str:
    """Return a run's model card: Markdown with the metadata that the Hugging Face Hub reads.

    Args:
        run: the finished run.
        record: its `model`, its number of `parameters` and its `calibration_temperature`.
        predictions: the run's predictions, as `distill.evaluation.predict.predict_all` returns
            them.
        splits: the data of its study.
        teachers: test accuracy of the networks that it learned from, by run id.
    """
    temperature = record["calibration_temperature"]
    metrics = {}
    for split in ("test", "validation", "train"):
        logits = predictions[f"{split}.logits"].numpy()
        labels = predictions[f"{split}.labels"].numpy()
        metrics[split] = own_metrics(logits, labels, temperature)
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
        metrics=metrics,
        temperature=temperature,
        teachers=teachers,
        title=_code(run.arm.name),
        model=_code(record["model"]),
        source=_code(splits.settings.source),
        class_names=_listed(splits.class_names),
        loss=_code(json.dumps(run.settings["loss"])) if run.arm.loss else "",
        train=_code(json.dumps(run.settings.get("train", {}))),
        augment=_code(json.dumps(run.settings["augment"])),
    )


def _listed(class_names: list[str]) -> str:
    """Return the first class names, and how many more there are."""
    text = ", ".join(_code(name) for name in class_names[:MOST_NAMES])
    more = len(class_names) - MOST_NAMES
    return f"{text} and {more} more" if more > 0 else text


def _code(text: str) -> str:
    """Return text of any origin as inline code, so that Markdown and HTML in it have no effect."""
    one_line = " ".join(text.replace("`", "'").split())
    return f"`{one_line}`"
