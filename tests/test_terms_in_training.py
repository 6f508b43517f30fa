"""Terms in the loop: those with parts, state, insides or several teachers, trained, stopped and stored."""

import json
import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.training import plan, same, train_generation, train_study
from torch import nn

from distill import load_recipe
from distill.data.augment import normalise
from distill.data.loaders import training_batches
from distill.data.splits import load_splits
from distill.errors import UserError
from distill.evaluation.predict import predict
from distill.losses import OnlineTargets, Outputs, make_loss_modules
from distill.models.cosine_head import CosineHead
from distill.models.factory import input_config
from distill.models.hooks import capture_outputs
from distill.recipe.schema import Augment
from distill.storage.run_store import RunStore
from distill.study import scheduler
from distill.study.dry_run import dry_run
from distill.study.lint import lint_recipe
from distill.study.plan import steps_per_epoch_of
from distill.study.preflight import preflight
from distill.study.results import collect
from distill.study.run import _look_inside
from distill.training.cached_teacher import CachedTeacher
from distill.training.checkpoint import resume, save_checkpoint
from distill.training.optim import make_optimizer
from distill.training.state import start
from distill.training.teacher import Teacher
from distill.training.trainer import fit

ALL = """\
data: {source: digits, augment: {shift: 1}}
train: {epochs: 3, batch_size: 128, lr: 0.05, checkpoint_minutes: 0, weight_norms: true}
teachers:
  hard: {model: mlp_32, loss: {cross_entropy: {}}}
  soft: {model: mlp_64, loss: {cross_entropy: {smoothing: 0.1}}}
students:
  online: {model: mlp_16, loss: {cross_entropy: {weight: 0.5}, online_smoothing: {weight: 0.5}}}
  hinted: {model: mlp_16, teacher: hard, loss: {cross_entropy: {}, hint: {}}}
  related: {model: mlp_16, teacher: hard, loss: {kd: {temperature: 1}, rkd: {weight: 5}}}
  margin: {model: {name: cosine_head, base: mlp_16, scale: 8}, loss: {am_softmax: {margin: 0.2}}}
  sphere: {model: {name: cosine_head, base: mlp_16, scale: 0}, loss: {a_softmax: {margin: 2}}}
  large: {model: mlp_16, loss: {l_softmax: {margin: 2}}}
  weight_decay_params: {model: mlp_16, loss: {cross_entropy: {}, l2_penalty: {weight: 0.001}}}
  both: {model: mlp_16, teacher: [[hard, soft]], loss: {kd: {temperature: 1}, dkd: {weight: 0.1, warmup: 0.5}}}
seeds: [3]
check_teachers: false
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "all.yaml"
    path.write_text(ALL)
    return path


def test_every_kind_of_term_ends_with_the_same_bits_after_a_stop(recipe, study_context):
    whole, ctx = study_context(recipe), study_context(recipe, out="stopped")
    expected = train_study(whole)
    runs = plan(ctx)
    train_generation(ctx, [r for r in runs if r.depth == 0 and r.arm.role == "teacher"])
    students = [r for r in runs if r.arm.role == "student"]
    teachers = {t.id: Teacher(ctx.load(t), {"features"}) for r in students for t in r.teachers}

    def begin(run, steps):
        model, shares = ctx.build(run.arm, 3), ctx.splits.class_frequencies
        return start(run, model, teachers, shares, steps, ctx.accelerator, False)

    class StopHereError(Exception):
        pass

    def stop_after_two(epoch, *_):
        if epoch == 2:
            raise StopHereError

    members = [begin(r, steps_per_epoch_of(ctx.splits, r.arm)) for r in students]
    with pytest.raises(StopHereError):
        answers = {name: CachedTeacher(teacher) for name, teacher in teachers.items()}
        fit(members, answers, ctx.splits, ctx.store, ctx.accelerator, False, stop_after_two)
    again = begin(students[0], 9)
    resume(again, ctx.store, 0, torch.device("cpu"))
    assert isinstance(again.parts["online_smoothing"], OnlineTargets)
    assert (again.parts["online_smoothing"].targets.diagonal() > 0.11).all(), (
        "what it learned is in the checkpoint"
    )
    for depth in (0, 1):
        scheduler.train_generation(ctx, [r for r in students if r.depth == depth])
    for run in students:
        assert same(ctx.load(run).state_dict(), expected[run.arm.name]), run.arm.name
        assert ctx.store.history(run.id) == whole.store.history(run.id)


def test_hints_train_their_projector_as_a_loop_by_hand_does(recipe, study_context):
    ctx = study_context(recipe, "students.hinted.loss.hint.weight=0.7", "train.epochs=2")
    runs = {r.arm.name: r for r in plan(ctx)}
    train_generation(ctx, [runs["hard"]])
    trained = train_generation(ctx, [runs["hinted"]])["hinted"]

    teacher, model = ctx.load(runs["hard"]).eval(), ctx.build(runs["hinted"].arm, 3).train()
    shapes = (
        Outputs(torch.zeros(1, 10), torch.zeros(1, 16)),
        Outputs(torch.zeros(1, 10), torch.zeros(1, 32)),
    )
    projector = make_loss_modules(runs["hinted"].arm.loss, *shapes, 3)["hint"]
    both = nn.ModuleList([model, projector])
    train, steps = runs["hinted"].arm.train, steps_per_epoch_of(ctx.splits, runs["hinted"].arm)
    optimizer, scheduler = make_optimizer(both, train, steps, "")
    for epoch in range(2):
        batches = training_batches(
            ctx.splits, runs["hinted"].arm.augment, 128, 3, epoch, torch.device("cpu")
        )
        for step, batch in enumerate(batches, epoch * steps + 1):
            x = normalise(batch.views, *input_config(model))
            features = model.forward_features(x)
            with torch.no_grad():
                theirs = teacher.forward_features(x)
            loss = F.cross_entropy(model.head(features), batch.labels)
            loss = loss + 0.7 * F.mse_loss(projector(features), theirs) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step_update(step)
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(trained[name], expected, rtol=1e-4, atol=1e-6)


def test_an_ensemble_is_what_a_student_learns_from_and_is_judged_by(recipe, study_context):
    ctx = study_context(recipe)
    train_study(ctx)
    runs = plan(ctx)
    results = collect(ctx, runs, _look_inside(ctx, runs))
    row = next(run for run in results["runs"] if run["arm"] == "both/teacher=hard+soft")
    ids = [run.id for run in runs if run.arm.role == "teacher"]
    assert row["teacher"] == ids
    logits = [ctx.store.predictions(i)["test.logits"] for i in ids]
    mean = sum(z.double().softmax(1) for z in logits) / 2
    own = ctx.store.predictions(row["id"])["test.logits"].double()
    agreed = (own.argmax(1) == mean.argmax(1)).double().mean().item()
    assert row["metrics"]["test"]["agreement"] == pytest.approx(agreed)
    expected = F.kl_div(own.log_softmax(1), mean, reduction="batchmean").item()
    assert row["metrics"]["test"]["kl_to_teacher"] == pytest.approx(expected, rel=1e-4)
    json.dumps(results, allow_nan=False)
    ranked = [r["arm"] for r in results["ranking"]]
    by_arm = {
        r["arm"]: r["metrics"]["test"]["top1"] for r in results["runs"] if r["role"] == "student"
    }
    assert set(ranked) == set(by_arm) and [by_arm[a] for a in ranked] == sorted(
        by_arm.values(), reverse=True
    )


def test_a_cosine_head_is_stored_and_read_by_timm(recipe, study_context):
    ctx = study_context(recipe, "train.epochs=1")
    for name in ("margin", "sphere"):
        run = next(r for r in plan(ctx) if r.arm.name == name)
        train_generation(ctx, [run])
        model = timm.create_model(f"local-dir:{ctx.store.folder(run.id)}", pretrained=True).eval()
        assert isinstance(model.head, CosineHead)
        images = ctx.splits.validation.images.pixels[ctx.splits.validation.positions]
        with torch.no_grad(), capture_outputs(model, {"features", "templates"}) as seen:
            logits = model(normalise(images, *input_config(model)))
        torch.testing.assert_close(
            logits, ctx.store.predictions(run.id)["validation.logits"], rtol=1e-5, atol=1e-5
        )
        cosines = F.normalize(seen["features"], dim=1) @ seen["templates"].T
        length = 8 if name == "margin" else seen["features"].norm(dim=1, keepdim=True)
        torch.testing.assert_close(logits, length * cosines, rtol=1e-5, atol=1e-5)
        assert seen["scale"] == (8 if name == "margin" else 0)


def test_convolutional_networks_show_their_stages(tmp_path, study_context):
    path = tmp_path / "maps.yaml"
    path.write_text(
        "data: {source: synthetic, synthetic: {shape: [3, 16, 16], train: 200}}\n"
        "train: {epochs: 1, batch_size: 50}\n"
        "teachers: {t: {model: cifar_wrn_16_2, loss: {cross_entropy: {}}}}\n"
        "students: {s: {model: [cifar_resnet8, resnet10t], teacher: t, loss: {kd: {}, attention_transfer: {}}}}\n"
    )
    ctx = study_context(path, "check_teachers=false")
    preflight(ctx, plan(ctx))
    train_study(ctx)
    history = [
        ctx.store.history(r.id)[0]["terms"]["attention_transfer"] for r in plan(ctx) if r.depth
    ]
    assert all(value > 0 for value in history)
    for name, shapes in (
        ("cifar_resnet20", [(16, 8, 8), (32, 4, 4), (64, 2, 2)]),
        ("cifar_vgg8", [(64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1), (512, 1, 1)]),
        ("swin_tiny_patch4_window7_224", [(96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7)]),
    ):
        model = timm.create_model(name, **({"num_classes": 4} if "swin" in name else {})).eval()
        side = 224 if "swin" in name else 8
        with torch.no_grad(), capture_outputs(model, {"feature_maps"}) as seen:
            model(torch.zeros(1, 3, side, side))
        assert [tuple(m.shape[1:]) for m in seen["feature_maps"]] == shapes, name


def test_norms_and_drift_are_logged_for_every_layer_and_epoch(recipe, study_context):
    ctx = study_context(recipe)
    run = next(r for r in plan(ctx) if r.arm.name == "weight_decay_params")
    begun = {name: w.clone() for name, w in ctx.build(run.arm, 3).state_dict().items()}
    trained = train_generation(ctx, [run])["weight_decay_params"]
    lines = [line["weights"] for line in ctx.store.history(run.id)]
    assert len(lines) == 3 and all(
        set(line["layers"]) == {"fc1.weight", "fc2.weight", "head.weight"} for line in lines
    )
    layer, w = lines[-1]["layers"]["fc2.weight"], trained["fc2.weight"]
    assert layer["l2"] == pytest.approx(w.norm().item(), rel=1e-5)
    assert layer["distance"] == pytest.approx((w - begun["fc2.weight"]).norm().item(), rel=1e-5)
    assert lines[0]["total"]["distance"] < lines[-1]["total"]["distance"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["students.hinted.teacher=[[hard, soft]]"],
            "hint needs features, of the student and of one teacher",
        ),
        (["students.margin.model=mlp_16"], r"margin: loss: .*cosine_head"),
        (
            ["students.large.loss={sparse_softmax: {}}", "students.large.augment={mixup: 0.5}"],
            "mixup",
        ),
        (["students.hinted.loss={hint: {}}"], "hinted: no term of its loss trains the last layer"),
        (["students.hinted.loss={kd: {}, attention_transfer: {}}"], "hinted: .*feature maps"),
        (["students.both.teacher=[[hard, hart]]"], "unknown teacher 'hart'; did you mean 'hard'"),
        (["students.both.teacher=[[hard, hard]]"], "two different teachers"),
        (["students.both.teacher=[[hard]]"], "two different teachers"),
        (["students.online.loss={online_smoothing: {part: 1}}"], "unknown key"),
        (
            ["students.online.loss={cross_entropy: {over: others, smoothing: 0.95}}"],
            "online: loss: .*taught",
        ),
        (["students.online.loss={sparse_softmax: {k: 0}}"], "greater than or equal to 1"),
        (["students.both.loss={kd: {temperature: 0}}"], "greater than 0"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_trained(recipe, study_context, options, words):
    with pytest.raises(UserError, match=words):
        ctx = study_context(recipe, *options)
        preflight(ctx, plan(ctx))


def test_advice_is_given_where_smoothing_meets_smoothing(recipe, study_context, tmp_path):
    ctx = study_context(
        recipe,
        "students.related.teacher=soft",
        "students.related.loss.kd.temperature=4",
        "students.online.loss={cross_entropy: {smoothing: 0.1}, max_sup: {weight: 0.1}}",
        "students.margin.model.scale=2",
        "students.margin.loss.am_softmax.smoothing=0.1",
    )
    notes = lint_recipe(ctx.recipe, 10)
    assert len(notes) == 3, notes
    assert (
        "related, both/teacher=hard+soft: learns from a smoothed teacher at a temperature above 1"
        in notes[1]
    )
    assert "max_sup smooths as well" in notes[0]
    # 2 (10/9 - 0.2) = 1.82 is less than log((10 - 0.9) / 0.1) = 4.51
    assert "wants a logit gap of 4.5" in notes[2] and "1.8 at most" in notes[2]
    assert dry_run(ctx.recipe, tmp_path / "runs")["notes"][-3:] == notes
    uniform = study_context(
        recipe,
        "students.both.teacher=hard",
        "students.both.loss={cross_entropy: {smoothing: 1}, kd: {}}",
    )
    assert (
        "both: the smoothed targets of cross_entropy are uniform"
        in lint_recipe(uniform.recipe, 10)[0]
    )
    others = "students.online.loss={cross_entropy: {smoothing: 0.9, over: others}}"
    assert "online: the smoothed" in lint_recipe(study_context(recipe, others).recipe, 10)[0]
    assert (
        lint_recipe(
            study_context(
                recipe, "students.both.teacher=hard", "students.both.loss={kd: {}}"
            ).recipe,
            10,
        )
        == []
    )


@pytest.mark.parametrize(
    ("loss", "scale", "classes", "told"),
    [
        (
            "{arcface: {margin: 0.5, smoothing: 0.1}}",
            4.4,
            10,
            True,
        ),  # 4.4 (cos 0.5 + 1/9) = 4.35 < log 91 = 4.51
        ("{arcface: {margin: 0.5, smoothing: 0.1}}", 4.6, 10, False),
        ("{sm_softmax: {margin: 2, smoothing: 0.1}}", 5.0, 10, True),  # 5 · 10/9 - 2 = 3.6
        ("{cross_entropy: {over: others, smoothing: 0.1}}", 1.2, 2, False),  # 2.4 > log 9 = 2.197
        ("{cross_entropy: {smoothing: 0.1}}", 1.2, 2, True),  # 2.4 < log 19 = 2.94
    ],
)
def test_a_gap_out_of_reach_is_told_by_the_margin_and_the_form(
    recipe, study_context, loss, scale, classes, told
):
    ctx = study_context(
        recipe, f"students.margin.loss={loss}", f"students.margin.model.scale={scale}"
    )
    assert any("wants a logit gap" in note for note in lint_recipe(ctx.recipe, classes)) == told


def test_every_smoothed_teacher_and_every_hot_temperature_is_seen(recipe, study_context):
    soft = "teachers.soft.loss={poly1: {smoothing: 0.1}}"
    for hot in ("{kd: {temperature: 4}}", "{kd: {temperature: 1, final_temperature: 8}}"):
        ctx = study_context(recipe, soft, f"students.both.loss={hot}")
        assert any(
            "both" in note and "smoothed teacher" in note for note in lint_recipe(ctx.recipe, 10)
        )
    cold = study_context(recipe, soft, "students.both.loss={kd: {temperature: 1}}")
    assert lint_recipe(cold.recipe, 10) == []


def test_a_background_class_is_a_class_without_examples(recipe, study_context):
    ctx, plain = study_context(recipe, "data.background=true"), study_context(recipe)
    assert ctx.splits.class_names == ["background", *plain.splits.class_names]
    for name in ("train", "validation", "test"):
        assert torch.equal(getattr(ctx.splits, name).labels, getattr(plain.splits, name).labels + 1)
    assert (
        ctx.splits.identity != plain.splits.identity and "background" not in plain.splits.identity
    )
    run = next(r for r in plan(ctx) if r.arm.name == "online")
    assert train_generation(ctx, [run])["online"]["head.weight"].shape[0] == 11


def test_two_processes_that_share_batches_learn_the_same_parts_and_state(
    recipe, study_context, tmp_path
):
    """Gradients of projectors are averaged, online targets summed; within rounding (terms on a batch excepted)."""
    overrides = [
        "train.epochs=2",
        "train.batch_size=101",
        "students.related.loss={kd: {temperature: 1}}",
    ]
    one = study_context(recipe, *overrides)
    expected = train_study(one)
    program = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "distill",
        "run",
    ]
    words = [str(recipe), *overrides, "train.parallelism=batches", "--out", str(tmp_path / "two")]
    done = subprocess.run(
        [*program, *words], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    two = study_context(recipe, *overrides, out="two")
    for run in plan(two):
        for name, value in two.load(run).state_dict().items():
            torch.testing.assert_close(
                value, expected[run.arm.name][name], rtol=1e-4, atol=1e-5, msg=run.arm.name
            )
        a, b = (ctx.store.history(run.id)[-1]["terms"] for ctx in (one, two))
        assert a == pytest.approx(b, rel=1e-4), run.arm.name


def test_teachers_are_asked_for_what_their_own_students_need(tmp_path, study_context):
    """A network without maps may teach by kd beside one whose maps are looked at; an l_softmax student asks nothing."""
    path = tmp_path / "two.yaml"
    path.write_text(
        "data: {source: synthetic, synthetic: {shape: [3, 32, 32], train: 64, test: 20}}\n"
        "train: {epochs: 1, batch_size: 32}\n"
        "teachers:\n"
        "  cnn: {model: cifar_resnet8, loss: {cross_entropy: {}}}\n"
        "  vit: {model: {name: test_vit, img_size: 32}, loss: {cross_entropy: {}}}\n"
        "students:\n"
        "  a: {model: cifar_resnet8, teacher: cnn, loss: {kd: {}, attention_transfer: {}}}\n"
        "  b: {model: cifar_resnet8, teacher: vit, loss: {kd: {}, l_softmax: {}}}\n"
        "check_teachers: false\n"
    )
    ctx = study_context(path)
    preflight(ctx, plan(ctx))
    train_study(ctx)
    wrong = study_context(path, "students.a.teacher=vit")
    with pytest.raises(UserError, match=r"a: its teacher vit: VisionTransformer"):
        preflight(wrong, plan(wrong))


def test_ensembles_of_one_arm_with_itself_are_refused_and_axes_keep_apart(recipe, study_context):
    axis = "teachers.soft.loss.cross_entropy.smoothing=[0.1, 0.2]"
    with pytest.raises(UserError, match="these names share an arm"):
        study_context(recipe, axis, "students.both.teacher=[[soft, soft/smoothing=0.1]]")
    ctx = study_context(
        recipe, axis, "students.both.teacher=[[soft/smoothing=0.1, soft/smoothing=0.2]]"
    )
    arm = next(a for a in ctx.recipe.students if a.name.startswith("both"))
    assert arm.teachers == ("soft/smoothing=0.1", "soft/smoothing=0.2")
    assert (arm.axes["teacher1.smoothing"], arm.axes["teacher2.smoothing"]) == (0.1, 0.2)
    names = [a.name for a in study_context(recipe, axis).recipe.students]
    assert len(set(names)) == len(names) and sum(name.startswith("both") for name in names) == 2


@pytest.mark.parametrize("loss", ["{kd: {weight: 0}, l2_penalty: {}}", "{rkd: {}, l1_penalty: {}}"])
def test_a_loss_that_teaches_no_answer_is_refused(recipe, study_context, loss):
    ctx = study_context(recipe, f"students.hinted.loss={loss}")
    with pytest.raises(UserError, match="its answers stay random"):
        preflight(ctx, plan(ctx))


def test_shares_of_the_data_are_a_prior_and_balanced_weights(recipe, study_context):
    loss = "students.online.loss={cross_entropy: {smoothing: 0.2, prior: data, class_weights: balanced}}"
    ctx = study_context(recipe, loss)
    labels = ctx.splits.train.labels
    shares = [(labels == k).double().mean().item() for k in range(10)]
    assert ctx.splits.class_frequencies == pytest.approx(shares)
    assert sum(1 / (10 * shares[k]) for k in labels.tolist()) / len(labels) == pytest.approx(
        1
    )  # weights of mean 1
    numbers = {"smoothing": 0.2, "prior": [round(s, 6) for s in shares]}
    numbers["class_weights"] = [1 / (10 * s) for s in shares]
    by_hand = study_context(recipe, loss, out="hand")
    run, same_run = (next(r for r in plan(p) if r.arm.name == "online") for p in (ctx, by_hand))
    weights = train_generation(ctx, [run])["online"]
    same_run.arm.loss["cross_entropy"] = numbers
    for name, value in train_generation(by_hand, [same_run])["online"].items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-5)


def test_students_that_did_not_train_are_told(recipe, study_context):
    ctx = study_context(recipe, "students.related.train.lr=1.0e-9")
    train_study(ctx)
    runs = plan(ctx)
    notes = collect(ctx, runs, _look_inside(ctx, runs))["notes"]
    notes = [note for note in notes if "did not train" in note]
    assert any(
        note.startswith("related: 1 of its runs are no better than chance") for note in notes
    )
    assert not any(note.startswith("hard:") for note in notes)


def test_a_checkpoint_without_parts_is_read_by_a_run_without_them(recipe, study_context):
    ctx = study_context(recipe)
    run = next(r for r in plan(ctx) if r.arm.name == "weight_decay_params")

    def begin():
        return start(
            run, ctx.build(run.arm, 3), {}, ctx.splits.class_frequencies, 9, ctx.accelerator, False
        )

    member = begin()
    member.epoch = 2
    save_checkpoint(member, ctx.store)
    state = ctx.store.load_checkpoint(run.id)
    del state["parts"]
    ctx.store.save_checkpoint(run.id, state)
    again = begin()
    resume(again, ctx.store, 0, torch.device("cpu"))
    assert again.epoch == 2


def test_the_bias_of_a_projector_is_not_decayed(recipe, study_context):
    ctx = study_context(recipe, "train.weight_decay=0.1")
    train = ctx.recipe.students[0].train
    optimizer, _ = make_optimizer(nn.Linear(2, 2), train, 9, "", nn.Linear(3, 4))
    decays = {
        tuple(p.shape): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]
    }
    assert decays == {(2, 2): 0.1, (2,): 0.0, (4, 3): 0.1, (4,): 0.0}


def test_two_processes_store_what_one_network_says(tmp_path):
    """Batch statistics and their average over time come from one process, buffer for buffer."""
    (tmp_path / "bn.yaml").write_text(
        "data: {source: synthetic, synthetic: {shape: [3, 8, 8], train: 96, test: 40}}\n"
        "train: {epochs: 2, batch_size: 32, ema: 0.9, spread: data}\n"
        "students: {s: {model: cifar_resnet8, loss: {cross_entropy: {}}}}\n"
    )
    program = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "distill",
        "run",
        "bn.yaml",
    ]
    done = subprocess.run(
        program, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    store = RunStore(tmp_path / "runs")
    run_id = json.loads((tmp_path / "runs" / "bn" / "results.json").read_text())["runs"][0]["id"]
    splits = load_splits(load_recipe(tmp_path / "bn.yaml").data)
    model = timm.create_model(f"local-dir:{store.folder(run_id)}", pretrained=True).eval()
    logits = predict(model, splits, splits.test, Augment(), torch.device("cpu"))
    torch.testing.assert_close(
        logits, store.predictions(run_id)["test.logits"], rtol=1e-4, atol=1e-5
    )
