"""`python -m qrobust.guarded MODULE ...` is `python -m MODULE ...`, which ends with whoever began it.

A host's share of a fleet may be killed: its units must not go on writing where another host has taken over.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def _end_with_parent() -> None:
    """Wait until nobody holds the other end of the input, then end this process and those that it began."""
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    # Not `sys.stdin`: its lock would be held while Python shuts down.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
