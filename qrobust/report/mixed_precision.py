"""What `--target-drop` and `--target-latency` came to, in sentences."""

from __future__ import annotations

from qrobust.record import MixedPrecision
from qrobust.report.figures import points

BITS = {"w8a8": "8 bits", "float": "float"}


def mixed_precision_sentence(mixed: MixedPrecision, measure: str) -> str:
    """Which layers got more bits, and what that changes.

    Args:
        mixed: of a record.
        measure: that decides, in words.
    """
    asked, start = f"Target drop {mixed.bounds.drop_pp:g}", points(mixed.start_drop_pp, mixed.start_drop_interval_pp)
    where = f"of {measure} on {mixed.n:,} validation images"
    if not mixed.layers:
        time = "" if mixed.latency_ms is None else f", {mixed.latency_ms:.2f} ms for one image"
        return f"{asked}: quantization costs {start} {where}{time}; no layer got more bits."
    cost = points(mixed.drop_pp, mixed.drop_interval_pp)
    before, after = mixed.start_latency_ms, mixed.latency_ms
    time = "" if before is None or after is None else f", {before:.2f} -> {after:.2f} ms for one image"
    return (
        f"{asked}: more bits for {_counted(mixed)} ({_layers(mixed)}); quantization costs {cost} {where} in "
        f"place of {start}{time}."
    )


def _counted(mixed: MixedPrecision) -> str:
    return "1 layer" if len(mixed.layers) == 1 else f"{len(mixed.layers)} layers"


def _layers(mixed: MixedPrecision) -> str:
    """Each layer with its bits and the time that it adds."""
    told, before = [], mixed.start_latency_ms
    for layer in mixed.layers:
        added = "" if layer.latency_ms is None or before is None else f", {layer.latency_ms - before:+.3f} ms"
        told.append(f"{layer.name}: {BITS[layer.bits]}{added}")
        before = layer.latency_ms
    return "; ".join(told)


def unmet_sentences(mixed: MixedPrecision) -> list[str]:
    """A sentence for each bound that is not met."""
    told, bounds = [], mixed.bounds
    if not mixed.drop_met:
        told.append(
            f"--target-drop {bounds.drop_pp:g} is not met: of {mixed.tried} networks the best loses "
            f"{mixed.drop_pp:.2f} points"
        )
    if mixed.latency_met is False:
        time = "no time was measured" if mixed.latency_ms is None else f"one image takes {mixed.latency_ms:.2f} ms"
        within = f" within --target-drop {bounds.drop_pp:g}" if mixed.drop_met else ""
        told.append(f"--target-latency {bounds.latency_ms:g} is not met{within}: {time}")
    return told
