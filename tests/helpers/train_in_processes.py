"""A program: train the runs of a recipe in all processes of a launcher, without analysis.

Its arguments are the file of the recipe and the folder for the runs.
"""

import sys
from pathlib import Path

from helpers.training import make_context, plan

from distill import load_recipe
from distill.devices.accelerator import make_accelerator
from distill.study.preflight import preflight
from distill.study.scheduler import train_with_other_jobs


def main(recipe: str, out: str) -> None:
    ctx = make_context(load_recipe(recipe), Path(out), make_accelerator(None))
    runs = plan(ctx)
    sizes = preflight(ctx, runs)
    for generation in sorted({run.generation for run in runs}):
        of_generation = [run for run in runs if run.generation == generation]
        failures = train_with_other_jobs(ctx, of_generation, sizes, wait=True)
        assert not failures, failures
    ctx.accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
