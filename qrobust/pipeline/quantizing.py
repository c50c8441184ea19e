"""Stage 1: the float graph and the INT8 graph."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import fx

from qrobust.classifier import count_macs
from qrobust.compensation.training import state_hash
from qrobust.data import Split
from qrobust.deployment.audit import audit
from qrobust.deployment.runtime import sums_saturate
from qrobust.errors import GateError, InputError
from qrobust.folders import RunFolder, discard_unfinished
from qrobust.output_folder import promote
from qrobust.pipeline.stage import PARITY_IMAGES, choices_key, export_gated, stage, told
from qrobust.quantization.graph import channels_last, computed_weights, folded
from qrobust.quantization.ptq import build, observe
from qrobust.quantization.qat import QatFit, refreeze, thaw
from qrobust.quantization.qat import train as train_twin
from qrobust.quantization.recipe import Recipe
from qrobust.quantization.saturation import saturation_risk
from qrobust.quantization.sensitivity import Fidelity, layer_effects, layer_noise
from qrobust.shifts.rendering import to_unit
from qrobust.statistics import wilson_interval
from qrobust.workbench import SENSITIVITY_IMAGES, Workbench

NOISE_IMAGES, NOISE_PIXELS, QAT_VALIDATION_IMAGES = 32, 2**19, 2000
# At most so many validation images, and pixels of them, to estimate saturation on.
SATURATION_IMAGES, SATURATION_PIXELS = 256, 2**20
# Accuracy, as a fraction, whose loss on such CPUs nobody should learn of from a record alone.
MATERIAL = 0.01
# Share of integer multiply-accumulates below which a graph is a float one.
NOTHING = 0.005
# What `audit` says of a product that is in float by its nature, and not because of what is around it.
NO_INTEGER_FORM = ("weight-not-quantized", "no-integer-kernel")


def quantize(bench: Workbench) -> None:
    """Stage 1: float.onnx and int8.onnx, audited, and in parity with torch on validation images.

    Where this fails, what it made is removed if `--resume` could not use it. What it is to replace stays until the
    end; then the run lies where that was.
    """
    try:
        _quantize(bench)
    except BaseException:
        discard_unfinished(bench.place())
        raise
    bench.folder = RunFolder(promote(bench.place().path))


def _quantize(bench: Workbench) -> None:
    quantized = bench.quantized  # made before the folder was, so that what cannot be quantized leaves nothing
    with stage(bench, "quantize", began_s=quantized.seconds) as result:
        twin, fit, config = quantized.twin, None, bench.config
        shifted = bench.training_cells if config.qat_shifts else []
        if config.qat_epochs:
            twin, fit = train_twin_in_stage(
                bench, twin, bench.data.training, bench.data.validation,
                steps=max(1, round(config.qat_epochs * len(bench.data.training) / config.batch_size)),
                learning_rate=config.qat_learning_rate, distillation=config.qat_distillation,
                cells=shifted, kind="qat",
            )  # fmt: skip
            result["earlier_s"] = fit.earlier_s
        floating = folded(bench.model, bench.example)
        in_float = [n for n, bits in quantized.recipe.for_layers(quantized.observed.layers).items() if bits is None]
        logits = {
            "float": export_gated(bench, "float", floating, result, network=bench.model),
            "int8": export_gated(bench, "int8", twin, result),
        }
        _warn_of_float(bench, result["audit"]["int8"], len(in_float), floating)
        bench.save_model()
        bench.save_twin(twin)
        bench.place().drop_checkpoints(bench.place().checkpoints.glob("qat-*"))
        size = bench.data.image_size
        noise = layer_noise(
            quantized.observed.graph,
            quantized.twin,  # what was trained differs from the float model by more than quantization
            quantized.observed.images[: len(bench.judges(NOISE_IMAGES, NOISE_PIXELS))],
        )
        result["quantization"] = {
            "target": bench.config.target,
            "recipe": asdict(quantized.recipe),
            "trials": [asdict(t) for t in quantized.trials],
            "validation": _validated(bench, logits),
            "kept_in_float": in_float,
            "keep_float_auto": _bought(bench, quantized.gained, result["audit"]["int8"]),
            "layer_noise": [asdict(n) for n in noise],
            "layer_effects": [asdict(e) for e in quantized.effects],
            "qat": asdict(fit) | {"shifts": sorted({name for name, _ in shifted})} if fit else None,
            "saturation": _saturation(bench, twin),
        }
        result["macs"] = {"classifier": count_macs(bench.model, size, bench.model.channels)}
        result["twin_hash"] = state_hash(twin)
        result["splits"] = bench.data.summary()
        result["skipped_images"] = list(bench.data.skipped)
        result["class_names"] = list(bench.data.class_names)
        result["image_size"] = size


def _validated(bench: Workbench, logits: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Accuracy and agreement of both graphs, as onnxruntime runs them, on validation images."""
    labels = bench.judges(PARITY_IMAGES).labels
    predicted = {name: values.argmax(1) for name, values in logits.items()}
    right = {name: int((prediction == labels).sum()) for name, prediction in predicted.items()}
    n, lost = len(labels), right["float"] - right["int8"]
    if lost >= MATERIAL * n:
        config = bench.config
        remedies = {
            "--ptq auto": config.ptq != "auto", "--equalize": config.ptq != "auto" and not config.equalize,
            "--qat-epochs 1": not config.qat_epochs,
            f"--keep-float {'with more layers' if config.keep_float else 'auto:N'}": True,
        }  # fmt: skip
        untried = [remedy for remedy, missing in remedies.items() if missing]
        bench.reporter.warn(
            f"warning: INT8 loses {100 * lost / n:.1f} points of accuracy on {n:,} validation images "
            f"({100 * right['float'] / n:.1f} -> {100 * right['int8'] / n:.1f} %); try {', '.join(untried)}"
        )
    return {
        "n": n,
        "accuracy": {name: count / n for name, count in right.items()},
        "interval": {name: list(wilson_interval(count, n)) for name, count in right.items()},
        "agreement": float((predicted["float"] == predicted["int8"]).double().mean()),
    }


def _warn_of_float(bench: Workbench, audited: dict[str, Any], on_purpose: int, floating: fx.GraphModule) -> None:
    """Tell what the network computes in float because it has no integer form here, as the products of attention."""
    left = audited["quantizable_ops"] - audited["integer_ops"] - on_purpose
    if left <= 0:
        return
    kinds = ", ".join(f"{n} {kind}" for kind, n in audited["float_compute"].items())
    share = audited["integer_mac_share"]
    work = "" if share is None else f", {100 * (1 - share):.1f} % of the multiply-accumulates"
    path = bench.place().graph("int8")
    if weights := computed_weights(floating):
        more = f" and {len(weights) - 1} more" if weights[1:] else ""
        why = f"weights computed in the forward pass, from {weights[0]!r}{more}; store what is computed as the weight"
    else:
        explained = audit(path, signed_activations=bench.target.signed or None, explain=True)
        blocked = sorted(explained["blocked"], key=lambda found: -(found["macs"] or 0))
        reasons = [reason for found in blocked for reason in found["reasons"]]
        why = next((r["why"] for r in reasons if r["code"] in NO_INTEGER_FORM), reasons[0]["why"])
    idle = "" if share is None or share > NOTHING else "; int8.onnx is no faster than float.onnx"
    bench.reporter.warn(
        f"warning: {left} of {audited['quantizable_ops']} convolutions and matrix products have no integer form "
        f"here and stay in float ({kinds}{work}): {why}{idle} (more: `qrobust audit {path}`)"
    )


def _bought(
    bench: Workbench, gained: tuple[Fidelity, Fidelity] | None, audited: dict[str, Any]
) -> dict[str, Any] | None:
    """What the layers that `--keep-float auto:N` left in float buy (before training), and what they cost."""
    if gained is None:
        return None
    without, kept = gained
    share = audited["integer_mac_share"]
    bench.reporter.say(
        f"kept in float: divergence from float {without.divergence:.4f} -> {kept.divergence:.4f}, agreement "
        f"{100 * without.agreement:.1f} -> {100 * kept.agreement:.1f} % (n = {kept.n}), for "
        f"{100 * (1 - share):.1f} % of "
        f"the multiply-accumulates in float"
    )
    return {
        "without": asdict(without),
        "kept": asdict(kept),
        "float_mac_share": 1 - share,
    }


def _saturation(bench: Workbench, twin: fx.GraphModule) -> dict[str, Any] | None:
    """What an x86 CPU without VNNI would make of the twin; None where activations are signed."""
    if bench.target.signed:
        return None
    judged = bench.judges(SATURATION_IMAGES, SATURATION_PIXELS)
    found = saturation_risk(twin, ((to_unit(images), labels) for images, labels in judged.batches(16)))
    if not found["proven"] and bench.config.target == "x86-avx2":
        raise GateError("saturation: weights of 7 bits overflow 16-bit pair sums, which is a fault of qrobust")
    lost = found["accuracy"] - found["accuracy_without_vnni"]
    expected = (
        f"{100 * found['accuracy_without_vnni']:.1f} % instead of {100 * found['accuracy']:.1f} % (simulated on "
        f"{found['n']} validation images)"
    )
    if lost > MATERIAL:
        bench.reporter.warn(
            f"warning: on an x86 CPU without VNNI expect {expected}; --target x86-avx2 is for such CPUs"
            f"{', and this is one' if sums_saturate() else ''}"
        )
    else:
        bench.reporter.detail(
            "without VNNI: nothing can saturate" if found["proven"] else f"without VNNI: {expected}"
        )
    return found


def train_twin_in_stage(
    bench: Workbench,
    twin: fx.GraphModule,
    training: Split,
    validation: Split,
    *,
    steps: int,
    learning_rate: float,
    distillation: float,
    cells: list[tuple[str, int]],
    kind: str,
) -> tuple[fx.GraphModule, QatFit]:
    """Train a twin of the run's model; a run that was killed goes on from its checkpoint.

    Args:
        bench: of the run.
        twin: to start from; it is not changed.
        training: images to learn from.
        validation: images to choose by, of which the first are taken.
        steps: optimizer steps.
        learning_rate: peak rate of Adam.
        distillation: weight of the float model's view.
        cells: shifts to train on, or none.
        kind: names the checkpoint.

    Returns:
        The trained twin, or the one given where no state was better than it, and what training did.
    """
    folder, config = bench.place(), bench.config
    folder.checkpoints.mkdir(exist_ok=True)
    trainable = thaw(bench.quantized.observed.graph, twin, learn_ranges=config.qat_ranges == "learned")
    channels_last(trainable)
    judges = bench.some(validation, QAT_VALIDATION_IMAGES)
    with bench.reporter.bar("train the twin", steps) as bar:
        fit = train_twin(
            trainable, folded(bench.model, bench.example), training, judges, steps=steps,
            batch_size=config.batch_size, learning_rate=learning_rate, distillation=distillation,
            cells=cells, table=bench.table, seed=config.seed,
            checkpoint=folder.checkpoints / f"{kind}-{choices_key(bench, kind)}.pt", progress=told(bar),
        )  # fmt: skip
    if fit.diverged:
        bench.reporter.warn(f"warning: training the twin ({kind}) diverged; the best state before that is kept")
    bench.reporter.detail(
        f"validation: {100 * fit.start_accuracy:.2f} -> {100 * fit.accuracy:.2f} %, divergence from float "
        f"{fit.start_divergence:.4f} -> {fit.divergence:.4f}"
    )
    if not (fit.best_step or fit.diverged):
        bench.reporter.say(
            f"  training gained less than {len(judges):,} validation images can tell: the twin stays as it was"
        )
    return refreeze(trainable) if fit.best_step else twin, fit


def sensitivity(bench: Workbench) -> list[dict[str, Any]]:
    """What each layer alone costs, measured on validation images and added to the quantize stage's result.

    Of the quantized model before any training, whose weights are no longer the float model's.
    """
    folder = bench.place()
    stage = folder.need_stage("quantize", "quantize")
    torch.set_num_threads(bench.config.threads)
    kept, judge = stage["quantization"], bench.judges(SENSITIVITY_IMAGES)
    recipe = Recipe.from_json(kept["recipe"])
    observed = observe(bench.model, bench.calibration_batches(), recipe)
    twin = build(observed, bench.target, recipe, seed=bench.config.seed)
    with bench.reporter.bar("judge layers", len(observed.layers)) as bar:
        found = layer_effects(observed.graph, twin, judge, lambda name: bar.update(1, name))
    # Of layers that were left in float for their effects, what is known stays.
    effects = {effect["name"]: effect for effect in [*kept["layer_effects"], *map(asdict, found)]}
    if strange := [noise["name"] for noise in kept["layer_noise"] if noise["name"] not in effects]:
        raise InputError(
            f"run folder: another version called its layers otherwise ({strange[0]}); run `qrobust quantize` again"
        )
    kept["layer_effects"] = list(effects.values())
    folder.finish("quantize", stage)
    return [noise | effects[noise["name"]] for noise in kept["layer_noise"]]
