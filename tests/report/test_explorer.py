"""The page that shows penultimate features, in the report and on its own."""

import json
import re
import shutil
import subprocess

import pytest
from helpers.analysed_study import ANALYSED
from helpers.recipes import make_recipe, merge
from PIL import Image
from typer.testing import CliRunner

from distill import run_study
from distill.cli import app
from distill.errors import UserError

pytestmark = pytest.mark.slow

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
PAGE_DATA = re.compile(r'<script type="application/json" id="\w+">(.*?)</script>', re.DOTALL)


def distill(*words):
    """Call a command."""
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=True)


def test_clusters_of_chosen_runs_are_drawn_with_a_page_of_their_own(analysed_study, tmp_path):
    out = analysed_study.store.root
    done = distill(
        "clusters", "analysed:hard", "analysed:alone/smoothing=0", "--classes", "1,7,9",
        "--view", "plane", "--view", "pca", "--to", tmp_path, "--out", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    figures = {
        f"features_{view}.{suffix}" for view in ("plane", "pca") for suffix in ("png", "svg")
    }
    assert {path.name for path in tmp_path.iterdir()} == {"clusters.html", *figures}
    page = (tmp_path / "clusters.html").read_text()
    data = json.loads(PAGE_DATA.search(page).group(1))
    assert data["views"][0]["classes"] == [1, 7, 9]
    assert data["networks"][0]["title"] == "hard"
    assert not re.search(r'(src|href)="?https?:', page)


def test_an_unknown_view_is_refused_with_the_nearest_name(analysed_study):
    done = distill(
        "clusters", "analysed:hard", "--view", "plain", "--out", analysed_study.store.root
    )
    assert done.exit_code != 0
    assert isinstance(done.exception, UserError)
    assert "'plane'" in str(done.exception)


# ------------------------------------------------------------------------ hostile names

NAMES = ("<script>alert(1)<∕script>", "b & c", "$d^$")


@pytest.fixture(scope="module")
def injected(tmp_path_factory):
    """A study of a folder of images whose class names are HTML, run and then without its images."""
    folder = tmp_path_factory.mktemp("hostile")
    for number, name in enumerate(NAMES):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(12):
            image = Image.new("RGB", (8, 8), (90 * number, 10 * i, 0))
            image.save(folder / "images" / name / f"{i}.png")
    data = {"source": "folder", "root": str(folder / "images")}
    recipe = make_recipe(merge(ANALYSED, {"data": data}), name="<b>x")
    run_study(recipe, folder / "runs")
    shutil.rmtree(folder / "images")
    return folder / "runs" / "<b>x"


def test_names_from_data_stay_text(injected):
    page = (injected / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<b>x" not in page
    assert "&lt;b&gt;x" in page
    assert len(re.findall("<script", page)) == 3  # data and program of the plot, sorting


def test_every_figure_is_made_again_without_data(injected):
    before = {path.name: path.read_bytes() for path in (injected / "figures").iterdir()}
    page = (injected / "report.html").read_bytes()
    shutil.rmtree(injected / "figures")
    (injected / "report.html").unlink()
    done = distill("report", "<b>x", "--out", injected.parent)
    assert done.exit_code == 0, done.output
    assert {path.name: path.read_bytes() for path in (injected / "figures").iterdir()} == before
    assert (injected / "report.html").read_bytes() == page
    drawn = {name.split(".")[0] for name in before}
    assert drawn >= {"accuracy", "reliability", "learning_curves", "information", "robustness"}
    assert drawn >= {"features_plane", "features_pca", "features_tsne"}


PROBE = """<script>
window.alert = () => document.title = "ALERT";
setTimeout(() => {
  const canvas = document.querySelector(".panels canvas");
  canvas.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const tip = document.querySelector(".tip span").textContent;
  document.body.append(`DRAWN ${pixels.some(v => v)} TIP ${tip}`);
  const table = document.querySelector("table.sortable");
  const column = [...table.tHead.rows[0].cells].findIndex(th => th.textContent === "agreement, %");
  const values = () => [...table.tBodies[0].rows].map(row => row.cells[column].textContent);
  const heading = table.tHead.rows[0].cells[column].querySelector("button");
  for (const order of ["DOWN", "UP"]) {
    heading.click();
    document.body.append(` ${order} ${values().join(";")} END`);
  }
}, 300);</script>"""


@pytest.mark.skipif(not CHROMIUM, reason="needs a Chromium")
def test_the_page_runs_without_errors_and_shows_its_points(injected, tmp_path):
    """In a browser there are no errors, no name is run, panels are drawn, and points have tips."""
    page = (injected / "report.html").read_text().replace("</body>", PROBE + "</body>")
    (tmp_path / "page.html").write_text(page)
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions",
         "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'browser'}",
         "--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path / 'page.html'}"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    assert "DRAWN true TIP label" in done.stdout
    assert "<title>ALERT" not in done.stdout
    assert "confidence" in done.stdout
    for order, is_reversed in (("DOWN", True), ("UP", False)):
        texts = re.search(f" {order} (.*?) END", done.stdout).group(1).split(";")
        numbers = [float(text.split()[0]) for text in texts if text[0].isdigit()]
        assert len(numbers) > 1
        assert numbers == sorted(numbers, reverse=is_reversed)
        # Arms without a number stay at the end.
        assert not any(text[0].isdigit() for text in texts[len(numbers) :])
        assert len(texts) > len(numbers)
