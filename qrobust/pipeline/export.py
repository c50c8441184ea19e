"""Stage 3: write a graph and pass it through its checks: checker, audit, parity."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import qrobust
from qrobust.classifier import parse_normalization
from qrobust.deployment.audit import audit
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.export import export as export_graph
from qrobust.deployment.parity import check_gate, parity
from qrobust.pipeline.run import Workbench
from qrobust.pipeline.run_folder import MADE_BY
from qrobust.pipeline.stage import stage, undo
from qrobust.quantization.integer_layers import IntegerConv2d, IntegerLinear
from qrobust.report.model_card import unmeasured_card
from qrobust.shifts.filters import to_uint8, to_unit
from qrobust.shifts.rendering import render
from qrobust.storage import save_npz, write_text


def export(bench: Workbench) -> None:
    """Stage 4: compensated.onnx, calibrator and classifier as one graph, through the same gates."""
    folder = bench.place()
    folder.need_stage("compensate", "compensate")
    with stage(bench, "export") as result:
        export_gated(bench, "compensated", bench.torch_classifier("compensated"), result)
        _pictures(bench)


def _pictures(bench: Workbench) -> None:
    """Test images under the strongest shifts, and what the calibrator makes of them, for the report."""
    strongest: dict[str, int] = {}
    for name, severity in bench.cells:
        strongest[name] = max(severity, strongest.get(name, 0))
    labels = bench.data.test.labels
    other = (labels != labels[0]).nonzero()[:1, 0]
    images = bench.data.test.read(torch.cat([torch.tensor([0]), other]))
    arrays: dict[str, np.ndarray] = {"clean": images.numpy()}
    for name, severity in strongest.items():
        shifted = render(images, name, severity, table=bench.table, seed=bench.config.seed)
        with torch.inference_mode():
            calibrated = to_uint8(bench.calibrator(to_unit(shifted)))
        arrays[f"{name}.{severity}.before"] = shifted.numpy()
        arrays[f"{name}.{severity}.after"] = calibrated.numpy()
    save_npz(bench.place().pictures, arrays)


PARITY_IMAGES = 1000


def session_of(bench: Workbench, model: torch.nn.Module) -> OnnxClassifier:
    """A model as onnxruntime runs it, without a file that stays."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        export_graph(model, path, bench.data.image_size, channels=bench.model.channels)
        return bench.on_target(path)


def export_gated(
    bench: Workbench,
    name: str,
    model: torch.nn.Module,
    result: dict[str, Any],
) -> None:
    """Write a graph and pass it through the gates: checker, audit, parity."""
    path = bench.place().graph(name)
    part = path.with_name(f".{name}.onnx")
    try:
        export_graph(
            model,
            part,
            bench.data.image_size,
            _metadata(bench, name),
            channels=bench.model.channels,
            storage=bench.config.storage,
        )
        audited = audit(part, signed_activations=bench.target.signed or None)
        split = bench.judges(PARITY_IMAGES)
        images = to_unit(split.read(slice(None)))
        measured = parity(model, bench.on_target(part), images, split.labels)
        layers = sum(isinstance(module, IntegerConv2d | IntegerLinear) for module in model.modules())
        check_gate(name, audited, measured, layers)
        undo(bench, MADE_BY.get(name, name))
        os.replace(part, path)
        write_text(bench.place().card(name), unmeasured_card(name))
    finally:
        part.unlink(missing_ok=True)
    result.setdefault("audit", {})[name] = audited
    result.setdefault("parity", {})[name] = measured
    bench.reporter.detail(
        f"{name}.onnx: {audited['integer_ops']} of {audited['quantizable_ops']} convolutions and matrix "
        f"products integer, agreement with torch {100 * measured['agreement']:.2f} %"
    )


def _metadata(bench: Workbench, name: str) -> dict[str, object]:
    spec = bench.config.normalization or bench.model_spec.normalization
    channels = bench.model.channels
    mean, std = parse_normalization(spec, channels)
    return {
        "qrobust.graph": name,
        "qrobust.version": qrobust.__version__,
        "class_names": list(bench.data.class_names),
        "preprocessing": {
            "input": f"{'RGB' if channels == 3 else 'luma'} in [0, 1], (N, {channels}, S, S)",
            "image_size": bench.data.image_size,
            "resize": "shorter side by 256/224, bilinear; centre crop",
            "normalization_inside": [mean, std],
        },
        "provenance": {
            "model": bench.config.model,
            "data": bench.config.data,
            "target": bench.config.target,
            "seed": bench.config.seed,
            "torch": torch.__version__,
        },
    }
