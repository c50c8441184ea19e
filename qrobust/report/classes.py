"""What classifiers do to each class: sentences, tables and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence

from qrobust.record import Classes, ClassRecall, ConditionClasses, EvaluationRecord, Record
from qrobust.report.figures import bounds, percent
from qrobust.text import spreadsheet_cell

# Classes that a table or a matrix has room for, and confusions that are listed where there are more.
MOST_CLASSES, MOST_LISTED = 20, 10
RECALL = "recall:"
CSV_HEADER = ("classifier", "shift", "severity", "measure", "class", "n", "value", "low", "high")
CONFUSION_HEADER = ("classifier", "shift", "severity", "class", "predicted", "n")


def class_name(names: Sequence[str], index: int) -> str:
    """What a class is called; a classifier may tell more apart than the data has names for."""
    return names[index] if index < len(names) else f"class {index}"


def evenness(classes: Classes, class_names: Sequence[str]) -> str:
    """How many images classes have, and what always answering the largest one would get right."""
    there = [index for index, n in enumerate(classes.n) if n]
    least, most = min(there, key=lambda i: classes.n[i]), classes.majority_class
    absent = len(classes.n) - len(there)
    missing = f"; {absent} of {len(classes.n)} classes have no image" if absent else ""
    baseline = (
        f"always answering {class_name(class_names, most)} would be right on {percent(classes.majority)} of the "
        f"images (balanced {percent(classes.chance)})"
    )
    if classes.uneven:
        return (
            f"Classes are uneven, from {classes.n[least]} images of {class_name(class_names, least)} to "
            f"{classes.n[most]} of {class_name(class_names, most)}{missing}; {baseline}."
        )
    return f"Classes are even ({classes.n[least]} to {classes.n[most]} images{missing}); {baseline}."


def primary_sentence(record: Record | EvaluationRecord, names: Mapping[str, str]) -> str:
    """The measure that decides, of every classifier; nothing where that is accuracy, which is told anyway.

    Args:
        record: of a run or of an evaluation.
        names: classifiers to what they are called.
    """
    if record.classes is None:
        return ""
    return deciding_sentence(record.classes, record.primary, record.class_names, names)


def deciding_sentence(classes: Classes, primary: str, class_names: Sequence[str], names: Mapping[str, str]) -> str:
    """As `primary_sentence`, without a record.

    Args:
        classes: what was measured.
        primary: the measure's name.
        class_names: in index order.
        names: classifiers to what they are called.
    """
    if primary == "accuracy":
        return ""
    told = "balanced accuracy, the mean of the classes' recalls" if primary == "balanced" else primary
    return f"What decides is {told}. {_measured(classes, primary, class_names, names)}"


def measure_sentence(record: Record | EvaluationRecord, names: Mapping[str, str]) -> str:
    """The recall that decides, or else balanced accuracy, of every classifier, clean and under shift."""
    assert record.classes is not None
    return _measured(record.classes, record.primary, record.class_names, names)


def _measured(classes: Classes, primary: str, class_names: Sequence[str], names: Mapping[str, str]) -> str:
    if primary.startswith(RECALL):
        wanted = list(class_names).index(primary.removeprefix(RECALL))
        parts = []
        for key, found in classes.classifiers.items():
            own = found.recall[wanted]
            told = (("clean", own.clean, own.clean_interval), ("under shift", own.shift, own.shift_interval))
            parts.append(f"{names[key]} {_shares(told)}")
        return f"Recall of {class_names[wanted]}: {'; '.join(parts)}."
    return balanced_sentence(classes, names)


def _shares(told: Iterable[tuple[str, float | None, tuple[float, float] | None]]) -> str:
    return ", ".join(f"{where} {percent(value)} {bounds(span)}" for where, value, span in told if span is not None)


def balanced_sentence(classes: Classes, names: Mapping[str, str]) -> str:
    """Balanced accuracy of every classifier, clean and under shift.

    Args:
        classes: of a record.
        names: classifiers to what they are called.
    """
    parts = []
    for key, found in classes.classifiers.items():
        known = (
            ("clean", found.clean_balanced, found.clean_balanced_interval),
            ("under shift", found.shift_balanced, found.shift_balanced_interval),
        )
        parts.append(f"{names[key]} {_shares(known)}")
    return f"Balanced accuracy: {'; '.join(parts)}."


def recall_table(classes: Classes, class_names: Sequence[str], names: Mapping[str, str]) -> list[list[str]]:
    """A header, then a line per class with the recall of each classifier; of many classes the worst ones.

    Args:
        classes: of a record.
        class_names: in index order.
        names: the classifiers to show, to what they are called.
    """
    shown = {key: classes.classifiers[key].recall for key in names if key in classes.classifiers}
    there = shown_classes(classes, names)
    shifted = any(recall.shift is not None for own in shown.values() for recall in own)
    header = ["class", "images"]
    for key in shown:
        header += [f"{names[key]}, clean", *([f"{names[key]}, under shift"] if shifted else [])]
    rows = [header]
    for index in there:
        line = [class_name(class_names, index), str(classes.n[index])]
        for own in shown.values():
            line += [_recall(own[index].clean, own[index].clean_interval)]
            line += [_recall(own[index].shift, own[index].shift_interval)] if shifted else []
        rows.append(line)
    return rows


def shown_classes(classes: Classes, names: Iterable[str]) -> list[int]:
    """The classes that a table has room for, by index: all that have images, or those with the lowest recall.

    Args:
        classes: of a record.
        names: the classifiers to show.
    """
    shown = [classes.classifiers[key].recall for key in names if key in classes.classifiers]
    there = [index for index, n in enumerate(classes.n) if n]
    if len(there) <= MOST_CLASSES:
        return there
    return sorted(there, key=lambda i: min(_lowest(recall[i]) for recall in shown))[:MOST_CLASSES]


def _lowest(recall: ClassRecall) -> float:
    return min(share for share in (recall.clean, recall.shift, 1.0) if share is not None)


def _recall(share: float | None, interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{percent(share)} {bounds(interval)}"


def recall_note(classes: Classes) -> str:
    """How to read the table of recalls."""
    there = sum(n > 0 for n in classes.n)
    some = f"The {MOST_CLASSES} of {there} classes with the lowest recall. " if there > MOST_CLASSES else ""
    return (
        f"{some}Recall is the share of a class's images that are right, with Wilson's interval at 95 %; every class "
        "under every condition is in results.classes.csv, and what is taken for what in results.confusion.csv."
    )


def confusion_table(
    conditions: Iterable[ConditionClasses], classifier: str, counts: Sequence[int], class_names: Sequence[str]
) -> list[list[str]]:
    """The confusion matrix over some conditions, as shares of each class's images; of many classes a list.

    Args:
        conditions: to add up.
        classifier: by name.
        counts: images of each class.
        class_names: in index order.
    """
    right, wrong, unlisted, shown = [0] * len(counts), dict[tuple[int, int], int](), 0, 0
    for condition in conditions:
        shown += 1
        unlisted += condition.unlisted[classifier]
        right = [a + b for a, b in zip(right, condition.right[classifier], strict=True)]
        for truth, predicted, n in condition.confusions[classifier]:
            wrong[truth, predicted] = wrong.get((truth, predicted), 0) + n
    there = [index for index, n in enumerate(counts) if n]
    predicted_ones = sorted({*there, *(predicted for _, predicted in wrong)})
    if unlisted or len(predicted_ones) > MOST_CLASSES:
        worst = sorted(wrong.items(), key=lambda item: -item[1])[:MOST_LISTED]
        return [
            ["class", "taken for", "share of the class's images"],
            *(
                [class_name(class_names, a), class_name(class_names, b), percent(n / (counts[a] * shown))]
                for (a, b), n in worst
            ),
        ]
    rows = [["class, and what it is taken for", *(class_name(class_names, index) for index in predicted_ones)]]
    for truth in there:
        found = [right[truth] if truth == other else wrong.get((truth, other), 0) for other in predicted_ones]
        rows.append(
            [class_name(class_names, truth), *(percent(n / (counts[truth] * shown)) if n else "" for n in found)]
        )
    return rows


def confusion_tables(
    classes: Classes, class_names: Sequence[str], names: Mapping[str, str]
) -> list[tuple[str, list[list[str]]]]:
    """A title and a table for each classifier, on clean images and over all conditions; none without a mistake."""
    clean = [condition for condition in classes.conditions if condition.shift == "clean"]
    shifted = [condition for condition in classes.conditions if condition.shift != "clean"]
    found = []
    for key in names:
        for where, some in (("clean", clean), ("under shift, over all conditions", shifted)):
            if key in classes.classifiers and some:
                table = confusion_table(some, key, classes.n, class_names)
                found += [(f"{names[key]}, {where}", table)] if len(table) > 1 else []
    return found


def class_csv_files(
    record: Record | EvaluationRecord, interval: Callable[[float, int], tuple[float, float]]
) -> dict[str, str]:
    """`results.classes.csv` and `results.confusion.csv`, a line per value; nothing where classes were not measured.

    Args:
        record: of a run or of an evaluation.
        interval: of so many hits among n.
    """
    classes, names = record.classes, record.class_names
    if classes is None:
        return {}
    rows: list[tuple[object, ...]] = [
        ("", "", "", "majority", names[classes.majority_class], sum(classes.n), classes.majority, "", "")
    ]
    confused: list[tuple[object, ...]] = []
    for row, found in zip(record.rows, classes.conditions, strict=True):
        for key in found.balanced:
            where = (key, found.shift, found.severity)
            rows.append((*where, "accuracy", "", row.n, row.accuracy[key], *row.interval[key]))
            rows.append((*where, "balanced", "", row.n, found.balanced[key], *found.balanced_interval[key]))
            rows += [
                (*where, "recall", names[i], n, right / n, *interval(right, n))
                for i, (n, right) in enumerate(zip(classes.n, found.right[key], strict=True))
                if n
            ]
            listed = [(i, i, right) for i, right in enumerate(found.right[key]) if right]
            confused += [
                (*where, class_name(names, a), class_name(names, b), n)
                for a, b, n in (*listed, *found.confusions[key])
            ]
    return {"results.classes.csv": _csv(CSV_HEADER, rows), "results.confusion.csv": _csv(CONFUSION_HEADER, confused)}


def _csv(header: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([spreadsheet_cell(value) if isinstance(value, str) else value for value in row])
    return buffer.getvalue()
