"""Parts of a record that say how the network was quantized, and whether its graphs are what they claim."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from qrobust.record.typed_json import Unit
from qrobust.record.units import (
    Count,
    Decibels,
    Interval,
    Milliseconds,
    Nats,
    Points,
    PointsInterval,
    Positive,
    Seconds,
    Share,
)

Change = Annotated[float, Unit("fraction", -1, 1)]
Deviations = Annotated[float, Unit("standard deviations of the layer's output", 0)]


@dataclass(frozen=True)
class LayerNoise:
    """Signal-to-quantization-noise ratios of one layer, before any training.

    Attributes:
        name: of the layer.
        weight_bits: of the signed range that its weights use.
        weight_sqnr_db: of its weights.
        input_sqnr_db: of its input's own rounding and clipping alone.
        output_sqnr_db: of its output, with everything before it quantized as well.
    """

    name: str
    weight_bits: Positive
    weight_sqnr_db: Decibels
    input_sqnr_db: Decibels
    output_sqnr_db: Decibels


@dataclass(frozen=True)
class LayerEffect:
    """What quantizing one layer alone (weights and input) does to an otherwise float network, before any training.

    Attributes:
        name: of the layer.
        n: validation images.
        accuracy_drop: float accuracy minus that with this layer quantized.
        divergence: mean KL divergence of the predicted probabilities from the float ones.
    """

    name: str
    n: Positive
    accuracy_drop: Change
    divergence: Nats


@dataclass(frozen=True)
class Fidelity:
    """How far a quantized network is from the float network, on the same images.

    Attributes:
        n: images.
        divergence: mean KL divergence of its probabilities from the float ones.
        agreement: share of equal predictions.
        accuracy: of the quantized network.
    """

    n: Positive
    divergence: Nats
    agreement: Share
    accuracy: Share


@dataclass(frozen=True)
class LayerSaturation:
    """What saturation did to one layer, on the images it was measured on.

    Attributes:
        name: the layer's name, as options take it; in a module of several networks after that of its network.
        proven: no pair of its weights can overflow, whatever the activations.
        risky_pairs: share of its weight pairs that could overflow.
        saturated_sums: share of its pair sums that did.
        changed_outputs: share of its outputs, before activation and rounding, that came out wrong.
        mean_error: mean error of all outputs (of a constant output in its own unit).
        largest_error: the largest error.
    """

    name: str
    proven: bool
    risky_pairs: Share
    saturated_sums: Share
    changed_outputs: Share
    mean_error: Deviations
    largest_error: Deviations


@dataclass(frozen=True)
class QatFit:
    """What training of the quantized network did, on validation images.

    Attributes:
        start_accuracy: before, in the measure that decides.
        accuracy: of the state that was kept, likewise.
        start_divergence: mean KL divergence from the float model, before.
        divergence: the same of the state that was kept.
        best_step: the optimizer step whose state was kept; 0 is the start.
        steps: optimizer steps made.
        diverged: training was stopped at a loss that is not finite.
        earlier_s: of training by processes before the one that ended it.
    """

    start_accuracy: Share
    accuracy: Share
    start_divergence: Nats
    divergence: Nats
    best_step: Count
    steps: Count
    diverged: bool
    earlier_s: Seconds = field(compare=False)


@dataclass(frozen=True)
class QatTraining(QatFit):
    """Quantization-aware training of a run.

    Attributes:
        shifts: that it saw.
    """

    shifts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One recipe that the search tried, and what it gave on validation images.

    Attributes:
        ranges: of the recipe, as the next three.
        equalize: cross-layer equalization.
        correct_bias: bias correction.
        rounding: `nearest` or `adaround`.
        divergence: mean KL divergence of the quantized network's probabilities from the float model's.
        agreement: share of predictions equal to the float model's.
        accuracy: of the quantized network.
        kept: it was the best so far.
    """

    ranges: str
    equalize: bool
    correct_bias: bool
    rounding: str
    divergence: Nats
    agreement: Share
    accuracy: Share
    kept: bool


@dataclass(frozen=True, kw_only=True)
class RecipeChoices:
    """How the network was quantized.

    Attributes:
        bits: `w8a8`, `w6a8`, `w4a8` or `w4a4`: of weights and of the activations that layers read.
        edges: the first and the last layer: `8bit`, `same` as the rest, or `float`.
        exceptions: layer name or pattern, and its bits or `float`; a later one wins.
        ranges: how activation ranges were chosen.
        equalize: cross-layer equalization.
        correct_bias: bias correction.
        rounding: of weights: `nearest` or `adaround`.
    """

    bits: str
    edges: str
    exceptions: tuple[tuple[str, str], ...]
    ranges: str
    equalize: bool
    correct_bias: bool
    rounding: str


@dataclass(frozen=True, kw_only=True)
class KeptFloat:
    """What the layers that `--keep-float auto:N` left in float buy, before training, and what they cost.

    Attributes:
        without: the network with these layers quantized.
        kept: the network with them in float.
        float_mac_share: of all multiply-accumulates.
    """

    without: Fidelity
    kept: Fidelity
    float_mac_share: Share


@dataclass(frozen=True)
class LayerStep:
    """A layer that got more bits so that a bound is met.

    Attributes:
        name: of the layer.
        bits: `w8a8` or `float`.
        latency_ms: of the network for one image, with this layer and those before it; null where it was not timed.
    """

    name: str
    bits: str
    latency_ms: Milliseconds | None


@dataclass(frozen=True)
class PrecisionBounds:
    """What `--target-drop` and `--target-latency` ask for.

    Attributes:
        drop_pp: the most that quantization may cost on validation images, in the measure that decides.
        latency_ms: the most time for one image; null for any.
    """

    drop_pp: Points
    latency_ms: Milliseconds | None


@dataclass(frozen=True, kw_only=True)
class MixedPrecision:
    """Layers that got more bits for `--target-drop`, chosen on validation images before training.

    Attributes:
        bounds: what was asked for.
        n: validation images.
        tried: networks that were measured.
        start_drop_pp: float minus the network as asked for, in the measure that decides.
        start_drop_interval_pp: of that, paired, at 95 %.
        start_latency_ms: of that network for one image; null where it was not timed.
        layers: that got more bits, the most sensitive first.
        drop_pp: float minus the network that was chosen.
        drop_interval_pp: of that, paired, at 95 %.
        latency_ms: of that network for one image; null where it was not timed.
        drop_met: its drop is within its bound.
        latency_met: its time is within its bound; null where none was asked for.
    """

    bounds: PrecisionBounds
    n: Positive
    tried: Positive
    start_drop_pp: Points
    start_drop_interval_pp: PointsInterval
    start_latency_ms: Milliseconds | None
    layers: tuple[LayerStep, ...]
    drop_pp: Points
    drop_interval_pp: PointsInterval
    latency_ms: Milliseconds | None
    drop_met: bool
    latency_met: bool | None


@dataclass(frozen=True, kw_only=True)
class SaturationRisk:
    """What an x86 CPU without VNNI would make of the network, simulated on validation images.

    Attributes:
        proven: no layer can saturate, whatever the image.
        n: images.
        accuracy: of the network.
        accuracy_without_vnni: of the network on such a CPU.
        accuracy_without_vnni_interval: Wilson's at 95 %.
        agreement: share of equal predictions of the two.
        layers: one per integer layer.
    """

    proven: bool
    n: Positive
    accuracy: Share
    accuracy_without_vnni: Share
    accuracy_without_vnni_interval: Interval
    agreement: Share
    layers: tuple[LayerSaturation, ...]


@dataclass(frozen=True, kw_only=True)
class ValidationAgreement:
    """What both graphs do on validation images, as onnxruntime runs them.

    Attributes:
        n: images.
        accuracy: of `float` and `int8`.
        interval: of both.
        agreement: share of images on which they predict the same.
        primary: of both, the measure that decides; null where that is accuracy.
    """

    n: Positive
    accuracy: dict[str, Share]
    interval: dict[str, Interval]
    agreement: Share
    primary: dict[str, Share] | None = None


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How the network was quantized, and what that does to each layer.

    Attributes:
        target: CPU family, see [targets](targets.md).
        recipe: what was chosen.
        trials: what `--ptq auto` tried, in order.
        validation: what both graphs do on validation images; null in records of earlier versions.
        kept_in_float: names of layers.
        keep_float_auto: what `--keep-float auto:N` gains and costs, or null.
        layer_noise: one per layer, in order of execution.
        layer_effects: one per layer, after `qrobust sensitivity`, whose `--json` joins both by `name`.
        qat: quantization-aware training, or null.
        saturation: what a CPU without VNNI would make of it; null where activations are signed.
        mixed_precision: what `--target-drop` chose, or null.
    """

    target: str
    recipe: RecipeChoices
    trials: tuple[Trial, ...]
    kept_in_float: tuple[str, ...]
    keep_float_auto: KeptFloat | None
    layer_noise: tuple[LayerNoise, ...]
    layer_effects: tuple[LayerEffect, ...]
    qat: QatTraining | None
    saturation: SaturationRisk | None
    validation: ValidationAgreement | None = None
    mixed_precision: MixedPrecision | None = None


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What onnxruntime runs on integers, counted in the graph that it optimised.

    Attributes:
        integer_ops: convolutions and matrix products on integers.
        quantizable_ops: all convolutions and matrix products.
        integer_compute: those on integers by operator type.
        float_compute: those left in float by operator type.
        other_ops: all other operators by type.
        integer_macs: multiply-accumulates on integers, per image.
        total_macs: all multiply-accumulates, per image, without those of `unknown_macs`.
        integer_mac_share: their quotient; null if all are unknown.
        unknown_macs: operators by type whose work is not known.
        time_share: per operator type on this CPU, one thread, for information.
    """

    integer_ops: Count
    quantizable_ops: Count
    integer_compute: dict[str, Count]
    float_compute: dict[str, Count]
    other_ops: dict[str, Count]
    integer_macs: Count
    total_macs: Count
    integer_mac_share: Share | None
    unknown_macs: dict[str, Count]
    time_share: dict[str, Share]


@dataclass(frozen=True)
class Reason:
    """What keeps an operator in float.

    Attributes:
        code: a word for scripts.
        why: a sentence with node names.
        remedy: what to do.
    """

    code: str
    why: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class BlockedOperator:
    """A convolution or matrix product in float.

    Attributes:
        node: its name.
        op_type: its type.
        macs: multiply-accumulates for one image; null where shapes do not tell.
        reasons: what keeps it there.
    """

    node: str
    op_type: str
    macs: Count | None
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, kw_only=True)
class FloatIsland:
    """Operators in float between quantized tensors.

    Attributes:
        nodes: their types by name.
        reasons: what keeps them there.
    """

    nodes: dict[str, str]
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, kw_only=True)
class ExplainedAudit(Audit):
    """An audit with what keeps the rest in float.

    Attributes:
        blocked: convolutions and matrix products in float.
        float_islands: other operators in float between quantized tensors.
        misread_sums: per node, why onnxruntime reads its scales otherwise than the file says.
    """

    blocked: tuple[BlockedOperator, ...]
    float_islands: tuple[FloatIsland, ...]
    misread_sums: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Torch against onnxruntime on validation images.

    Attributes:
        n: images.
        agreement: share of equal predictions.
        agreement_beyond_ties: the same, a near tie of torch's logits counting as equal.
        max_logit_difference: the largest.
        mean_logit_difference: the mean of the absolute ones.
        torch_accuracy: in torch.
        session_accuracy: on onnxruntime.
    """

    n: Positive
    agreement: Share
    agreement_beyond_ties: Share
    max_logit_difference: Annotated[float, Unit("logits", 0)]
    mean_logit_difference: Annotated[float, Unit("logits", 0)]
    torch_accuracy: Share
    session_accuracy: Share
