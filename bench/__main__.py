"""The entry point `ddbench`, and `python -m bench`: Ctrl-C just ends the program until the command line is there.

Nothing is worth a traceback before that. Ctrl-C that is ignored, as in jobs in the background, stays ignored.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from bench.cli import main

if __name__ == "__main__":
    main()
