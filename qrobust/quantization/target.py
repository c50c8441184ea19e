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
        exact_sums: whether its kernels add products in 32 bits; else pairs are added in 16, with saturation.
    """

    name: str
    activation_range: tuple[int, int]
    weight_range: tuple[int, int]
    why: str
    exact_sums: bool = True

    @property
    def signed(self) -> bool:
        """Whether activations are int8 rather than uint8."""
        return self.activation_range[0] < 0

    def activations(self, bits: int) -> tuple[int, int]:
        """The range of an activation of so many bits, within the target's own."""
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if self.signed else (0, 2**bits - 1)
        return max(low, self.activation_range[0]), min(high, self.activation_range[1])

    def weights(self, bits: int) -> tuple[int, int]:
        """The symmetric range of a weight of so many bits, within the target's own."""
        limit = min(2 ** (bits - 1) - 1, self.weight_range[1])
        return -limit, limit


X86_VNNI = Target(
    name="x86-vnni",
    activation_range=(0, 255),
    weight_range=(-127, 127),
    why="onnxruntime's x86 kernels fuse uint8 activations with per-channel int8 weights; VNNI accumulates "
    "their products in int32 without saturation",
)
X86_AVX2 = Target(
    name="x86-avx2",
    activation_range=(0, 255),
    weight_range=(-63, 63),
    why="without VNNI the same kernels add pairs of products in int16 with saturation; weights of 7 bits keep "
    "every pair within it: 255 * (63 + 63) = 32130 < 32767",
    exact_sums=False,
)
ARM64 = Target(
    name="arm64",
    activation_range=(-128, 127),
    weight_range=(-127, 127),
    why="onnxruntime's ARM kernels take signed activations and per-channel signed weights and accumulate in int32",
)

TARGETS: dict[str, Target] = {t.name: t for t in (X86_VNNI, X86_AVX2, ARM64)}
