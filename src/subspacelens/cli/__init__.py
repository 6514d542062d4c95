"""The command line: reads options, calls the library, prints. No logic of its own."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line. Bad input is one line on standard error and exit code 2; Ctrl-C at
    any time, while the library loads too, is one line and exit code 130."""
    try:
        from .app import run

        run(sys.argv[1:])
    except KeyboardInterrupt:
        stop: int | str | None = 130
    except SystemExit as error:
        stop = error.code
    else:
        return
    if stop == 130:
        print("subspacelens: interrupted; what was finished is kept", file=sys.stderr)
    sys.exit(stop)
