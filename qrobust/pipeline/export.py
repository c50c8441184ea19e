"""Stage 3: write a graph and pass it through its checks: checker, audit, parity."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import qrobust
from qrobust.classifier import parse_normalization
from qrobust.deployment.audit import audit
from qrobust.deployment.classifiers import OnnxClassifier
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
from qrobust.report.model_card import unmeasured_card
from qrobust.shifts.filters import to_uint8, to_unit
from qrobust.shifts.rendering import render
from qrobust.storage import replacement, save_npz, scratch, write_text


def export(run: Run) -> None:
    """Stage 4: compensated.onnx, calibrator and classifier as one graph, through the same gates."""
    folder = run.require_folder()
    folder.need_stage("compensate", "compensate")
    with stage(run, "export") as result:
        export_checked(run, "compensated", run.torch_classifier("compensated"), result)
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


PARITY_IMAGES = 1000


def session_of(run: Run, model: torch.nn.Module) -> OnnxClassifier:
    """A model as onnxruntime runs it, without a file that stays."""
    with scratch() as folder:
        path = folder / "graph.onnx"
        export_graph(model, path, run.data.image_size, channels=run.model.channels)
        return run.on_target(path)


def export_checked(
    run: Run,
    name: str,
    model: torch.nn.Module,
    result: dict[str, Any],
    *,
    network: torch.nn.Module | None = None,
) -> torch.Tensor:
    """Write a graph and pass it through the gates: checker, audit, parity.

    Args:
        run: of the run.
        name: of the graph.
        model: what is exported.
        result: of the stage; what the gates found is added.
        network: what a float model was rewritten from, which its graph must then equal.

    Returns:
        The graph's logits `(N, K)` on the validation images of its parity.
    """
    path = run.require_folder().graph(name)
    with replacement(path) as part:
        export_graph(
            model,
            part,
            run.data.image_size,
            _metadata(run, name),
            channels=run.model.channels,
            storage=run.config.storage,
        )
        audited = audit(part, signed_activations=run.target.signed or None)
        split = run.selection_subset(PARITY_IMAGES)
        images = to_unit(split.read(slice(None)))
        wanted, got = (logits_of(classifier, images) for classifier in (network or model, run.on_target(part)))
        if network is not None:
            check_meaning(wanted, got)
        measured = compare(wanted, got, split.labels)
        layers = sum(isinstance(module, IntegerConv2d | IntegerLinear) for module in model.modules())
        check_export(name, audited, measured, layers)
        invalidate(run, MADE_BY.get(name, name))
    write_text(run.require_folder().card(name), unmeasured_card(name))
    result.setdefault("audit", {})[name] = audited
    result.setdefault("parity", {})[name] = measured
    run.reporter.detail(f"{name}.onnx: {gates_passed(name, audited, measured)}")
    return got


def gates_passed(name: str, audited: dict[str, Any], measured: dict[str, Any]) -> str:
    """How much of a graph is integer, and what it was compared with, in words."""
    reference = "your network" if name == "float" else "its fake-quantized model in torch"
    return (
        f"{audited['integer_ops']} of {audited['quantizable_ops']} convolutions and matrix products integer, parity "
        f"with {reference} {100 * measured['agreement']:.2f} %"
    )


def _metadata(run: Run, name: str) -> dict[str, object]:
    spec = run.config.normalization or run.model_spec.normalization
    channels = run.model.channels
    mean, std = parse_normalization(spec, channels)
    return {
        "qrobust.graph": name,
        "qrobust.version": qrobust.__version__,
        "class_names": list(run.data.class_names),
        "preprocessing": {
            "input": f"{'RGB' if channels == 3 else 'luma'} in [0, 1], (N, {channels}, S, S)",
            "image_size": run.data.image_size,
            "resize": "shorter side by 256/224, bilinear; centre crop",
            "normalization_inside": [mean, std],
        },
        "provenance": {
            "model": run.config.model,
            "data": run.config.data,
            "target": run.config.target,
            "seed": run.config.seed,
            "torch": torch.__version__,
        },
    }
