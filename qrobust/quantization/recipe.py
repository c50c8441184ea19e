"""How a network is to be quantized: bits, exceptions and the tricks to use. Plain choices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from qrobust.errors import InputError, nearest, unknown
from qrobust.quantization.observers import RANGES
from qrobust.quantization.rewrites.structure import AGAIN

BITS: dict[str, tuple[int, int]] = {"w8a8": (8, 8), "w6a8": (6, 8), "w4a8": (4, 8), "w4a4": (4, 4)}
EDGES = ("8bit", "same", "float")
ROUNDINGS = ("nearest", "adaround")
FLOAT = "float"
# Bits of weights and of input activations of each layer; None where it stays in float.
Bits = dict[str, tuple[int, int] | None]


def layer_of(name: str) -> str:
    """What is one layer to the network's author, who may call it more than once."""
    return name.partition(AGAIN)[0]


@dataclass(frozen=True)
class Recipe:
    """Choices of one quantization.

    Attributes:
        bits: `w8a8`, `w6a8`, `w4a8` or `w4a4`: bits of weights and of the activations that layers read.
            Narrow values stay in 8-bit containers, so the same integer kernels run; tensors that only
            additions and pools read keep 8 bits.
        edges: the first and the last layer: `8bit`, `same` as the rest, or `float`.
        exceptions: (layer name or pattern, bits or `float`), a later one wins.
        ranges: how activation ranges are chosen, a key of `RANGES`.
        equalize: cross-layer equalization (Nagel et al., arXiv 1906.04721).
        correct_bias: bias correction on calibration images (same paper).
        rounding: of weights: `nearest` or learned, `adaround` (Nagel et al., arXiv 2004.10568).

    Raises:
        InputError: any choice that does not exist.
    """

    bits: str = "w8a8"
    edges: str = "8bit"
    exceptions: tuple[tuple[str, str], ...] = ()
    ranges: str = "mse"
    equalize: bool = False
    correct_bias: bool = False
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        choices = {"bits": BITS, "edges": EDGES, "ranges": RANGES, "rounding": ROUNDINGS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        for layer, bits in self.exceptions:
            if bits not in BITS and bits != FLOAT:
                known = ", ".join([*BITS, FLOAT])
                raise InputError(f"layer_bits: expected one of {known} for {layer!r}, got {bits!r}")

    def tricks(self) -> str:
        """How ranges and weights are found, in words."""
        words = {
            "equalized": self.equalize,
            "bias corrected": self.correct_bias,
            "learned rounding": self.rounding == "adaround",
        }
        return ", ".join([self.ranges, *(word for word, meant in words.items() if meant)])

    def keeping_float(self, layers: tuple[str, ...]) -> Recipe:
        """The same, with these layers left in float."""
        return replace(self, exceptions=(*self.exceptions, *((name, FLOAT) for name in layers)))

    def for_layers(self, layers: list[str]) -> Bits:
        """Bits of weights and input activations of each layer; None for float.

        Args:
            layers: names of all convolutions and linear layers, in order of execution.

        Raises:
            InputError: an exception's name matches no layer, and the nearest name is suggested; or every layer stays
                in float.
        """
        chosen: Bits = dict.fromkeys(layers, BITS[self.bits])
        if self.edges != "same":
            for name in {layers[0], layers[-1]} if layers else set():
                chosen[name] = BITS["w8a8"] if self.edges == "8bit" else None
        for pattern, bits in self.exceptions:
            found = [n for n in layers if fnmatchcase(n, pattern) or fnmatchcase(layer_of(n), pattern)]
            if not found:
                near = nearest(pattern, layers, 1, cutoff=0.0)
                hint = f"; the nearest is {near[0]!r}" if near else ""
                raise InputError(f"layer: no convolution or linear layer is called {pattern!r}{hint}")
            for name in found:
                chosen[name] = None if bits == FLOAT else BITS[bits]
        if chosen and not any(chosen.values()):
            raise InputError(
                f"keep_float: expected at least one layer to be quantized, got all {len(layers)} left in float "
                "(edges and layer_bits count, too)"
            )
        return chosen
