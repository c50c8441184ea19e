"""What a target CPU wants from an INT8 graph. Data, no code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """Integer types and ranges of one family of CPUs.

    Attributes:
        name: the value of `--target`.
        activation_range: smallest and largest integer of an activation; unsigned starts at 0.
        weight_range: smallest and largest integer of a weight; zero point 0, one scale per output channel.
        why: what makes this the fast and exact form there.
    """

    name: str
    activation_range: tuple[int, int]
    weight_range: tuple[int, int]
    why: str


X86_VNNI = Target(
    name="x86-vnni",
    activation_range=(0, 255),
    weight_range=(-127, 127),
    why="onnxruntime's x86 kernels fuse uint8 activations with per-channel int8 weights; VNNI accumulates "
    "their products in int32 without saturation",
)

TARGETS: dict[str, Target] = {t.name: t for t in (X86_VNNI,)}
