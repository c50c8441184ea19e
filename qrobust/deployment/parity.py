"""Parity: the exported graph on onnxruntime against the torch module it was exported from."""

from __future__ import annotations

import math

import torch

from qrobust.classifier import Classifier
from qrobust.errors import ExportCheckError
from qrobust.evaluation.statistics import wilson_interval
from qrobust.record import Audit, Parity

# Below this agreement a graph does not say what its fake-quantized model says; the rest is ties (see `parity`).
LEAST_AGREEMENT = 0.985
MOST_ACCURACY_DIFFERENCE = 0.003
# Logits nearer than this share of their standard deviation are a tie: one 8-bit step of a deep activation.
TIE = 0.05
# Largest difference of a float graph's logits from the network's own, as a share of their spread: folding batch norms
# of a deep network of random weights makes up to half a percent, a change of meaning far more.
FOLDING = 0.05


@torch.inference_mode()
def parity(
    torch_classifier: Classifier, onnx_classifier: Classifier, images: torch.Tensor, labels: torch.Tensor
) -> Parity:
    """Compare a torch classifier with its graph on the same images.

    A disagreement is a *tie* where torch puts the two candidates closer than 0.05 standard deviations of
    its logits: fused integer kernels may differ from unfused ones by one step.

    Args:
        torch_classifier: the float model, fake-quantized model or compensated classifier.
        onnx_classifier: the exported graph.
        images: `(N, C, S, S)` in [0, 1].
        labels: `(N,)`.
    """
    return compare(logits_of(torch_classifier, images), logits_of(onnx_classifier, images), labels)


@torch.inference_mode()
def logits_of(classifier: Classifier, images: torch.Tensor) -> torch.Tensor:
    """Logits `(N, K)`, a hundred images at a time."""
    return torch.cat([classifier(part) for part in images.split(100)])


def compare(
    wanted: torch.Tensor, got: torch.Tensor, labels: torch.Tensor, *, logits: torch.Tensor | None = None
) -> Parity:
    """`parity` of what torch says, `wanted`, and of what the graph says, `got`, both `(N, K)`.

    Ties are those of the `logits`: by default `wanted`, unless that is probabilities, most of which are near zero.
    """
    told = wanted if logits is None else logits
    ours, theirs = told.argmax(1), got.argmax(1)
    gap = told.gather(1, ours[:, None]) - told.gather(1, theirs[:, None])
    tie = gap[:, 0] <= TIE * told.std()
    n = len(labels)
    return Parity(
        n=n,
        agreement=int((ours == theirs).sum()) / n,
        agreement_beyond_ties=int(tie.sum()) / n,
        max_logit_difference=float((wanted - got).abs().max()),
        mean_logit_difference=float((wanted - got).abs().mean()),
        torch_accuracy=int((ours == labels).sum()) / n,
        session_accuracy=int((theirs == labels).sum()) / n,
    )


def check_meaning(wanted: torch.Tensor, got: torch.Tensor) -> None:
    """Refuse a float graph that does not compute what the network computes as its author gave it.

    Args:
        wanted: logits `(N, K)` of that network, before anything was rewritten.
        got: of the exported graph, on the same images.

    Raises:
        ExportCheckError: they differ by more than folding a batch norm rounds.
    """
    difference = float((wanted - got).abs().max())
    spread = float((wanted - wanted.mean(1, keepdim=True)).abs().max())
    if not difference <= FOLDING * spread + 1e-6 * float(wanted.abs().max()):
        raise ExportCheckError(
            f"parity: logits of the float graph differ by up to {difference:.3g} from the network's own, which "
            f"spread over {spread:.3g} (n = {len(wanted)}); look in its forward pass for what depends on the batch, "
            "on chance or on earlier calls; without such it is a fault of qrobust"
        )


def check_export(name: str, audited: Audit, measured: Parity, integer_layers: int = 0) -> None:
    """Refuse a graph that is not what it claims.

    Args:
        name: of the graph, for the message.
        audited: from `audit`.
        measured: from `parity`.
        integer_layers: how many layers the graph claims to compute on integers.

    Raises:
        ExportCheckError: an integer layer that onnxruntime runs in float, or torch and onnxruntime differ.
    """
    # Where nothing is in float, fewer are layers that onnxruntime found to compute the same.
    if audited.integer_ops < min(integer_layers, audited.quantizable_ops):
        left = ", ".join(f"{n} {kind}" for kind, n in audited.float_compute.items()) or "none"
        raise ExportCheckError(
            f"audit: {name} runs {audited.integer_ops} convolutions and matrix products on integers, expected its "
            f"{integer_layers} quantized layers; in float: {left}"
        )
    # A deep network whose margins are small amplifies single steps; few images tell its agreement only roughly.
    n, agreement = measured.n, measured.agreement_beyond_ties
    if wilson_interval(round(agreement * n), n)[1] < LEAST_AGREEMENT:
        raise ExportCheckError(
            f"parity: torch and onnxruntime agree on {100 * agreement:.1f} % of {n} images in {name} (ties apart), "
            f"expected at least {100 * LEAST_AGREEMENT:.1f} %, or what is not significantly less"
        )
    difference = abs(measured.torch_accuracy - measured.session_accuracy)
    # Ties that fall the other way are right or wrong by chance: three deviations of so many coins.
    coins = 3 * math.sqrt((1 - measured.agreement) * measured.n) / measured.n
    allowed = max(MOST_ACCURACY_DIFFERENCE, 2 / measured.n, coins)
    if measured.agreement >= LEAST_AGREEMENT and difference > allowed:
        raise ExportCheckError(
            f"parity: accuracy in torch and onnxruntime differs by {100 * difference:.2f} points in {name}, "
            f"expected at most {100 * allowed:.2f}"
        )
