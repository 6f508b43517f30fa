"""Run several studies one after another in the same processes.

It saves the time in which each process imports torch: ``torchrun run_studies.py a.yaml b.yaml``.
"""

import sys
from pathlib import Path
from unittest.mock import patch

from distill import load_recipe, run_study
from distill.devices.accelerator import make_accelerator
from distill.study import conclude

OUT = Path("runs")


def main() -> None:
    """Run the study of each recipe file; only the last one draws its report."""
    accelerator = make_accelerator("no")
    *first, last = (load_recipe(path) for path in sys.argv[1:])
    with patch.object(conclude, "write_report"):
        for recipe in first:
            run_study(recipe, OUT, accelerator)
    run_study(last, OUT, accelerator)
    accelerator.end_training()


if __name__ == "__main__":
    main()
