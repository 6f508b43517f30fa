"""Looking into stored networks, end to end: states on the way, numbers, pictures, and the page that shows them."""

import json
import math
import re
import shutil
import subprocess

import numpy as np
import oracles_inside as oracles
import pytest
import timm
import torch
from helpers.recipes import ROOT, TINY_YAML
from PIL import Image
from safetensors.torch import load_file
from scipy import stats

from distill import load_recipe, run_study
from distill.cli import main
from distill.data.augment import normalise
from distill.data.splits import load_splits
from distill.errors import UserError
from distill.evaluation.analyse import source_of
from distill.evaluation.class_selection import select_classes
from distill.evaluation.comparisons import find_pairs
from distill.evaluation.feature_plot import load_feature_plot
from distill.models.factory import input_config
from distill.report.captions import change, figure_captions, paired, smoothing_pair
from distill.storage.run import plan_runs
from distill.storage.run_store import RunStore

LOOKED = TINY_YAML.replace(
    "checkpoint_minutes: 0", "checkpoint_minutes: 0, schedule: none, snapshots: 3"
).replace(
    "teachers:\n",
    "  smoothed: {model: {name: mlp_32, drop_rate: 0.2}, loss: {cross_entropy: {smoothing: 0.1}}}\n",
    1,
)
LOOKED = LOOKED.replace(
    "  smoothed:",
    "analysis: {attacked: 60, draws: 4, steps: 3, linf: 0.1}\nteachers:\n  smoothed:",
    1,
)
LOOKED = LOOKED.replace("seeds: [0]", "seeds: [0, 1]").replace(
    "temperature: 2", "temperature: [1, 4]"
)
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain")
    (folder / "looked.yaml").write_text(LOOKED)
    results = run_study(load_recipe(folder / "looked.yaml"), folder / "runs")
    return folder, results, load_splits(load_recipe(folder / "looked.yaml").data)


def run_of(results, arm, seed=0):
    return next(r for r in results["runs"] if r["arm"] == arm and r["seed"] == seed)


def network(folder, run):
    return timm.create_model(
        f"local-dir:{folder / 'runs' / 'models' / run['id']}", pretrained=True
    ).eval()


def distill(monkeypatch, folder, *words):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["distill", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0


# ---------------------------------------------------------------------------------------------------- states


def test_a_state_is_the_network_of_a_shorter_run(study, tmp_path):
    """At a constant rate, the state after an epoch is what a run of one epoch ends with; the first is untrained."""
    folder, results, _ = study
    store = RunStore(folder / "runs")
    states = {
        arm: store.snapshots(run_of(results, arm)["id"]) for arm in ("hard", "alone/smoothing=0.1")
    }
    assert all(sorted(found) == [0, 1, 2] for found in states.values())
    (tmp_path / "looked.yaml").write_text(LOOKED.replace("epochs: 3", "epochs: 1"))
    shorter = run_study(load_recipe(tmp_path / "looked.yaml"), tmp_path / "runs")
    for arm, found in states.items():
        last = load_file(
            tmp_path / "runs" / "models" / run_of(shorter, arm)["id"] / "model.safetensors"
        )
        state = load_file(found[1])
        assert state.keys() == last.keys() and all(
            torch.equal(state[name], last[name]) for name in last
        )
        first, weights = (
            load_file(found[0]),
            load_file(folder / "runs" / "models" / found[0].parent / "model.safetensors"),
        )
        assert not any(
            torch.equal(first[name], weights[name]) for name in first if "weight" in name
        )
    assert not list((folder / "runs" / "models").glob("*.epochs"))


# --------------------------------------------------------------------------------------------------- numbers


def test_numbers_of_features_are_those_of_timms_own_features(study):
    folder, results, splits = study
    positions = torch.cat([(splits.validation.labels == k).nonzero()[:100, 0] for k in range(10)])
    images = splits.validation.images.pixels[splits.validation.positions[positions]]
    labels = splits.validation.labels[positions].tolist()
    for arm in ("hard", "alone/smoothing=0.1"):
        run = run_of(results, arm)
        model = network(folder, run)
        with torch.no_grad():
            features = model.forward_head(
                model.forward_features(normalise(images, *input_config(model))), pre_logits=True
            ).double()
        got = run["metrics"]["validation"]
        rows = features.tolist()
        assert got["class_separation"] == pytest.approx(
            oracles.class_separation(rows, labels), abs=1e-5
        )
        head = model.get_classifier()
        templates = torch.cat([head.weight, head.bias[:, None]], 1).detach().double().tolist()
        with_one = [[*row, 1.0] for row in rows]
        assert got["wrong_template_spread"] == pytest.approx(
            oracles.wrong_template_spread(with_one, templates, labels), rel=1e-4
        )
        spread = np.square(head.weight.detach().double().numpy()).sum(1)
        assert run["template_spread"] == pytest.approx(spread.std() / spread.mean(), rel=1e-5)
        assert 0 < got["within_between_templates"] < got["within_between"] and got["nc1"] > 0
    assert run_of(results, "smoothed")["optimal_gap"] == pytest.approx(
        math.log((10 - 9 * 0.1) / 0.1)
    )
    assert run_of(results, "hard")["optimal_gap"] is None


def test_attacks_of_a_study_are_made_on_its_test_images(study):
    folder, results, splits = study
    positions = torch.arange(60) * len(splits.test) // 60
    images = splits.test.images.pixels[splits.test.positions[positions]].float() / 255
    labels = splits.test.labels[positions]
    run = run_of(results, "hard")
    model, test = network(folder, run), run["metrics"]["test"]

    def right(x):
        return (
            (model(normalise(255 * x, *input_config(model))).argmax(1) == labels)
            .double()
            .mean()
            .item()
        )

    x = images.clone().requires_grad_()
    torch.nn.functional.cross_entropy(
        model(normalise(255 * x, *input_config(model))), labels
    ).backward()
    assert test["num_attacked"] == 60 and test["unattacked"] == pytest.approx(right(images))
    assert test["fgsm"] == pytest.approx(
        right((images + 0.1 * x.grad.sign()).clamp(0, 1)), abs=1e-9
    )
    assert test["worst_linf"] <= min(
        test[name] for name in ("unattacked", "fgsm", "pgd_linf", "margin_linf", "transfer")
    )
    assert test["zero_gradient"] == 0


def test_nobody_is_attacked_by_himself(study):
    folder, _, splits = study
    recipe = load_recipe(folder / "looked.yaml")
    runs = plan_runs(recipe, splits.identity, "no")
    for run in runs:
        source = source_of(run, runs, recipe.seeds)
        assert (
            source.id != run.id
            and source.arm.name == runs[0].arm.name
            and source.seed == 1 - run.seed
        )
    alone = [run for run in runs if run.seed == 0]
    assert (
        source_of(alone[0], alone, [0]) is None
        and source_of(alone[1], alone, [0]).id == alone[0].id
    )


def test_information_grows_from_nothing_and_stays_below_log_n(study):
    _, results, splits = study
    for run in results["runs"]:
        told = run["information"]
        assert [state["epoch"] for state in told] == [0, 1, 2, 3]
        assert told[0]["nats"] < 0.5 and all(
            state["nats"] <= math.log(len(splits.train)) for state in told
        )
    trained = [run_of(results, "hard", s)["information"] for s in (0, 1)]
    assert all(state[-1]["nats"] > state[0]["nats"] + 0.2 for state in trained)


def test_fidelity_is_held_against_a_teacher_of_another_seed(study):
    folder, results, _ = study

    def answers(run):
        stored = load_file(folder / "runs" / "models" / run["id"] / "predictions.safetensors")
        return stored["test.logits"].double().numpy()

    for seed in (0, 1):
        run = run_of(results, "distilled/temperature=4", seed)
        own, other = (run_of(results, "hard", s) for s in (seed, 1 - seed))
        assert run["teacher"] == own["id"]
        mine = answers(run)
        for teacher, names in (
            (own, ("agreement", "kl_to_teacher")),
            (other, ("agreement_control", "kl_control")),
        ):
            theirs = answers(teacher)
            p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (theirs, mine))
            expected = (
                (theirs.argmax(1) == mine.argmax(1)).mean(),
                stats.entropy(p, q, axis=1).mean(),
            )
            assert [run["metrics"]["test"][name] for name in names] == pytest.approx(expected)
    assert (
        run["diffusion"] is not None
        and run_of(results, "distilled/temperature=1")["diffusion"] is None
    )
    assert run_of(results, "alone/smoothing=0")["metrics"]["test"]["agreement_control"] is None


def test_what_was_found_is_kept_and_other_settings_are_looked_at_anew(study, tmp_path):
    folder, results, _ = study
    files = {p: p.stat().st_mtime_ns for p in (folder / "runs" / "analysis").iterdir()}
    assert len(files) == len(results["runs"])
    again = run_study(load_recipe(folder / "looked.yaml"), folder / "runs")
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(results))
    assert {p: p.stat().st_mtime_ns for p in files} == files
    shutil.copytree(folder / "runs", tmp_path / "runs")
    other = run_study(
        load_recipe(folder / "looked.yaml", ["analysis.eps_linf=0.3"]), tmp_path / "runs"
    )
    assert len(list((tmp_path / "runs" / "analysis").iterdir())) == 2 * len(files)
    first, second = (
        [r["metrics"]["test"]["worst_linf"] for r in found["runs"]] for found in (results, other)
    )
    assert all(a >= b for a, b in zip(first, second, strict=True)) and sum(first) > sum(second)
    none = run_study(
        load_recipe(folder / "looked.yaml", ["analysis={attacked: 0, examples: 0, draws: 0}"]),
        tmp_path / "runs",
    )
    run = none["runs"][0]
    assert (
        run["metrics"]["test"]["fgsm"] is run["metrics"]["train"]["nc1"] is None
        and run["information"] == []
    )


def test_classes_are_chosen_by_name_or_by_themselves(study):
    folder, results, splits = study
    predictions = load_file(
        folder / "runs" / "models" / results["runs"][0]["id"] / "predictions.safetensors"
    )
    settings = load_recipe(folder / "looked.yaml").analysis
    chosen = select_classes(settings, splits.class_names, predictions)
    first, second = chosen.triples
    assert (
        first[:2] == second[:2] and first[2] != second[2] and chosen.pair == [second[0], second[2]]
    )
    named = settings.model_copy(update={"classes": ["7", "1", "9"], "pair": ["0", "3"]})
    assert select_classes(named, splits.class_names, predictions) == ([[7, 1, 9]], [0, 3])
    for key, value in (
        ("classes", ["7", "1", "x"]),
        ("classes", ["7", "7", "1"]),
        ("pair", ["0", "0"]),
    ):
        with pytest.raises(UserError, match=r"no class 'x'|different classes"):
            select_classes(
                settings.model_copy(update={key: value}), splits.class_names, predictions
            )


# -------------------------------------------------------------------------------------------------- pictures


def test_a_picture_keeps_the_distances_of_templates_at_every_epoch(study):
    folder, results, _ = study
    feature_plot = load_feature_plot(folder / "runs" / "looked" / "features.safetensors")
    assert [n.title for n in feature_plot.networks] == [
        "smoothed",
        "hard",
        "distilled/temperature=1",
    ]
    assert [v.kind for v in feature_plot.views] == ["plane", "plane", "pca", "tsne"]
    for row, entry in enumerate(feature_plot.networks):
        run = run_of(results, entry.title)
        assert entry.epochs == [0, 1, 2, 3]
        model, files = network(folder, run), RunStore(folder / "runs").states(run["id"])
        for state, epoch in enumerate(entry.epochs):
            if epoch in files:
                model.load_state_dict(load_file(files[epoch]))
            else:
                model = network(folder, run)
            weight = model.get_classifier().weight.detach()
            for view in feature_plot.views[:2]:
                drawn, real = view.templates[row][state], weight[view.classes]
                assert torch.cdist(drawn, drawn).numpy() == pytest.approx(
                    torch.cdist(real, real).numpy(), abs=1e-5
                )
    said = load_file(
        folder / "runs" / "models" / run_of(results, "hard")["id"] / "predictions.safetensors"
    )
    own = feature_plot.networks[1]
    validation = feature_plot.labels["validation"]
    assert (
        own.predicted["validation"].shape
        == own.confidence["validation"].shape
        == (4, len(validation))
    )
    accuracy = (own.predicted["validation"][-1] == validation).double().mean().item()
    stored = said["validation.logits"]
    assert len(validation) == len(stored)  # all of the few validation images are looked at
    assert accuracy == pytest.approx(
        (stored.argmax(1) == said["validation.labels"]).double().mean().item()
    )
    assert own.confidence["validation"][-1].mean().item() == pytest.approx(
        stored.softmax(1).amax(1).mean().item(), abs=1e-5
    )


def test_clusters_of_chosen_runs_are_drawn_with_a_page_of_their_own(
    study, monkeypatch, capsys, tmp_path
):
    folder, _, _ = study
    words = [
        "clusters",
        "looked:hard",
        "looked:alone/smoothing=0",
        "--classes",
        "1,7,9",
        "--to",
        tmp_path,
    ]
    assert distill(monkeypatch, folder, *words, "--view", "plane", "--view", "pca") == 0
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {
        "clusters.html",
        *(f"features_{v}.{e}" for v in ("plane", "pca") for e in ("png", "svg")),
    }
    page = (tmp_path / "clusters.html").read_text()
    data = json.loads(
        re.search(
            r'<script type="application/json" id="feature_plot">(.*?)</script>', page, re.S
        ).group(1)
    )
    assert data["views"][0]["classes"] == [1, 7, 9] and data["networks"][0]["title"] == "hard"
    assert not re.search(r'(src|href)="?https?:', page)
    assert distill(monkeypatch, folder, "clusters", "looked:hard", "--view", "plain") == 2
    assert "did you mean 'plane'" in capsys.readouterr().err


def hostile(folder, seeds=2):
    """A study of a folder of images whose class names are HTML, run and then without its images."""
    for number, name in enumerate(("<script>alert(1)<∕script>", "b & c", "$d^$")):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (8, 8), (90 * number, 10 * i, 0)).save(
                folder / "images" / name / f"{i}.png"
            )
    text = LOOKED.replace("source: digits", f"source: folder, root: {folder / 'images'}")
    (folder / "<b>x.yaml").write_text(text)
    run_study(load_recipe(folder / "<b>x.yaml", [f"seeds={seeds}"]), folder / "runs")
    shutil.rmtree(folder / "images")
    return folder / "runs" / "<b>x"


@pytest.fixture(scope="module")
def injected(tmp_path_factory):
    return hostile(tmp_path_factory.mktemp("hostile"))


def test_names_from_data_stay_text(injected):
    page = (injected / "report.html").read_text()
    assert "<script>alert" not in page and "<b>x" not in page and "&lt;b&gt;x" in page
    assert len(re.findall("<script", page)) == 2  # the page's data and its program


def test_every_figure_is_made_again_without_data(injected, monkeypatch):
    before = {p.name: p.read_bytes() for p in (injected / "figures").iterdir()}
    page = (injected / "report.html").read_bytes()
    shutil.rmtree(injected / "figures")
    (injected / "report.html").unlink()
    assert distill(monkeypatch, injected.parent.parent, "report", "<b>x") == 0
    assert {p.name: p.read_bytes() for p in (injected / "figures").iterdir()} == before
    assert (injected / "report.html").read_bytes() == page
    drawn = {name.split(".")[0] for name in before}
    assert drawn >= {"accuracy", "reliability", "learning_curves", "information", "robustness", "features_plane",
                     "features_pca", "features_tsne"}  # fmt: skip


@pytest.mark.skipif(not CHROMIUM, reason="needs a Chromium")
def test_the_page_runs_without_errors_and_shows_its_points(injected, tmp_path):
    """In a browser without network: nothing is complained of, no name is run, panels are drawn, points can be asked."""
    probe = """<script>
    window.alert = () => document.title = "ALERT";
    setTimeout(() => {
      const canvas = document.querySelector(".panels canvas");
      canvas.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
      const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      document.body.append(`DRAWN ${pixels.some(v => v)} TIP ${document.querySelector(".tip span").textContent}`);
    }, 300);</script>"""
    (tmp_path / "page.html").write_text(
        (injected / "report.html").read_text().replace("</body>", probe + "</body>")
    )
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=5000", "--dump-dom",
         f"file://{tmp_path / 'page.html'}"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    assert (
        "DRAWN true TIP label" in done.stdout
        and "<title>ALERT" not in done.stdout
        and "confidence" in done.stdout
    )


# -------------------------------------------------------------------------------------------------- readings


def test_sentences_tell_direction_size_and_doubt():
    def runs(arm, values):
        return [{"arm": arm, "seed": s, "value": v} for s, v in enumerate(values)]

    a, b = [0.50, 0.52, 0.54, 0.52], [0.60, 0.65, 0.63, 0.64]
    results = {"seeds": [0, 1, 2, 3], "runs": runs("a", a) + runs("b", b)[::-1]}
    test = paired(results, "a", "b", lambda run: run["value"])
    low, high = stats.ttest_rel(b, a).confidence_interval()
    assert change(test, 4, 100, 1, "%") == (
        f"from 52.0% to 63.0% (+11.0, 95% interval {100 * low:+.1f} to {100 * high:+.1f}, 4 seeds)"
    )
    unsure = paired(
        {**results, "runs": runs("a", a) + runs("b", a[::-1])}, "a", "b", lambda run: run["value"]
    )
    assert "cannot tell it from no change" in change(unsure, 4)
    one = paired(
        {"seeds": [0], "runs": runs("a", a[:1]) + runs("b", b[:1])},
        "a",
        "b",
        lambda run: run["value"],
    )
    assert "no uncertainty can be given" in change(one, 1)
    assert paired(results, "a", "b", lambda run: None) is None


def test_the_pair_that_is_told_and_drawn_differs_in_smoothing_alone():
    """Of section 4's teachers those without dropout; of the map's eight the hard and the most smoothed."""
    for name, expected in {
        "section4": ("plain/smoothing=0", "plain/smoothing=0.1"),
        "map": ("teacher/smoothing=0", "teacher/smoothing=0.75"),
    }.items():
        pairs = find_pairs(load_recipe(ROOT / "recipes" / "paper" / f"{name}.yaml"))
        comparisons = [{"question": question, "a": a.name, "b": b.name} for question, a, b in pairs]
        assert smoothing_pair({"comparisons": comparisons}) == expected
    assert smoothing_pair({"comparisons": []}) is None


def test_readings_are_of_the_stored_numbers(study):
    _, results, _ = study
    told = figure_captions(results, {})
    values = [
        [run_of(results, arm, s)["metrics"]["test"]["ece"] for s in (0, 1)]
        for arm in ("hard", "smoothed")
    ]
    low, high = stats.ttest_rel(values[1], values[0]).confidence_interval()
    assert f"95% interval {100 * low:+.2f} to {100 * high:+.2f}, 2 seeds" in told["reliability"]
    tight = [[run_of(results, arm, s)["metrics"]["train"]["within_between_templates"] for s in (0, 1)]
             for arm in ("hard", "smoothed")]  # fmt: skip
    lower = sum(b < a for a, b in zip(*tight, strict=True))
    ratio = math.exp(np.mean(np.log(tight[1]) - np.log(tight[0])))
    assert f"lower in {lower} of 2 seeds: {ratio:.2f} times" in told["features_plane"]
