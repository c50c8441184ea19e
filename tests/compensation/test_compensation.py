from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import qrobust, random_model
from torch.nn import functional as F

from qrobust.attacks.norms import Ball, L2Ball, LinfBall
from qrobust.classifier import Compensated, NormalizedModel, Signalling, count_macs, state_hash
from qrobust.compensation import fit as fitting
from qrobust.compensation import training
from qrobust.compensation.alignment import logits_and_features
from qrobust.compensation.batches import sampling
from qrobust.compensation.calibrator import (
    BRANCHES,
    FRUGAL,
    WIDTHS,
    Calibrator,
    Correction,
    within_budget,
)
from qrobust.compensation.config import CalibratorConfig
from qrobust.compensation.cross_fitting import FOLDS
from qrobust.compensation.evolution import evolve
from qrobust.compensation.fit import Deploy, candidates, new_calibrator
from qrobust.compensation.gate import (
    GAINS,
    OFFSETS,
    Gate,
    gate_steps,
    set_gate,
)
from qrobust.compensation.reverse import reverse_adversarial
from qrobust.compensation.training import Phase, train_calibrator
from qrobust.compensation.validation import Validation
from qrobust.data.loading import open_data
from qrobust.data.splits import TrainingData
from qrobust.deployment.audit import audit
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.export import export
from qrobust.device import CPU, fast_arithmetic
from qrobust.errors import InputError
from qrobust.evaluation.primary import ACCURACY
from qrobust.pipeline.provenance import training_data
from qrobust.pipeline.run import Run
from qrobust.progress import Reporter
from qrobust.quantization.integer_layers import IntegerLinear
from qrobust.quantization.ptq import quantize
from qrobust.quantization.target import X86_VNNI
from qrobust.record import EvolutionStrategy, PhaseFit, read_record
from qrobust.storage import read_json, write_sealed
from qrobust.training_loop import fit


@pytest.mark.parametrize("ball", [LinfBall(8 / 255), L2Ball(1.0)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_loss_falls_with_steps_and_the_budget_holds(
    ball: Ball, momentum: float, small_model: NormalizedModel, images: torch.Tensor
) -> None:
    targets = small_model(images).argmin(1)
    losses = [F.cross_entropy(small_model(images), targets, reduction="none")]
    for steps in (1, 2, 4, 8):
        easier = reverse_adversarial(
            small_model, images, targets, ball=ball, steps=steps, step_size=ball.epsilon / 4, momentum=momentum
        )
        change = easier - images
        # Float32 rounding of the projection.
        assert (ball.project(change) - change).abs().max() < 1e-6
        assert easier.min() >= 0
        assert easier.max() <= 1
        losses.append(F.cross_entropy(small_model(easier), targets, reduction="none"))
    for fewer, more in pairwise(losses):
        assert (more <= fewer + 1e-5).all()
    assert losses[-1].mean() < 0.95 * losses[0].mean()


def test_reverse_refuses_nonsense(small_model: NormalizedModel, images: torch.Tensor) -> None:
    targets = torch.zeros(len(images), dtype=torch.long)
    usual = {
        "classifier": small_model,
        "images": images,
        "targets": targets,
        "ball": LinfBall(0.1),
        "steps": 1,
        "step_size": 0.1,
    }
    for name, value in (
        ("steps", 0),
        ("steps", 1.5),
        ("step_size", -0.01),
        ("step_size", float("nan")),
        ("momentum", 1.0),
        ("ball", 8 / 255),
        ("images", 255 * images),
        ("images", images.to(torch.uint8)),
        ("images", images.double()),
        ("targets", targets + 10),
        ("targets", targets - 1),
        ("targets", targets[1:]),
        ("targets", targets.float()),
        ("targets", targets.bool()),
        ("targets", targets.tolist()),
        ("images", images.numpy()),
        ("steps", True),
        ("step_size", "0.1"),
        ("momentum", None),
    ):
        with pytest.raises(InputError, match=f"^{name}: expected"):
            reverse_adversarial(**(usual | {name: value}))


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("size", [8, 28, 32, 96, 225])
def test_calibrator_starts_as_the_identity(size: int, channels: int) -> None:
    torch.manual_seed(0)
    images = torch.rand(2, channels, size, size)
    # Bilinear sampling at the pixel centres rounds in float32.
    assert (Calibrator(size, 8, channels=channels)(images) - images).abs().max() < 1e-4


@pytest.mark.parametrize("channels", [3, 1])
def test_output_is_an_image_whatever_the_weights(channels: int, images: torch.Tensor) -> None:
    torch.manual_seed(0)
    images = images[:, :channels]
    calibrator = Calibrator(32, 8, channels=channels)
    for parameter in calibrator.parameters():
        torch.nn.init.normal_(parameter, 0, 2)
    out = calibrator(images)
    assert out.shape == images.shape
    assert torch.isfinite(out).all()
    assert out.min() >= 0
    assert out.max() <= 1


def test_correction_undoes_low_contrast_inversion_and_a_shift(images: torch.Tensor) -> None:
    correction = Correction(32, 2)
    maps, photometric, geometric = torch.zeros(24, 16, 16, 16), torch.zeros(24, 18), torch.zeros(24, 6)
    wide_open, shut = torch.full((24, 1), 50.0), torch.full((24, 1), -50.0)
    negative = photometric.clone()
    for channel in range(3):
        negative[:, 7 * channel + 1] = 3 * torch.atanh(torch.tensor(-2 / 3))
        negative[:, 6 * channel + 4] = 2 * torch.atanh(torch.tensor(0.5))
    assert torch.allclose(correction(1 - images, maps, negative, geometric, wide_open), images, atol=1e-4)
    mean = images.mean((2, 3), keepdim=True)
    faint = (images - mean) * 0.2 + mean
    stretched = photometric.clone()
    stretched[:, ::6] = 10
    again = correction(faint, maps, stretched, geometric, wide_open)
    assert (again - again.mean((2, 3), keepdim=True)).abs().mean() > 3 * (faint - mean).abs().mean()
    lifted = photometric.clone()
    lifted[:, 5] = torch.atanh(torch.tensor(0.6))  # red alone
    wanted = images.clone()
    wanted[:, 0] += 0.6 * wanted[:, 0] * (1 - wanted[:, 0])
    assert torch.allclose(correction(images, maps, lifted, geometric, wide_open), wanted, atol=1e-5)
    moved = geometric.clone()
    moved[:, 2] = torch.atanh(torch.tensor(0.25 / 0.8))
    shifted = correction(images, maps, photometric, moved, wide_open)
    assert torch.allclose(shifted[:, :, :, :28], images[:, :, :, 4:], atol=1e-4)
    assert torch.allclose(shifted[:, :, :, 28:], images[:, :, :, 31:].expand(-1, -1, -1, 4), atol=1e-4)  # the border
    assert torch.allclose(correction(images, maps + 1, negative, moved, shut), images, atol=1e-4)


def test_colours_of_large_images_are_mixed_as_those_of_small_ones(images: torch.Tensor) -> None:
    """By one product for all pixels, which training in bfloat16 leaves in float32."""
    generator = torch.Generator().manual_seed(0)
    photometric, gate = torch.randn(24, 18, generator=generator), torch.randn(24, 1, generator=generator)
    small, large = Correction(32, 2), Correction(96, 4)

    def enlarged(some: torch.Tensor) -> torch.Tensor:
        return some.repeat_interleave(3, 2).repeat_interleave(3, 3)

    wanted = small(images, None, photometric, None, gate)
    assert (wanted - images).abs().mean() > 0.05
    with torch.autocast("cpu", torch.bfloat16):
        found = large(enlarged(images), None, photometric, None, gate)
    assert torch.allclose(found, enlarged(wanted), atol=1e-5)


def test_correction_of_one_channel_is_that_of_equal_ones(images: torch.Tensor) -> None:
    """Proposals that treat three colours alike, and the same ones for grey: stretch, matrix, offset, tone."""
    grey = 0.3 * images[:, :1]  # faint, so that it is stretched
    colours, alone = Correction(32, 2), Correction(32, 2, channels=1)
    generator = torch.Generator().manual_seed(0)
    maps, photometric = (torch.randn(24, n, *side, generator=generator) for n, side in ((8, (16, 16)), (4, ())))
    geometric, gate = torch.randn(24, 6, generator=generator), torch.randn(24, 1, generator=generator)
    stretch, matrix, offset, tone = photometric.unbind(1)
    alike = torch.zeros(24, 3, 6)
    alike[:, :, 0], alike[:, :, 4], alike[:, :, 5] = stretch[:, None], offset[:, None], tone[:, None]
    for colour in range(3):
        alike[:, colour, 1 + colour] = matrix
    change, attention = maps.unflatten(1, (2, 4)).unbind(1)
    wanted = colours(
        grey.expand(-1, 3, -1, -1), torch.cat([change] * 3 + [attention], 1), alike.flatten(1), geometric, gate
    )
    corrected = alone(grey, maps, photometric, geometric, gate)
    assert (corrected - grey).abs().mean() > 0.05
    assert torch.allclose(corrected.expand_as(wanted), wanted, atol=1e-5)


def test_budget_chooses_width_and_branches() -> None:
    large = count_macs(Calibrator(32, WIDTHS[2]), 32)
    assert within_budget(32, 1.0, large - 1)[0] == (WIDTHS[1], BRANCHES)
    assert within_budget(32, 1.0, large)[0] == (WIDTHS[2], BRANCHES)
    # Below the narrowest with all branches, the residual goes first.
    smallest = count_macs(Calibrator(32, WIDTHS[0]), 32)
    width, branches = within_budget(32, 0.5, 2 * smallest - 1)[0]
    assert branches == FRUGAL
    assert count_macs(Calibrator(32, width, branches), 32) < smallest
    frugal = count_macs(Calibrator(32, WIDTHS[0], FRUGAL), 32)
    with pytest.raises(
        InputError, match=rf"expected at least 0\.25, got 0\.1: .* \(.*\) needs {frugal:,} mult"
    ) as error:
        within_budget(32, 0.1, 4 * frugal)
    assert "photometric, geometric" in str(error.value)
    for branches in (("magic",), (), ("photometric", "photometric")):
        with pytest.raises(InputError, match="branches: expected some of residual"):
            Calibrator(32, 8, branches)
    with pytest.raises(InputError, match="width: expected at least 1, got 0"):
        Calibrator(32, 0)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("branches", [("residual",), ("photometric",), ("geometric",), FRUGAL])
def test_a_branch_that_is_off_changes_nothing(branches: tuple[str, ...], channels: int, images: torch.Tensor) -> None:
    torch.manual_seed(0)
    images = images[:, :channels]
    calibrator = Calibrator(32, 8, branches, channels)
    assert (calibrator(images) - images).abs().max() < 1e-4
    for parameter in calibrator.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2)
    out = calibrator(images)
    assert (out - images).abs().max() > 1e-3
    if branches == ("photometric",):
        # One quadratic curve per colour, colour matrix and offset per image, where nothing is clipped.
        for parameter in calibrator.parameters():
            torch.nn.init.normal_(parameter, 0, 0.05)
        torch.nn.init.constant_(calibrator.photometric.bias, 0.2)
        coloured = torch.rand(1, channels, 32, 32, generator=torch.Generator().manual_seed(0))
        one, seen = coloured[0].flatten(1), calibrator(coloured)[0].flatten(1)
        inside = ((seen > 0.001) & (seen < 0.999)).all(0)
        assert inside.sum() > 100
        system = torch.cat([one, one.square(), torch.ones(1, one.shape[1])])[:, inside].T
        fitted = system @ torch.linalg.lstsq(system, seen[:, inside].T).solution
        assert torch.allclose(fitted.T, seen[:, inside], atol=1e-4)
        line = system[:, [*range(channels), -1]]  # no straight line would do
        fitted = line @ torch.linalg.lstsq(line, seen[:, inside].T).solution
        assert not torch.allclose(fitted.T, seen[:, inside], atol=1e-3)
    if branches == ("geometric",):
        # A warp of a flat image is that image.
        flat = torch.full((1, channels, 32, 32), 0.4)
        assert torch.allclose(calibrator(flat), flat, atol=1e-5)


def test_images_too_small_or_of_two_channels_are_refused() -> None:
    with pytest.raises(InputError, match="expected at least 8"):
        Calibrator(6, 8)
    with pytest.raises(InputError, match="channels: expected 3 or 1, got 2"):
        Calibrator(8, 8, channels=2)


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (28, 3), (28, 1)])
def test_quantized_calibrator_exports_with_every_convolution_integer(
    size: int, channels: int, images: torch.Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    small_model = random_model(channels)
    images = images[:, :channels, :size, :size].contiguous()
    calibrator = Calibrator(size, 8, channels=channels)
    torch.nn.init.normal_(calibrator.maps.weight, 0, 0.1)
    torch.nn.init.normal_(calibrator.photometric.weight, 0, 0.02)
    torch.nn.init.normal_(calibrator.geometric.weight, 0, 0.02)
    frozen = quantize(calibrator.eval(), X86_VNNI, [images], leaves=(Correction,))
    fake_quantized = quantize(small_model, X86_VNNI, [images])
    pair = Compensated(frozen, fake_quantized)
    export(pair, tmp_path / "pair.onnx", size, channels=channels)
    counted = audit(tmp_path / "pair.onnx")
    assert counted.integer_ops == counted.quantizable_ops == 23
    session = OnnxClassifier(tmp_path / "pair.onnx", 1)
    wanted = pair(images)
    assert (wanted - session(images)).abs().mean() < 0.05 * wanted.std()


def test_the_gate_is_a_second_output_where_that_is_wanted(images: torch.Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    calibrator = Calibrator(32, 4, ("photometric",))
    torch.nn.init.normal_(calibrator.photometric.weight, 0, 0.02)
    torch.nn.init.normal_(calibrator.gate.weight, 0, 0.2)
    frozen = quantize(calibrator.eval(), X86_VNNI, [images], leaves=(Correction,))
    pair = Compensated(frozen, quantize(random_model(), X86_VNNI, [images]))
    signalling, gates = Signalling(pair), list[torch.Tensor]()
    handle = frozen.get_submodule("gate").register_forward_hook(lambda _, __, logit: gates.append(logit.sigmoid()))
    wanted = pair(images)
    handle.remove()
    logits, gate = signalling(images)
    assert torch.equal(logits, wanted)
    assert torch.equal(gate, gates[0])
    for name, model in (("two", signalling), ("one", pair)):
        export(model, tmp_path / f"{name}.onnx", 32)
    two, one = (OnnxClassifier(tmp_path / f"{name}.onnx", 1) for name in ("two", "one"))
    assert [output.name for output in two.session.get_outputs()] == ["logits", "correction"]
    assert torch.equal(two(images), one(images))
    (told,) = two.session.run(["correction"], {"images": images.numpy()})
    # The gate's layer is integer in both; its sums are exact, the float32 of its scale is not.
    assert torch.allclose(torch.from_numpy(told), gate, atol=0.02)
    assert gate.std() > 0.01


def calibrator_of(run: Run, width: int | None = None, branches: tuple[str, ...] = ()) -> Calibrator:
    """An untrained calibrator for a run: the best within its budget, or of a given size."""
    if width is None:
        width, branches = candidates(run.model, training_data(run), run.config.calibrator)[0]
    return new_calibrator(run.data.image_size, width, branches, run.model.channels, run.config.seed)


def trained(
    run: Run,
    calibrator: torch.nn.Module,
    validation: Validation,
    conditions: list[tuple[str, int]],
    checkpoint: Path,
    steps: tuple[int, int],
    **options: Any,
) -> PhaseFit:
    """Train a calibrator in place, `steps` in all and restoring pixels."""
    progress = {"progress": options.pop("progress")} if "progress" in options else {}
    config = CalibratorConfig(**{"batch_size": 16, "use_labels": False} | options)
    data = TrainingData(run.data.training, conditions, "cifar-c")
    phase = Phase("float", *steps, 4e-3, 0, checkpoint)
    return train_calibrator(calibrator, run.fake_quantized, run.model, data, validation, config, phase, **progress)


def test_without_labels_the_state_nearest_to_the_teacher_is_kept(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened_run = Run.open(finished_run, Reporter(), threads=1)
    conditions = [("contrast", 5)]
    validation = Validation(
        opened_run.data.validation,
        conditions,
        table="cifar-c",
        seed=1,
        limit=40,
        teacher=opened_run.model,
        by_labels=False,
    )
    distances = itertools.chain([3.0, 2.0, 1.0], itertools.repeat(2.5))  # at the start, and after each fifth
    monkeypatch.setattr(Validation, "teacher_divergence", lambda *_: next(distances))
    fit = trained(opened_run, calibrator_of(opened_run), validation, conditions, tmp_path / "x.pt", (10, 5))
    assert fit.best_step == 6


def test_training_helps_resumes_and_leaves_the_classifier_alone(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    opened_run = Run.open(finished_run, Reporter(), threads=1)
    conditions = [("contrast", 5)]
    validation = Validation(opened_run.data.validation, conditions, table="cifar-c", seed=1, limit=100)
    before = state_hash(opened_run.fake_quantized)

    def train(name: str, steps: tuple[int, int] = (60, 40), **options: object) -> tuple[torch.nn.Module, Any]:
        calibrator = calibrator_of(opened_run)
        return calibrator, trained(opened_run, calibrator, validation, conditions, tmp_path / name, steps, **options)

    whole, fit = train("whole.pt")
    assert fit.shift_accuracy > fit.start_shift_accuracy
    assert state_hash(opened_run.fake_quantized) == before

    class KilledError(Exception):
        pass

    def kill(done: int, _steps: int, _note: str) -> None:
        if done == 53:
            raise KilledError

    with pytest.raises(KilledError):
        train("killed.pt", progress=kill)
    resumed, fit_again = train("killed.pt")
    assert state_hash(resumed) == state_hash(whole)
    assert fit_again == fit
    assert fit.earlier_s == 0 < fit_again.earlier_s

    losses = itertools.chain([training.step_loss] * 45, itertools.repeat(lambda *_, **__: torch.tensor(torch.nan)))
    monkeypatch.setattr(training, "step_loss", lambda *a, **k: next(losses)(*a, **k))
    diverged, report = train("diverged.pt")
    monkeypatch.undo()
    assert report.diverged
    assert report.best_step <= 45
    assert all(torch.isfinite(v).all() for v in diverged.state_dict().values())

    asked: list[int] = []

    def count(*arguments: object, **options: object) -> torch.Tensor:
        asked.append(1)
        return reverse_adversarial(*arguments, **options)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(training, "reverse_adversarial", count)
    # Twelve steps make nothing better that can be told: here each state is called better than the one before.
    better = itertools.count()
    monkeypatch.setattr(Validation, "measure", lambda *_: (next(better), 0.0))
    pulled, with_reverse = train("reverse.pt", reverse_weight=1.0, steps=(12, 0))
    plain, _ = train("plain.pt", reverse_weight=0.0, steps=(12, 0))
    assert not with_reverse.diverged
    assert len(asked) == 12
    assert state_hash(pulled) != state_hash(plain)
    for options, match in (({"batch_size": 4}, "batch_size"),):
        with pytest.raises(InputError, match=match):
            train("bad.pt", **options)
    with pytest.raises(InputError, match="at least one shift"):
        trained(opened_run, calibrator_of(opened_run), validation, [], tmp_path / "none.pt", (1, 0))


def test_training_that_diverges_at_once_keeps_the_calibrator_that_was_there(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    monkeypatch.setattr(training, "step_loss", lambda *_, **__: torch.tensor(torch.nan))
    result = qrobust("compensate", run, "--steps", 20, "-q", "--threads", 1)
    assert result.exit_code == 2, result.output
    assert "--learning-rate: training diverged at step 0, before anything was learned" in result.output
    after = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert {p: after.get(p) for p in before} == before


def test_a_calibrator_of_another_version_is_refused_in_one_line(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    stage = run / "stages" / "compensate.json"
    write_sealed(stage, read_json(stage) | {"calibrator_version": 1})
    result = qrobust("export", run, "-q")
    assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1), result.output
    assert "of another version of qrobust; run `qrobust compensate` again" in result.output


def test_a_classifier_without_gradient_is_refused(tmp_path: Path) -> None:
    data = open_data("digits", seed=0)
    validation = Validation(data.validation, [("fog", 5)], table="cifar-c", seed=0, limit=40)
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    torch.nn.init.zeros_(flat[1].weight)
    with pytest.raises(InputError, match="gradient vanishes on 32 of 32 images"):
        train_calibrator(
            Calibrator(32, 4),
            flat,
            flat,
            TrainingData(data.training, [("fog", 5)], "cifar-c"),
            validation,
            CalibratorConfig(),
            Phase("float", 1, 0, 1e-3, 0, tmp_path / "none.pt"),
        )


@pytest.fixture
def few_steps(finished_run: Path, tmp_path: Path) -> Callable[..., Calibrator]:
    """Sixteen steps of a calibrator with a photometric branch alone, begun at an offset and with other options."""

    opened_run = Run.open(finished_run, Reporter(), threads=1)
    conditions = [("contrast", 5), ("inversion", 5)]
    validation = Validation(opened_run.data.validation, conditions, table="cifar-c", seed=1, limit=40)

    def train(name: str, proposed: float = 0.0, **options: float) -> Calibrator:
        calibrator = calibrator_of(opened_run, 4, ("photometric",)).train()
        torch.nn.init.constant_(calibrator.photometric.bias, proposed)
        options = {"use_labels": True} | options
        trained(opened_run, calibrator, validation, conditions, tmp_path / name, (16, 12), **options)
        return calibrator

    return train


def test_saturated_proposals_are_pulled_back(
    few_steps: Callable[..., Calibrator], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 20, tanh has no gradient in float32: without the pull a proposal stays there."""
    beyond = 20.0
    stretch = few_steps("pulled.pt", beyond).photometric.bias[::6]
    assert (stretch < beyond).all()
    monkeypatch.setattr(training, "PROPOSAL_WEIGHT", 0.0)
    stuck = few_steps("stuck.pt", beyond).photometric.bias[::6]
    assert torch.equal(stuck, torch.full((3,), beyond))


def test_hard_shift_share_changes_what_training_draws(few_steps: Callable[..., Calibrator]) -> None:
    alike, favoured = few_steps("alike.pt"), few_steps("favoured.pt", hard_shift_share=1.0)
    assert state_hash(alike) == state_hash(few_steps("again.pt"))
    assert state_hash(alike) != state_hash(favoured)


class _Gated(torch.nn.Module):
    """Images of the value of their gate, whose logit is one number for dark images and another for bright ones."""

    class Correction(torch.nn.Module):
        def forward(self, images: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(gate).view(-1, 1, 1, 1).expand(images.shape)

    def __init__(self, clean: float, shifted: float) -> None:
        super().__init__()
        self.correction = self.Correction()
        self.calls = 0
        weight = torch.tensor([[1]], dtype=torch.int8)
        self.gate = IntegerLinear(weight, torch.tensor([0.01]), torch.zeros(1), torch.tensor(0.01))
        self.logits = {0: clean, 1: shifted}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        logit = torch.tensor([[100 * self.logits[int(image.amax() > 0.5)]] for image in images])
        return self.correction(images, self.gate(logit))  # type: ignore[no-any-return]  # a module gives a tensor


GATES = [
    (-9.0, 9.0, 1.0, Gate(1.0, 1.0)),  # told apart by far: as open as can be
    (-0.2, 0.2, 1.0, Gate(8.0, 0.0)),  # by little: a gain has to decide
    (3.0, 3.0, 1.0, Gate(1.0, -4.25)),  # not at all: shut until clean images are right
    (3.0, 3.0, 0.0, Gate(1.0, 1.0)),  # nor do they matter
    (3.0, 3.0, 2.0, Gate(1.0, OFFSETS[-1], kept=False)),  # more than all of them
    (25.0, 35.0, 1.0, Gate(1.0, -27.0)),  # sure that all are shifted, of some more so: shut far down
    (1.6, 2.0, 1.0, Gate(8.0, -1.75)),  # only between two steps: open at 2 - 1.75, shut at 1.6 - 1.75
]


def test_gate_opens_half_as_far_where_measuring_finds_less_than_was_promised() -> None:
    black, white = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.full((4, 3, 8, 8), 255, dtype=torch.uint8)
    validation = Validation.__new__(Validation)
    validation.parts = [(black, torch.zeros(4, dtype=torch.long)), (white, torch.ones(4, dtype=torch.long))]
    validation.primary, validation.conditions = ACCURACY, 1
    calibrator = _Gated(-3.0, 9.0)

    def classifier(images: torch.Tensor) -> torch.Tensor:
        opened = images[:, 0, 0, 0]
        return torch.stack([opened < 0.3, opened > 0.7], 1).float()

    def measured(*_: object) -> float:  # clean images mind a gate that opens to a twentieth
        return float(torch.sigmoid(calibrator.gate(torch.tensor([[-300.0]]))) < 0.05)

    validation.clean = measured  # type: ignore[method-assign]
    chosen = set_gate(calibrator, classifier, validation, least_clean=0.9)
    opened = torch.sigmoid(chosen.gain * (torch.tensor([-3.0, 9.0]) + chosen.offset))
    assert chosen.kept
    assert opened[0] < 0.05
    assert opened[1] > 0.7


@pytest.mark.parametrize(
    ("clean", "shifted", "least", "found"),
    GATES,
)
def test_gate_is_as_open_and_as_sharp_as_clean_images_allow(
    clean: float, shifted: float, least: float, found: Gate
) -> None:
    black, white = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.full((4, 3, 8, 8), 255, dtype=torch.uint8)
    validation = Validation.__new__(Validation)
    validation.parts = [(black, torch.zeros(4, dtype=torch.long)), (white, torch.ones(4, dtype=torch.long))]
    validation.primary, validation.conditions = ACCURACY, 1
    calibrator = _Gated(clean, shifted)

    def classifier(images: torch.Tensor) -> torch.Tensor:
        """Class 0 below 0.3, 1 above 0.7, else 2."""
        opened = images[:, 0, 0, 0]
        return torch.stack([opened < 0.3, opened > 0.7, (opened - 0.5).abs() <= 0.2], 1).float()

    told: list[None] = []
    chosen = set_gate(calibrator, classifier, validation, least_clean=least, progress=lambda: told.append(None))
    assert chosen == found
    assert len(validation.parts) <= len(told) <= gate_steps(validation)
    # What the branches propose is asked for once, and again only where a gate is measured.
    assert calibrator.calls <= gate_steps(validation) + 1
    logit = found.gain * (torch.tensor([clean, shifted]) + found.offset)
    assert calibrator.gate(100 * torch.tensor([[clean], [shifted]]))[:, 0].tolist() == pytest.approx(
        logit.tolist(), abs=0.01
    )
    assert found.gain in GAINS
    assert OFFSETS[-1] <= found.offset <= OFFSETS[0]


def test_the_clean_budget_decides_what_the_gate_gives_up(finished_run: Path, tmp_path: Path) -> None:
    """Another budget asks for another gate, not for another training."""
    from qrobust.compensation.fit import GIVEN_UP
    from qrobust.pipeline.compensate import calibrator_data, fit_in_run

    class Told(Reporter):
        def __init__(self) -> None:
            self.said: list[str] = []

        def say(self, text: str) -> None:
            self.said.append(text)

    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "checkpoints").mkdir(exist_ok=True)
    found = {}
    for budget in (0.0, 100.0):
        told = Told()
        opened_run = Run.open(
            run, told, threads=1, steps=60, train_on=("contrast",), few_shot=32, use_labels=False, clean_budget=budget
        )
        fit = fit_in_run(opened_run, opened_run.fake_quantized, calibrator_data(opened_run))
        given_up = fit.int8_phase.shift_accuracy - fit.shift_accuracy
        assert any("--clean-budget" in text for text in told.said) == (given_up > GIVEN_UP)
        found[budget] = fit
    strict, free = found[0.0], found[100.0]
    assert strict.clean_accuracy >= free.clean_accuracy
    assert strict.shift_accuracy < free.shift_accuracy
    assert strict.earlier_s == 0 < free.earlier_s
    assert strict.int8_phase == free.int8_phase


def test_the_cost_on_clean_images_is_told_with_its_bound(finished_run: Path) -> None:
    record = read_record(finished_run / "record.json")
    assert record.compensation is not None
    cost = record.compensation.validation.clean_cost
    assert cost is not None
    assert cost.n == record.splits["validation"].n
    assert (cost.budget_pp, cost.allowed_pp) == (0.3, pytest.approx(max(0.3, 100 / cost.n)))
    assert cost.folds == FOLDS
    assert cost.bound_pp > cost.cost_pp
    assert (cost.images_to_tell is not None) == (cost.bound_pp > 1.3)
    card = (finished_run / "compensated.card.md").read_text()
    assert f"On {cost.n} validation images, in 5 folds of which each judged what the others chose, it cost" in card
    assert f"{cost.cost_pp:.1f}, with 95 % confidence at most" in card


@pytest.mark.slow  # four trainings
@pytest.mark.parametrize("make", ["calibrator", "finetune"])
def test_without_labels_no_label_has_an_effect(make: str, finished_run: Path, tmp_path: Path) -> None:
    from qrobust.pipeline.baselines import MAKERS
    from qrobust.pipeline.compensate import calibrator_data, fit_in_run

    def made(name: str, *, mixed_up: bool, use_labels: bool) -> tuple[str, Any]:
        run = shutil.copytree(finished_run, tmp_path / name)
        config = json.loads((run / "config.json").read_text())
        chosen = {"use_labels": use_labels, "steps": 20, "batch_size": 16, "train_on": ["contrast"]}
        (run / "config.json").write_text(json.dumps(config | chosen))
        (run / "checkpoints").mkdir(exist_ok=True)
        opened_run = Run.open(run, Reporter(), threads=1)
        labels = opened_run.data.training.source.labels
        if mixed_up:
            labels.copy_((labels + 1) % 10)
        if make == "finetune":
            made = MAKERS[make](opened_run)
            return state_hash(made.model), made.training.training
        fit = fit_in_run(opened_run, opened_run.fake_quantized, calibrator_data(opened_run))
        return state_hash(fit.calibrator), (fit.float_phase, fit.int8_phase, fit.clean_accuracy, fit.shift_accuracy)

    blind = made("blind", mixed_up=False, use_labels=False)
    assert blind == made("mixed up", mixed_up=True, use_labels=False)
    assert made("seeing", mixed_up=False, use_labels=True) != made("misled", mixed_up=True, use_labels=True)


def test_evolution_keeps_the_best_that_onnxruntime_measured(finished_run: Path) -> None:

    opened_run = Run.open(finished_run, Reporter(), threads=1)
    validation = Validation(opened_run.data.validation, [("contrast", 5)], table="cifar-c", seed=1, limit=60)
    before = state_hash(opened_run.calibrator)
    deployed = opened_run.onnx_classifier("int8")

    def evolved(least_clean: float, deploy: Deploy) -> tuple[torch.nn.Module, EvolutionStrategy]:
        return evolve(
            opened_run.calibrator,
            deployed,
            validation,
            2,
            least_clean=least_clean,
            deploy=deploy,
            seed=0,
            reporter=Reporter(),
        )

    unmoved, _ = evolved(2.0, lambda candidate: candidate)  # type: ignore[arg-type, return-value]  # as torch runs it
    assert state_hash(unmoved) == before
    best, scores = evolved(0.0, opened_run.deploy)
    assert state_hash(opened_run.calibrator) == before
    assert scores.after >= scores.before
    assert (scores.after == scores.before) == (state_hash(best) == before)


def test_validation_shares_its_limit() -> None:
    data = open_data("digits", seed=0)
    validation = Validation(data.validation, [("fog", 1), ("fog", 5)], table="cifar-c", seed=0, limit=60)
    assert [len(p) for p, _ in validation.parts] == [60, 30, 30]
    clean, shifted = validation.measure(
        lambda x: torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 10)
    )
    zeros = (data.validation.labels[:60] == 0).float().mean().item()
    assert (clean, shifted) == (pytest.approx(zeros), pytest.approx(zeros))


@pytest.mark.parametrize("native", [True, False])
def test_arithmetic_is_bfloat16_only_where_the_cpu_has_it(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qrobust.device.bfloat16_kernels", lambda place: native)
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with fast_arithmetic(CPU):
        assert layer(x).dtype == (torch.bfloat16 if native else torch.float32)
    with fast_arithmetic(CPU, enabled=False):
        assert layer(x).dtype == torch.float32


def test_divergence_is_noticed_before_it_reaches_the_weights(tmp_path: Path) -> None:
    """A finite loss may have a gradient that is not."""
    module = torch.nn.Linear(1, 1)
    before = state_hash(module)

    def loss(step: int, size: int) -> torch.Tensor:
        return module.weight.sum() + (0 * module.weight.sum()).abs().sqrt()  # the root's slope at 0 is infinite

    done = fit(
        module,
        torch.optim.SGD(module.parameters(), lr=0.1),
        steps=3,
        rates=lambda _: [0.1],
        loss=loss,
        batch_size=1,
        least_batch=1,
        judge=lambda: (0.0,),
        score=lambda found: found,
        judge_after=lambda _: True,
        describe=str,
        checkpoint=tmp_path / "c.pt",
        checkpoint_every=9,
        progress=lambda *_: None,
        replaces_start=lambda *_: True,
    )
    assert (done.diverged, done.steps, done.best_step) == (True, 0, 0)
    assert state_hash(module) == before


@pytest.mark.parametrize("size", [28, 33, 65, 112, 160, 176, 224, 299, 384])
def test_the_summary_keeps_where_things_are(size: int) -> None:
    calibrator = Calibrator(size, 4)
    hidden = next(layer for layer in calibrator.summary if isinstance(layer, torch.nn.Linear))
    assert hidden.in_features == 8 * 4 * 4
    with torch.no_grad():
        assert calibrator(torch.rand(1, 3, size, size)).shape == (1, 3, size, size)


def test_sampling_favours_what_hurts() -> None:
    conditions = [("fog", 3), ("fog", 5), ("rotation", 5)]
    assert sampling(conditions).tolist() == pytest.approx([0.25, 0.25, 0.5])
    assert sampling(conditions, [0.2, 0.6, 0.1]).tolist() == pytest.approx([0.25, 0.25, 0.5])
    assert sampling(conditions, [0.0, 0.0, 0.0], 1.0).tolist() == pytest.approx([0.25, 0.25, 0.5])
    # Errors weigh as 0.25 x 0.2, 0.25 x 0.6, 0.5 x 0.1 of their sum, 0.25.
    assert sampling(conditions, [0.2, 0.6, 0.1], 0.5).tolist() == pytest.approx([0.225, 0.425, 0.35])


Choice = tuple[int, tuple[str, ...]]


@pytest.fixture
def chosen_by(finished_run: Path, tmp_path: Path) -> Callable[[float | None], tuple[Choice, float | None]]:
    """Width and branches of the calibrator that a latency budget chooses, and its time over INT8's."""
    from qrobust.pipeline.compensate import calibrator_data, checkpoints_of, frozen_classifier

    shutil.copytree(finished_run, tmp_path / "run")

    def choose(budget: float | None) -> tuple[Choice, float | None]:
        asked = Run.open(tmp_path / "run", Reporter(), threads=1, latency_budget=budget)
        frozen = frozen_classifier(asked, asked.fake_quantized)
        calibrator, ratio = fitting.choose_calibrator(
            replace(frozen, deploy=lambda module: module),  # type: ignore[arg-type, return-value]  # its time is made up
            calibrator_data(asked),
            asked.config.calibrator,
            chosen=checkpoints_of(asked, asked.fake_quantized).chosen,
            seed=0,
            reporter=Reporter(),
        )
        return (calibrator.width, calibrator.branches), ratio

    return choose


@pytest.fixture
def choices(finished_run: Path) -> list[Choice]:
    """All calibrators within the run's budget of multiply-accumulates, best first."""
    run = Run.open(finished_run, Reporter(), threads=1)
    return candidates(run.model, training_data(run), run.config.calibrator)


def test_latency_budget_narrows_the_calibrator(
    chosen_by: Callable[[float | None], tuple[Choice, float | None]],
    choices: list[Choice],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert chosen_by(None) == (choices[0], None)
    timed: list[dict[str, float]] = []

    def latencies(sessions: dict[str, object], size: int, batch: int) -> dict[str, float]:
        assert (size, batch) == (32, 1)
        timed.append({"alone": 1.0, "compensated": 2.0 - 0.3 * len(timed)})
        return timed[-1]

    monkeypatch.setattr(fitting, "latencies_ms", latencies)
    assert chosen_by(1.75) == (choices[1], pytest.approx(1.7))
    timed.clear()
    monkeypatch.setattr(fitting, "latencies_ms", lambda *_: {"alone": 1.0, "compensated": 3.0})
    # A training that goes on keeps what was chosen, though times differ now.
    assert chosen_by(1.75) == (choices[1], pytest.approx(1.7))
    with pytest.raises(InputError, match=r"smallest calibrator takes 3\.00 times"):
        chosen_by(1.5)
    with pytest.raises(InputError, match=r"latency_budget: expected a factor above 1, or 0 for none, got 0\.5"):
        chosen_by(0.5)


def test_time_is_bounded_in_front_of_large_images_as_far_as_it_can_be(
    chosen_by: Callable[[float | None], tuple[Choice, float | None]],
    choices: list[Choice],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qrobust.compensation.config.FINE_SIZE", 16)  # 32 px are large now
    monkeypatch.setattr(fitting, "latencies_ms", lambda *_: {"alone": 1.0, "compensated": 3.0})
    assert chosen_by(0) == (choices[0], None)
    assert chosen_by(None) == (choices[-1], 3.0)


def test_views_are_what_the_teacher_says(small_model: NormalizedModel) -> None:
    training_split = open_data("digits", seed=0).training.first(150)
    known = training.teacher_outputs(small_model, training_split, 1000)
    assert known is not None
    exact = small_model(training_split.read(slice(None)).float() / 255)
    assert (known.logits - exact).abs().max() < 0.05 * exact.std()
    assert known.features is not None
    head = [m for m in small_model.modules() if isinstance(m, torch.nn.Linear)][-1]
    assert (head(known.features.float()) - exact).abs().max() < 0.05 * exact.std()
    some = torch.arange(0, 150, 7)
    assert known.of(some).distance(known.of(some)) == 0
    assert training.teacher_outputs(small_model, training_split, 149) is None


def test_association_is_of_logits_and_features_in_units_of_their_variance(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    body = [torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()]
    with_head, without = torch.nn.Sequential(*body, torch.nn.Linear(12, 4)), torch.nn.Sequential(*body)
    logits, features = logits_and_features(with_head, images)
    assert features is not None
    assert torch.equal(features, without(images))
    assert torch.equal(logits, with_head(images))
    assert logits_and_features(without, images)[1] is None
    view, moved = (
        training.TeacherOutput(logits, features),
        training.TeacherOutput(logits + 2 * logits.std(), features - features.std()),
    )
    assert view.distance(moved).item() == pytest.approx(4 + 1)
    assert view.distance(training.TeacherOutput(logits, None)) == 0


def test_statistics_distance_is_nothing_on_the_images_they_were_taken_from(images: torch.Tensor) -> None:
    from qrobust.compensation.alignment import norms, statistics_distance
    from qrobust.compensation.baselines import reestimate_batch_norm

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4)).eval()
    adapted = reestimate_batch_norm(model, [images])
    assert len(norms(adapted)) == 1
    assert statistics_distance(adapted, images).item() < 1e-4
    # A convolution without bias carries a change of scale to means and deviations: in units of the deviation the
    # mean moves by half of itself, the deviations' ratio by one half.
    norm = adapted[1]
    moved = (0.5 * norm.running_mean / norm.running_var.sqrt()).square().mean() + 0.25
    assert statistics_distance(adapted, 0.5 * images).item() == pytest.approx(moved.item(), rel=1e-2)
    changed = (0.5 * images).requires_grad_()
    statistics_distance(adapted, changed).backward()
    assert changed.grad.abs().sum() > 0


def test_a_correction_does_not_depend_on_how_images_lie_in_memory() -> None:
    torch.manual_seed(0)
    calibrator = Calibrator(32, 4)
    for parameter in calibrator.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    images = torch.rand(2, 3, 32, 32)
    interleaved = calibrator(images.contiguous(memory_format=torch.channels_last))
    # Convolutions may sum in another order.
    assert (interleaved - calibrator(images)).abs().max() < 1e-4
    assert interleaved.is_contiguous()
