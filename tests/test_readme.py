"""What the README prints is what a person can run."""

import json
import re
import statistics

from conftest import ROOT

TEXT = (ROOT / "README.md").read_text()


def test_its_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    blocks = [b for b in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "local-dir" not in b]
    assert len(blocks) == 5
    blocks += re.findall(r"```python\n(.*?)```", (ROOT / "distill" / "losses" / "README.md").read_text(), re.S)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "runs" / "digits" / "report.html").is_file()


def test_its_recipe_is_the_shipped_one():
    shipped = (ROOT / "recipes" / "mnist.yaml").read_text().split("data:", 1)[1]
    assert re.search(r"```yaml\n(.*?)```", TEXT, re.S).group(1).split("data:", 1)[1] == shipped


def test_its_table_of_recipes_is_complete():
    named = set(re.findall(r"^\| `([\w/]+)` \|", TEXT, re.M))
    paths = [p.relative_to(ROOT / "recipes").with_suffix("") for p in (ROOT / "recipes").rglob("*.yaml")]
    assert named == {path.as_posix() for path in paths}
    assert len({path.name for path in paths}) == len(paths), "a study's folder is named after its recipe"


def test_speeds_are_those_that_were_measured():
    results = json.loads((ROOT / "tools" / "results" / "cpu.json").read_text())
    columns = ("live / plain", "stored / plain", "live / bare", "cost of stored / alone", "cost of six / six alone")
    measured = [
        [f"{statistics.median(job['ratios'][name]):.2f}" for name in columns]
        for name, job in results["jobs"].items()
        if "-" in name
    ]
    table = (ROOT / "README.md").read_text().split("| on two CPU cores")[1].split("\n\n")[0].splitlines()[2:]
    assert measured and [[cell.strip() for cell in row.split("|")[2:-1]] for row in table] == measured
