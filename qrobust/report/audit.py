"""An audit as lines to read."""

from __future__ import annotations

from collections import Counter, defaultdict

from qrobust.record import ExplainedAudit, Reason

EXAMPLES = 3


def audit_lines(audited: ExplainedAudit) -> list[str]:
    """What `qrobust audit` prints: counts, time, and what keeps operators in float, grouped by reason.

    Args:
        audited: from `qrobust.deployment.audit.explained_audit`.
    """
    total = audited.total_macs
    integer, compute = audited.integer_ops, audited.quantizable_ops
    lines = [
        f"  {integer} of {compute} convolutions and matrix products run on integers",
        f"  {_millions(audited.integer_macs)} of {_millions(total)} million multiply-accumulates"
        + (f": {audited.integer_mac_share:.1%}" if total else ""),
    ]
    if audited.unknown_macs:
        lines.append(f"  not counted, their work is not known: {_listed(audited.unknown_macs)}")
    times = ", ".join(f"{kind} {share:.0%}" for kind, share in audited.time_share.items() if share >= 0.01)
    lines += [f"  time on this CPU, one thread: {times}", f"  other operators: {_listed(audited.other_ops)}"]
    dynamic = audited.integer_compute | audited.other_ops
    if dynamic := {kind: n for kind, n in dynamic.items() if kind.startswith("DynamicQuantize")}:
        lines.append(
            f"  quantized dynamically: {_listed(dynamic)} look for each image's ranges, and what lies between "
            "integer operators is float; ranges observed beforehand need neither"
        )
    if audited.blocked:
        lines.append(f"  left in float: {_listed(audited.float_compute)}")
        lines += _by_reason([(b.node, b.macs or 0, b.reasons) for b in audited.blocked], total)
    islands = [(" + ".join(i.nodes), 0, i.reasons) for i in audited.float_islands]
    if islands:
        types = Counter(kind for island in audited.float_islands for kind in island.nodes.values())
        lines.append(f"  float between quantized tensors: {_listed(types)}")
        lines += _by_reason(islands, 0)
    if audited.misread_sums:
        lines.append("  wrong sums: onnxruntime reads scales otherwise than the file says")
        lines += [f"    {name}: {why}" for name, why in audited.misread_sums.items()]
    return lines


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f}" if count >= 10**5 else f"{count / 1e6:.3g}"


def _listed(types: dict[str, int]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in types.items()) or "none"


def _by_reason(nodes: list[tuple[str, int, tuple[Reason, ...]]], total: int) -> list[str]:
    """Per reason: how many nodes and how much work it holds up, a few of them, and what to do."""
    groups: dict[str, list[tuple[int, str, Reason]]] = defaultdict(list)
    for name, macs, reasons in nodes:
        for reason in reasons:
            groups[reason.code].append((macs, name, reason))
    lines = []
    for code, members in sorted(groups.items(), key=lambda item: -sum(macs for macs, *_ in item[1])):
        work = f", {sum(macs for macs, *_ in members) / total:.1%} of the work" if total else ""
        lines.append(f"    {code}: {len(members)}{work}")
        members.sort(key=lambda member: -member[0])
        lines += [f"      {name}: {reason.why}" for _, name, reason in members[:EXAMPLES]]
        if len(members) > EXAMPLES:
            lines.append(f"      and {len(members) - EXAMPLES} more, which --json lists")
        lines.append(f"      to do: {members[0][2].remedy}")
    return lines
