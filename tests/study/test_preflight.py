"""What cannot work is found before anything is trained, and named by its arm."""

import importlib
import sys

import pytest
import torch
from helpers.fake_distributed import FakeDistributed
from helpers.loss_studies import ALL_TERMS
from helpers.recipes import TINY, make_recipe, merge, problems_of
from helpers.training import plan, run_of, train_study

from distill.errors import UserError
from distill.models.factory import parameter_count
from distill.study.preflight import preflight, smallest_micro_batch


def refusal(ctx):
    """Return the message with which a study is refused."""
    with pytest.raises(UserError) as caught:
        preflight(ctx, plan(ctx))
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "arm", "facts"),
    [
        ("students.hinted.teacher=[[hard, soft]]", "hinted", ("hint", "features", "ensemble")),
        ("students.margin.model=mlp_16", "margin", ("am_softmax", "cosine_head")),
        ("students.hinted.loss={hint: {}}", "hinted", ("cross_entropy", "kd")),
        ("students.hinted.loss={kd: {weight: 0}, l2_penalty: {}}", "hinted", ("cross_entropy",)),
        ("students.hinted.loss={rkd: {}, l1_penalty: {}}", "hinted", ("cross_entropy",)),
        ("students.hinted.loss={kd: {}, attention_transfer: {}}", "hinted", ("feature maps",)),
        (
            "students.online.loss={cross_entropy: {smooth_over: wrong, smoothing: 0.95}}",
            "online",
            ("cross_entropy", "0.9", "0.95"),
        ),
        ("students.online.train.optimizer=sdg", "online", ("train.optimizer", "'sdg'")),
        ("students.online.train.schedule=cosin", "online", ("train.schedule", "'cosin'")),
        ("students.online.augment.crop=9", "online", ("augment.crop", "9", "8×8")),
        ("students.hinted.augment.crop=6", "hinted", ("hard", "6×6", "8×8", "augment.crop")),
        ("students.online.model=mlp_17x", "online", ("'mlp_17x'",)),
    ],
)
def test_an_arm_that_cannot_be_trained_is_refused(study_context, override, arm, facts):
    message = refusal(study_context(ALL_TERMS, override))
    assert message.startswith(f"{arm}")
    for fact in facts:
        assert fact in message


def test_sparse_softmax_refuses_soft_labels(study_context):
    document = merge(ALL_TERMS, {"students": {"large": {"augment": {"mixup": 0.5}}}})
    message = refusal(study_context(document, "students.large.loss={sparse_softmax: {}}"))
    assert message.startswith("large: ")
    assert "sparse_softmax" in message and "mixup" in message


@pytest.mark.parametrize(
    ("override", "key", "code", "fact"),
    [
        (
            "students.both.teacher=[[hard, hart]]",
            "students.both.teacher",
            "unknown_teacher",
            "hard",
        ),
        ("students.both.teacher=[[hard, hard]]", "students.both.teacher", "invalid_ensemble", ""),
        ("students.both.teacher=[[hard]]", "students.both.teacher", "invalid_ensemble", ""),
        (
            "students.online.loss={online_smoothing: {part: 1}}",
            "students.online.loss.online_smoothing.part",
            "unknown_key",
            "weight",
        ),
        (
            "students.online.loss={sparse_softmax: {k: 0}}",
            "students.online.loss.sparse_softmax.k",
            "greater_than_equal",
            "1",
        ),
        (
            "students.both.loss={kd: {temperature: 0}}",
            "students.both.loss.kd.temperature",
            "greater_than",
            "0",
        ),
    ],
)
def test_settings_of_terms_and_ensembles_are_refused_by_the_recipe(override, key, code, fact):
    [problem] = problems_of(ALL_TERMS, override)
    assert (problem.key, problem.code) == (key, code)
    assert fact in problem.message


def test_a_loss_that_captures_features_is_not_compiled(study_context):
    ctx = study_context(TINY, "train.compile=true", "students.distilled.loss.rkd={}")
    message = refusal(ctx)
    assert message.startswith("distilled: ")
    for fact in ("train.compile", "features", "rkd"):
        assert fact in message


def test_a_batch_smaller_than_the_number_of_processes_is_refused(study_context):
    ctx = study_context(TINY, "train.batch_size=2")
    ctx.processes = FakeDistributed(world_size=3)
    message = refusal(ctx)
    assert message.startswith("hard: ")
    assert "train.batch_size 2" in message and "(3)" in message


def test_a_study_that_works_has_the_bytes_of_each_arm(study_context):
    """Weights, gradients and two states of the optimizer in float32, and the average if any."""
    ctx = study_context(TINY, "students.distilled.train.ema=0.9")
    sizes = preflight(ctx, plan(ctx))
    assert set(sizes) == {"hard", "alone/smoothing=0", "alone/smoothing=0.1", "distilled"}
    for arm, copies in (("hard", 4), ("alone/smoothing=0", 4), ("distilled", 5)):
        parameters = parameter_count(ctx.build(run_of(ctx, arm).arm, 0))
        assert sizes[arm] == copies * 4 * parameters


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "processes", "expected"),
    [(128, 1, 1, 128), (128, 3, 1, 42), (128, 3, 2, 20), (5000, 1, 1, 1078), (10, 3, 1, 2)],
)
def test_the_smallest_micro_batch_decides_what_a_network_must_take(
    study_context, batch_size, accumulate, processes, expected
):
    """128 in 3 parts is 43 + 43 + 42, and 64 is 22 + 22 + 20."""
    settings = (f"train.batch_size={batch_size}", f"train.accumulate={accumulate}")
    ctx = study_context(TINY, *settings)
    ctx.processes = FakeDistributed(world_size=processes)
    assert smallest_micro_batch(ctx, run_of(ctx, "hard").arm) == expected


def test_teachers_are_asked_for_what_their_own_students_need_of_them(study_context):
    """A network without feature maps may teach by kd beside one whose maps are captured.

    A loss that needs features of the student (l_softmax) needs none of the teacher.
    """
    student = {"model": "cifar_resnet8"}
    document = {
        "data": {
            "source": "synthetic",
            "synthetic": {"shape": [3, 32, 32], "train": 64, "test": 20},
        },
        "train": {"epochs": 1, "batch_size": 32},
        "teachers": {
            "cnn": {"model": "cifar_resnet8", "loss": {"cross_entropy": {}}},
            "vit": {"model": {"name": "test_vit", "img_size": 32}, "loss": {"cross_entropy": {}}},
        },
        "students": {
            "a": {**student, "teacher": "cnn", "loss": {"kd": {}, "attention_transfer": {}}},
            "b": {**student, "teacher": "vit", "loss": {"kd": {}, "l_softmax": {}}},
        },
        "check_teachers": False,
    }
    ctx = study_context(document)
    preflight(ctx, plan(ctx))
    train_study(ctx)
    message = refusal(study_context(document, "students.a.teacher=vit"))
    for fact in ("a: ", "vit", "VisionTransformer"):
        assert fact in message


def test_networks_are_built_but_not_kept_or_changed(study_context):
    """Preflight leaves PyTorch's random generator and the stored runs alone."""
    ctx = study_context(make_recipe(ALL_TERMS))
    state = torch.get_rng_state()
    preflight(ctx, plan(ctx))
    assert torch.equal(torch.get_rng_state(), state)
    assert not ctx.store.models.exists()


REGISTERED = """
import torch
from timm.models import register_model
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, in_chans):
        super().__init__()
        self.head = nn.Linear(64 * in_chans, num_classes)

    def forward(self, x):
        {forward}


@register_model
def users_small_net(pretrained=False, num_classes=10, in_chans=1, **kwargs):
    {build}
"""

BUILD = "return Net(num_classes, in_chans)"
LOGITS = "return self.head(x.flatten(1))"


@pytest.mark.parametrize(
    ("forward", "build", "fact"),
    [
        (LOGITS, BUILD, None),
        (f"x -= 0.5; {LOGITS}", BUILD, "changes its input"),
        ("return self.head(x.flatten(1)).softmax(1)", BUILD, "softmax"),
        ("return self.head(x.flatten(1)), x", BUILD, "a tuple of 2"),
        ("return {'logits': self.head(x.flatten(1))}", BUILD, "a dictionary with logits"),
        ("return self.head(x.flatten(1) + torch.rand(1))", BUILD, "differ after it is stored"),
        (
            LOGITS,
            "net = Net(num_classes, in_chans); net.twin = net.head.weight; "
            "net.other = nn.Linear(64, 10); net.other.weight = net.twin; return net",
            "share memory",
        ),
        (LOGITS, "return Net(num_classes, in_chans).requires_grad_(False)", "nothing to train"),
        (LOGITS, "return Net(5, in_chans)", "5 outputs for 10|for 5 classes|5 classes"),
        (LOGITS, "pass", "returns no network"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_networks_of_users_are_tried_before_they_are_trained(
    study_context, tmp_path, monkeypatch, forward, build, fact
):
    (tmp_path / "users_small.py").write_text(REGISTERED.format(forward=forward, build=build))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_small", raising=False)
    importlib.import_module("users_small")
    loss = {"cross_entropy": {}}
    document = merge(TINY, {"students": {"mine": {"model": "users_small_net", "loss": loss}}})
    ctx = study_context(document)
    runs = [run for run in plan(ctx) if run.arm.name == "mine"]
    try:
        if fact is None:
            assert preflight(ctx, runs).keys() == {"mine"}
        else:
            with pytest.raises(UserError, match=fact):
                preflight(ctx, runs)
    finally:
        sys.modules.pop("users_small", None)
