from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qrobust import training_loop as fitting
from qrobust.classifier import NormalizedModel, state_hash
from qrobust.data.loading import open_data
from qrobust.data.splits import Data, TrainingData
from qrobust.errors import InputError
from qrobust.evaluation.primary import Primary
from qrobust.quantization import ptq, qat
from qrobust.quantization.config import QATConfig
from qrobust.quantization.integer_layers import ActivationQuantizer, IntegerConv2d
from qrobust.quantization.ptq import Observed, build, observe
from qrobust.quantization.qat import (
    LearnedStep,
    QatFit,
    TrainableQuantizer,
    beyond_luck,
    convert_qat,
    prepare_qat,
    train,
)
from qrobust.quantization.recipe import Recipe
from qrobust.quantization.target import X86_VNNI
from qrobust.shifts.filters import to_unit

RECIPE = Recipe("w4a4")


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits", seed=0, calibration_images=48, test_images=48)


@pytest.fixture
def observed(small_model: NormalizedModel, digits: Data) -> Observed:
    return observe(small_model, (to_unit(i) for i, _ in digits.calibration.batches(16)), RECIPE)


def test_gradients_of_learned_steps_by_hand() -> None:
    # Levels -0.6 (inside), 1.3 (inside), 5 (above 3): arXiv 1902.08153, equations 3 and 5.
    x = torch.tensor([-0.3, 0.65, 2.5], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    y = LearnedStep.apply(x, scale, -3, 3)
    assert torch.allclose(y, torch.tensor([-0.5, 0.5, 1.5]))
    y.sum().backward()
    assert x.grad is not None
    assert scale.grad is not None
    assert x.grad.tolist() == [1, 1, 0]
    assert float(scale.grad) == pytest.approx((-1 + 0.6) + (1 - 1.3) + 3, abs=1e-6)


def test_gradient_per_channel_sums_over_the_channel() -> None:
    weight = torch.randn(4, 3, 2, 2, requires_grad=True)
    scale = torch.full((4, 1, 1, 1), 0.3, requires_grad=True)
    LearnedStep.apply(weight, scale, -7, 7).sum().backward()
    assert scale.grad is not None
    assert scale.grad.shape == scale.shape
    alone = torch.tensor(0.3, requires_grad=True)
    LearnedStep.apply(weight[2].detach(), alone, -7, 7).sum().backward()
    assert alone.grad is not None
    # One sum over twelve float32 values, in another order.
    assert float(scale.grad[2]) == pytest.approx(float(alone.grad), abs=1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("rounding", ["nearest", "adaround"])
def test_thawed_twin_computes_what_the_twin_computes(
    rounding: str, observed: Observed, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ptq, "ROUNDING_STEPS", 60)
    fake_quantized = build(observed, X86_VNNI, replace(RECIPE, rounding=rounding))
    images = to_unit(digits.test.read(slice(0, 8)))
    trainable = prepare_qat(observed.graph, fake_quantized, learn_ranges=True)
    # exp(log(scale)) is not quite the scale, so a value on the edge of two steps may move by one.
    wanted, got = fake_quantized(images), trainable(images)
    assert (wanted - got).abs().mean() < 0.02 * wanted.std()
    again = convert_qat(trainable)(images)
    assert (got - again).abs().mean() < 0.02 * wanted.std()


def fit(
    trainable: torch.fx.GraphModule, model: NormalizedModel, digits: Data, folder: Path, **changes: object
) -> QatFit:
    options = {"steps": 24, "batch_size": 16, "seed": 0, "checkpoint": folder / "qat.pt"}
    config = QATConfig(
        epochs=1,
        learning_rate=changes.pop("learning_rate", 1e-3),  # type: ignore[arg-type]  # of any test's type
        distillation=changes.pop("distillation", 1.0),  # type: ignore[arg-type]
    )
    conditions = changes.pop("conditions", [])
    return train(
        trainable,
        model,
        TrainingData(digits.training, conditions, "cifar-c"),  # type: ignore[arg-type]
        digits.validation.first(60),
        config,
        **(options | changes),  # type: ignore[arg-type]
    )


@pytest.mark.heavy
def test_training_brings_the_twin_nearer_to_the_teacher_and_leaves_the_original(
    small_model: NormalizedModel, observed: Observed, digits: Data, tmp_path: Path
) -> None:
    fake_quantized = build(observed, X86_VNNI, RECIPE)
    before, floats = state_hash(fake_quantized), state_hash(observed.graph)
    trainable = prepare_qat(observed.graph, fake_quantized, learn_ranges=True)
    result = fit(trainable, small_model, digits, tmp_path)
    assert (result.accuracy, -result.divergence) > (result.start_accuracy, -result.start_divergence)
    assert result.best_step > 0
    assert not result.diverged
    assert (state_hash(fake_quantized), state_hash(observed.graph)) == (before, floats)
    trained = convert_qat(trainable)
    layer = trained.get_submodule("network.blocks.0.conv1")
    assert isinstance(layer, IntegerConv2d)
    assert layer.weight_int.abs().max() <= 7


@pytest.mark.parametrize(
    ("found", "replaces"),
    [
        ((0.8945, 0.0039), False),  # 0.25 points of 2,000 images, at a standard error of 0.69
        ((0.8991, 0.0039), True),
        ((0.8920, 0.0000), True),
        ((0.8920, 0.0001), False),
        ((0.8915, 0.0000), False),
    ],
)
def test_what_may_be_luck_does_not_replace_the_twin_as_it_was(found: tuple[float, float], replaces: bool) -> None:
    assert beyond_luck(found, (0.8920, 0.0001), 2000) is replaces


@pytest.mark.parametrize(
    ("primary", "wanted"), [(Primary("balanced"), 0.1), (Primary("recall:0", 0), 1.0), (Primary("recall:3", 3), 0.0)]
)
def test_the_measure_that_decides_judges_states(
    primary: Primary, wanted: float, digits: Data, tmp_path: Path
) -> None:
    """A network that always answers class 0, clean and under shift; one step of no size leaves it so."""
    always = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    torch.nn.init.zeros_(always[1].weight)
    torch.nn.init.constant_(always[1].bias, 0.0)
    with torch.no_grad():
        always[1].bias[0] = 1.0
    result = fit(
        always, always, digits, tmp_path, steps=1, learning_rate=1e-9, conditions=[("contrast", 5)], primary=primary
    )  # type: ignore[arg-type]  # any module trains
    assert (result.start_accuracy, result.accuracy) == (pytest.approx(wanted), pytest.approx(wanted))


def test_a_training_that_gains_nothing_keeps_the_start(tmp_path: Path) -> None:
    """Each state judged is a little more accurate than the start; none may take its place."""
    module = torch.nn.Linear(1, 1)
    before, deployed = state_hash(module), iter([(0.50, 0.1), (0.51, 0.2), (0.52, 0.2), (0.55, 0.2), (0.54, 0.1)])
    options = {
        "steps": 4,
        "rates": lambda _: [0.1],
        "loss": lambda *_: module.weight.sum(),
        "batch_size": 1,
        "least_batch": 1,
        "judge": lambda: next(deployed),
        "score": lambda found: (found[0], -found[1]),
        "judge_after": lambda _: True,
        "describe": str,
        "checkpoint_every": 9,
        "progress": lambda *_: None,
    }
    done = fitting.fit(
        module,
        torch.optim.SGD(module.parameters(), lr=0.1),
        checkpoint=tmp_path / "none.pt",
        replaces_start=lambda found, start: beyond_luck(found, start, 50),
        **options,  # type: ignore[arg-type]
    )
    assert (done.best_step, done.best) == (0, (0.50, 0.1))
    assert state_hash(module) == before
    deployed = iter([(0.50, 0.1), (0.51, 0.2), (0.52, 0.2), (0.55, 0.2), (0.54, 0.1)])
    done = fitting.fit(
        module,
        torch.optim.SGD(module.parameters(), lr=0.1),
        checkpoint=tmp_path / "some.pt",
        replaces_start=lambda found, start: beyond_luck(found, start, 500),
        **options,  # type: ignore[arg-type]
    )
    assert (done.best_step, done.best) == (3, (0.55, 0.2))  # beyond a standard error of 2.2 points, then by score


@pytest.mark.parametrize("by_labels", [True, False])
def test_without_labels_the_state_nearest_to_the_teacher_is_kept(
    by_labels: bool,
    small_model: NormalizedModel,
    observed: Observed,
    digits: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As measured: agreement on 60 images fell by 8 points while accuracy under shift rose by 13."""
    start, found = (0.775, 1.43), (0.692, 0.65)
    asked: dict[str, Callable[..., Any]] = {}

    def told(*_: object, **options: Any) -> fitting.Outcome:
        asked.update(options)
        return fitting.Outcome(start=start, best=start, best_step=0, steps=1, diverged=False, earlier_s=0.0)

    monkeypatch.setattr(qat, "fit", told)
    trainable = prepare_qat(observed.graph, build(observed, X86_VNNI, RECIPE), learn_ranges=True)
    fit(trainable, small_model, digits, tmp_path, by_labels=by_labels)
    assert (asked["score"](found) > asked["score"](start)) is not by_labels
    assert asked["replaces_start"](found, start) is not by_labels


def test_frozen_ranges_stay(small_model: NormalizedModel, observed: Observed, digits: Data, tmp_path: Path) -> None:
    fake_quantized = build(observed, X86_VNNI, RECIPE)
    trainable = prepare_qat(observed.graph, fake_quantized, learn_ranges=False)
    fit(trainable, small_model, digits, tmp_path, steps=4, learning_rate=1e-2)
    scales = [m.frozen().scale for m in trainable.modules() if isinstance(m, TrainableQuantizer)]
    kept = [m.scale for m in fake_quantized.modules() if isinstance(m, ActivationQuantizer)]
    assert torch.allclose(torch.stack(scales), torch.stack(kept), rtol=1e-5)


@pytest.mark.heavy
def test_training_resumes_to_the_same_weights(
    small_model: NormalizedModel, observed: Observed, digits: Data, tmp_path: Path
) -> None:
    fake_quantized = build(observed, X86_VNNI, RECIPE)
    whole, parts = (prepare_qat(observed.graph, fake_quantized, learn_ranges=True) for _ in range(2))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    fit(whole, small_model, digits, tmp_path / "a")

    class KilledError(Exception):
        pass

    def kill(step: int, *_: object) -> None:
        if step == 14:
            raise KilledError

    with pytest.raises(KilledError):
        fit(parts, small_model, digits, tmp_path / "b", progress=kill)
    resumed = prepare_qat(observed.graph, fake_quantized, learn_ranges=True)
    fit(resumed, small_model, digits, tmp_path / "b")
    assert state_hash(whole) == state_hash(resumed)


def test_shifted_images_are_drawn(
    small_model: NormalizedModel, observed: Observed, digits: Data, tmp_path: Path
) -> None:
    fake_quantized = build(observed, X86_VNNI, RECIPE)
    plain, shifted = (prepare_qat(observed.graph, fake_quantized, learn_ranges=True) for _ in range(2))
    fit(plain, small_model, digits, tmp_path, steps=2)
    (tmp_path / "qat.pt").unlink()
    fit(shifted, small_model, digits, tmp_path, steps=2, conditions=[("contrast", 5)])
    assert state_hash(plain) != state_hash(shifted)


def test_divergence_is_stopped_and_the_start_kept(
    small_model: NormalizedModel, observed: Observed, digits: Data, tmp_path: Path
) -> None:
    fake_quantized = build(observed, X86_VNNI, RECIPE)
    trainable = prepare_qat(observed.graph, fake_quantized, learn_ranges=True)

    def teacher(images: torch.Tensor) -> torch.Tensor:
        logits = small_model(images)
        return logits if len(images) != 16 else logits * float("nan")

    result = fit(trainable, teacher, digits, tmp_path)  # type: ignore[arg-type]  # any callable teaches
    assert result.diverged
    assert (result.steps, result.best_step) == (0, 0)
    assert state_hash(convert_qat(trainable)) == state_hash(
        convert_qat(prepare_qat(observed.graph, fake_quantized, learn_ranges=True))
    )


def test_bad_input(small_model: NormalizedModel, observed: Observed, digits: Data, tmp_path: Path) -> None:
    trainable = prepare_qat(observed.graph, build(observed, X86_VNNI, RECIPE), learn_ranges=True)
    with pytest.raises(InputError, match="batch_size: expected at least 8, got 4"):
        fit(trainable, small_model, digits, tmp_path, batch_size=4)
    with pytest.raises(InputError, match=r"qat_distillation: expected at most 1, got 1\.5"):
        fit(trainable, small_model, digits, tmp_path, distillation=1.5)
