"""What is computed from predictions. Fractions, not percentages; nothing prints or writes."""

from __future__ import annotations

import numpy as np


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Share of equal predictions `(n,)`."""
    return float((a == b).mean())


def flips(before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Share of images whose prediction changed: to wrong (harmful), to right (helpful), else neutral."""
    changed = before != after
    harmful = changed & (before == labels)
    helpful = changed & (after == labels)
    neutral = changed & ~harmful & ~helpful
    return {
        "harmful": float(harmful.mean()), "helpful": float(helpful.mean()), "neutral": float(neutral.mean()),
    }  # fmt: skip


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Mean distance of confidence from accuracy over equal bins (Guo et al., arXiv 1706.04599)."""
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    total = 0.0
    for b in range(bins):
        inside = index == b
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    return float(total)
