"""Stage 3: write a graph and pass it through its checks: checker, audit, parity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

import qrobust
from qrobust.classifier import Compensated, Signalling
from qrobust.deployment.audit import audit
from qrobust.deployment.deploy import open_on_target
from qrobust.deployment.export import export as export_graph
from qrobust.deployment.parity import (
    check_export,
    check_meaning,
    compare,
    logits_of,
)
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import MADE_BY
from qrobust.pipeline.stage import invalidate, stage
from qrobust.quantization.integer_layers import IntegerConv2d, IntegerLinear
from qrobust.record import Audit, CompensationResult, ExportedGraphs, ExportResult, Parity, taken
from qrobust.report.model_card import unmeasured_card
from qrobust.shifts.filters import to_uint8, to_unit
from qrobust.shifts.rendering import render
from qrobust.storage import replacement, save_npz, write_text

PARITY_IMAGES = 1000


def export(run: Run) -> None:
    """Stage 4: compensated.onnx, calibrator and classifier as one graph, through the same checks."""
    folder = run.require_folder()
    folder.need_result(CompensationResult, "compensate", "compensate")
    with stage(run, "export") as running:
        graph = export_checked(run, "compensated", run.torch_classifier("compensated"))
        running.result = taken(ExportResult, exported(graph))
        _pictures(run)


def _pictures(run: Run) -> None:
    """Test images under the strongest shifts, and what the calibrator makes of them, for the report."""
    strongest: dict[str, int] = {}
    for name, severity in run.conditions:
        strongest[name] = max(severity, strongest.get(name, 0))
    labels = run.data.test.labels
    other = (labels != labels[0]).nonzero()[:1, 0]
    images = run.data.test.read(torch.cat([torch.tensor([0]), other]))
    arrays: dict[str, np.ndarray] = {"clean": images.numpy()}
    for name, severity in strongest.items():
        shifted = render(images, name, severity, table=run.table, seed=run.config.seed)
        with torch.inference_mode():
            calibrated = to_uint8(run.calibrator(to_unit(shifted)))
        arrays[f"{name}.{severity}.before"] = shifted.numpy()
        arrays[f"{name}.{severity}.after"] = calibrated.numpy()
    save_npz(run.require_folder().pictures, arrays)


@dataclass(frozen=True)
class ExportedGraph:
    """A graph of the run that passed its export checks.

    Attributes:
        name: of the graph.
        audit: what onnxruntime runs on integers.
        parity: torch against onnxruntime on the same images.
        logits: of the graph `(N, K)` on the validation images of its parity.
    """

    name: str
    audit: Audit
    parity: Parity
    logits: torch.Tensor


def exported(*graphs: ExportedGraph) -> ExportedGraphs:
    """What a stage keeps of its graphs."""
    return ExportedGraphs(audit={g.name: g.audit for g in graphs}, parity={g.name: g.parity for g in graphs})


def export_checked(
    run: Run, name: str, model: torch.nn.Module, *, network: torch.nn.Module | None = None
) -> ExportedGraph:
    """Write a graph and pass it through its export checks: checker, audit, parity.

    Args:
        run: of the graph.
        name: of the graph.
        model: what is exported.
        network: what a float model was rewritten from, which its graph must then equal.

    Raises:
        ExportCheckError: it fails one; the graph that was there before stays.
    """
    path = run.require_folder().graph(name)
    with replacement(path) as part:
        export_graph(
            _signalling(run, model),
            part,
            run.data.image_size,
            _metadata(run, name),
            channels=run.model.channels,
            storage=run.config.quantization.storage,
        )
        audited = audit(part, signed_activations=run.target.signed or None)
        split = run.data.validation.at_most(PARITY_IMAGES)
        images = to_unit(split.read(slice(None)))
        classifier = open_on_target(part, run.target, run.config.threads)
        wanted, got = (logits_of(one, images) for one in (network or model, classifier))
        if network is not None:
            check_meaning(wanted, got)
        measured = compare(wanted, got, split.labels)
        layers = sum(isinstance(module, IntegerConv2d | IntegerLinear) for module in model.modules())
        check_export(name, audited, measured, layers)
        invalidate(run, MADE_BY.get(name, name))
    write_text(run.require_folder().card(name), unmeasured_card(name))
    passed = checks_passed(name, audited.integer_ops, audited.quantizable_ops, measured.agreement)
    run.reporter.detail(f"{name}.onnx: {passed}")
    return ExportedGraph(name, audited, measured, got)


def _signalling(run: Run, model: torch.nn.Module) -> torch.nn.Module:
    """With a second output where that is wanted and there is a gate, which fixed preprocessing has not."""
    if not (run.config.calibrator.correction_output and isinstance(model, Compensated)):
        return model
    return Signalling(model) if isinstance(model.calibrator, fx.GraphModule) else model


def checks_passed(name: str, integer_ops: int, quantizable_ops: int, agreement: float) -> str:
    """How much of a graph is integer, and what it was compared with, in words."""
    reference = "your network" if name == "float" else "its fake-quantized model in torch"
    return (
        f"{integer_ops} of {quantizable_ops} convolutions and matrix products integer, parity with {reference} "
        f"{100 * agreement:.2f} %"
    )


def _metadata(run: Run, name: str) -> dict[str, object]:
    return {
        "qrobust.graph": name,
        "qrobust.version": qrobust.__version__,
        "class_names": list(run.data.class_names),
        "preprocessing": run.preprocessing.as_metadata(),
        "provenance": {
            "model": run.config.model.spec,
            "data": run.config.data.spec,
            "target": run.config.quantization.target,
            "seed": run.config.seed,
            "torch": torch.__version__,
        },
    }
