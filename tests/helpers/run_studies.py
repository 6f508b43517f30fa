"""Run several studies one after another in the same processes.

It saves the time in which each process imports torch: ``torchrun run_studies.py a.yaml b.yaml``.
"""

import sys

from distill import load_recipe, run_study
from distill.devices.accelerator import make_accelerator


def main() -> None:
    """Run the study of each recipe file with results in the folder `runs`."""
    accelerator = make_accelerator("no")
    for path in sys.argv[1:]:
        run_study(load_recipe(path), "runs", accelerator)
    accelerator.end_training()


if __name__ == "__main__":
    main()
