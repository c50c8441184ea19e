"""What stages have in common: a stage is done or has left nothing; a graph passes its gates or is not there."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import qrobust
from qrobust.deployment.audit import audit, check_gate, check_meaning, compare, logits_of
from qrobust.deployment.graph import export as export_graph
from qrobust.deployment.runtime import OnnxClassifier
from qrobust.files import replacement, scratch
from qrobust.fitting import Progress
from qrobust.folders import ALTERNATIVES, MADE_BY, TORCH_ONLY
from qrobust.integer import IntegerConv2d, IntegerLinear
from qrobust.models import parse_normalization
from qrobust.report.card import unmeasured_card
from qrobust.results import write_json, write_text
from qrobust.shifts.rendering import to_unit
from qrobust.shifts.severities import find_shift
from qrobust.workbench import Bar, Workbench

PARITY_IMAGES = 1000
# Choices that no training depends on.
MEASURING = (
    "scene_names", "threads", "test_images", "attacks", "attack_images", "attack_steps", "epsilons", "norms",
    "l2_epsilons",
)  # fmt: skip
STAGES = ("quantize", "compensate", "export", "evaluate")
# Stages that are kept where they were done with the choices of now.
COMPARED = ("compensate", *ALTERNATIVES, TORCH_ONLY)


@contextmanager
def stage(bench: Workbench, name: str, began_s: float = 0.0) -> Iterator[dict[str, Any]]:
    """Time a stage, begun so many seconds ago; on success store what it put into the yielded dict.

    What was done before stays done until it is replaced, however this ends; only quantization, which replaces files
    as it goes, and all that builds on it are undone from its start on.
    """
    bench.reporter.say(f"{name} ...")
    folder = bench.place()
    if name == "quantize":
        undo(bench, name)
    torch.set_num_threads(bench.config.threads)
    started = time.perf_counter() - began_s
    result: dict[str, Any] = {}
    yield result
    result["choices"] = choices_key(bench, name) if name in COMPARED else None
    earlier = result.pop("earlier_s", 0.0)  # by processes that were killed
    result["duration_s"] = round(time.perf_counter() - started + earlier, 3)
    undo(bench, name)
    write_json(folder.config, bench.config_with_code.as_json())
    folder.finish(name, result)
    bench.reporter.detail(f"{name} done in {result['duration_s']:.1f} s")


def told(bar: Bar) -> Progress:
    """What a training loop calls with the steps done so far, for a bar of those that it makes itself.

    A training first calls with where it begins: its pace is that of the steps from there on, not of what came before.
    """
    before = None

    def progress(step: int, _total: int, note: str) -> None:
        nonlocal before
        if before is None:
            bar.length -= step
            bar.start = time.time()
        else:
            bar.update(step - before, note)
        before = step

    return progress


def undo(bench: Workbench, name: str) -> None:
    """Before what a stage made is replaced: neither it nor any stage that builds on it is done any more."""
    building = STAGES[STAGES.index(name) :] if name in STAGES else (name, "evaluate")
    bench.place().forget(*building, *(ALTERNATIVES if name == "quantize" else ()))


def kept(bench: Workbench, name: str) -> bool:
    """Whether a stage is done, and was done with the choices of now."""
    done = bench.place().stage(name)
    return done is not None and done["choices"] == choices_key(bench, name)


def choices_key(bench: Workbench, kind: str, without: tuple[str, ...] = ()) -> str:
    """Changes with every choice that training depends on, with the user's own code and with a scene's images.

    Args:
        bench: of the run.
        kind: what the key is for.
        without: choices that this does not depend on.
    """
    choices = {k: v for k, v in sorted(bench.config.as_json().items()) if k not in (*MEASURING, "code", *without)}
    own = {name: shift.version for name, _ in bench.cells if (shift := find_shift(name)).is_own}
    if version := bench.model_spec.version:
        own["model"] = version
    found = [part for part in (own, bench.scene and bench.scene.summary()) if part]
    return hashlib.sha256(repr((choices, kind, *found)).encode()).hexdigest()[:12]


def session_of(bench: Workbench, model: torch.nn.Module) -> OnnxClassifier:
    """A model as onnxruntime runs it, without a file that stays."""
    with scratch() as folder:
        path = folder / "graph.onnx"
        export_graph(model, path, bench.data.image_size, channels=bench.model.channels)
        return bench.on_target(path)


def export_gated(
    bench: Workbench,
    name: str,
    model: torch.nn.Module,
    result: dict[str, Any],
    *,
    network: torch.nn.Module | None = None,
) -> torch.Tensor:
    """Write a graph and pass it through the gates: checker, audit, parity.

    Args:
        bench: of the run.
        name: of the graph.
        model: what is exported.
        result: of the stage; what the gates found is added.
        network: what a float model was rewritten from, which its graph must then equal.

    Returns:
        The graph's logits `(N, K)` on the validation images of its parity.
    """
    path = bench.place().graph(name)
    with replacement(path) as part:
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
        wanted, got = (logits_of(classifier, images) for classifier in (network or model, bench.on_target(part)))
        if network is not None:
            check_meaning(wanted, got)
        measured = compare(wanted, got, split.labels)
        layers = sum(isinstance(module, IntegerConv2d | IntegerLinear) for module in model.modules())
        check_gate(name, audited, measured, layers)
        undo(bench, MADE_BY.get(name, name))
    write_text(bench.place().card(name), unmeasured_card(name))
    result.setdefault("audit", {})[name] = audited
    result.setdefault("parity", {})[name] = measured
    bench.reporter.detail(f"{name}.onnx: {gates_passed(name, audited, measured)}")
    return got


def gates_passed(name: str, audited: dict[str, Any], measured: dict[str, Any]) -> str:
    """How much of a graph is integer, and what it was compared with, in words."""
    reference = "your network" if name == "float" else "its fake-quantized model in torch"
    return (
        f"{audited['integer_ops']} of {audited['quantizable_ops']} convolutions and matrix products integer, parity "
        f"with {reference} {100 * measured['agreement']:.2f} %"
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
            "resize": "shorter side by 256/224, bilinear; centre crop", "normalization_inside": [mean, std],
        },
        "provenance": {
            "model": bench.config.model, "data": bench.config.data, "target": bench.config.target,
            "seed": bench.config.seed, "torch": torch.__version__,
        },
    }  # fmt: skip
