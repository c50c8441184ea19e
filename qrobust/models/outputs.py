"""What a network returns, and where in it the logits are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qrobust.errors import InputError

# Of several outputs that could be logits, the one that such a name means; of a tuple it is the first.
NAMES = ("logits", "out", "output")
# What autograd calls functions that move values, and the one that makes a probability of a logit.
MOVING = ("Squeeze", "Unsqueeze", "View", "Reshape", "Select", "Flatten", "Unsafe")
SIGMOID = "SigmoidBackward"


@dataclass(frozen=True)
class Output:
    """Takes the logits out of what a network returns.

    Attributes:
        place: key of a mapping, index of a tuple, name of an attribute; None: the tensor itself.
        attribute: whether `place` is an attribute.
        single: whether it is one logit z for two classes, which become [0, z].
        flat: whether that logit has the shape `(N,)`, not `(N, 1)`.
    """

    place: str | int | None = None
    attribute: bool = False
    single: bool = False
    flat: bool = False

    def __call__(self, found: Any) -> Any:
        """What a network returned for N images, to its logits `(N, K)`, or to one logit `(N, 1)`."""
        taken = found
        if self.place is not None:
            taken = getattr(found, str(self.place)) if self.attribute else found[self.place]
        return torch.unsqueeze(taken, 1) if self.flat else taken

    def __str__(self) -> str:
        """What is taken, in words; empty where the network returns logits alone."""
        place = f".{self.place}" if self.attribute else "" if self.place is None else f"[{self.place!r}]"
        said = [f"logits are {place} of what the network returns"] if place else []
        if self.single:
            said.append("its one logit z is that of class 1: logits are [0, z]")
        return "; ".join(said)


class TakesLogits(nn.Module):
    """From what a network returns to logits `(N, K)`."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self.output = output
        if output.single:
            self.weights: torch.Tensor
            self.register_buffer("weights", torch.tensor([0.0, 1.0]), persistent=False)

    def forward(self, found: Any) -> Any:
        logits = self.output(found)
        return logits * self.weights if self.output.single else logits


def find_output(found: object, images: int, classes: int) -> Output | None:
    """Where in what a network returned for some images its logits are; None where nothing has their shape.

    Args:
        found: that the network returned.
        images: N of them.
        classes: K.
    """
    outputs = [
        Output(place, attribute, single=kind > 0, flat=kind > 1)
        for place, attribute, part in _parts(found)
        if (kind := _kind(part, images, classes)) is not None
    ]
    named = [output for output in outputs if output.place in (None, *NAMES)]
    named.sort(key=lambda output: NAMES.index(output.place) if isinstance(output.place, str) else 0)
    first = outputs[:1] if len(outputs) == 1 or isinstance(found, tuple | list) else []
    return next(iter([*named, *first]), None)


def _parts(found: object) -> Iterator[tuple[str | int | None, bool, object]]:
    """Place, whether that is an attribute, and value of what may be logits."""
    if isinstance(found, torch.Tensor):
        yield None, False, found
    elif isinstance(found, Mapping):
        yield from ((key, False, part) for key, part in found.items() if isinstance(key, str | int))
    elif hasattr(found, "logits"):
        yield "logits", True, found.logits
    elif isinstance(found, tuple | list):
        yield from ((place, False, part) for place, part in enumerate(found))


def _kind(part: object, images: int, classes: int) -> int | None:
    """Logits: 0; one logit `(N, 1)` for two classes: 1, `(N,)`: 2; else None."""
    if not isinstance(part, torch.Tensor):
        return None
    if part.shape == (images, classes):
        return 0
    if classes == 2 and part.shape in ((images,), (images, 1)):
        return 2 if part.ndim == 1 else 1
    return None


def described(found: object) -> str:
    """What a network returned in which no logits were found."""
    if isinstance(found, torch.Tensor):
        return f"{tuple(found.shape)}"
    parts = [
        (f".{place}" if attribute else f"[{place!r}]", part)
        for place, attribute, part in _parts(found)
        if isinstance(part, torch.Tensor)
    ]
    tensors = ", ".join(f"{name} {tuple(part.shape)}" for name, part in parts)
    held = f" of {tensors}" if tensors else ""
    return f"{type(found).__name__}{held}; let the factory return a module whose forward returns the logits alone"


def refuse_probability(network: nn.Module, output: Output, images: torch.Tensor, spec: str) -> None:
    """One output for two classes must be a logit.

    Raises:
        InputError: it has gone through a sigmoid, so that [0, p] would always mean class 1.
    """
    with torch.enable_grad():
        made: Any = output(network(images.clone().requires_grad_(True))).grad_fn
    while made is not None and any(name in made.name() for name in MOVING):
        made = made.next_functions[0][0]
    if made is not None and made.name().startswith(SIGMOID):
        raise InputError(
            f"model: expected one logit for two classes, the one output of {spec} is a sigmoid of it; let the "
            "network return what goes into the sigmoid"
        )


def unwrapped(model: object) -> object:
    """The network inside what trains it in parallel, averages its weights or compiles it, at every level."""
    model = _inner(model)
    if isinstance(model, nn.Module):
        for module in list(model.modules()):
            if getattr(module, "_compiled_call_impl", None) is not None:  # of `module.compile()`
                module._compiled_call_impl = None
            for name, child in list(module._modules.items()):  # one module may have two names
                if (inner := _inner(child)) is not child:
                    setattr(module, name, inner)
    return model


def _inner(model: object) -> object:
    parallel = nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel
    while True:
        if isinstance(model, parallel):
            model = model.module
        elif isinstance(model, nn.Module) and isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner  # of `torch.compile`
        else:
            return model
