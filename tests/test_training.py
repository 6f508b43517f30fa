"""The loop: against a loop written by hand, in any cohort, after any stop, over the same views."""

import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers.training import plan, same, train_generation, train_study
from safetensors.torch import load_file
from torch import nn

from distill import load_recipe
from distill.data.augment import derive_seed, normalise
from distill.data.loaders import training_batches
from distill.errors import UserError
from distill.models.factory import input_config
from distill.study import scheduler
from distill.study.plan import make_cohorts, share_cohorts, steps_per_epoch_of
from distill.study.preflight import preflight
from distill.study.run import run_study
from distill.training.cached_teacher import CachedTeacher
from distill.training.checkpoint import resume, save_checkpoint
from distill.training.optim import make_optimizer
from distill.training.state import start
from distill.training.teacher import Teacher, check_teacher
from distill.training.trainer import fit

SILENT = lambda *_: None  # noqa: E731


IMAGES = (
    "data.source=synthetic",
    "data.synthetic={shape: [3, 8, 8], train: 300}",
    "data.augment={shift: 1}",
    "teachers.hard.model=cifar_resnet8",
    "students.alone.model=cifar_resnet8",
    "students.distilled.model=cifar_resnet8",
    "train.epochs=2",
)


def test_it_is_the_loop_one_would_write(tiny, study_context):
    """SGD with Nesterov momentum, cosine rate by update, smoothed cross-entropy: plain torch, view for view."""
    ctx = study_context(
        tiny,
        "students.alone.loss.cross_entropy.smoothing=0.1",
        "train.weight_decay=0.01",
        "train.optimizer={name: sgd, filter_bias_and_bn: false}",
        "train.clip_grad=0.5",
    )
    ctx.splits.load_into_memory()
    run = next(r for r in plan(ctx) if r.arm.name == "alone")
    trained = train_generation(ctx, [run])["alone"]

    model = ctx.build(run.arm, 0).train()
    steps, epochs = len(ctx.splits.train) // 128, 3
    optimizer = torch.optim.SGD(
        model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.01
    )
    for epoch in range(epochs):
        batches = training_batches(ctx.splits, run.arm.augment, 128, 0, epoch, torch.device("cpu"))
        for step, batch in enumerate(batches, epoch * steps):
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * (
                    1 + torch.cos(torch.tensor(torch.pi * step / (steps * epochs))).item()
                )
            logits = model(normalise(batch.views, *input_config(model)))
            optimizer.zero_grad()
            F.cross_entropy(logits, batch.labels, label_smoothing=0.1).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(trained[name], expected, rtol=1e-5, atol=1e-6)


def test_distillation_is_the_loop_one_would_write(tiny, study_context):
    """0.1 CE + 0.9 T² KL with a live teacher on the same view; dropout in the student alone."""
    ctx = study_context(tiny)
    runs = {r.arm.name: r for r in plan(ctx)}
    train_generation(ctx, [runs["hard"]])
    trained = train_generation(ctx, [runs["distilled"]])["distilled"]

    teacher, model = ctx.load(runs["hard"]).eval(), ctx.build(runs["distilled"].arm, 0).train()
    optimizer, scheduler = make_optimizer(model, runs["distilled"].arm.train, 8, "")
    for step in range(24):
        if step % 8 == 0:
            batches = training_batches(
                ctx.splits, runs["hard"].arm.augment, 128, 0, step // 8, torch.device("cpu")
            )
        batch = next(batches)
        x = normalise(batch.views, *input_config(model))
        torch.manual_seed(derive_seed("dropout", 0, step, 0, 0))
        logits = model(x)
        with torch.no_grad():
            theirs = teacher(x)
        soft = (
            F.kl_div(F.log_softmax(logits / 2, 1), F.softmax(theirs / 2, 1), reduction="batchmean")
            * 4
        )
        optimizer.zero_grad()
        (0.1 * F.cross_entropy(logits, batch.labels) + 0.9 * soft).backward()
        optimizer.step()
        scheduler.step_update(step + 1)
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(trained[name], expected, rtol=1e-4, atol=1e-6)


def test_a_cohort_gives_the_weights_of_separate_runs_bit_for_bit(tiny, study_context):
    together = train_study(study_context(tiny))
    ctx = study_context(tiny, out="alone")
    for run in plan(ctx):
        assert same(train_generation(ctx, [run])[run.arm.name], together[run.arm.name])


def test_equal_networks_of_one_seed_start_alike_and_other_seeds_do_not(tiny, study_context):
    ctx = study_context(tiny)
    arms = {arm.name: arm for arm in ctx.recipe.students}
    a, b = (ctx.build(arms[f"alone/smoothing={s}"], 0).state_dict() for s in ("0", "0.1"))
    assert same(a, b) and not same(a, ctx.build(arms["alone/smoothing=0"], 1).state_dict())


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("train.optimizer=adamw", "train.lr=0.01", "train.ema=0.9"),
        ("train.optimizer=lamb", "train.lr=0.01"),
        ("train.optimizer=lookahead_adamw", "train.lr=0.01"),
        (*IMAGES, "train.channels_last=true", "train.epochs=3"),
        (
            *IMAGES,
            "train.channels_last=true",
            "train.epochs=3",
            "train.optimizer=lookahead_adamw",
            "train.lr=0.01",
        ),
    ],
)
def test_a_run_stopped_between_epochs_ends_with_the_same_bits(tiny, study_context, options):
    whole = study_context(tiny, *options)
    expected = train_study(whole)
    ctx = study_context(tiny, *options, out="stopped")
    runs = plan(ctx)
    train_generation(ctx, [r for r in runs if r.depth == 0])
    cohort = [r for r in runs if r.depth == 1]

    class StopHereError(Exception):
        pass

    def stop_after_two(epoch, *_):
        if epoch == 2:
            raise StopHereError

    teachers = {t.id: Teacher(ctx.load(t)) for r in cohort for t in r.teachers}

    def begin(run):
        steps = steps_per_epoch_of(ctx.splits, run.arm)
        model, shares = ctx.build(run.arm, 0), ctx.splits.class_frequencies
        return start(run, model, teachers, shares, steps, ctx.accelerator, False)

    members = [begin(run) for run in cohort]
    with pytest.raises(StopHereError):
        answers = {name: CachedTeacher(teacher) for name, teacher in teachers.items()}
        fit(members, answers, ctx.splits, ctx.store, ctx.accelerator, False, stop_after_two)
    again = begin(cohort[0])
    resume(again, ctx.store, 0, torch.device("cpu"))
    assert again.epoch == 2 and not ctx.store.is_complete(cohort[0].id)
    scheduler.train_generation(ctx, cohort)
    assert same(ctx.load(cohort[0]).state_dict(), expected["distilled"])
    assert ctx.store.history(cohort[0].id) == whole.store.history(cohort[0].id)
    assert ctx.store.load_checkpoint(cohort[0].id) is None  # the checkpoint is gone


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("train.optimizer=lookahead_adamw", "train.lr=0.01", "train.ema=0.9"),
        ("students.alone.loss={online_smoothing: {weight: 0.5}, cross_entropy: {}}",),
        (*IMAGES, "train.epochs=3", "data.augment={shift: 1, mixup: 0.5}"),
    ],
)
def test_a_run_stopped_within_an_epoch_ends_with_the_same_bits(
    tiny, study_context, options, monkeypatch
):
    """Checkpoints every second step, and stops between those of two members: weights, history, states are the same."""
    options = (*options, "train.batch_size=64", "train.snapshots=2")
    whole = study_context(tiny, *options)
    expected = train_study(whole)
    ctx = study_context(tiny, *options, out="stopped")
    runs = plan(ctx)
    monkeypatch.setattr("distill.training.trainer.LOOK", 2)
    saved = []

    def save_and_stop(member, store):
        save_checkpoint(member, store)
        saved.append((member.epoch, member.step))
        if len(saved) >= 5 and member.step:
            raise KeyboardInterrupt

    for depth in (0, 1):
        cohort = [r for r in runs if r.depth == depth]
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("distill.training.trainer.save_checkpoint", save_and_stop)
            scheduler.train_generation(ctx, cohort)
        reached = {
            (state["epoch"], state["step"])
            for state in (ctx.store.load_checkpoint(r.id) for r in cohort)
        }
        assert len(reached) == min(2, len(cohort)) and any(step for _, step in reached)
        saved.clear()
        scheduler.train_generation(ctx, cohort)
    for run in runs:
        assert same(ctx.load(run).state_dict(), expected[run.arm.name])
        assert ctx.store.history(run.id) == whole.store.history(run.id)
        ours, theirs = ctx.store.snapshots(run.id), whole.store.snapshots(run.id)
        assert list(ours) == list(theirs) and all(
            same(load_file(ours[e]), load_file(theirs[e])) for e in ours
        )


def test_accumulating_changes_nothing_but_rounding(tiny, study_context):
    plain = train_study(
        study_context(tiny, "teachers.hard.model=mlp_32", "students.distilled.model=mlp_16")
    )
    parts = train_study(
        study_context(
            tiny,
            "teachers.hard.model=mlp_32",
            "students.distilled.model=mlp_16",
            "train.accumulate=3",
            out="parts",
        )
    )
    for name in plain:
        for key_, value in plain[name].items():
            torch.testing.assert_close(parts[name][key_], value, rtol=1e-3, atol=1e-5)


def test_an_average_of_the_weights_is_what_is_stored(tiny, study_context):
    """EMA with decay d after n steps of SGD at rate 0 is the start; at a real rate it lies between."""
    ctx = study_context(tiny, "train.ema=0.9", "train.lr=1.0e-12", "train.weight_decay=0.0")
    run = next(r for r in plan(ctx) if r.arm.name == "alone/smoothing=0")
    start_weights = ctx.build(run.arm, 0).state_dict()
    stored = train_generation(ctx, [run])[run.arm.name]
    for name, value in start_weights.items():
        torch.testing.assert_close(stored[name], value, rtol=1e-5, atol=1e-7)
    moving = train_study(study_context(tiny, "train.ema=0.99", out="b"))["alone/smoothing=0"]
    plain = train_study(study_context(tiny, out="c"))["alone/smoothing=0"]
    assert not same(moving, plain)
    distance = [(w["fc1.weight"] - start_weights["fc1.weight"]).norm() for w in (moving, plain)]
    assert 0 < distance[0] < distance[1]


def test_the_teacher_is_frozen_whatever_is_asked(study_context, tiny):
    ctx = study_context(
        tiny,
        "teachers.hard.model=cifar_resnet8",
        "data.source=synthetic",
        "data.synthetic={shape: [3, 8, 8], train: 300}",
        "train.epochs=1",
        "students.distilled.model=cifar_resnet8",
    )
    runs = {r.arm.name: r for r in plan(ctx)}
    train_generation(ctx, [runs["hard"]])
    before = ctx.load(runs["hard"]).state_dict()
    teacher = Teacher(ctx.load(runs["hard"]))
    teacher.train()
    assert not any(m.training for m in teacher.modules()) and not any(
        p.requires_grad for p in teacher.parameters()
    )
    network = ctx.build(runs["distilled"].arm, 0)
    teachers, shares = {runs["hard"].id: teacher}, ctx.splits.class_frequencies
    student = start(runs["distilled"], network, teachers, shares, 2, ctx.accelerator, False)
    fit(
        [student],
        {runs["hard"].id: CachedTeacher(teacher)},
        ctx.splits,
        ctx.store,
        ctx.accelerator,
        False,
        SILENT,
    )
    assert same(teacher.model.state_dict(), before)
    assert not same(student.model.state_dict(), before)


def test_mixed_views_train_with_soft_labels(tiny, study_context):
    ctx = study_context(tiny, "data.augment={mixup: 0.2, cutmix: 1.0}", "train.epochs=1")
    history = plan(ctx)
    train_study(ctx)
    lines = ctx.store.history(history[-1].id)
    assert set(lines[0]["terms"]) == {"cross_entropy", "kd"} and 0 < lines[0]["train"]["top1"] < 1


def test_history_has_each_term_before_its_weight(tiny, study_context):
    ctx = study_context(tiny, "train.epochs=1")
    train_study(ctx)
    run = next(r for r in plan(ctx) if r.arm.name == "distilled")
    line = ctx.store.history(run.id)[0]
    assert line["loss"] == pytest.approx(
        0.1 * line["terms"]["cross_entropy"] + 0.9 * line["terms"]["kd"], rel=1e-5
    )
    assert line["lr"] == 0.1 and line["epoch"] == 1


def test_bf16_learns_as_float32_does_and_keeps_float32_weights(tiny, study_context, monkeypatch):
    ctx, half = (
        study_context(tiny, "train.epochs=20"),
        study_context(tiny, "train.epochs=20", out="half"),
    )
    train_study(ctx)
    monkeypatch.setattr(
        ctx.accelerator, "autocast", lambda *_, **__: torch.autocast("cpu", torch.bfloat16)
    )
    weights = train_study(half)
    assert all(v.dtype == torch.float32 for v in weights["hard"].values())
    for run in plan(ctx):
        accuracies = [p.store.history(run.id)[-1]["validation"]["top1"] for p in (ctx, half)]
        assert accuracies[0] > 0.5 and abs(accuracies[0] - accuracies[1]) < 0.06, (
            run.display_name,
            accuracies,
        )
        assert ctx.store.history(run.id) != half.store.history(run.id)


def test_studies_of_one_process_each_have_their_precision(tiny, tmp_path, accelerator):
    """And an accelerator that was there before goes on."""
    precisions = [
        run_study(load_recipe(tiny, ["train.epochs=1", *own]), tmp_path / "runs")["precision"]
        for own in ([], ["train.precision=bf16"], [])
    ]
    assert precisions == ["no", "bf16", "no"]
    assert (accelerator.mixed_precision, accelerator.device.type, accelerator.num_processes) == (
        "no",
        "cpu",
        1,
    )


def test_a_loss_that_is_not_finite_takes_its_run_out_of_the_cohort_alone(
    tiny, study_context, monkeypatch
):
    """Arm, epoch, step and terms are told; the others of the cohort end as they would without it; results are none."""
    monkeypatch.setattr("distill.training.trainer.LOOK", 2)
    ctx = study_context(tiny)
    expected = train_study(ctx)
    wild = study_context(
        tiny,
        "students.wild={model: mlp_16, train: {lr: 1.0e+18}, loss: {cross_entropy: {}}}",
        out="wild",
    )
    with pytest.raises(UserError) as stop:
        run_study(wild.recipe, wild.store.root, wild.accelerator)
    message = str(stop.value)
    assert re.search(
        r"wild, seed 0: its loss is not finite: epoch 1, step \d of 8 \(terms.*: cross_entropy \S+\)",
        message,
    )
    assert (
        "all other runs are stored" in message
        and not (wild.store.root / "tiny" / "results.json").exists()
    )
    runs = {run.arm.name: run for run in plan(wild)}
    assert not wild.store.is_complete(runs.pop("wild").id)
    assert all(same(wild.load(run).state_dict(), expected[name]) for name, run in runs.items())


def test_students_of_a_teacher_that_failed_are_not_trained(tiny, study_context):
    ctx = study_context(tiny, "teachers.hard.train.lr=1.0e+18")
    with pytest.raises(
        UserError, match=r"hard, seed 0: (?s:.*)1 run that would learn from them cannot be trained"
    ):
        run_study(ctx.recipe, ctx.store.root, ctx.accelerator)
    assert [ctx.store.is_complete(run.id) for run in plan(ctx)] == [False, True, True, False]


def test_a_teacher_no_better_than_chance_stops_the_study():
    labels = torch.arange(300) % 10
    good, bad = F.one_hot(labels, 10).float(), F.one_hot(torch.zeros(300).long(), 10).float()
    assert check_teacher("t", good, labels) is None
    with pytest.raises(UserError, match="no better than chance"):
        check_teacher("t", bad, labels)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("train.optimizer=sdg", "train.optimizer 'sdg'"),
        ("train.optimizer={name: sgd, momentun: 1}", "momentun"),
        ("train.schedule=cosin", "train.schedule 'cosin'"),
        ("train.schedule={name: step, decay: 1}", "decay"),
        ("train.schedule=plateau", "depends on a metric"),
    ],
)
def test_optimizers_and_schedules_that_timm_lacks_are_told(tiny, study_context, options, words):
    ctx = study_context(tiny, options)
    with pytest.raises(UserError, match=words):
        make_optimizer(nn.Linear(2, 2), ctx.recipe.students[0].train, 10, "arm")


def test_optimizers_are_fused_where_torch_has_that(tiny, study_context):
    def made(*options):
        train = study_context(tiny, *options).recipe.students[0].train
        return make_optimizer(nn.Linear(2, 2), train, 10, "arm")[0].defaults.get("fused")

    assert made() is True and made("train.optimizer=adamw") is True
    assert made("train.optimizer={name: sgd, fused: false}") is False
    assert made("train.optimizer=lamb") is None  # timm's own


def test_channels_last_changes_nothing_but_rounding(tiny, study_context, monkeypatch):
    seen = set()
    plain, ctx = (
        study_context(tiny, *IMAGES),
        study_context(tiny, *IMAGES, "train.channels_last=true", out="last"),
    )
    expected = train_study(plain)
    from distill.models.small import CifarResNet

    forward = CifarResNet.forward

    def look(self, images):
        if torch.is_grad_enabled() or len(images) == 128:
            seen.add(images.is_contiguous(memory_format=torch.channels_last))
        return forward(self, images)

    monkeypatch.setattr(CifarResNet, "forward", look)
    found = train_study(ctx)
    assert seen == {True}
    for name in expected:
        for key_, value in expected[name].items():
            assert found[name][key_].is_contiguous()
            torch.testing.assert_close(found[name][key_], value, rtol=1e-2, atol=1e-3)
    assert {r.id for r in plan(plain)}.isdisjoint({r.id for r in plan(ctx)}), (
        "rounding is part of a run"
    )


def test_compiled_networks_are_called_and_plain_ones_stored(tiny, study_context, monkeypatch):
    """What torch.compile makes is torch's to test; here it is called for every batch, and by nothing else."""
    expected = train_study(study_context(tiny, *IMAGES))
    calls = {}

    def compiled(function):
        name = "network" if isinstance(function, nn.Module) else "teacher"

        class Compiled(nn.Module):
            def forward(self, images):
                calls[name] = calls.get(name, 0) + 1
                return function(images)

        return Compiled()

    monkeypatch.setattr(torch, "compile", compiled)
    ctx = study_context(tiny, *IMAGES, "train.compile=true", out="compiled")
    found = train_study(ctx)
    steps = 2 * (len(ctx.splits.train) // 128)
    assert calls == {"network": 4 * steps, "teacher": steps}
    assert all(same(found[name], expected[name]) for name in expected)


def test_what_looks_inside_is_not_compiled(tiny, study_context):
    ctx = study_context(tiny, "train.compile=true", "students.distilled.loss.rkd={}")
    with pytest.raises(UserError, match=r"distilled: train\.compile does not go with .*rkd"):
        preflight(ctx, plan(ctx))


def test_cohorts_hold_runs_of_one_seed_and_equal_views(tiny, study_context):
    ctx = study_context(tiny, "seeds=2", "students.alone.augment={shift: 0}")
    runs = plan(ctx)
    cohorts = make_cohorts([r for r in runs if r.depth == 0])
    assert sorted(len(c) for c in cohorts) == [
        1,
        1,
        2,
        2,
    ]  # teachers | the unshifted students, for each seed
    assert all(len({(r.seed, r.arm.augment) for r in cohort}) == 1 for cohort in cohorts)


def test_processes_get_whole_runs_or_share_batches():
    cohorts = [[1, 2, 3, 4], [5, 6]]
    assert share_cohorts(cohorts, 1, "auto") == (cohorts, False)
    shared, sharing = share_cohorts(cohorts, 3, "auto")
    assert (
        not sharing
        and sorted(map(len, shared)) == [2, 2, 2]
        and sorted([run for cohort in shared for run in cohort]) == [1, 2, 3, 4, 5, 6]
    )
    assert share_cohorts([[1]], 2, "auto") == ([[1]], True)
    assert share_cohorts(cohorts, 2, "data") == (cohorts, True)
    assert share_cohorts([[1]], 2, "runs") == ([[1]], False)


def test_training_never_looks_at_the_test_split(tiny, study_context, monkeypatch):
    ctx = study_context(tiny, "train.epochs=1")
    # Without positions and labels: only the size of its data set can be read.
    ctx.splits.test = SimpleNamespace(images=ctx.splits.test.images)
    monkeypatch.setattr("distill.study.scheduler.predict_all", lambda *_: {})
    monkeypatch.setattr("distill.study.scheduler._store", lambda *_: None)
    scheduler._train_cohort(ctx, [plan(ctx)[0]], False, {})


def test_images_of_a_folder_become_resident_before_the_first_batch(tmp_path, tiny, study_context):
    from helpers.photos import write_photos as photos

    photos(tmp_path / "photos", 12, (8, 8))
    ctx = study_context(
        tiny,
        "data.source=folder",
        f"data.root={tmp_path / 'photos'}",
        "train.epochs=1",
        "train.batch_size=8",
        "data.mean=[0.5, 0.5, 0.5]",
        "data.std=[0.2, 0.2, 0.2]",
    )
    train_study(ctx)
    assert ctx.splits.train.images.pixels is not None
