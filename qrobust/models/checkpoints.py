"""Weights as training scripts save them: looked for in the file and matched to the network's names by name.

Nothing in a file is executed. torch reads it with `weights_only=True`; what else it names, classes of a training
script or numpy's numbers, is replaced by empty stand-ins.
"""

from __future__ import annotations

import pickle
import pickletools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qrobust.errors import InputError
from qrobust.paths import check_file

# What wraps a network when it is trained: parts of names that say nothing about which weight it is.
WRAPPERS = frozenset({"module", "_orig_mod", "model", "net", "network"})
# Counters that wrappers and batch norms keep; no output depends on them.
AVERAGED, BATCHES = "n_averaged", "num_batches_tracked"
# Dictionaries by other names, which are read as such.
DICTIONARIES = frozenset({"collections.defaultdict", "easydict.EasyDict", "yacs.config.CfgNode"})
# Pickles in a file of torch's first format that may name something: three of them head it.
PICKLES = 4
# Levels of dictionaries that are looked into, and levels and modules of a network that was saved whole.
MOST_NESTED, MOST_LEVELS, MOST_MODULES = 4, 100, 100_000


class StandIn:
    """Takes the place of an object in a file whose class or function is not looked up, let alone run."""

    def __new__(cls, *_: Any) -> StandIn:
        """Whatever the arguments."""
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Dictionary:
    """Takes the place of a dictionary by another name: what it holds is kept."""

    def __new__(cls, *_: Any) -> Any:
        """Whatever the arguments."""
        return OrderedDict()


@dataclass(frozen=True)
class Weights:
    """A state dict in a file.

    Attributes:
        place: keys that lead to it, joined by dots; "" for the file itself.
        tensors: by name.
    """

    place: str
    tensors: OrderedDict[str, torch.Tensor]


def read_weights(path: Path, own: Mapping[str, torch.Tensor], ignored: tuple[str, ...] = ()) -> Weights:
    """Find the weights of a network in a file, under the network's names.

    Args:
        path: a file that torch saved, or `.safetensors`; with `:PLACE` behind it, where in the file the weights are.
        own: the network's state dict.
        ignored: beginnings of names that the network has no use for.

    Raises:
        InputError: the file cannot be read, holds no weights that fit, or several that do and are not the same.
    """
    file, place = _divided(path)
    found = list(_state_dicts(_read(file)))
    if not found:
        raise InputError(f"weights: expected a state dict of tensors in {file}, got none")
    if place is not None:
        every = {weights.place: weights for weights in [*found, *_parts(found)]}
        if place not in every:
            raise InputError(f"weights: expected one of {_listed(found)} in {file}, got {place!r}")
        return _renamed(every[place], own, ignored)
    renamed = [_renamed(weights, own, ignored) for weights in found]
    fitting = [weights for weights in renamed if _fits(weights, own)]
    if fitting:
        if any(not _equal(weights, fitting[0]) for weights in fitting[1:]):
            raise InputError(
                f"weights: {file} holds several weights that fit the model ({_listed(fitting)}), which differ; "
                f"choose one: --weights {file}:{fitting[0].place or fitting[1].place}"
            )
        return fitting[0]
    parts = [weights for part in _parts(found) if _fits(weights := _renamed(part, own, ignored), own)]
    if parts:
        raise InputError(
            f"weights: a part of {file} fits the model ({_listed(parts)}), not all of it; choose it: "
            f"--weights {file}:{parts[0].place}"
        )
    return max(renamed, key=lambda weights: len(weights.tensors.keys() & own.keys()))


def _divided(path: Path) -> tuple[Path, str | None]:
    """File, and place in it, of `FILE` or `FILE:PLACE`."""
    name, colon, place = str(path).rpartition(":")
    if not colon or path.exists() or not Path(name).exists():
        return path, None
    return Path(name), place


def _read(path: Path) -> object:
    """What a file holds, with stand-ins for what is not tensors or plain data."""
    check_file(path, "weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_stand_ins(path)):
            warnings.simplefilter("ignore")  # of what is deprecated in the file nobody here can change anything
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each kind of damage raises another type
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch advises to execute what is in the file
            reason = "it is damaged, or holds more than tensors"
        raise InputError(f"weights: {path} is not a readable state dict or safetensors file ({reason})") from error


def _stand_ins(path: Path) -> list[Any]:
    """One for each name in a file that torch does not know, as torch takes them: (class, name)."""
    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # of another format, or damaged, which `torch.load` tells
        names = _names_in_first_format(path)
    return [(Dictionary if name in DICTIONARIES else type("StandIn", (StandIn,), {}), name) for name in names]


def _names_in_first_format(path: Path) -> set[str]:
    """Names of classes and functions in a file of pickles, none of which is looked up."""
    names = set()
    try:
        with path.open("rb") as file:
            for _ in range(PICKLES):
                for operation, argument, _place in pickletools.genops(file):
                    if operation.name == "GLOBAL":
                        names.add(str(argument).replace(" ", ".", 1).replace("__builtin__", "builtins", 1))
    except Exception:  # damaged, which `torch.load` tells
        return set()
    return names


def _state_dicts(found: object, place: str = "", depth: int = 0, seen: set[int] | None = None) -> Iterator[Weights]:
    """Every dictionary of tensors, and every whole network, in what a file holds."""
    seen = set() if seen is None else seen
    if isinstance(found, StandIn):
        tensors = OrderedDict(_of_network(found))
        if tensors:
            yield Weights(place, tensors)
        return
    if not isinstance(found, Mapping) or not found or depth > MOST_NESTED:
        return
    if all(isinstance(value, torch.Tensor) for value in found.values()):
        tensors = OrderedDict((str(name), value) for name, value in found.items())
        versions = getattr(found, "_metadata", None)
        named = isinstance(versions, dict) and all(isinstance(key, str) for key in versions)
        tensors._metadata = versions if named else {}  # type: ignore[attr-defined]  # torch's
        yield Weights(place, tensors)
        return
    if id(found) in seen:  # a few dictionaries that hold one another are many paths
        return
    seen.add(id(found))
    for key, value in found.items():
        if isinstance(key, str):
            yield from _state_dicts(value, f"{place}.{key}" if place else key, depth + 1, seen)


def _of_network(network: StandIn) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers of a network that was saved whole."""
    modules = [("", 0, network)]
    for _ in range(MOST_MODULES):  # one that holds itself has no end
        if not modules:
            return
        prefix, depth, module = modules.pop()
        if not isinstance(module.state, Mapping) or depth > MOST_LEVELS:
            continue
        parts = {kind: module.state.get(kind) for kind in ("_parameters", "_buffers", "_modules")}
        parameters, buffers, children = (part if isinstance(part, Mapping) else {} for part in parts.values())
        passing = module.state.get("_non_persistent_buffers_set")
        kept = {k: v for k, v in buffers.items() if not (isinstance(passing, set) and k in passing)}
        for name, value in [*parameters.items(), *kept.items()]:
            if isinstance(value, torch.Tensor):
                yield f"{prefix}{name}", value
        inner = [(f"{prefix}{k}.", depth + 1, v) for k, v in children.items() if isinstance(v, StandIn)]
        modules += reversed(inner)


def _parts(found: list[Weights]) -> list[Weights]:
    """Parts of state dicts whose names begin alike, as those of a network beside a criterion."""
    parts = []
    for weights in found:
        for first in dict.fromkeys(name.partition(".")[0] for name in weights.tensors if "." in name):
            inner = OrderedDict(
                (name.partition(".")[2], value)
                for name, value in weights.tensors.items()
                if name.startswith(f"{first}.")
            )
            parts.append(Weights(f"{weights.place}.{first}" if weights.place else first, inner))
    return parts


def _plain(name: str) -> str:
    """The name of a tensor without what wraps the network."""
    *path, last = name.split(".")
    return ".".join([*(part for part in path if part not in WRAPPERS), last])


def _renamed(weights: Weights, own: Mapping[str, torch.Tensor], ignored: tuple[str, ...]) -> Weights:
    """The same under the network's names as far as they can be matched, without names that it ignores."""
    given = weights.tensors
    versions: Mapping[str, Any] = getattr(given, "_metadata", {})
    rename = max(_namings(given, own), key=lambda naming: len({naming(name) for name in given} & own.keys()))
    named = [(rename(name), value) for name, value in given.items()]
    counters = {name for name, _ in named if name.rpartition(".")[2] == AVERAGED} - own.keys()
    tensors = OrderedDict((name, v) for name, v in named if name not in counters and not name.startswith(ignored))
    # A module's version is filed under its path, here that of a tensor in it; of wrappers the innermost counts.
    wrapped = sorted(versions.items(), key=lambda entry: len(entry[0]))
    tensors._metadata = {  # type: ignore[attr-defined]  # torch's
        rename(f"{path}.{AVERAGED}" if path else AVERAGED).rpartition(".")[0]: version for path, version in wrapped
    }
    return Weights(weights.place, tensors)


def _namings(given: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> Iterator[Callable[[str], str]]:
    """Ways to make the network's names of given ones, the least change first."""
    yield lambda name: name
    names, levels = [name for name in given if name.rpartition(".")[2] != AVERAGED], 0
    while names and len(first := {name.partition(".")[0] for name in names}) == 1 and first <= WRAPPERS:
        names, levels = [name.partition(".")[2] for name in names], levels + 1
        yield lambda name, levels=levels: ".".join(name.split(".")[levels:]) or name  # type: ignore[misc]  # bound now
    by_plain = {_plain(name): name for name in own}
    if len(by_plain) == len(own) and len({_plain(name) for name in given}) == len(given):  # no two become one
        yield lambda name: by_plain.get(_plain(name), _plain(name))


def _fits(weights: Weights, own: Mapping[str, torch.Tensor]) -> bool:
    """Whether every tensor of the network is there in its shape, and no other."""
    given = weights.tensors
    return given.keys() <= own.keys() and all(
        not given[name].is_nested and given[name].shape == value.shape if name in given else name.endswith(BATCHES)
        for name, value in own.items()
    )


def _equal(first: Weights, second: Weights) -> bool:
    """Whether two that fit hold the same numbers, apart from counters."""
    return all(
        value.dtype == second.tensors[name].dtype
        and value.layout == second.tensors[name].layout == torch.strided
        and torch.equal(value, second.tensors[name])
        for name, value in first.tensors.items()
        if not name.endswith(BATCHES) and name in second.tensors
    )


def _listed(found: list[Weights]) -> str:
    return ", ".join(weights.place or "the file itself" for weights in found)
