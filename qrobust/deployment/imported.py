"""A network that was read of an ONNX file against the file itself, on onnxruntime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import fx, nn

from qrobust.deployment.onnx_graph import with_outputs
from qrobust.deployment.parity import compare
from qrobust.deployment.session import Session, open_session, plainly
from qrobust.errors import InputError
from qrobust.models.onnx_import.network import Origin
from qrobust.record import Parity
from qrobust.storage import scratch

# Largest difference of an output, as a share of the largest output or of one; of files in half precision, which
# compute in 11 bits what is read as 24.
TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2
# Least share of images on which a quantized file and its integers in torch say the same, ties apart; and the largest
# difference of one of its values before anything is fused, which leaves room for single steps of 8 bits.
LEAST_AGREEMENT, STEPS = 0.995, 2e-2


def origin_of(network: nn.Module) -> Origin | None:
    """The file that a network was read of, if it was."""
    found = getattr(network, "meta", {}).get("onnx")
    return found if isinstance(found, Origin) else None


@torch.inference_mode()
def check_import(network: nn.Module, images: torch.Tensor, threads: int = 1) -> float:
    """The largest difference between the outputs of a network and of the file that it was read of.

    Args:
        network: read of a file.
        images: `(N, C, S, S)`, as the network takes them: normalised.
        threads: of onnxruntime.

    Returns:
        As a share of the largest output, or of one where all are smaller.

    Raises:
        InputError: it is above `TOLERANCE`; the message names the operator at which it begins.
    """
    origin = origin_of(network)
    assert origin is not None
    if origin.file.pixels == torch.uint8:
        images = images.round()
    session, names = open_session(origin.file.path, threads), list(origin.file.outputs)
    wanted, found = _run(origin, session, names, images), network(images)
    got = found if isinstance(found, dict) else {names[0]: found}
    differences = [
        _difference(torch.from_numpy(wanted[name]), ended(got[name], origin.ending.kinds.get(name, "")))
        for name in names
    ]
    most, tolerance = max(differences), HALF_TOLERANCE if origin.file.is_half else TOLERANCE
    if most > tolerance:
        where = _first_difference(network, origin, images[:2], tolerance)
        raise InputError(
            f"model: {origin.file.path} as a torch network differs from the file by {most:.2g} of its largest output "
            f"(n = {len(images)}), expected at most {tolerance:g}{where}"
        )
    return most


@torch.inference_mode()
def check_integers(
    network: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    threads: int = 1,
    *,
    signed_activations: bool | None = None,
    exact_sums: bool = False,
) -> Parity:
    """How far a network of a quantized file's integers says what the file says.

    Args:
        network: read of a file with one output.
        batches: of images `(n, C, S, S)`, as the network takes them, normalised; and labels `(n,)`.
        threads: of onnxruntime.
        signed_activations, exact_sums: see `open_session`.

    Raises:
        InputError: they agree on less than `LEAST_AGREEMENT`, ties apart; the message names the node at which the
            two part, if one does by itself.
    """
    origin = origin_of(network)
    assert origin is not None
    file, names = origin.file, list(origin.file.outputs)
    if len(names) > 1:
        raise InputError(f"model: expected one output of {file.path}, got {len(names)} ({', '.join(names)})")
    session = open_session(file.path, threads, signed_activations=signed_activations, exact_sums=exact_sums)
    first, wanted, got, labels = None, [], [], []
    for given, named in batches:
        images = given.round() if file.pixels == torch.uint8 else given
        first = images[:2] if first is None else first
        wanted.append(torch.from_numpy(_run(origin, session, names, images)[names[0]]).flatten(1).float())
        got.append(network(images))
        labels.append(named)
    assert first is not None
    logits, ending = torch.cat(got), origin.ending.kinds.get(names[0], "")
    found = compare(ended(logits, ending), torch.cat(wanted), torch.cat(labels), logits=logits)
    if found.agreement_beyond_ties < LEAST_AGREEMENT:
        where = _first_difference(network, origin, first, STEPS)
        raise InputError(
            f"model: the integers of {file.path} as a torch network agree with the file on "
            f"{100 * found.agreement_beyond_ties:.1f} % of {found.n} images (ties apart), expected at least "
            f"{100 * LEAST_AGREEMENT:g} %{where or '; no node differs before onnxruntime fuses them'}"
        )
    return found


def ended(logits: torch.Tensor, ending: str) -> torch.Tensor:
    """What a file makes of logits at its end: `softmax`, `sigmoid` or nothing."""
    return {"softmax": lambda z: z.softmax(-1), "sigmoid": torch.sigmoid}.get(ending, lambda z: z)(logits)


def _difference(wanted: torch.Tensor, got: torch.Tensor) -> float:
    """Largest one, as a share of the largest number wanted or of one; infinite where one is not finite."""
    if wanted.numel() != got.numel():
        return float("inf")
    wanted = wanted.double().reshape(got.shape)
    difference = (wanted - got).abs().max() / max(1.0, float(wanted.abs().max()))
    return float(difference) if torch.isfinite(difference) else float("inf")


def _run(origin: Origin, session: Session, names: Sequence[str], images: torch.Tensor) -> dict[str, np.ndarray]:
    """Outputs of the file by name, batch by batch where it fixes one."""
    file = origin.file
    laid = images if file.layout == "NCHW" else images.permute(0, 2, 3, 1)
    pixels = laid.contiguous().numpy().astype(str(file.pixels).removeprefix("torch."))
    step = file.batch or len(pixels)
    parts = []
    for start in range(0, len(pixels), step):
        batch = pixels[start : start + step]
        filled = np.concatenate([batch, batch[-1:].repeat(step - len(batch), axis=0)])
        try:
            outputs = session.run(list(names), {file.image: filled})
        except Exception as error:  # onnxruntime raises a type per cause, none of them public
            raise InputError(
                f"model: onnxruntime cannot run {file.path} on {filled.shape} ({plainly(error)})"
            ) from error
        parts.append([output[: len(batch)] if np.ndim(output) else output for output in outputs])
    return {name: np.concatenate(found) for name, found in zip(names, zip(*parts, strict=True), strict=True)}


def _first_difference(network: nn.Module, origin: Origin, images: torch.Tensor, tolerance: float) -> str:
    """The operator at which the two part, in words; nothing where that cannot be told."""
    if not isinstance(network, fx.GraphModule):
        return ""
    nodes = {node.meta["onnx"]: node for node in network.graph.nodes if "onnx" in node.meta}
    values = dict(_computed(network, images))
    with scratch() as folder:
        path = Path(folder) / "all.onnx"
        path.write_bytes(with_outputs(origin.file.path, [name for name, _, _ in nodes]))
        try:
            outputs = [name for name, _, _ in nodes]
            wanted = _run(origin, open_session(path, 1, level="none"), outputs, images)
        except InputError:
            return ""
    for (name, kind, called), node in nodes.items():
        got = values[node]
        if isinstance(got, torch.Tensor) and _difference(torch.from_numpy(wanted[name]), got) > tolerance:
            return f"; first at {kind}{f' {called!r}' if called else ''}"
    return ""


def _computed(network: fx.GraphModule, images: torch.Tensor) -> Iterator[tuple[fx.Node, object]]:
    """What every node is on these images."""
    interpreter = fx.Interpreter(network, garbage_collect_values=False)
    interpreter.run(images)
    yield from interpreter.env.items()
