"""What came of every trial, per image: tried once, kept, and read back without inference."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qrobust.data.splits import Split
from qrobust.errors import InputError
from qrobust.evaluation.attack_plan import Graphs, Trial
from qrobust.storage import save_npz


@dataclass(frozen=True)
class Label:
    """What an outcome is of; the columns of the file.

    Attributes:
        classifier: the graph that was asked.
        source, attack, norm, epsilon: as of the `Trial`.
        kind: as of the `Trial`, or `transfer` where another graph was attacked.
    """

    classifier: str
    source: str
    attack: str
    kind: str
    norm: str
    epsilon: float


@dataclass
class Outcomes:
    """Bools per image, by what they are of.

    Attributes:
        index: position in the data set `(n,)`.
        label: class index `(n,)`.
        right: whether the image is still classified as its label `(n,)`; of kind `gradient`: the loss has one there.
        key: changes with whatever the bools depend on.
    """

    index: np.ndarray
    label: np.ndarray
    right: dict[Label, np.ndarray] = field(default_factory=dict)
    key: dict[Label, str] = field(default_factory=dict)

    def of(self, *kinds: str, **wanted: object) -> Iterator[tuple[Label, np.ndarray]]:
        """Those of some kinds (none: any), with the given attributes, in the order tried."""
        for label, right in self.right.items():
            if (not kinds or label.kind in kinds) and all(getattr(label, k) == v for k, v in wanted.items()):
                yield label, right

    def save(self, path: Path) -> None:
        """Write all of it, whole or not at all; docs/record.md describes the arrays."""
        columns = {k: np.array([getattr(label, k) for label in self.right]) for k in Label.__annotations__}
        arrays = {"right": np.stack(list(self.right.values())), "key": np.array([self.key[c] for c in self.right])}
        save_npz(path, columns | arrays | {"index": self.index, "label": self.label})


def read_outcomes(path: Path) -> Outcomes:
    """What a finished evaluation found, to recompute any figure of attacks without inference.

    Args:
        path: `attacks.npz` of a run.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
            columns = zip(*(arrays[k].tolist() for k in Label.__annotations__), strict=True)
            labels = [Label(*values) for values in columns]
            return Outcomes(
                arrays["index"],
                arrays["label"],
                dict(zip(labels, arrays["right"], strict=True)),
                dict(zip(labels, arrays["key"].tolist(), strict=True)),
            )
    except Exception as error:  # numpy raises a different type for each kind of damage
        raise InputError(f"attacks: cannot read {path} ({error})") from error


def kept_or_tried(
    path: Path | None,
    graphs: Graphs,
    split: Split,
    trials: Sequence[Trial],
    *,
    about: tuple[object, ...],
    progress: Callable[[int, str], None] = lambda n, what: None,
) -> Outcomes:
    """The outcomes of all trials: those in the file where their key still fits, the others tried and kept.

    The file is written after every trial, so what is killed loses at most the one it was at.

    Args:
        path: of the file; None keeps nothing.
        graphs: by name.
        split: the images.
        trials: in the order wanted.
        about: what else the pixels depend on: the data, the seed.
        progress: called with the number of images done, and what is tried.

    Returns:
        Those of these trials, and no others; the file holds the same.

    Raises:
        InputError: the file is damaged, or a classifier does not fit the images.
    """
    index, labels = split.indices.numpy(), split.labels
    found = Outcomes(index, labels.numpy())
    kept = read_outcomes(path) if path and path.exists() else found
    if not np.array_equal(kept.index, index):
        kept = found
    pixels = split.read(slice(None))
    for trial in trials:
        keys = {_label(trial, name): _key(trial, graphs, name, about) for name in trial.judges}
        if any(kept.key.get(label) != key for label, key in keys.items()):
            right = trial.judge(graphs, pixels, labels)
            kept.right |= {label: right[label.classifier].numpy() for label in keys}
            kept.key |= keys
            if path:
                kept.save(path)
        found.right |= {label: kept.right[label] for label in keys}
        found.key |= keys
        progress(len(pixels), f"{trial.attack} {trial.source}".strip())
    if path:
        found.save(path)
    return found


def _label(trial: Trial, name: str) -> Label:
    return Label(name, trial.source, trial.attack, trial.kind_for(name), trial.norm, trial.epsilon)


def _key(trial: Trial, graphs: Graphs, name: str, about: tuple[object, ...]) -> str:
    source = graphs[trial.source].digest if trial.source else ""
    what = (graphs[name].digest, source, trial.attack, trial.kind, trial.norm, trial.epsilon, about)
    return hashlib.sha256(repr(what).encode()).hexdigest()
