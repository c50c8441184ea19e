"""`python -m qrobust` is the command `qrobust`."""

from __future__ import annotations

import signal

from qrobust.cli.main import main


def start() -> None:
    """The command line; a signal that comes while Python shuts down takes nothing back that a command has done."""
    try:
        main(prog_name="qrobust")
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    start()
