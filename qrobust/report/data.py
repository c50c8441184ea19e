"""Sentences about the data: where its splits come from, and what was not used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qrobust.record import Duplicates, LeftOut


def splits_sentence(taken_from: Mapping[str, str]) -> str:
    """Which folder or part of the data each split is from; nothing where the data has no parts."""
    told = ", ".join(f"{name} from {source}" for name, source in taken_from.items())
    return f"Splits: {told}" if told else ""


def left_out_sentence(left_out: Iterable[LeftOut]) -> str:
    """How many files and folders of the data were not used, and why; nothing where all were."""
    told = [f"{entry.n} {entry.reason} (such as {entry.example})" for entry in left_out]
    return f"Not used of the data: {'; '.join(told)}" if told else ""


def duplicates_sentence(duplicates: Iterable[Duplicates]) -> str:
    """How many images of each split are in another one, too; nothing where none is."""
    told = [f"{d.n} of {d.split} are in {d.of}, too ({d.example} is {d.original})" for d in duplicates]
    return f"Duplicates between splits, which were not removed: {'; '.join(told)}" if told else ""
