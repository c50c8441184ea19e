"""Is the graph really integer, and does it say what torch says?"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from qrobust.classifier import Classifier
from qrobust.deployment.runtime import node_types
from qrobust.errors import GateError

INTEGER = frozenset({"QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger",
                     "MatMulIntegerToFloat", "DynamicQuantizeMatMul"})  # fmt: skip
FLOAT = frozenset({"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul",
                   "FusedMatMul", "TransposeMatMul", "Einsum"})  # fmt: skip
# Below this agreement a graph does not say what its twin says; the rest is ties (see `parity`).
LEAST_AGREEMENT = 0.985
MOST_ACCURACY_DIFFERENCE = 0.003
# Logits nearer than this share of their standard deviation are a tie: one 8-bit step of a deep activation.
TIE = 0.05


def audit(path: Path) -> dict[str, object]:
    """Count what onnxruntime runs on integers, in the graph it optimised for this CPU.

    Returns:
        `integer_ops` of `quantizable_ops` convolutions and matrix products, and every other operator
        by type under `other_ops`.

    Raises:
        InputError: not an ONNX file that onnxruntime accepts.
    """
    types = Counter(node_types(path))
    integer = sum(n for kind, n in types.items() if kind in INTEGER)
    in_float = {kind: n for kind, n in sorted(types.items()) if kind in FLOAT}
    return {
        "integer_ops": integer,
        "quantizable_ops": integer + sum(in_float.values()),
        "float_compute": in_float,
        "other_ops": {k: n for k, n in sorted(types.items()) if k not in FLOAT and k not in INTEGER},
    }


@torch.inference_mode()
def parity(
    torch_classifier: Classifier, session: Classifier, images: torch.Tensor, labels: torch.Tensor
) -> dict[str, float | int]:
    """Compare torch with the session on the same images.

    A disagreement is a *tie* where torch puts the two candidates closer than 0.05 standard deviations of
    its logits: fused integer kernels may differ from unfused ones by one step.

    Args:
        torch_classifier: the float model, twin or pair.
        session: the exported graph.
        images: `(N, 3, S, S)` in [0, 1].
        labels: `(N,)`.
    """
    expected, actual = [], []
    for start in range(0, len(images), 100):
        part = images[start : start + 100]
        expected.append(torch_classifier(part))
        actual.append(session(part))
    wanted, got = torch.cat(expected), torch.cat(actual)
    ours, theirs = wanted.argmax(1), got.argmax(1)
    gap = wanted.gather(1, ours[:, None]) - wanted.gather(1, theirs[:, None])
    tie = gap[:, 0] <= TIE * wanted.std()
    n = len(images)
    return {
        "n": n,
        "agreement": int((ours == theirs).sum()) / n,
        "agreement_beyond_ties": int(tie.sum()) / n,
        "max_logit_difference": float((wanted - got).abs().max()),
        "mean_logit_difference": float((wanted - got).abs().mean()),
        "torch_accuracy": int((ours == labels).sum()) / n,
        "session_accuracy": int((theirs == labels).sum()) / n,
    }


def check_gate(name: str, audited: dict[str, object], measured: dict[str, float | int], integer: bool) -> None:
    """Refuse a graph that is not what it claims.

    Raises:
        GateError: compute left in float (where `integer` is claimed), or torch and session differ.
    """
    if integer and audited["integer_ops"] != audited["quantizable_ops"]:
        raise GateError(
            f"audit: {name} runs {audited['integer_ops']} of {audited['quantizable_ops']} convolutions and "
            f"matrix products on integers; left in float: {audited['float_compute']}"
        )
    if measured["agreement_beyond_ties"] < LEAST_AGREEMENT:
        raise GateError(
            f"parity: torch and onnxruntime agree on {100 * measured['agreement_beyond_ties']:.1f} % of "
            f"{measured['n']} images in {name} (ties apart), expected at least {100 * LEAST_AGREEMENT:.1f} %"
        )
    difference = abs(measured["torch_accuracy"] - measured["session_accuracy"])
    allowed = max(MOST_ACCURACY_DIFFERENCE, 2 / measured["n"])
    if measured["agreement"] >= LEAST_AGREEMENT and difference > allowed:
        raise GateError(
            f"parity: accuracy in torch and onnxruntime differs by {100 * difference:.2f} points in {name}, "
            f"expected at most {100 * allowed:.2f}"
        )
