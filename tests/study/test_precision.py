"""The precision of a study."""

import pytest
from helpers.recipes import REMOVE, TINY, make_recipe, merge

from distill.errors import UserError
from distill.study import run_study as module
from distill.study.context import study_precision

ONE_RUN = merge(
    TINY,
    {
        "train": {"epochs": 1},
        "teachers": REMOVE,
        "students": {"distilled": REMOVE, "alone": {"loss": {"cross_entropy": {"smoothing": 0}}}},
    },
)


def test_studies_of_one_process_each_have_their_precision(tmp_path, accelerator, monkeypatch):
    """accelerate has one precision for a process; an accelerator that was there before goes on."""
    monkeypatch.setattr(module, "finish_study", lambda ctx, *_: ctx.accelerator.mixed_precision)
    precisions = []
    for overrides in ([], ["train.precision=bf16"], []):
        precisions.append(module.run_study(make_recipe(ONE_RUN, *overrides), tmp_path / "runs"))
    assert precisions == ["no", "bf16", "no"]
    assert accelerator.mixed_precision == "no"
    assert accelerator.device.type == "cpu"
    assert accelerator.num_processes == 1
    # Precision is part of a run.
    assert len(list((tmp_path / "runs" / "models").glob("*/run.json"))) == 2


def test_arms_of_one_study_have_one_precision():
    assert study_precision(make_recipe(TINY)) is None
    assert study_precision(make_recipe(TINY, "train.precision=bf16")) == "bf16"
    with pytest.raises(UserError, match=r"train\.precision"):
        study_precision(make_recipe(TINY, "students.alone.train.precision=bf16"))
