"""Kill a study at random instants, go on with the same command, and compare what it leaves with an uninterrupted one.

    python tools/torture.py [--trials 100] [--processes N] [--seed 0] [--at-once 2]

Each trial starts `distill run` of a small study (checkpoints within epochs, states on the way, a teacher and students,
a report), kills it one to three times by SIGKILL, SIGTERM or SIGINT at an instant of its usual duration, and lets it
end. Weights, predictions, states and history must be equal bit for bit, results but for seconds, and nothing may be
left over (teachers' answers, which save time alone, are not kept of an epoch that was interrupted). With --processes,
under torchrun: one of the processes is killed, and all must end within two minutes.
"""

import argparse
import collections
import concurrent.futures
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

RECIPE = """\
data: {source: digits, augment: {shift: 1}}
train: {epochs: 8, batch_size: 8, lr: 0.02, checkpoint_minutes: 0, snapshots: 2}
analysis: {examples: 10, num_attacked: 20, num_views: 2, steps: 2}
teachers:
  hard: {model: {name: mlp_32, drop_rate: 0.2}, loss: {cross_entropy: {}}}
  smoothed: {model: mlp_32, loss: {cross_entropy: {smoothing: 0.1}}}
students:
  distilled:
    {model: mlp_16, teacher: [hard, smoothed], loss: {kd: {temperature: 2}}, train: {optimizer: adamw, ema: 0.99}}
  online: {model: mlp_16, loss: {cross_entropy: {}, online_smoothing: {weight: 0.5}}}
seeds: 2
"""
PATIENCE = 120  # seconds that a killed study may take to end, before it counts as hanging
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def begin(folder: Path, processes: int) -> subprocess.Popen:
    """`distill run` in a folder, its messages in a file."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 \
        else [sys.executable]  # fmt: skip
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            [*launcher, "-m", "distill", "run", "study.yaml"], cwd=folder, stdout=log, stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip


def fresh(parent: Path, name: str) -> Path:
    """A folder with nothing but the recipe."""
    folder = parent / name
    folder.mkdir()
    (folder / "study.yaml").write_text(RECIPE)
    return folder


def outcome(folder: Path) -> dict[str, object]:
    """All that a study leaves, by name, but for the seconds that it took."""
    found: dict[str, object] = {}
    for path in sorted(
        p for p in (folder / "runs").rglob("*") if p.is_file() and not p.name.endswith(".lock")
    ):
        if path.parent.name == "logits":
            continue
        name, content = str(path.relative_to(folder)), path.read_bytes()
        if path.name in ("run.json", "results.json"):
            found[name] = without_seconds(json.loads(content))
        elif path.suffix == ".csv":
            rows = csv.DictReader(content.decode().splitlines())
            found[name] = [
                {key: value for key, value in row.items() if key != "seconds"} for row in rows
            ]
        elif path.suffix == ".html":
            found[name] = re.sub(rb"[\d.]+ minutes of training", b"", content)
        else:
            found[name] = content
    return found


def without_seconds(value: object) -> object:
    """JSON values without times, and without the seals that depend on them."""
    if isinstance(value, dict):
        return {
            k: without_seconds(v)
            for k, v in value.items()
            if k not in ("seconds", "seal", "versions", "hardware")
        }
    return [without_seconds(v) for v in value] if isinstance(value, list) else value


def kill(
    process: subprocess.Popen, how: signal.Signals, processes: int, dice: random.Random
) -> str:
    """Send a signal to the program, or to one of its processes; what became of it."""
    if process.poll() is not None:
        return "ended before"
    target = process.pid
    if processes > 1:
        ranks = [child.pid for child in psutil.Process(process.pid).children()]
        target = dice.choice(ranks) if ranks else target
    os.kill(target, how)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        return "HANGS"
    return how.name


def trial(
    parent: Path, number: int, seed: int, processes: int, usual: float, expected: dict[str, object]
) -> list[str]:
    """One study, killed and continued: the signals that it met, and what is wrong, if anything is."""
    dice = random.Random(seed * 10_000 + number)
    folder, met = fresh(parent, f"trial{number}"), []
    for _ in range(dice.choice((1, 1, 2, 3))):
        process = begin(folder, processes)
        time.sleep(dice.uniform(0, usual))
        met.append(kill(process, dice.choice(SIGNALS), processes, dice))
    last = begin(folder, processes)
    if last.wait(600):
        met.append(f"FAILS: status {last.returncode}")
    own_start = r"Traceback[^\n]*\n(  File \"<frozen [^\n]*\n)+KeyboardInterrupt\n"  # Python's, before a line of ours
    log = re.sub(own_start, "", (folder / "log").read_text())
    if "Traceback" in log and processes == 1:  # torchrun prints its own
        met.append("FAILS: a traceback")
    got = outcome(folder) if (folder / "runs").is_dir() else {}
    wrong = sorted(name for name in {*got, *expected} if got.get(name) != expected.get(name))
    if wrong:
        met.append(f"FAILS: {len(wrong)} files differ, {', '.join(wrong[:3])}")
    if any(entry.startswith(("FAILS", "HANGS")) for entry in met):
        print(f"trial {number}: {met}, see {folder / 'log'}", flush=True)
    else:
        shutil.rmtree(folder)
    return met


def main() -> None:
    """Run the trials, and say how many studies survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=2)
    chosen = parser.parse_args()
    parent = Path(tempfile.mkdtemp(prefix="torture"))
    began, whole = time.monotonic(), fresh(parent, "whole")
    if begin(whole, chosen.processes).wait(600):
        sys.exit(f"the study does not even run: {whole / 'log'}")
    usual, expected = time.monotonic() - began, outcome(whole)
    print(f"uninterrupted: {usual:.1f} s, {len(expected)} files", flush=True)
    with concurrent.futures.ThreadPoolExecutor(chosen.at_once) as pool:
        trials = [pool.submit(trial, parent, i, chosen.seed, chosen.processes, usual, expected)
                  for i in range(chosen.trials)]  # fmt: skip
        met = [entry.result() for entry in trials]
    counts = collections.Counter(
        entry for one in met for entry in one if not entry.startswith("FAILS")
    )
    survived = sum(not any(entry.startswith(("FAILS", "HANGS")) for entry in one) for one in met)
    print(", ".join(f"{count} {name}" for name, count in counts.most_common()))
    print(f"{survived} of {len(met)} studies ended as the uninterrupted one")
    if survived == len(met):
        shutil.rmtree(parent)
    sys.exit(survived != len(met))


if __name__ == "__main__":
    main()
