"""`python -m qrobust.record`: print the page that describes the record."""

from __future__ import annotations

from qrobust.record.documentation import page

print(page(), end="")
