"""The tables of attacks: per graph and budget the strongest of each kind, the worst case, and poses."""

from __future__ import annotations

from collections.abc import Iterable

from qrobust.record import AttackResult, Attacks, WorstCase

KINDS = {"white-box": "gradient", "transfer": "transfer", "black-box": "no gradient", "noise": "random noise"}
LISTED = 5
NOTE = (
    "A risk figure, not a defence claim. Accuracy left by the strongest attack of each kind; the worst case counts "
    "the images that withstand all of them, at this budget or less. Gradients pass through calibrator and "
    "straight-through quantizers; transferred images were made for another graph; adversarial images are rounded to "
    "uint8 inside the budget and scored on the exported graph. The last column is the largest share of images "
    "that, under the same adversarial pixels, the float graph gets right and this one wrong. At 128/255 any image "
    "can be made grey: what is left there beyond chance would be an error of the evaluation."
)

NO_GRADIENT = (
    "A risk figure, not a defence claim, and an upper bound: a file has no gradient, so only attacks that ask the "
    "graph were tried, and whoever has the model does better. Adversarial images are rounded to uint8 inside the "
    "budget; the worst case counts the images that withstand all attacks, at this budget or less. The last column is "
    "the largest share of images that, under the same adversarial pixels, the first graph gets right and this one "
    "wrong."
)


def epsilon_text(norm: str, epsilon: float) -> str:
    """A budget as it is usually written."""
    return f"{255 * epsilon:g}/255" if norm == "Linf" else f"{epsilon:.3g}"


def percent_interval(row: AttackResult | WorstCase) -> str:
    """Robust accuracy with its interval."""
    low, high = row.interval
    return f"{100 * row.robust_accuracy:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def attack_table(attacks: Attacks, names: dict[str, str]) -> list[list[str]]:
    """A header, then a line per graph, norm and budget; empty where nothing was attacked.

    Args:
        attacks: of a record.
        names: graphs to what they are called.
    """
    rows = attacks.rows
    if not rows:
        return []
    table = [["graph", "norm", "epsilon", *KINDS.values(), "worst case", "only this wrong"]]
    for row in rows:
        if row.kind == "clean":
            line = [names[row.classifier], "clean", "0", "", "", "", "", percent_interval(row)]
            table.append([*line, _largest_risk([row])])
    for worst in attacks.worst:
        budget = worst.classifier, worst.norm, worst.epsilon
        same = [r for r in rows if (r.classifier, r.norm, r.epsilon) == budget]
        line = [names[worst.classifier], worst.norm, epsilon_text(worst.norm, worst.epsilon)]
        line += [_least(r for r in same if r.kind == kind) for kind in KINDS]
        table.append([*line, percent_interval(worst), _largest_risk(same)])
    return table


def _least(rows: Iterable[AttackResult]) -> str:
    left = [row.robust_accuracy for row in rows]
    return f"{100 * min(left):.1f} %" if left else ""


def _largest_risk(rows: Iterable[AttackResult]) -> str:
    risks = [row.differential_risk for row in rows if row.differential_risk is not None]
    return f"{100 * max(risks):.1f} %" if risks else ""


def pose_table(attacks: Attacks, names: dict[str, str]) -> list[list[str]]:
    """A header, then a line per graph and grid of poses: images that are right in every pose; empty without."""
    rows = [row for row in attacks.rows if row.kind == "pose"]
    head = [["graph", "right in every pose of", "worst of all"]] if rows else []
    return head + [[names[r.classifier], r.attack.replace("-", ", "), percent_interval(r)] for r in rows]


def flag_sentences(attacks: Attacks) -> list[str]:
    """The first few flags, and how many more there are."""
    flags = list(attacks.flags)
    more = len(flags) - LISTED
    return flags if more <= 0 else [*flags[:LISTED], f"UNRELIABLE: {more} more contradictions are in the record"]
