"""``python -m distill``, and with it ``accelerate launch -m distill`` and ``torchrun -m distill``."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # until main() says more: an import amid which it came would be told

from distill.cli import main

if __name__ == "__main__":
    main()
