"""Load whole recipes: from files, dictionaries and overrides."""

import json
import subprocess
import sys

import pytest
from helpers.recipes import ROOT, TINY, TINY_YAML, make_recipe, merge, problems_of, write_recipe
from hypothesis import given
from hypothesis import strategies as st

from distill import load_recipe
from distill.errors import RecipeError, UserError
from distill.losses import LOSSES
from distill.recipe import recipe_from_dict
from distill.recipe.load import data_settings, load

SHIPPED = sorted((ROOT / "recipes").rglob("*.yaml"))


def test_a_file_and_a_dictionary_give_the_same_recipe(tmp_path):
    assert load(write_recipe(tmp_path / "tiny.yaml", TINY), LOSSES) == make_recipe(TINY)


def test_the_dictionary_is_not_changed_by_overrides():
    before = json.dumps(TINY)
    recipe = recipe_from_dict(TINY, LOSSES, ["train.epochs=7"])
    assert json.dumps(TINY) == before
    assert (recipe.source["train"]["epochs"], recipe.students[0].train.epochs) == (7, 7)
    assert recipe.name == "recipe"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_included_recipes_load_are_short_and_show_how_to_run_them(path):
    text = path.read_text()
    header = text.split("data:")[0]
    assert len(text.splitlines()) <= 25
    assert text.startswith("# ") and path.relative_to(ROOT).as_posix() in header
    recipe = load_recipe(path)
    assert len(recipe.seeds) >= 3 and recipe.students


def test_the_usual_recipes_are_included():
    assert {path.stem for path in SHIPPED} >= {"digits", "mnist", "cifar10", "cifar100", "folder"}


def test_overrides_replace_values_and_can_make_sweeps():
    recipe = make_recipe(
        TINY,
        "train.epochs=7",
        "seeds=[3]",
        "data.resident_gb=1",
        "students.alone.model=[mlp_16, mlp_32]",
    )
    assert recipe.seeds == [3] and recipe.data.resident_gb == 1
    assert {arm.model for arm in recipe.students} == {"mlp_16", "mlp_32"}
    assert all(arm.train.epochs == 7 for arm in recipe.arms)


def test_an_override_can_add_a_new_arm():
    recipe = make_recipe(TINY, "students.new={model: mlp_8, loss: {focal: {}}}")
    assert recipe.arm("new").model == "mlp_8"


def test_all_problems_are_reported_at_once():
    wrong = merge(
        TINY,
        {
            "data": {"image_size": 9},
            "train": {"epohcs": 2},
            "analysis": {"stepps": 2},
            "students": {"distilled": {"loss": {"kd": {"temperature": -1}}}},
            "seeds": 0,
        },
    )
    keys = {problem.key for problem in problems_of(wrong)}
    assert keys == {
        "data.image_size",
        "train.epohcs",
        "analysis.stepps",
        "students.distilled.loss.kd.temperature",
        "seeds",
    }


def test_the_message_has_file_line_and_key_of_each_problem(tmp_path):
    path = write_recipe(tmp_path / "wrong.yaml", merge(TINY, {"train": {"epohcs": 2, "lr": -1.0}}))
    with pytest.raises(RecipeError) as failure:
        load(path, LOSSES)
    lines = path.read_text().splitlines()
    for problem, text in zip(failure.value.problems, str(failure.value).splitlines(), strict=True):
        assert text == f"{path}:{problem.line}: {problem.key}: {problem.message}"
        assert lines[problem.line - 1].split(":")[0].strip() == problem.key.split(".")[-1]


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"- 1\n- 2\n", b"just text"], ids=repr)
def test_a_file_that_is_no_recipe_is_refused_with_its_name(tmp_path, content):
    path = tmp_path / "none.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as failure:
        load(path, LOSSES)
    assert "none.yaml" in str(failure.value)


def test_an_empty_file_lacks_its_required_keys(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("")
    with pytest.raises(RecipeError) as failure:
        load(path, LOSSES)
    assert {(problem.key, problem.code) for problem in failure.value.problems} == {
        ("data", "missing"),
        ("train", "missing"),
        ("students", "no_arms"),
    }


def test_data_settings_are_checked_for_their_source():
    assert data_settings(["data.image_size=32", "workers=0"], "photos") == {
        "image_size": 32,
        "workers": 0,
    }
    assert data_settings([], "digits") == {}
    wrong = [
        (["image_size=32"], "digits", "image_size"),
        (["validation=val"], "digits", "validation"),
        (["imagesize=32"], "photos", "imagesize"),
        (["mean=[0.5]"], "torch/mnist", "std"),
        (["source=digits"], "photos", "source"),
    ]
    for assignments, source, key in wrong:
        with pytest.raises(RecipeError) as failure:
            data_settings(assignments, source)
        assert [problem.key for problem in failure.value.problems] == [key]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
PLACES = [
    "data",
    "train",
    "teachers",
    "students",
    "seeds",
    "train.lr",
    "train.optimizer",
    "data.augment",
    "data.logit_cache",
    "students.alone",
    "students.alone.loss",
    "students.alone.model",
    "students.distilled.teacher",
    "students.distilled.loss.kd",
    "teachers.hard.train",
]


@given(place=st.sampled_from(PLACES), value=VALUES)
def test_no_value_in_any_place_breaks_the_loader(tmp_path_factory, place, value):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(TINY_YAML)
    try:
        load(path, LOSSES, [f"{place}={json.dumps(value)}"])
    except UserError as error:
        assert str(error)


@given(place=st.sampled_from(PLACES), value=VALUES)
def test_every_problem_has_a_key_that_is_in_the_document_or_missing_from_it(place, value):
    """No key is made up: types of a union, say, are not part of a path."""
    document = merge(TINY, {})
    *parents, last = place.split(".")
    parent = document
    for name in parents:
        parent = parent[name]
    parent[last] = value
    for problem in problems_of(document):
        top = problem.key.split(".")[0].split("[")[0]
        assert top in {*document, ""}
        assert "constrained" not in problem.key and "literal[" not in problem.key


def test_recipes_need_no_torch():
    code = "import sys, distill.recipe; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_files_are_looked_for_beside_the_recipe_too(tmp_path, monkeypatch):
    folder = tmp_path / "recipes"
    (folder / "photos").mkdir(parents=True)
    (folder / "w.pth").write_bytes(b"x")
    changes = {
        "data": {"source": "folder", "root": "photos"},
        "teachers": {"hard": {"checkpoint": "w.pth"}},
    }
    path = write_recipe(folder / "r.yaml", merge(TINY, changes))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    recipe = load_recipe(path)
    assert recipe.data.root == str(folder / "photos")
    assert recipe.teachers[0].checkpoint == str(folder / "w.pth")
    # The current folder comes first.
    (elsewhere / "photos").mkdir()
    assert load_recipe(path).data.root == "photos"


def test_the_home_folder_and_included_names_are_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    overrides = ["data.source=folder", "data.root=~/photos"]
    recipe = load_recipe("digits", overrides)
    assert recipe.name == "digits"
    assert recipe.data.root == str(tmp_path / "photos")
    assert load_recipe("digits", "train.epochs=3").arms[0].train.epochs == 3
    with pytest.raises(UserError, match="'digits'"):
        load_recipe("digitz")


def test_a_folder_of_recipes_and_other_encodings_have_a_next_step(tmp_path):
    write_recipe(tmp_path / "mine.yaml", TINY)
    with pytest.raises(UserError, match=r"mine\.yaml"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("# é".encode("latin-1"))
    with pytest.raises(UserError, match="save it as UTF-8"):
        load_recipe(tmp_path / "latin.yaml")
    (tmp_path / "windows.yaml").write_text('data: {source: folder, root: "C:\\Users\\me"}')
    with pytest.raises(UserError, match="single quotes"):
        load_recipe(tmp_path / "windows.yaml")


def test_blanks_around_an_override_do_not_matter():
    assert make_recipe(TINY, "train.epochs = 4").arms[0].train.epochs == 4
