"""The page that describes the record, made from its dataclasses: `python -m qrobust.record > docs/record.md`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from qrobust.record.run import EvaluationRecord, Record
from qrobust.record.typed_json import OneOf, Unit, typed_fields

INTRO = """\
# The record: `record.json`, schema `qrobust.run/2`

<!-- Generated: python -m qrobust.record > docs/record.md -->

A stable contract for scripts and CI. All accuracies were measured by onnxruntime on the exported graphs. What is "per
graph" has the keys `float`, `int8` and, once a calibrator was exported, `compensated`; and those of
[other remedies](compensation.md#remedies) that were made. A *condition* is a shift at a severity. Each difference
`X_pp` has its 95 % interval in `X_interval_pp`. Every key is always there; what was not measured is null.

```python
import qrobust

record = qrobust.read_record("runs/one/record.json")  # also of schema qrobust.run/1
print(record.summary.clean_accuracy["int8"], [row.gain_pp for row in record.rows])
```

A p-value is of McNemar's exact test: how likely it is that two equally accurate classifiers differ so much on the
images that only one of them gets right. With many rows some are small by chance; the adjusted ones are corrected by
Holm's method over all rows, so that below 0.05 not even one false finding is likely.

Two runs with the same seed on the same machine give the same record, apart from `created`, `command`, times and
memory (`duration_s`, `earlier_s`, `expected_s`, `training_s`, `latency_ms`, `latency_interval`, `footprint`,
`latency_ratio`, `float_latency_ratio`, `time_share`). A latency budget makes the calibrator's width depend on times,
and `--budget` the number of images.

## The record of a run
"""
EVALUATION = """\
## The record of an evaluation of ONNX files

`qrobust evaluate-onnx` and `qrobust compensate FILE.onnx` write a record of schema `qrobust.evaluation/2`, which
`read_evaluation` reads. Its classifiers are named after their files, and the first is what the others are compared
with.
"""
BESIDE = """\
## Beside the record

`results.csv`: accuracies in the form of RobustBench's unaggregated results, a header line of shifts, one of
severities, a line per graph. `pandas.read_csv("results.csv", header=[0, 1], index_col=0)` reads it.
`results-NAME.csv` is the same of the corruption data set in a folder NAME.

`results.classes.csv`: a line per classifier, condition and measure: `accuracy`, `balanced` (the mean of the recalls)
and `recall` of each class, with n and interval; and `majority`, the accuracy of always answering the largest class.
`results.confusion.csv`: how many images of each class were taken for which one; of those that are wrong as many as
`confusions` lists. `confusion_matrix` of `qrobust.evaluation.classes` makes the whole matrix from predictions read as
below.

`predictions/SHIFT-SEVERITY.npz`, from which every figure can be recomputed without inference: `shift`, `severity`,
`label` and `index` (position in the data set) per image, and per graph `GRAPH.prediction`, `GRAPH.margin` (largest
logit minus the second), `GRAPH.confidence` and `GRAPH.key` (changes with whatever they depend on). Rows are
shuffled: of an `imagefolder`, `index` counts files sorted by path, class folder after class folder, from 0 in the
folder that the split comes from.

`attacks.npz`, from which `attacks` can be recomputed: `index` and `label` per image; per outcome `classifier`,
`source`, `attack`, `kind`, `norm`, `epsilon`, `key` (changes with the graphs and whatever else it depends on) and
`right`, a bool per image: still classified as its label (of kind `gradient`: the loss has a gradient there).

```python
from pathlib import Path

from qrobust.evaluation.attack_outcomes import read_outcomes
from qrobust.evaluation.attack_summary import figures
from qrobust.evaluation.kept import read_predictions
from qrobust.evaluation.summary import run_rows
from qrobust.record import read_record

record = read_record(Path("runs/one/record.json"))
conditions = [(row.shift, row.severity) for row in record.rows]  # the folder keeps those of earlier --shifts, too
labels, predictions = read_predictions(Path("runs/one/predictions"), conditions)
rows = run_rows(predictions, labels, seed=0, of=len(labels))
attacks = figures(read_outcomes(Path("runs/one/attacks.npz")), level="quick", classes=10)
```
"""
CHANGED = """\
## Changed from schema 1

`read_record` and `read_evaluation` read records of `qrobust.run/1` and `qrobust.evaluation/1`, too.

- `model`, `weights` and `data` stand beside `config`, whose form is that of `config.json` and not part of this
  contract.
- Every key is always there: what was left out where it was not measured is null (or 0, of `n_seen_conditions` and
  `n_unseen_conditions`).
- `versions` are those at measuring time, not at the time of the report.
- Renamed, the meaning being the same:

| part | schema 1 | now |
|---|---|---|
"""
WORDS = {str: "text", bool: "true or false", int: "integer", float: "number", Any: "any"}


def page() -> str:
    """docs/record.md."""
    run, both = list(_parts(Record)), {*_parts(Record)}
    evaluation = [part for part in _parts(EvaluationRecord) if part not in both]
    return "\n".join(
        [
            INTRO,
            *(_section(part) for part in run),
            EVALUATION,
            *(_section(part) for part in evaluation),
            BESIDE,
            CHANGED + "".join(_renamed(part) for part in [*run, *evaluation]),
        ]
    )


def _parts(kind: Any, found: dict[type, None] | None = None) -> Iterator[type]:
    """A dataclass and all that it is made of, in the order of its fields, each once."""
    seen: dict[type, None] = {} if found is None else found
    if isinstance(kind, type) and is_dataclass(kind) and kind not in seen:
        seen[kind] = None
        yield kind
        for _, its_type in typed_fields(kind):
            yield from _parts(its_type, seen)
    for argument in get_args(kind):
        yield from _parts(argument, seen)


def _section(part: type) -> str:
    summary = str(inspect.getdoc(part)).partition("\n\nAttributes:")[0].replace("\n", " ")
    rows = [
        f"| `{field.name}` | {_typed(its_type)} | {explained(part, field.name)} |"
        for field, its_type in typed_fields(part)
    ]
    head = ["| key | value | meaning |", "|---|---|---|"]
    return "\n".join([f"### {part.__name__}", "", summary, "", *head, *rows, ""])


def _renamed(part: Any) -> str:
    renamed = [(field.metadata["was"], field.name) for field in fields(part) if "was" in field.metadata]
    return "".join(f"| {part.__name__} | `{old}` | `{new}` |\n" for old, new in renamed)


@cache
def _attributes(part: type) -> dict[str, str]:
    """What the docstring of a class says of its own fields."""
    text = (part.__doc__ or "").partition("Attributes:\n")[2]
    items = re.findall(r"^        (\w+): (.*(?:\n            .*)*)", text, re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in items}


def explained(part: type, field: str) -> str:
    """What the docstring says of a field, the class's own or that of a base."""
    return next(_attributes(kind)[field] for kind in part.__mro__ if field in _attributes(kind))


def _typed(kind: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        about = arguments[1]
        if isinstance(about, OneOf):
            return str(about).replace("one of ", "")
        assert isinstance(about, Unit)
        return f"{WORDS[arguments[0]]}, {about}" if arguments[0] is int else str(about)
    if origin in (Union, UnionType):
        return " or ".join("null" if a is NoneType else _typed(a) for a in arguments)
    if origin is dict:
        return "object" if arguments[1] is Any else f"object of {_typed(arguments[1])}"
    if origin is tuple and arguments[1:] == (Ellipsis,):
        return f"list of {_typed(arguments[0])}"
    if origin is tuple:
        same = arguments[0] is not str and len(set(arguments)) == 1
        return f"[low, high], {_typed(arguments[0])}" if same else f"list: {', '.join(map(_typed, arguments))}"
    return f"[{kind.__name__}](#{kind.__name__.lower()})" if is_dataclass(kind) else WORDS[kind]  # type: ignore[union-attr]  # a class has a name
