"""Kill a study at random times, continue it, and compare the result with an uninterrupted study.

    python tools/torture.py [--trials 100] [--processes N] [--seed 0] [--at-once 2]

Each trial starts `distill run` on a small study (teachers, students, snapshots, a report), with
checkpoints within epochs. It kills the program one to three times, by SIGKILL, SIGTERM or SIGINT,
at random times within the usual duration, and then lets the same command finish. Weights,
predictions, snapshots and histories must be bit-equal to those of the uninterrupted study, results
must be equal but for durations, and no other file may remain. The cache of teacher logits is not
compared: it only saves time, and an interrupted epoch is not cached.

With --processes, the study runs under torchrun and the signal goes to one of its processes. All of
them must end within two minutes.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    model: mlp_16
    teacher: [hard, smoothed]
    loss: {kd: {temperature: 2}}
    train: {optimizer: adamw, ema: 0.99}
  online: {model: mlp_16, loss: {cross_entropy: {}, online_smoothing: {weight: 0.5}}}
seeds: 2
"""

SECONDS_TO_END = 120
"""Time that a killed study may take to end, before it counts as hanging."""

SECONDS_TO_FINISH = 600
"""Time that a study may take when it is not killed."""

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

NOT_COMPARED = ("seconds", "seal", "versions", "hardware")
"""Keys of JSON files that are not compared: durations, the machine, and the checksum of both."""

INTERRUPTED_START = re.compile(r"Traceback[^\n]*\n(  File \"<frozen [^\n]*\n)+KeyboardInterrupt\n")
"""What Python prints when it is interrupted before it runs the first line of the program."""

Outcome = dict[str, Any]
"""The content of every file that a study leaves, by its path."""


@dataclass(frozen=True)
class Trials:
    """What all trials have in common.

    Attributes:
        parent: the folder for the trials' folders.
        seed: seed of the random times and signals.
        processes: number of processes of one study.
        usual_seconds: the duration of the uninterrupted study.
        expected: the files that the uninterrupted study leaves.
    """

    parent: Path
    seed: int
    processes: int
    usual_seconds: float
    expected: Outcome


def make_folder(parent: Path, name: str) -> Path:
    """Create a folder that has the recipe and nothing else."""
    folder = parent / name
    folder.mkdir()
    (folder / "study.yaml").write_text(RECIPE)
    return folder


def start(folder: Path, processes: int) -> subprocess.Popen:
    """Start `distill run` in a folder; its messages are appended to the file `log`."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["-m", "distill", "run", "study.yaml"]
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            preexec_fn=_do_not_ignore_sigint,
        )


def _do_not_ignore_sigint() -> None:
    """Restore Python's handler of SIGINT, which a shell's background jobs ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def outcome(folder: Path) -> Outcome:
    """Return what a study left in its folder `runs`, without durations, locks and cached logits."""
    runs = folder / "runs"
    if not runs.is_dir():
        return {}
    found = {}
    for path in sorted(runs.rglob("*")):
        is_cached_logit = path.is_relative_to(runs / "logits")
        is_compared = not path.name.endswith(".lock") and not is_cached_logit
        if path.is_file() and is_compared:
            found[str(path.relative_to(folder))] = comparable_content(path)
    return found


def comparable_content(path: Path) -> Any:
    """Return the content of a file, without durations."""
    content = path.read_bytes()
    if path.name in ("run.json", "results.json"):
        return without_durations(json.loads(content))
    if path.suffix == ".csv":
        rows = list(csv.DictReader(content.decode().splitlines()))
        for row in rows:
            row.pop("seconds", None)
        return rows
    if path.suffix == ".html":
        return re.sub(rb"[\d.]+ minutes of training", b"", content)
    return content


def without_durations(value: Any) -> Any:
    """Return JSON values without the keys `NOT_COMPARED`, at any depth."""
    if isinstance(value, dict):
        kept = {key: child for key, child in value.items() if key not in NOT_COMPARED}
        return {key: without_durations(child) for key, child in kept.items()}
    if isinstance(value, list):
        return [without_durations(child) for child in value]
    return value


def kill(
    program: subprocess.Popen, number: signal.Signals, processes: int, dice: random.Random
) -> str:
    """Send a signal to the program, or to one of its processes under torchrun.

    Returns:
        The name of the signal, "ended before" if there was nothing to kill, or "HANGS".
    """
    if program.poll() is not None:
        return "ended before"
    target = program.pid
    if processes > 1:
        ranks = [child.pid for child in psutil.Process(program.pid).children()]
        target = dice.choice(ranks) if ranks else target
    os.kill(target, number)
    try:
        program.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        program.kill()
        return "HANGS"
    return number.name


def run_trial(trials: Trials, number: int) -> list[str]:
    """Run one study, kill it and let it finish.

    Returns:
        What happened: the names of the signals, and entries that begin with FAILS or HANGS for
        whatever is wrong.
    """
    dice = random.Random(trials.seed * 10_000 + number)
    folder = make_folder(trials.parent, f"trial{number}")
    events = []
    for _ in range(dice.choice((1, 1, 2, 3))):
        program = start(folder, trials.processes)
        time.sleep(dice.uniform(0, trials.usual_seconds))
        events.append(kill(program, dice.choice(SIGNALS), trials.processes, dice))
    status = start(folder, trials.processes).wait(SECONDS_TO_FINISH)
    if status != 0:
        events.append(f"FAILS: status {status}")
    events += find_failures(trials, folder)

    if is_survived(events):
        shutil.rmtree(folder)
    else:
        print(f"trial {number}: {events}, see {folder / 'log'}", flush=True)
    return events


def find_failures(trials: Trials, folder: Path) -> list[str]:
    """Return what is wrong with a finished study: a traceback, or files that differ."""
    failures = []
    log = INTERRUPTED_START.sub("", (folder / "log").read_text())
    # torchrun prints a traceback of its own whenever one of its processes is killed.
    if "Traceback" in log and trials.processes == 1:
        failures.append("FAILS: a traceback")
    found = outcome(folder)
    names = sorted({*found, *trials.expected})
    different = [name for name in names if found.get(name) != trials.expected.get(name)]
    if different:
        failures.append(f"FAILS: {len(different)} files differ, {', '.join(different[:3])}")
    return failures


def is_survived(events: list[str]) -> bool:
    """Return whether the study of a trial ended as it should."""
    return not any(event.startswith(("FAILS", "HANGS")) for event in events)


def prepare(parent: Path, seed: int, processes: int) -> Trials:
    """Run the study once without interruption, for its duration and its files."""
    folder = make_folder(parent, "whole")
    began = time.monotonic()
    if start(folder, processes).wait(SECONDS_TO_FINISH) != 0:
        sys.exit(f"the uninterrupted study fails, see {folder / 'log'}")
    seconds = time.monotonic() - began
    expected = outcome(folder)
    print(f"uninterrupted: {seconds:.1f} s, {len(expected)} files", flush=True)
    return Trials(parent, seed, processes, seconds, expected)


def print_summary(results: list[list[str]]) -> None:
    """Print how often each signal was sent, and how many studies survived."""
    events = [event for result in results for event in result]
    counts = collections.Counter(event for event in events if not event.startswith("FAILS"))
    survived = sum(is_survived(result) for result in results)
    print(", ".join(f"{count} {event}" for event, count in counts.most_common()))
    print(f"{survived} of {len(results)} studies ended as the uninterrupted one")


def main() -> None:
    """Run the trials; exit with status 1 if a study did not survive."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1, help="of one study, under torchrun")
    parser.add_argument("--seed", type=int, default=0, help="of the times and the signals")
    parser.add_argument("--at-once", type=int, default=2, help="trials that run at the same time")
    arguments = parser.parse_args()

    parent = Path(tempfile.mkdtemp(prefix="torture"))
    trials = prepare(parent, arguments.seed, arguments.processes)
    with concurrent.futures.ThreadPoolExecutor(arguments.at_once) as pool:
        started = [pool.submit(run_trial, trials, number) for number in range(arguments.trials)]
        results = [trial.result() for trial in started]
    print_summary(results)
    if not all(is_survived(result) for result in results):
        sys.exit(1)
    shutil.rmtree(parent)


if __name__ == "__main__":
    main()
