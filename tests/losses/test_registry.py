"""The contract of loss functions: their parameters are what they need."""

import inspect
import re

import pytest
import torch
from helpers.recipes import ROOT

import distill.losses
from distill.losses import (
    LOSS_MODULES,
    LOSSES,
    OnlineTargets,
    Outputs,
    make_loss_modules,
    required_outputs,
    resolve_priors,
    terms_with_modules,
)
from distill.recipe.loss_terms import (
    INPUTS,
    RUNTIME_ARGS,
    Weighted,
    input_names,
    loss_settings_model,
    needs_teacher,
)

README = (ROOT / "distill" / "losses" / "README.md").read_text()

# Positional parameters come in this order, and those of the teacher after those of the student.
ORDER = ("logits", "labels", "features", "templates", "feature_maps", "weights")
TEACHER_ORDER = tuple(f"teacher_{name}" for name in ORDER if name != "labels")


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_obeys_the_parameter_contract(name):
    function = LOSSES[name]
    parameters = inspect.signature(function).parameters.values()
    assert function.__name__ == name
    assert getattr(distill.losses, name) is function

    inputs = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert inputs == [p for p in ORDER + TEACHER_ORDER if p in inputs]
    assert list(input_names(function)) == inputs

    for parameter in parameters:
        assert f"        {parameter.name}: " in function.__doc__
        if parameter.name in inputs:
            assert parameter.default is parameter.empty
        else:
            assert parameter.kind is parameter.KEYWORD_ONLY
            assert parameter.name not in Weighted.model_fields
            assert not parameter.name.startswith("teacher_")
            assert parameter.default is not parameter.empty or parameter.name in RUNTIME_ARGS
    assert len(LOSS_MODULES.keys() & {p.name for p in parameters}) <= 1

    assert "Args:" in function.__doc__
    assert "Returns:" in function.__doc__
    assert re.search(r"(19|20)\d\d", function.__doc__), "the year of its source"


def test_the_names_of_the_contract_fit_together():
    assert set(ORDER) == INPUTS
    assert set(Outputs._fields) == (INPUTS - {"labels"}) | {"logit_scale"}
    assert set(LOSS_MODULES) == {"projector", "targets"}
    assert set(LOSS_MODULES) < RUNTIME_ARGS


def test_what_a_loss_needs_follows_from_its_parameters():
    assert not needs_teacher(LOSSES["cross_entropy"])
    assert needs_teacher(LOSSES["hint"])
    terms = ["kd", "l_softmax", "l2_penalty", "attention_transfer", "cross_entropy"]
    assert required_outputs(terms) == {"features", "templates", "weights", "feature_maps"}
    assert required_outputs(terms, of_teacher=True) == {"feature_maps"}
    assert required_outputs(["kd", "am_softmax"]) == frozenset()
    assert required_outputs([]) == frozenset()
    assert terms_with_modules(["online_smoothing", "kd", "hint"]) == ["hint", "online_smoothing"]


def test_the_keys_of_a_term_are_the_settings_of_its_function():
    assert list(loss_settings_model(LOSSES["a_softmax"]).model_fields) == [
        "weight", "warmup", "margin", "share", "ramp", "smoothing",
    ]  # fmt: skip
    assert loss_settings_model(LOSSES["hint"], weighted=False)().model_dump() == {
        "over_features": "mean"
    }


def test_modules_are_made_from_the_seed_and_leave_the_generator_alone():
    student = Outputs(torch.zeros(1, 5), torch.zeros(1, 7))
    teacher = Outputs(torch.zeros(1, 5), torch.zeros(1, 3))
    terms = {"cross_entropy": {}, "online_smoothing": {}, "hint": {}}
    before = torch.get_rng_state()
    first, again, other = (make_loss_modules(terms, student, teacher, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert list(first) == ["hint", "online_smoothing"]
    assert first["hint"].weight.shape == (3, 7)
    assert isinstance(first["online_smoothing"], OnlineTargets)
    assert first["online_smoothing"].targets.shape == (5, 5)
    assert torch.equal(first["hint"].weight, again["hint"].weight)
    assert not torch.equal(first["hint"].weight, other["hint"].weight)


def test_the_initial_weights_of_a_module_stay_as_they_were():
    """blake2b of "part hint 0", the first four bytes as a seed: stored results depend on it."""
    student = Outputs(torch.zeros(1, 5), torch.zeros(1, 2))
    teacher = Outputs(torch.zeros(1, 5), torch.zeros(1, 1))
    weight = make_loss_modules(["hint"], student, teacher, 0)["hint"].weight
    torch.manual_seed(2200342986)
    assert torch.equal(weight, torch.nn.Linear(2, 1).weight)


def test_a_projector_needs_features_of_one_teacher():
    student = Outputs(torch.zeros(1, 5), torch.zeros(1, 7))
    for teacher in (None, Outputs(torch.zeros(1, 5))):
        with pytest.raises(ValueError, match=r"^hint: .*features"):
            make_loss_modules(["hint"], student, teacher, 0)


def test_priors_become_the_numbers_of_the_data():
    frequencies = [0.5, 0.25, 0.25, 0.0]
    terms = {
        "cross_entropy": {"smoothing": 0.1, "prior": "data", "class_weights": "balanced"},
        "kd": {"temperature": 2.0},
    }
    assert resolve_priors(terms, frequencies) == {
        "cross_entropy": {
            "smoothing": 0.1, "prior": frequencies, "class_weights": [0.5, 1.0, 1.0, 0.0]
        },
        "kd": {"temperature": 2.0},
    }  # fmt: skip
    own = {"cross_entropy": {"prior": [0.1, 0.2, 0.3, 0.4], "class_weights": None}}
    assert resolve_priors(own, frequencies) == own
    assert terms["cross_entropy"]["prior"] == "data"


def test_the_table_of_losses_is_complete():
    rows = re.findall(r"^\| `(\w+)` \|(.*)$", README, re.M)
    assert [name for name, _ in rows] == list(LOSSES)
    for name, rest in rows:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", rest)[:-1]]
        assert len(cells) == 5 and all(cells), f"{name}: inputs, formula, settings, use, source"
        assert cells[0] == f"`{', '.join(input_names(LOSSES[name]))}`"
        for setting in loss_settings_model(LOSSES[name], weighted=False).model_fields:
            assert f"`{setting}`" in cells[2], f"{name}: {setting} is not in the table"


def test_the_samples_of_the_readme_run():
    samples = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(samples) >= 3
    for sample in samples:
        exec(compile(sample, "README.md", "exec"), {})
