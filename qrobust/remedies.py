"""The ladder of remedies, by how much of the classifier each touches, and which rung of it is enough."""

from __future__ import annotations

from collections.abc import Mapping

CALIBRATOR = "calibrator"
# Remedies that train the classifier itself: its scales and biases, its first stage, everything.
RETRAINED = ("scales", "first-stage", "finetune")
# What `--compare` makes, least intrusive first.
LADDER = (CALIBRATOR, "scales", "scales+calibrator", "first-stage", "finetune")
# Remedies that train the classifier and then a calibrator in front of the result.
COMBINED = tuple(f"{name}+{CALIBRATOR}" for name in RETRAINED)
# Remedies that ask about an image's negative as well, at twice the time: the classifier, and it behind the run's
# calibrator.
BEHIND_CALIBRATOR = f"{CALIBRATOR}+second-look"
SECOND_LOOKS = ("second-look", BEHIND_CALIBRATOR)
# What a whole run may make: nothing, one of the ladder or of those beside it, or all of the ladder.
NONE, AUTO = "none", "auto"
OF_RUN = (*dict.fromkeys((*LADDER, *COMBINED, *SECOND_LOOKS)), NONE, AUTO)
# A rung within so many points of the best is enough.
MARGIN = 1.0


def trainings(remedy: str) -> int:
    """How many trainings a remedy of `OF_RUN` takes, each of as many steps."""
    if remedy == AUTO:
        return len(LADDER)
    return {NONE: 0, SECOND_LOOKS[0]: 0, BEHIND_CALIBRATOR: 1}.get(remedy, 2 if remedy in COMBINED else 1)


def has_calibrator(remedy: str) -> bool:
    """Whether a remedy of `OF_RUN` has one in front."""
    return remedy == AUTO or CALIBRATOR in remedy


def least_intrusive(gains: Mapping[str, float], margin: float = MARGIN) -> str | None:
    """The least intrusive remedy whose gain is within a margin of the best one's.

    Args:
        gains: remedy to its gain under shift in points, of those that may be recommended; others than those of the
            ladder and its combinations count as more intrusive than all of these.
        margin: points.

    Returns:
        None where no remedy gains anything.
    """
    rung = {name: index for index, name in enumerate(dict.fromkeys((*LADDER, *COMBINED)))}
    gaining = {name: gain for name, gain in gains.items() if gain > 0}
    enough = [name for name, gain in gaining.items() if gain >= max(gaining.values()) - margin]
    return min(enough, key=lambda name: (rung.get(name, len(rung)), -gaining[name]), default=None)
