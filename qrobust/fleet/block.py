"""`python -m qrobust.fleet.block FILE SHA256 BLOCK FIRST LAST`: a unit of an evaluation in its own process."""

from __future__ import annotations

import sys

from qrobust.errors import QRobustError
from qrobust.evaluation.blocks import answer_unit

if __name__ == "__main__":
    try:
        answer_unit(*sys.argv[1:])
    except QRobustError as error:
        print(f"Error: {error}")
        sys.exit(error.exit_code)
