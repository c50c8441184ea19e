"""The ladder of remedies: what each rung may change and what it must not, and which rung is enough."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from conftest import random_model
from torch import fx, nn

from qrobust.compensation import retraining
from qrobust.compensation.clean_budget import within_clean_budget
from qrobust.compensation.config import CalibratorConfig
from qrobust.compensation.first_stage import first_stage, prepare_first_stage
from qrobust.compensation.fit import CalibratorData, FrozenClassifier
from qrobust.compensation.retraining import weight_change
from qrobust.compensation.scales import RescaledLayer, prepare_scales
from qrobust.data.loading import open_data
from qrobust.data.splits import Data, TrainingData
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.export import export
from qrobust.evaluation.primary import Primary
from qrobust.quantization.config import QATConfig
from qrobust.quantization.integer_layers import ActivationQuantizer, IntegerConv2d, IntegerLinear
from qrobust.quantization.ptq import Observed, build, observe
from qrobust.quantization.qat import QatFit, convert_qat, train
from qrobust.quantization.recipe import Recipe
from qrobust.quantization.target import X86_VNNI
from qrobust.record import WeightChange
from qrobust.remedies import least_intrusive
from qrobust.shifts.filters import to_unit

STAGE = ["network.conv1", "network.blocks.0.conv1", "network.blocks.0.conv2"]
STRIDED = [nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2)]
EXAMPLE = torch.full((1, 3, 32, 32), 0.5)


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits", seed=0, calibration_images=48, test_images=48)


@pytest.fixture(scope="module")
def observed(digits: Data) -> Observed:
    return observe(random_model(), (to_unit(i) for i, _ in digits.calibration.batches(16)), Recipe())


@pytest.fixture(scope="module")
def int8(observed: Observed) -> fx.GraphModule:
    return build(observed, X86_VNNI, Recipe())


def learn(trainable: fx.GraphModule, digits: Data, folder: Path, steps: int = 12) -> QatFit:
    """A few steps towards the random teacher of `observed`, under low contrast."""
    return train(
        trainable,
        random_model(),
        TrainingData(digits.training, [("contrast", 5)], "cifar-c"),
        digits.validation.first(48),
        QATConfig(epochs=1, learning_rate=3e-3, distillation=1.0),
        steps=steps,
        batch_size=16,
        seed=0,
        checkpoint=folder / "training.pt",
    )


def layers(model: nn.Module) -> dict[str, IntegerConv2d | IntegerLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, IntegerConv2d | IntegerLinear)}


def scales(model: nn.Module) -> dict[str, float]:
    return {n: float(m.scale) for n, m in model.named_modules() if isinstance(m, ActivationQuantizer)}


def test_a_rescaled_layer_is_its_layer_until_its_scale_or_bias_moves() -> None:
    integers = torch.randint(-127, 128, (4, 3), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    layer = IntegerLinear(integers, torch.full((4,), 0.01), torch.zeros(4), torch.tensor(0.1))
    rescaled, x = RescaledLayer(layer), torch.randn(5, 3)
    assert torch.allclose(rescaled(x), layer(x), atol=1e-6)
    with torch.no_grad():
        rescaled.log_scale[1] += torch.log(torch.tensor(2.0))
        rescaled.bias[2] += 0.5
    wanted = layer(x) * torch.tensor([1.0, 2, 1, 1]) + torch.tensor([0, 0, 0.5, 0])
    assert torch.allclose(rescaled(x), wanted, atol=1e-5)


def test_the_int32_bias_follows_the_scales_of_input_and_weights() -> None:
    layer = IntegerLinear(torch.ones(2, 1, dtype=torch.int8), torch.full((2,), 0.5), torch.ones(2), torch.tensor(0.1))
    rescaled = RescaledLayer(layer)
    with torch.no_grad():
        rescaled.log_scale.copy_(torch.tensor([0.25, 1.0]).log())
    frozen = rescaled.frozen(ActivationQuantizer(0.02, 0, 0, 255))
    assert frozen.bias_int.tolist() == [200, 50]  # 1 / (0.02 * 0.25) and 1 / (0.02 * 1)
    assert torch.allclose(frozen.bias(), torch.ones(2))
    assert layer.bias_int.tolist() == [20, 20]


def test_scales_learn_and_every_integer_weight_stays(
    int8: fx.GraphModule, digits: Data, images: torch.Tensor, tmp_path: Path
) -> None:
    trainable = prepare_scales(int8)
    done = learn(trainable, digits, tmp_path)
    assert done.best_step > 0
    assert done.divergence < done.start_divergence
    learned = convert_qat(trainable)
    for name, layer in layers(int8).items():
        assert torch.equal(layers(learned)[name].weight_int, layer.weight_int), name
        assert not torch.equal(layers(learned)[name].weight_scale, layer.weight_scale), name
    assert scales(learned) != scales(int8)
    # The graphs: the same operators over the same integers, and as many bytes.
    protos = []
    for name, model in (("before", int8), ("after", learned)):
        export(model, tmp_path / f"{name}.onnx", 32)
        protos.append(onnx.load(tmp_path / f"{name}.onnx"))
    before, after = protos
    assert [(n.name, n.op_type, list(n.input)) for n in before.graph.node] == [
        (n.name, n.op_type, list(n.input)) for n in after.graph.node
    ]
    weights = [
        {t.name: t.raw_data for t in p.graph.initializer if t.data_type == onnx.TensorProto.INT8} for p in protos
    ]
    assert weights[0] == weights[1]
    assert len([name for name in weights[0] if len(weights[0][name]) > 64]) >= len(layers(int8))
    assert (tmp_path / "before.onnx").stat().st_size == (tmp_path / "after.onnx").stat().st_size
    # Parity: what was trained is what onnxruntime computes.
    wanted = learned(images)
    assert (wanted - OnnxClassifier(tmp_path / "after.onnx", 1)(images)).abs().mean() < 0.05 * wanted.std()


def test_the_first_stage_is_what_runs_at_the_resolution_of_the_stem(int8: fx.GraphModule) -> None:
    assert first_stage(int8, EXAMPLE) == STAGE


@pytest.mark.parametrize(
    ("network", "found"),
    [
        # A stem that reduces twice, one layer at its resolution, then the next reduction.
        ([*STRIDED, nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 1)], ["0", "2"]),
        # The resolution never falls: a quarter of eight layers.
        ([nn.Conv2d(3, 3, 1) for _ in range(8)], ["0", "1"]),
    ],
)
def test_the_first_stage_of_other_networks(network: list[nn.Module], found: list[str]) -> None:
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*network, *head).eval().requires_grad_(False)
    observed = observe(model, [torch.rand(4, 3, 32, 32)], Recipe())
    assert first_stage(build(observed, X86_VNNI, Recipe()), EXAMPLE) == found


def test_beyond_the_first_stage_nothing_changes(
    observed: Observed, int8: fx.GraphModule, digits: Data, tmp_path: Path
) -> None:
    trainable = prepare_first_stage(observed.graph, int8, EXAMPLE)
    learn(trainable, digits, tmp_path, steps=4)
    learned = convert_qat(trainable)
    for name, layer in layers(int8).items():
        after = layers(learned)[name].state_dict()
        same = all(torch.equal(value, after[key]) for key, value in layer.state_dict().items())
        assert same == (name not in STAGE), name


def test_weight_change_by_hand() -> None:
    def layer(integers: list[int], scale: float) -> nn.Module:
        weights = torch.tensor([integers], dtype=torch.int8)
        return nn.Sequential(IntegerLinear(weights, torch.tensor([scale]), torch.zeros(1), torch.tensor(1.0)))

    assert weight_change(layer([3, 4], 1.0), layer([3, 4], 1.0)) == WeightChange(
        relative_change=0.0, integers_changed=0.0
    )
    assert weight_change(layer([3, 4], 1.0), layer([3, 4], 2.0)).relative_change == pytest.approx(1)
    assert weight_change(layer([3, 4], 1.0), layer([3, 4], 2.0)).integers_changed == 0
    moved = weight_change(layer([3, 4], 1.0), layer([3, 9], 1.0))
    assert (moved.relative_change, moved.integers_changed) == (1.0, 0.5)


class _Way(nn.Module):
    """Trained from 0 to 1; its clean accuracy falls and its accuracy under shift rises with the share."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(
    ("least", "share"),
    [
        (0.0, 1.0),  # all of it is allowed
        (0.6, 0.375),  # 1 and 1/2 cost too much, 1/4 does not, nor does 3/8
        (0.95, 0.0),  # 1/8 costs too much, too
    ],
)
def test_the_clean_budget_goes_back_towards_the_start(least: float, share: float) -> None:
    way = _Way()
    start = {"at": torch.zeros(1)}
    validation: Any = SimpleNamespace(
        clean_scores=lambda c: torch.tensor([1 - c]),
        clean_value=lambda scores: scores.item(),
        shifted=lambda c: c,
        measure=lambda c: (1 - c, c),
    )
    found = within_clean_budget(
        way,
        start,
        lambda: way.at.item(),  # type: ignore[arg-type,return-value]  # a model is its share here
        lambda model: model,  # type: ignore[arg-type,return-value]
        validation,
        least_clean=least,
    )
    assert (found.share, found.clean_accuracy, found.shift_accuracy) == (share, 1 - share, share)
    assert way.at.item() == share


@pytest.mark.parametrize(
    ("gains", "wanted"),
    [
        ({"calibrator": 14.9, "scales": 19.2, "finetune": 29.2}, "finetune"),
        ({"calibrator": 14.9, "scales": 19.2, "scales+calibrator": 19.9, "finetune": 20.2}, "scales"),
        ({"finetune": 10.0, "first-stage": 9.5, "bn-reestimate": 10.4}, "first-stage"),
        ({"bn-reestimate": 5.0, "denoise": 4.5}, "bn-reestimate"),
        ({"calibrator": -1.0, "scales": 0.0}, None),
        ({}, None),
    ],
)
def test_the_least_intrusive_rung_that_is_enough(gains: dict[str, float], wanted: str | None) -> None:
    assert least_intrusive(gains, margin=1.0) == wanted


def test_what_trains_the_classifier_keeps_its_state_by_the_measure_that_decides(
    int8: fx.GraphModule, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, asked = Primary("balanced"), list[object]()

    class AskedError(Exception):
        pass

    def finetune(*_: object, primary: Primary, **__: object) -> None:
        asked.append(primary)
        raise AskedError

    monkeypatch.setattr(retraining, "finetune", finetune)
    data = CalibratorData(
        TrainingData(digits.training, [], "cifar-c"), digits.validation, digits.calibration, primary=primary
    )
    frozen: Any = FrozenClassifier(int8, random_model(), X86_VNNI, lambda _: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(AskedError):
        retraining.retrain(
            "scales", int8, frozen, data, CalibratorConfig(), QATConfig(), checkpoint=tmp_path / "none.pt"
        )
    assert asked == [primary]
