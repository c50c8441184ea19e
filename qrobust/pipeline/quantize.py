"""Stage 1: the float graph and the INT8 graph."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from qrobust.classifier import count_macs, state_hash
from qrobust.data.splits import TrainingData
from qrobust.deployment.audit import explained_audit
from qrobust.deployment.session import sums_saturate
from qrobust.errors import ExportCheckError, InputError
from qrobust.evaluation.statistics import wilson_interval
from qrobust.pipeline.export import PARITY_IMAGES, export_checked, exported
from qrobust.pipeline.output_folder import promote
from qrobust.pipeline.provenance import rendered_data, trained_shifts
from qrobust.pipeline.run import Run
from qrobust.pipeline.run_folder import RunFolder, discard_unfinished
from qrobust.pipeline.stage import choices_key, stage
from qrobust.pipeline.start import look
from qrobust.quantization.ptq import build, observe
from qrobust.quantization.qat import convert_qat, prepare_qat
from qrobust.quantization.quantize import (
    SENSITIVITY_IMAGES,
    FakeQuantizedModel,
    Schedule,
    calibration_batches,
    finetune,
    range_cache,
)
from qrobust.quantization.saturation import saturation_risk
from qrobust.quantization.sensitivity import layer_effects, layer_noise
from qrobust.quantization.tracing import folded
from qrobust.record import (
    Audit,
    Fidelity,
    KeptFloat,
    LayerEffect,
    LayerNoise,
    Macs,
    MixedPrecision,
    QatFit,
    QatTraining,
    Quantization,
    QuantizationResult,
    RecipeChoices,
    SaturationRisk,
    ValidationAgreement,
    taken,
)
from qrobust.report.mixed_precision import mixed_precision_sentence, unmet_sentences
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
    with stage(run, "quantize", began_s=quantized.seconds) as running:
        fake_quantized, fit, config = quantized.module, None, run.config.qat
        if config.epochs:
            fake_quantized, fit = _trained(run, quantized)
            running.earlier_s = fit.earlier_s
        floating = folded(run.model, quantized.observed.images[:1])
        in_float = [n for n, bits in quantized.recipe.for_layers(quantized.observed.layers).items() if bits is None]
        graphs = (
            export_checked(run, "float", floating, network=run.model),
            export_checked(run, "int8", fake_quantized),
        )
        audited = graphs[1].audit
        _warn_of_float(run, audited, len(in_float))
        _tell_mixed_precision(run, quantized.mixed_precision)
        run.save_model()
        run.save_fake_quantized(fake_quantized)
        run.require_folder().drop_checkpoints(run.require_folder().checkpoints.glob("qat-*"))
        size = run.data.image_size
        noise = layer_noise(
            quantized.observed.graph,
            quantized.module,  # what was trained differs from the float model by more than quantization
            quantized.observed.images[: len(run.data.validation.at_most(NOISE_IMAGES, NOISE_PIXELS))],
        )
        quantization = Quantization(
            target=run.config.quantization.target,
            recipe=taken(RecipeChoices, quantized.recipe),
            trials=tuple(quantized.trials),
            validation=_validated(run, {graph.name: graph.logits for graph in graphs}),
            kept_in_float=tuple(in_float),
            keep_float_auto=_bought(run, quantized.gained, audited),
            layer_noise=tuple(noise),
            layer_effects=tuple(quantized.effects),
            qat=taken(QatTraining, fit, shifts=trained_shifts(run) if config.shifts else ()) if fit else None,
            saturation=_saturation(run, fake_quantized),
            mixed_precision=quantized.mixed_precision,
        )
        running.result = taken(
            QuantizationResult,
            exported(*graphs),
            quantization=quantization,
            macs=Macs(classifier=count_macs(run.model, size, run.model.channels)),
            quantized_hash=state_hash(fake_quantized),
            splits=run.data.summary(),
            skipped_images=tuple(run.data.skipped),
            left_out=tuple(run.data.left_out),
            duplicates=tuple(run.duplicates),
            class_names=tuple(run.data.class_names),
            preprocessing=run.preprocessing,
            start=run.start or look(run),
            image_size=size,
            channels=run.model.channels,
        )


def _trained(run: Run, quantized: FakeQuantizedModel) -> tuple[fx.GraphModule, QatFit]:
    """Quantization-aware training; one that was killed goes on from its checkpoint."""
    folder, config, training = run.require_folder(), run.config, run.data.training
    folder.checkpoints.mkdir(exist_ok=True)
    batch_size = config.calibrator.batch_size
    trainable = prepare_qat(quantized.observed.graph, quantized.module, learn_ranges=config.qat.ranges == "learned")
    fit = finetune(
        trainable,
        folded(run.model, quantized.observed.images[:1]),
        rendered_data(run, training) if config.qat.shifts else TrainingData(training, [], run.table),
        run.data.validation,
        config.qat,
        Schedule(
            steps=max(1, round(config.qat.epochs * len(training) / batch_size)),
            batch_size=batch_size,
            seed=config.seed,
            checkpoint=folder.checkpoints / f"qat-{choices_key(run, 'qat')}.pt",
        ),
        reporter=run.reporter,
        device=run.device,
        primary=run.primary,
    )
    return convert_qat(trainable) if fit.best_step else quantized.module, fit


def _validated(run: Run, logits: dict[str, torch.Tensor]) -> ValidationAgreement:
    """Accuracy and agreement of both graphs, as onnxruntime runs them, on validation images."""
    labels = run.data.validation.at_most(PARITY_IMAGES).labels
    predicted = {name: values.argmax(1) for name, values in logits.items()}
    right = {name: int((prediction == labels).sum()) for name, prediction in predicted.items()}
    n, primary = len(labels), run.primary
    values = {name: primary.value((found == labels).numpy(), labels.numpy()) for name, found in predicted.items()}
    before, after = values["float"], values["int8"]
    if before - after >= MATERIAL:
        config = run.config.quantization
        remedies = {
            "--ptq auto": config.ptq != "auto",
            "--equalize": config.ptq != "auto" and not config.equalize,
            "--qat-epochs 1": not run.config.qat.epochs,
            f"--keep-float {'with more layers' if config.keep_float else 'auto:N'}": True,
        }
        untried = [remedy for remedy, missing in remedies.items() if missing]
        run.reporter.warn(
            f"warning: INT8 loses {100 * (before - after):.1f} points of {primary.told} on {n:,} validation images "
            f"({100 * before:.1f} -> {100 * after:.1f} %); try {', '.join(untried)}"
        )
    return ValidationAgreement(
        n=n,
        accuracy={name: count / n for name, count in right.items()},
        interval={name: wilson_interval(count, n) for name, count in right.items()},
        agreement=float((predicted["float"] == predicted["int8"]).double().mean()),
        primary=None if primary.is_accuracy else values,
    )


def _warn_of_float(run: Run, audited: Audit, on_purpose: int) -> None:
    """Tell what the network computes in float because it has no integer form here, as the products of attention."""
    left = audited.quantizable_ops - audited.integer_ops - on_purpose
    if left <= 0:
        return
    kinds = ", ".join(f"{n} {kind}" for kind, n in audited.float_compute.items())
    share = audited.integer_mac_share
    work = "" if share is None else f", {100 * (1 - share):.1f} % of the multiply-accumulates"
    path = run.require_folder().graph("int8")
    explained = explained_audit(path, signed_activations=run.target.signed or None)
    blocked = sorted(explained.blocked, key=lambda found: -(found.macs or 0))
    reasons = [reason for found in blocked for reason in found.reasons]
    why = next((reason.why for reason in reasons if reason.code in NO_INTEGER_FORM), reasons[0].why)
    idle = "" if share is None or share > NOTHING else "; int8.onnx is no faster than float.onnx"
    run.reporter.warn(
        f"warning: {left} of {audited.quantizable_ops} convolutions and matrix products have no integer form "
        f"here and stay in float ({kinds}{work}): {why}{idle} (more: `qrobust audit {path}`)"
    )


def _bought(run: Run, gained: tuple[Fidelity, Fidelity] | None, audited: Audit) -> KeptFloat | None:
    """What the layers that `--keep-float auto:N` left in float buy (before training), and what they cost."""
    if gained is None:
        return None
    without, kept = gained
    share = audited.integer_mac_share or 0.0  # its layers tell their work; without any on integers it is none
    run.reporter.say(
        f"kept in float: divergence from float {without.divergence:.4f} -> {kept.divergence:.4f}, agreement "
        f"{100 * without.agreement:.1f} -> {100 * kept.agreement:.1f} % (n = {kept.n}), for "
        f"{100 * (1 - share):.1f} % of "
        f"the multiply-accumulates in float"
    )
    return KeptFloat(without=without, kept=kept, float_mac_share=1 - share)


def _tell_mixed_precision(run: Run, mixed: MixedPrecision | None) -> None:
    """Which layers got more bits for `--target-drop`, and a warning for each bound that is not met."""
    if mixed is None:
        return
    run.reporter.say(mixed_precision_sentence(mixed, run.primary.told))
    for sentence in unmet_sentences(mixed):
        run.reporter.warn(f"warning: {sentence}")


def _saturation(run: Run, fake_quantized: fx.GraphModule) -> SaturationRisk | None:
    """What an x86 CPU without VNNI would make of the fake-quantized model; None where activations are signed."""
    if run.target.signed:
        return None
    deployed = run.data.validation.at_most(SATURATION_IMAGES, SATURATION_PIXELS)
    found = saturation_risk(fake_quantized, ((to_unit(images), labels) for images, labels in deployed.batches(16)))
    if not found.proven and run.config.quantization.target == "x86-avx2":
        raise ExportCheckError("saturation: weights of 7 bits overflow 16-bit pair sums, which is a fault of qrobust")
    lost = found.accuracy - found.accuracy_without_vnni
    expected = (
        f"{100 * found.accuracy_without_vnni:.1f} % instead of {100 * found.accuracy:.1f} % (simulated on "
        f"{found.n} validation images)"
    )
    if lost > MATERIAL:
        run.reporter.warn(
            f"warning: on an x86 CPU without VNNI expect {expected}; --target x86-avx2 is for such CPUs"
            f"{', and this is one' if sums_saturate() else ''}"
        )
    else:
        run.reporter.detail("without VNNI: nothing can saturate" if found.proven else f"without VNNI: {expected}")
    return found


def sensitivity(run: Run) -> list[tuple[LayerNoise, LayerEffect]]:
    """What each layer alone costs, measured on validation images and added to the quantize stage's result.

    Of the quantized model before any training, whose weights are no longer the float model's.
    """
    folder = run.require_folder()
    done = folder.need_result(QuantizationResult, "quantize", "quantize")
    torch.set_num_threads(run.config.threads)
    kept, validation = done.quantization, run.data.validation.at_most(SENSITIVITY_IMAGES)
    batches = calibration_batches(run.data.calibration, run.reporter)
    cache = range_cache(run.config.quantization, run.data.calibration)
    observed = observe(run.model, batches, run.recipe, device=run.device, cache=cache)
    fake_quantized = build(observed, run.target, run.recipe, seed=run.config.seed, device=run.device)
    with run.reporter.bar("measure layers", len(observed.layers)) as bar:
        found = layer_effects(
            observed.graph, fake_quantized, validation, lambda name: bar.update(1, name), device=run.device
        )
    # Of layers that were left in float for their effects, what is known stays.
    effects = {effect.name: effect for effect in [*kept.layer_effects, *found]}
    if strange := [noise.name for noise in kept.layer_noise if noise.name not in effects]:
        raise InputError(
            f"run folder: another version called its layers otherwise ({strange[0]}); run `qrobust quantize` again"
        )
    folder.finish("quantize", replace(done, quantization=replace(kept, layer_effects=tuple(effects.values()))))
    return [(noise, effects[noise.name]) for noise in kept.layer_noise]
