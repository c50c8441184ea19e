"""The one family of errors. The CLI turns each into its exit code in one place."""

from __future__ import annotations


class QRobustError(Exception):
    """Base of everything qrobust raises on purpose; its text is one line a user can act on."""

    exit_code = 1


class InputError(QRobustError, ValueError):
    """An argument, a file or a data set is not what it must be (argument, expectation, value)."""

    exit_code = 2


class RangeError(InputError):
    """An activation has no range that could be quantized: constant, not finite, or never observed."""


class ExportCheckError(QRobustError):
    """An exported graph failed a gate: checker, audit or parity."""

    exit_code = 3
