"""Parity: the exported graph on onnxruntime against the torch module it was exported from."""

from __future__ import annotations

import math
from typing import Any

import torch

from qrobust.classifier import Classifier
from qrobust.errors import ExportCheckError

# Below this agreement a graph does not say what its fake-quantized model says; the rest is ties (see `parity`).
LEAST_AGREEMENT = 0.985
MOST_ACCURACY_DIFFERENCE = 0.003
# Logits nearer than this share of their standard deviation are a tie: one 8-bit step of a deep activation.
TIE = 0.05


@torch.inference_mode()
def parity(
    torch_classifier: Classifier, session: Classifier, images: torch.Tensor, labels: torch.Tensor
) -> dict[str, float | int]:
    """Compare torch with the session on the same images.

    A disagreement is a *tie* where torch puts the two candidates closer than 0.05 standard deviations of
    its logits: fused integer kernels may differ from unfused ones by one step.

    Args:
        torch_classifier: the float model, fake-quantized model or pair.
        session: the exported graph.
        images: `(N, C, S, S)` in [0, 1].
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


def check_export(
    name: str, audited: dict[str, Any], measured: dict[str, float | int], integer_layers: int = 0
) -> None:
    """Refuse a graph that is not what it claims.

    Args:
        name: of the graph, for the message.
        audited: from `audit`.
        measured: from `parity`.
        integer_layers: how many layers the graph claims to compute on integers.

    Raises:
        ExportCheckError: an integer layer that onnxruntime runs in float, or torch and session differ.
    """
    if audited["integer_ops"] < integer_layers:
        left = ", ".join(f"{n} {kind}" for kind, n in audited["float_compute"].items()) or "none"
        raise ExportCheckError(
            f"audit: {name} runs {audited['integer_ops']} convolutions and matrix products on integers, expected its "
            f"{integer_layers} quantized layers; in float: {left}"
        )
    if measured["agreement_beyond_ties"] < LEAST_AGREEMENT:
        raise ExportCheckError(
            f"parity: torch and onnxruntime agree on {100 * measured['agreement_beyond_ties']:.1f} % of "
            f"{measured['n']} images in {name} (ties apart), expected at least {100 * LEAST_AGREEMENT:.1f} %"
        )
    difference = abs(measured["torch_accuracy"] - measured["session_accuracy"])
    # Ties that fall the other way are right or wrong by chance: three deviations of so many coins.
    coins = 3 * math.sqrt((1 - measured["agreement"]) * measured["n"]) / measured["n"]
    allowed = max(MOST_ACCURACY_DIFFERENCE, 2 / measured["n"], coins)
    if measured["agreement"] >= LEAST_AGREEMENT and difference > allowed:
        raise ExportCheckError(
            f"parity: accuracy in torch and onnxruntime differs by {100 * difference:.2f} points in {name}, "
            f"expected at most {100 * allowed:.2f}"
        )
