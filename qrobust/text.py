"""Names that others chose, for terminals, Markdown and tables: shown, never obeyed."""

from __future__ import annotations

import re

# What would end a table's cell, begin HTML or a code span, emphasise, or make a link.
MARKDOWN = re.compile(r"[\\`*<|]|(?<=\])\(")
# What makes a formula of a spreadsheet's cell.
FORMULA = ("=", "+", "-", "@")


def printable(text: str) -> str:
    r"""Text in one line: control and invisible characters, and bytes that are no text, as escapes such as `\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def markdown(text: str) -> str:
    """Text as Markdown shows it literally, also in a table's cell."""
    return MARKDOWN.sub(r"\\\g<0>", printable(text))


def code(text: str) -> str:
    """A Markdown code span, between more backticks than follow one another in the text."""
    shown = printable(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if "`" in shown else ""
    return f"{fence}{space}{shown}{space}{fence}"


def spreadsheet_cell(text: str) -> str:
    """A name as the cell of a CSV file that no spreadsheet takes for a formula."""
    shown = printable(text)
    return f"'{shown}" if shown.startswith(FORMULA) else shown
