"""The one family of errors. The CLI turns each into its exit code in one place."""

from __future__ import annotations

from collections.abc import Iterable

# Longer lists of names are cut to a few.
MOST_LISTED, FEW_LISTED = 60, 8


class QRobustError(Exception):
    """Base of everything qrobust raises on purpose; its text is one line a user can act on."""

    exit_code = 1


class InputError(QRobustError, ValueError):
    """An argument, a file or a data set is not what it must be (argument, expectation, value).

    The message begins with the argument's name and a colon, which the command line replaces by its option.
    """

    exit_code = 2


class RangeError(InputError):
    """An activation has no range that could be quantized: constant, not finite, or never observed."""


class ExportCheckError(QRobustError):
    """An exported graph failed a gate: checker, audit or parity."""

    exit_code = 3


def unknown(
    argument: str, got: str, known: Iterable[str], *forms: str, near: Iterable[str] | None = None
) -> InputError:
    """The error for a name that does not exist: it lists those that do, the nearest first.

    Args:
        argument: that was given the name.
        got: the name.
        known: names that exist.
        forms: what else is taken, such as `FILE.py:FUNCTION`.
        near: what the user may have meant, where that is not to be looked for in `known`.
    """
    names = list(dict.fromkeys(known))
    close = nearest(got, names) if near is None else list(near)
    ordered = [*(n for n in close if n in names), *(n for n in names if n not in close)]
    if len(ordered) > MOST_LISTED:
        ordered = [*ordered[:FEW_LISTED], f"... ({len(names)} in all)"]
    listed = ", ".join([*ordered, *forms])
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return InputError(f"{argument}: expected one of {listed}, got {got!r}{hint}")


def nearest(name: str, known: Iterable[str], count: int = 3, cutoff: float = 0.6) -> list[str]:
    """At most so many of the known names, those that a typing error may have made this one of; the nearest first."""
    import difflib  # in errors only

    spelled = {k.lower(): k for k in known}
    return [spelled[k] for k in difflib.get_close_matches(name.lower(), spelled, count, cutoff)]
