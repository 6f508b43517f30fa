"""``python -m distill``, and with it ``accelerate launch -m distill`` and ``torchrun -m distill``."""

from distill.cli import main

if __name__ == "__main__":
    main()
