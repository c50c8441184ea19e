"""How a classifier is quantized and, if wanted, trained on; plain choices, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from qrobust.choices import Section, choice, option_of
from qrobust.quantization.target import TARGETS

OBSERVERS = ("min-max", "moving-average", "percentile", "histogram", "mse")


@dataclass(frozen=True)
class QuantizationConfig(Section):
    """Choices of post-training quantization.

    Attributes:
        target: CPU family whose integer kernels the graph is made for: `x86-vnni`, `x86-avx2` or `arm64`.
        bits: of weights and activations.
        edges: the first and the last layer: 8 bits, the same bits as the rest, or float.
        layer_bits: `LAYER=BITS`, names or patterns of layers; a later one wins.
        keep_float: layers to leave in float, or `auto:N` for the N most sensitive ones.
        ptq: `auto` tries ranges, equalization, rounding and bias correction on validation images.
        observer: how activation ranges are chosen.
        equalize: cross-layer equalization (Nagel et al., arXiv 1906.04721).
        bias_correction: of each channel's mean error (same paper).
        rounding: of weights below 8 bits: to the nearest, or learned (AdaRound, arXiv 2004.10568).
        storage: how 4-bit weights lie in the file.
        target_drop: percentage points that quantization may cost on validation images: layers get more bits until
            it costs no more. None: any.
        target_latency: milliseconds for one image that the network may then take. None: any.
        calibration_cache: folder of observed ranges, which runs share. None: they are observed in each.
    """

    target: str = choice("x86-vnni", one_of=tuple(TARGETS))
    bits: str = choice("w8a8", one_of=("w8a8", "w6a8", "w4a8", "w4a4"))
    edges: str = choice("8bit", one_of=("8bit", "same", "float"))
    layer_bits: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()
    ptq: str = choice("default", one_of=("default", "auto"))
    observer: str = choice("mse", one_of=OBSERVERS)
    equalize: bool = False
    bias_correction: bool = False
    rounding: str = choice("nearest", one_of=("nearest", "adaround"))
    storage: str = choice("int8", one_of=("int8", "int4"))
    target_drop: float | None = choice(None, at_least=0, at_most=100)
    target_latency: float | None = choice(None, above=0, at_most=10**6)
    calibration_cache: str | None = None

    def mistakes(self) -> Iterator[str]:
        """See `Section`."""
        yield from super().mistakes()
        if not self.well_typed():
            return
        for entry in self.layer_bits:
            if not entry.rpartition("=")[0]:
                yield f"layer_bits: expected LAYER=BITS, got {entry!r}"
        automatic = [entry for entry in self.keep_float if entry.startswith("auto:")]
        if automatic and (len(automatic) > 1 or not automatic[0].removeprefix("auto:").isdecimal()):
            yield f"keep_float: expected layer names or one auto:N, got {', '.join(automatic)}"
        if self.target_drop is None and self.target_latency is not None:
            yield "target_latency: expected a bound on the drop, too, got no target_drop"
        if self.target_drop is not None and automatic:
            yield f"target_drop: expected it or keep_float auto:N, got both ({automatic[0]})"
        words = {self.bits, *(entry.rpartition("=")[2] for entry in self.layer_bits)}
        if not any(word.startswith(("w4", "w6")) for word in words) and self.rounding != "nearest":
            yield f"rounding: {self.rounding} is for weights of fewer than 8 bits, bits are {self.bits}"
        if not any(word.startswith("w4") for word in words) and self.storage == "int4":
            yield f"storage: int4 is for weights of 4 bits, bits are {self.bits}"

    @property
    def worst_in_float(self) -> int | None:
        """N of `keep_float=("auto:N",)`, or None."""
        automatic = [entry for entry in self.keep_float if entry.startswith("auto:")]
        return int(automatic[0].removeprefix("auto:")) if automatic else None


@dataclass(frozen=True)
class QATConfig(Section):
    """Choices of quantization-aware training.

    Attributes:
        epochs: over the training images, or a fraction of one; 0: none.
        learning_rate: of Adam, at its peak.
        ranges: whether step sizes learn, too, or stay as observed.
        distillation: share of the loss that imitates the float model; the labels have the rest.
        shifts: whether training sees shifted images, too.
    """

    epochs: float = choice(0.0, option="qat_epochs", at_least=0, at_most=10**4)
    learning_rate: float = choice(1e-4, option="qat_learning_rate", above=0, at_most=1)
    ranges: str = choice("learned", option="qat_ranges", one_of=("learned", "frozen"))
    distillation: float = choice(0.9, option="qat_distillation", at_least=0, at_most=1)
    shifts: bool = choice(False, option="qat_shifts")

    def mistakes(self) -> Iterator[str]:
        """See `Section`."""
        yield from super().mistakes()
        if not self.epochs:
            for entry in fields(self):
                if getattr(self, entry.name) != entry.default:
                    yield f"{option_of(entry)}: nothing is trained without qat_epochs"
