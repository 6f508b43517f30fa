"""Measure how fast `distill` trains, against a plain PyTorch loop and against the bare limit.

    python tools/bench.py [--rounds 5] [--only mnist-no million …] [--json FILE]

T is the teacher's forward pass alone and S the student's training step alone; `bench_loops.py`
describes the loops. Each round times all of them in turn; the first round does not count. A ratio
is the median over the rounds of the ratio within a round. Each pair of networks and precision runs
in a process of its own, whose peak memory is printed. Then the tool times whole commands: the time
to the first step, all metrics of a million predictions, and a study of eight cohorts on two
processes against one.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from bench_commands import million_predictions, peak_megabytes, start_up, two_processes
from bench_loops import PAIRS, LoopBench

from distill.storage.versions import versions

PRECISIONS = ("no", "bf16")
LOOP_JOBS = [f"{pair}-{precision}" for precision in PRECISIONS for pair in PAIRS]
JOBS = [*LOOP_JOBS, "start", "million", "spread"]

# A lower limit (>=) or an upper limit (<=) for a ratio, a time or a memory size.
Bar = tuple[str, float]
COMMON_BARS: dict[str, Bar] = {
    "cost of stored / alone": ("<=", 1.05),
    "gain of stored / ideal": (">=", 0.93),
    "cost of six / (T + 6 S)": ("<=", 1.05),
}
BARS: dict[str, dict[str, Bar]] = {
    "mnist-no": {
        "live / bare": (">=", 0.95),
        "live / plain": (">=", 2.3),
        "stored / plain": (">=", 4.0),
    },
    "mnist-bf16": {"live / plain": (">=", 3.2), "stored / plain": (">=", 5.5)},
    "r56_r20-bf16": {"live / plain": (">=", 1.8), "stored / plain": (">=", 3.0)},
    "r32x4_r8x4-bf16": {"live / plain": (">=", 1.9), "stored / plain": (">=", 4.5)},
    "start": {"first step": ("<=", 8.0), "own": ("<=", 2.0)},
    "million": {"seconds": ("<=", 20.0), "megabytes": ("<=", 200.0)},
    "spread": {"two / one": ("<=", 0.6)},
}


def ratios(rates: dict[str, list[float]]) -> dict[str, list[float]]:
    """Compute the ratios that have limits, for each round, from rates in images per second."""
    each = {name: torch.tensor(values, dtype=torch.float64) for name, values in rates.items()}
    plain = torch.maximum(each["plain 0 workers"], each["plain 2 workers"])
    live = each["distill live 1"]
    stored = each["distill stored"]
    six = each["distill live 6"]
    teacher_seconds = 1 / each["T"]
    student_seconds = 1 / each["S"]
    ideal_gain = (teacher_seconds + student_seconds) / student_seconds
    found = {
        "live / bare": live / each["bare live"],
        "stored / bare": stored / each["bare stored"],
        "live / plain": live / plain,
        "stored / plain": stored / plain,
        "cost of stored / alone": each["distill alone"] / stored,
        "gain of stored / ideal": stored / live / ideal_gain,
        "cost of six / (T + 6 S)": 1 / six / (teacher_seconds + 6 * student_seconds),
        "cost of six / six alone": live / six / 6,
    }
    return {name: values.tolist() for name, values in found.items()}


def measure(job: str, rounds: int) -> dict[str, Any]:
    """Run one job in this process; return its measurements and ratios, round by round."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if job == "start":
            return {"measured": start_up(folder, rounds), "ratios": {}}
        if job == "million":
            return {"measured": million_predictions(), "ratios": {}}
        if job == "spread":
            found = two_processes(folder, rounds=2)
            both = zip(found["two processes"], found["one process"], strict=True)
            return {"measured": found, "ratios": {"two / one": [two / one for two, one in both]}}
        pair, precision = job.split("-")
        rates = LoopBench(PAIRS[pair], precision, folder).rounds(rounds)
        return {"measured": rates, "ratios": ratios(rates), "peak_megabytes": peak_megabytes()}


def show(job: str, result: dict[str, Any]) -> None:
    """Print a job's medians with their range, and mark the limits that it misses."""
    is_loop = job in LOOP_JOBS
    heading = f"\n{job}"
    if is_loop:
        heading += f" (images/s), peak memory {result['peak_megabytes']:,.0f} MB"
    print(heading)
    bars = (COMMON_BARS if is_loop else {}) | BARS.get(job, {})
    for name, values in {**result["measured"], **result["ratios"]}.items():
        is_rate = is_loop and name not in result["ratios"]
        form = "12,.0f" if is_rate else "12,.3f"
        numbers = (statistics.median(values), min(values), max(values))
        line = f"  {name:26}" + "".join(format(number, form) for number in numbers)
        if name in bars:
            line += f"   {_judgement(numbers[0], bars[name])}"
        print(line, flush=True)


def _judgement(value: float, bar: Bar) -> str:
    sign, limit = bar
    is_reached = value >= limit if sign == ">=" else value <= limit
    return f"{sign} {limit:g}" + ("" if is_reached else "   MISSES")


def main() -> None:
    """Run every job in a process of its own, print its table, and write JSON if wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument("--json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments.rounds)))
        return
    results: dict[str, Any] = {
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "rounds": arguments.rounds,
        "jobs": {},
    }
    hardware = results["versions"]["hardware"]
    print(f"{hardware}, torch {torch.__version__}: median, lowest, highest")
    for job in arguments.only:
        command = [sys.executable, __file__, "--child", job, "--rounds", str(arguments.rounds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results["jobs"][job] = json.loads(done.stdout.splitlines()[-1])
        show(job, results["jobs"][job])
        if arguments.json:
            text = json.dumps(results, indent=1) + "\n"
            Path(arguments.json).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
