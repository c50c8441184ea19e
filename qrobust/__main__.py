"""`python -m qrobust` is the command `qrobust`."""

from __future__ import annotations

from qrobust.cli.main import main

main(prog_name="qrobust")
