"""Record the verdicts of the README's example with other numbers of threads and other seeds.

    python tools/showcase.py --json tools/results/showcase.json

It runs `recipes/digits.yaml` without its analysis for each number of threads and each first seed,
and prints the verdict of every comparison of accuracy. It takes about a minute for each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "digits.yaml"
THREADS = (1, 2)
FIRST_SEEDS = (0, 100, 200)
WITHOUT_ANALYSIS = (
    "analysis.examples=0",
    "analysis.num_views=0",
    "analysis.num_attacked=0",
    "train.snapshots=0",
)


def run(threads: int, first_seed: int, seeds: int) -> dict[str, Any]:
    """Run the example with its own number of threads, and return its verdicts."""
    numbers = ",".join(str(first_seed + i) for i in range(seeds))
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "distill", "run", str(RECIPE), f"seeds=[{numbers}]"]
        done = subprocess.run(
            [*command, *WITHOUT_ANALYSIS, "--out", out, "--json"],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    results = json.loads(done.stdout)
    verdicts = {}
    for one in results["comparisons"]:
        if one["metric"] == "top1":
            verdicts[f"{one['b']} against {one['a']}"] = {
                "verdict": one["verdict"],
                "difference": round(one["difference"], 6),
                "p_holm": one["p_holm"],
            }
    return {"threads": threads, "first_seed": first_seed, "seeds": seeds, "verdicts": verdicts}


def main() -> None:
    """Run the example in every setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--seeds", type=int, default=20, help="seeds of each run")
    arguments = parser.parse_args()
    found = []
    for threads in THREADS:
        for first_seed in FIRST_SEEDS:
            found.append(run(threads, first_seed, arguments.seeds))
            print(json.dumps(found[-1], indent=1), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
