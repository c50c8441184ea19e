"""qrobust: INT8 image classifiers whose robustness is measured, and repaired.

The names below are the public API. Each is imported when first used, so that `import qrobust` takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Where each public name lives.
_HOMES = {
    "AttackConfig": "qrobust.evaluation.attack_config",
    "CalibratorConfig": "qrobust.compensation.config",
    "Evaluation": "qrobust.evaluation.evaluate",
    "ExportCheckError": "qrobust.errors",
    "InputError": "qrobust.errors",
    "OnnxClassifier": "qrobust.deployment.classifiers",
    "Preprocessing": "qrobust.preprocessing",
    "QATConfig": "qrobust.quantization.config",
    "QRobustError": "qrobust.errors",
    "QuantizationConfig": "qrobust.quantization.config",
    "Run": "qrobust.pipeline.run",
    "as_split": "qrobust.data.own_images",
    "audit": "qrobust.api",
    "compensated": "qrobust.api",
    "evaluate": "qrobust.evaluation.evaluate",
    "export_onnx": "qrobust.api",
    "fit_calibrator": "qrobust.api",
    "latency": "qrobust.api",
    "load_classifier": "qrobust.api",
    "load_data": "qrobust.api",
    "parity": "qrobust.api",
    "quantize": "qrobust.api",
    "read_record": "qrobust.record",
    "register_shift": "qrobust.shifts.registry",
    "render": "qrobust.shifts.rendering",
    "sensitivity": "qrobust.api",
}

__all__ = [
    "AttackConfig",
    "CalibratorConfig",
    "Evaluation",
    "ExportCheckError",
    "InputError",
    "OnnxClassifier",
    "Preprocessing",
    "QATConfig",
    "QRobustError",
    "QuantizationConfig",
    "Run",
    "as_split",
    "audit",
    "compensated",
    "evaluate",
    "export_onnx",
    "fit_calibrator",
    "latency",
    "load_classifier",
    "load_data",
    "parity",
    "quantize",
    "read_record",
    "register_shift",
    "render",
    "sensitivity",
]

if TYPE_CHECKING:
    from qrobust.api import (
        audit,
        compensated,
        export_onnx,
        fit_calibrator,
        latency,
        load_classifier,
        load_data,
        parity,
        quantize,
        sensitivity,
    )
    from qrobust.compensation.config import CalibratorConfig
    from qrobust.data.own_images import as_split
    from qrobust.deployment.classifiers import OnnxClassifier
    from qrobust.errors import ExportCheckError, InputError, QRobustError
    from qrobust.evaluation.attack_config import AttackConfig
    from qrobust.evaluation.evaluate import Evaluation, evaluate
    from qrobust.pipeline.run import Run
    from qrobust.preprocessing import Preprocessing
    from qrobust.quantization.config import QATConfig, QuantizationConfig
    from qrobust.record import read_record
    from qrobust.shifts.registry import register_shift
    from qrobust.shifts.rendering import render


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qrobust' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
