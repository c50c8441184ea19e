"""Stage 1: the float graph and the INT8 graph."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import fx

from qrobust.classifier import count_macs, state_hash
from qrobust.data.splits import TrainingData
from qrobust.deployment.audit import audit
from qrobust.deployment.session import sums_saturate
from qrobust.errors import ExportCheckError, InputError
from qrobust.evaluation.statistics import wilson_interval
from qrobust.pipeline.export import PARITY_IMAGES, as_result, export_checked
from qrobust.pipeline.output_folder import promote
from qrobust.pipeline.provenance import training_conditions
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import RunFolder, discard_unfinished
from qrobust.pipeline.stage import choices_key, stage
from qrobust.quantization.ptq import build, observe
from qrobust.quantization.qat import QatFit, convert_qat, prepare_qat
from qrobust.quantization.quantize import SENSITIVITY_IMAGES, FakeQuantizedModel, calibration_batches, finetune
from qrobust.quantization.recipe import Recipe
from qrobust.quantization.saturation import saturation_risk
from qrobust.quantization.sensitivity import Fidelity, layer_effects, layer_noise
from qrobust.quantization.tracing import computed_weights, folded
from qrobust.shifts.filters import to_unit

NOISE_IMAGES, NOISE_PIXELS = 32, 2**19
# At most so many validation images, and pixels of them, to estimate saturation on.
SATURATION_IMAGES, SATURATION_PIXELS = 256, 2**20
# Accuracy, as a fraction, whose loss on such CPUs nobody should learn of from a record alone.
MATERIAL = 0.01
# Share of integer multiply-accumulates below which a graph is a float one.
NOTHING = 0.005
# What `audit` says of a product that is in float by its nature, and not because of what is around it.
NO_INTEGER_FORM = ("weight-not-quantized", "no-integer-kernel")


def quantize(run: Run) -> None:
    """Stage 1: float.onnx and int8.onnx, audited, and in parity with torch on validation images.

    Where this fails, what it made is removed if `--resume` could not use it. What it is to replace stays until the
    end; then the run lies where that was.
    """
    try:
        _quantize(run)
    except BaseException:
        discard_unfinished(run.require_folder())
        raise
    run.folder = RunFolder(promote(run.require_folder().path))


def _quantize(run: Run) -> None:
    quantized = run.quantized  # made before the folder was, so that what cannot be quantized leaves nothing
    with stage(run, "quantize", began_s=quantized.seconds) as result:
        fake_quantized, fit, shifted = quantized.module, None, []
        if run.config.qat.epochs:
            shifted = training_conditions(run) if run.config.qat.shifts else []
            fake_quantized, fit = _trained(run, quantized, shifted)
            result["earlier_s"] = fit.earlier_s
        floating = folded(run.model, quantized.observed.images[:1])
        in_float = [n for n, bits in quantized.recipe.for_layers(quantized.observed.layers).items() if bits is None]
        graphs = (
            export_checked(run, "float", floating, network=run.model),
            export_checked(run, "int8", fake_quantized),
        )
        result |= as_result(*graphs)
        _warn_of_float(run, result["audit"]["int8"], len(in_float), floating)
        run.save_model()
        run.save_fake_quantized(fake_quantized)
        run.require_folder().drop_checkpoints(run.require_folder().checkpoints.glob("qat-*"))
        size = run.data.image_size
        noise = layer_noise(
            quantized.observed.graph,
            quantized.module,  # what was trained differs from the float model by more than quantization
            quantized.observed.images[: len(run.data.validation.at_most(NOISE_IMAGES, NOISE_PIXELS))],
        )
        result["quantization"] = {
            "target": run.config.quantization.target,
            "recipe": asdict(quantized.recipe),
            "trials": [asdict(t) for t in quantized.trials],
            "validation": _validated(run, {graph.name: graph.logits for graph in graphs}),
            "kept_in_float": in_float,
            "keep_float_auto": _bought(run, quantized.gained, result["audit"]["int8"]),
            "layer_noise": [asdict(n) for n in noise],
            "layer_effects": [asdict(e) for e in quantized.effects],
            "qat": asdict(fit) | {"shifts": sorted({name for name, _ in shifted})} if fit else None,
            "saturation": _saturation(run, fake_quantized),
        }
        result["macs"] = {"classifier": count_macs(run.model, size, run.model.channels)}
        result["twin_hash"] = state_hash(fake_quantized)
        result["splits"] = run.data.summary()
        result["skipped_images"] = list(run.data.skipped)
        result["left_out"] = [asdict(entry) for entry in run.data.left_out]
        result["duplicates"] = [asdict(entry) for entry in run.duplicates]
        result["class_names"] = list(run.data.class_names)
        result["preprocessing"] = asdict(run.preprocessing)
        result["image_size"] = size
        result["channels"] = run.model.channels


def _trained(
    run: Run, quantized: FakeQuantizedModel, shifted: list[tuple[str, int]]
) -> tuple[fx.GraphModule, QatFit]:
    """Quantization-aware training; one that was killed goes on from its checkpoint."""
    folder, config, training = run.require_folder(), run.config, run.data.training
    folder.checkpoints.mkdir(exist_ok=True)
    batch_size = config.calibrator.batch_size
    trainable = prepare_qat(quantized.observed.graph, quantized.module, learn_ranges=config.qat.ranges == "learned")
    fit = finetune(
        trainable,
        folded(run.model, quantized.observed.images[:1]),
        TrainingData(training, shifted, run.table),
        run.data.validation,
        config.qat,
        steps=max(1, round(config.qat.epochs * len(training) / batch_size)),
        batch_size=batch_size,
        seed=config.seed,
        checkpoint=folder.checkpoints / f"qat-{choices_key(run, 'qat')}.pt",
        reporter=run.reporter,
    )
    return convert_qat(trainable) if fit.best_step else quantized.module, fit


def _validated(run: Run, logits: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Accuracy and agreement of both graphs, as onnxruntime runs them, on validation images."""
    labels = run.data.validation.at_most(PARITY_IMAGES).labels
    predicted = {name: values.argmax(1) for name, values in logits.items()}
    right = {name: int((prediction == labels).sum()) for name, prediction in predicted.items()}
    n, lost = len(labels), right["float"] - right["int8"]
    if lost >= MATERIAL * n:
        config = run.config.quantization
        remedies = {
            "--ptq auto": config.ptq != "auto",
            "--equalize": config.ptq != "auto" and not config.equalize,
            "--qat-epochs 1": not run.config.qat.epochs,
            f"--keep-float {'with more layers' if config.keep_float else 'auto:N'}": True,
        }
        untried = [remedy for remedy, missing in remedies.items() if missing]
        run.reporter.warn(
            f"warning: INT8 loses {100 * lost / n:.1f} points of accuracy on {n:,} validation images "
            f"({100 * right['float'] / n:.1f} -> {100 * right['int8'] / n:.1f} %); try {', '.join(untried)}"
        )
    return {
        "n": n,
        "accuracy": {name: count / n for name, count in right.items()},
        "interval": {name: list(wilson_interval(count, n)) for name, count in right.items()},
        "agreement": float((predicted["float"] == predicted["int8"]).double().mean()),
    }


def _warn_of_float(run: Run, audited: dict[str, Any], on_purpose: int, floating: fx.GraphModule) -> None:
    """Tell what the network computes in float because it has no integer form here, as the products of attention."""
    left = audited["quantizable_ops"] - audited["integer_ops"] - on_purpose
    if left <= 0:
        return
    kinds = ", ".join(f"{n} {kind}" for kind, n in audited["float_compute"].items())
    share = audited["integer_mac_share"]
    work = "" if share is None else f", {100 * (1 - share):.1f} % of the multiply-accumulates"
    path = run.require_folder().graph("int8")
    if weights := computed_weights(floating):
        more = f" and {len(weights) - 1} more" if weights[1:] else ""
        why = f"weights computed in the forward pass, from {weights[0]!r}{more}; store what is computed as the weight"
    else:
        explained = audit(path, signed_activations=run.target.signed or None, explain=True)
        blocked = sorted(explained["blocked"], key=lambda found: -(found["macs"] or 0))
        reasons = [reason for found in blocked for reason in found["reasons"]]
        why = next((r["why"] for r in reasons if r["code"] in NO_INTEGER_FORM), reasons[0]["why"])
    idle = "" if share is None or share > NOTHING else "; int8.onnx is no faster than float.onnx"
    run.reporter.warn(
        f"warning: {left} of {audited['quantizable_ops']} convolutions and matrix products have no integer form "
        f"here and stay in float ({kinds}{work}): {why}{idle} (more: `qrobust audit {path}`)"
    )


def _bought(run: Run, gained: tuple[Fidelity, Fidelity] | None, audited: dict[str, Any]) -> dict[str, Any] | None:
    """What the layers that `--keep-float auto:N` left in float buy (before training), and what they cost."""
    if gained is None:
        return None
    without, kept = gained
    share = audited["integer_mac_share"]
    run.reporter.say(
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


def _saturation(run: Run, fake_quantized: fx.GraphModule) -> dict[str, Any] | None:
    """What an x86 CPU without VNNI would make of the fake-quantized model; None where activations are signed."""
    if run.target.signed:
        return None
    deployed = run.data.validation.at_most(SATURATION_IMAGES, SATURATION_PIXELS)
    found = saturation_risk(fake_quantized, ((to_unit(images), labels) for images, labels in deployed.batches(16)))
    if not found["proven"] and run.config.quantization.target == "x86-avx2":
        raise ExportCheckError("saturation: weights of 7 bits overflow 16-bit pair sums, which is a fault of qrobust")
    lost = found["accuracy"] - found["accuracy_without_vnni"]
    expected = (
        f"{100 * found['accuracy_without_vnni']:.1f} % instead of {100 * found['accuracy']:.1f} % (simulated on "
        f"{found['n']} validation images)"
    )
    if lost > MATERIAL:
        run.reporter.warn(
            f"warning: on an x86 CPU without VNNI expect {expected}; --target x86-avx2 is for such CPUs"
            f"{', and this is one' if sums_saturate() else ''}"
        )
    else:
        run.reporter.detail("without VNNI: nothing can saturate" if found["proven"] else f"without VNNI: {expected}")
    return found


def sensitivity(run: Run) -> list[dict[str, Any]]:
    """What each layer alone costs, measured on validation images and added to the quantize stage's result.

    Of the quantized model before any training, whose weights are no longer the float model's.
    """
    folder = run.require_folder()
    stage = folder.need_stage("quantize", "quantize")
    torch.set_num_threads(run.config.threads)
    kept, judge = stage["quantization"], run.data.validation.at_most(SENSITIVITY_IMAGES)
    recipe = Recipe.from_json(kept["recipe"])
    observed = observe(run.model, calibration_batches(run.data.calibration, run.reporter), recipe)
    fake_quantized = build(observed, run.target, recipe, seed=run.config.seed)
    with run.reporter.bar("judge layers", len(observed.layers)) as bar:
        found = layer_effects(observed.graph, fake_quantized, judge, lambda name: bar.update(1, name))
    # Of layers that were left in float for their effects, what is known stays.
    effects = {effect["name"]: effect for effect in [*kept["layer_effects"], *map(asdict, found)]}
    if strange := [noise["name"] for noise in kept["layer_noise"] if noise["name"] not in effects]:
        raise InputError(
            f"run folder: another version called its layers otherwise ({strange[0]}); run `qrobust quantize` again"
        )
    kept["layer_effects"] = list(effects.values())
    folder.finish("quantize", stage)
    return [noise | effects[noise["name"]] for noise in kept["layer_noise"]]
