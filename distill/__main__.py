"""The module that ``python -m distill`` and ``accelerate launch -m distill`` run."""

import signal

# Ctrl-C during the imports below must not print a traceback; main() installs the real handler.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from distill.cli import main

if __name__ == "__main__":
    main()
