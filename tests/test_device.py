"""Work that follows its modules to a device: the same numbers, nothing left behind, and one line where it cannot."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from other_device import OTHER, PLACE, OtherDevice
from torch import fx, nn

from qrobust import device as devices
from qrobust import training_loop
from qrobust.classifier import NormalizedModel, input_gradient, state_hash
from qrobust.compensation.baselines import reestimate_batch_norm
from qrobust.compensation.batches import sampling
from qrobust.compensation.calibrator import Calibrator
from qrobust.compensation.config import CalibratorConfig
from qrobust.compensation.scales import prepare_scales
from qrobust.compensation.teacher import _outputs_of, teacher_outputs
from qrobust.compensation.training import Phase, step_loss, train_calibrator
from qrobust.compensation.validation import Validation
from qrobust.data.loading import open_data
from qrobust.data.splits import Data, TrainingData
from qrobust.device import CPU_ONLY, Device, device_of, find_device, largest_that_fits
from qrobust.errors import InputError
from qrobust.progress import Reporter
from qrobust.quantization import ptq
from qrobust.quantization.config import QATConfig, QuantizationConfig
from qrobust.quantization.ptq import Observed, build, observe
from qrobust.quantization.qat import prepare_qat
from qrobust.quantization.quantize import Schedule, finetune, quantize_classifier
from qrobust.quantization.recipe import Recipe
from qrobust.quantization.sensitivity import layer_effects
from qrobust.quantization.target import X86_VNNI
from qrobust.quantization.tracing import folded
from qrobust.shifts.filters import to_unit
from qrobust.storage import read_json

# What torch says of its own meta device, which holds no values; this one does.
pytestmark = pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
ROOT = Path(__file__).parent.parent
CONDITIONS = [("contrast", 5), ("rotation", 3), ("gaussian_noise", 3)]


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits", seed=0, calibration_images=16, test_images=16, train_images=64)


@pytest.fixture
def observed(small_model: NormalizedModel, digits: Data) -> Observed:
    return observe(small_model, (to_unit(i) for i, _ in digits.calibration.batches(16)), Recipe("w4a4"))


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bfloat16: a CPU may have kernels for it, the other device never has, and numbers are compared to the bit."""
    monkeypatch.setattr(devices, "bfloat16_kernels", lambda place: False)


def test_no_other_module_names_an_accelerator() -> None:
    naming = re.compile(r"""["'](cuda|mps)|torch\.(cuda|mps)|backends\.(cuda|cudnn|mps)""")
    named = [path.name for path in (ROOT / "qrobust").rglob("*.py") if naming.search(path.read_text())]
    assert named == ["device.py"]


# Names of devices.


def test_auto_is_the_first_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_device("cpu") == CPU_ONLY
    monkeypatch.setattr(devices, "devices", lambda: {"cpu": "cpu"})
    assert find_device("auto") == CPU_ONLY


@pytest.mark.parametrize("name", ["cuda:7", "tpu", "", "cuda", "CPU"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "devices", lambda: {"cuda:1": "A Card", "cpu": "cpu"})
    with pytest.raises(InputError, match=r"^device: expected auto or one that is here, cuda:1 \(A Card\), cpu"):
        find_device(name)


def test_a_device_without_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def lack(*_: object, **__: object) -> torch.Tensor:
        raise NotImplementedError("no kernel image\nis available")

    monkeypatch.setattr(torch.nn.functional, "grid_sample", lack)
    with pytest.raises(InputError, match=r"^device: cpu has not all float32 kernels .*\(no kernel image\); try cpu"):
        find_device("cpu")


def test_auto_passes_over_a_device_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "devices", lambda: {"mps": "A Card", "cpu": "cpu"})
    monkeypatch.setattr(devices, "_lacking", lambda place: "" if place == devices.CPU else "no kernel")
    assert find_device("auto") == CPU_ONLY


# Modules that borrow a device.


def test_modules_come_back_even_from_an_error() -> None:
    layer = nn.BatchNorm2d(3)
    before = state_hash(layer)

    def work() -> None:
        with OTHER.holding(layer, None):
            assert device_of(layer) == PLACE
            raise ValueError("of the work")

    with OtherDevice(), pytest.raises(ValueError, match="of the work"):
        work()
    assert device_of(layer) == devices.CPU
    assert type(layer.weight) is nn.Parameter
    assert state_hash(layer) == before


def test_a_lent_classifier_has_the_same_gradient(small_model: NormalizedModel, images: torch.Tensor) -> None:
    def loss(logits: torch.Tensor) -> torch.Tensor:
        return logits.square().sum(1)

    wanted, _ = input_gradient(small_model, images, loss)
    with OtherDevice():
        lent = OTHER.classifier(small_model)
        gradient, _ = input_gradient(lent, images, loss)
    assert torch.equal(gradient, wanted)
    assert CPU_ONLY.classifier(small_model) is small_model


# The same numbers, and nothing left on the CPU: the other device refuses it.


@pytest.mark.heavy
@pytest.mark.usefixtures("float32")
def test_observing_building_and_measuring_follow_the_device(
    small_model: NormalizedModel, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges, learned rounding, bias correction and the effects of single layers."""
    monkeypatch.setattr(ptq, "ROUNDING_STEPS", 5)
    recipe = Recipe("w4a4", rounding="adaround", correct_bias=True)

    def quantized(device: Device) -> tuple[str, list]:
        batches = (to_unit(i) for i, _ in digits.calibration.batches(16))
        seen = observe(small_model, batches, recipe, device=device)
        made = build(seen, X86_VNNI, recipe, device=device)
        return state_hash(made), layer_effects(seen.graph, made, digits.validation.first(10), device=device)

    wanted = quantized(CPU_ONLY)
    with OtherDevice():
        assert quantized(OTHER) == wanted


@pytest.mark.heavy
@pytest.mark.usefixtures("float32")
def test_a_search_follows_the_device(
    small_model: NormalizedModel, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ptq, "RANGES", {"min-max": None})
    config = QuantizationConfig(ptq="auto", observer="min-max")

    def found(device: Device) -> tuple[str, list]:
        made = quantize_classifier(
            small_model, digits.calibration.first(16), digits.validation.first(10), config, device=device
        )
        return state_hash(made.module), made.trials

    wanted = found(CPU_ONLY)
    with OtherDevice():
        assert found(OTHER) == wanted


def test_batch_norms_are_reestimated_there(small_model: NormalizedModel, images: torch.Tensor) -> None:
    wanted = state_hash(reestimate_batch_norm(small_model, images.split(8)))
    with OtherDevice():
        assert state_hash(reestimate_batch_norm(small_model, images.split(8), device=OTHER)) == wanted


@pytest.mark.heavy
@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("remedy", ["finetune", "scales"])
def test_training_the_classifier_follows_the_device_and_goes_on_elsewhere(
    remedy: str, small_model: NormalizedModel, observed: Observed, digits: Data, tmp_path: Path
) -> None:
    fake_quantized = build(observed, X86_VNNI, Recipe("w4a4"))

    def trained(device: Device, folder: str) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)

        every = prepare_qat(observed.graph, fake_quantized, learn_ranges=True)
        trainable = prepare_scales(fake_quantized) if remedy == "scales" else every
        finetune(
            trainable,
            folded(small_model, observed.images[:1]),
            TrainingData(digits.training, CONDITIONS, "cifar-c"),
            digits.validation.first(10),
            QATConfig(epochs=1, learning_rate=1e-3),
            Schedule(steps=3, batch_size=16, seed=0, checkpoint=tmp_path / folder / "qat.pt"),
            reporter=Reporter(),
            device=device,
        )
        return state_hash(trainable)

    wanted = trained(CPU_ONLY, "here")
    with OtherDevice():
        assert trained(OTHER, "there") == wanted
    kept = [torch.load(tmp_path / folder / "qat.pt", weights_only=True) for folder in ("here", "there")]
    assert kept[0]["step"] == kept[1]["step"]
    for name, value in kept[0]["model"].items():
        assert torch.equal(kept[1]["model"][name], value)
    (tmp_path / "there" / "qat.pt").rename(tmp_path / "moved.pt")
    (tmp_path / "moved.pt").rename(tmp_path / "here" / "qat.pt")
    assert trained(CPU_ONLY, "here") == wanted  # made there, finished here


def _calibrator_step(
    fake_quantized: fx.GraphModule, teacher: NormalizedModel, digits: Data, device: Device, step: int
) -> tuple[float, torch.Tensor]:
    """The loss of one step, and its gradient in the calibrator's weights."""
    torch.manual_seed(0)
    calibrator = Calibrator(32, 8)
    phase = Phase("float", 4, 2, 1e-3, 0, Path("none"))
    data = TrainingData(digits.training, CONDITIONS, "cifar-c")
    config = CalibratorConfig(batch_size=32, reverse_weight=1.0)
    with device.holding(calibrator, fake_quantized, teacher):
        known = teacher_outputs(teacher, data.images, 10**6)
        loss = step_loss(
            calibrator, fake_quantized, teacher, known, data, sampling(CONDITIONS), config, step=step, phase=phase
        )
        loss.backward()
        gradient = torch.cat([p.grad.cpu().flatten() for p in calibrator.parameters() if p.grad is not None])
    return float(loss.detach()), gradient


@pytest.mark.heavy
@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("step", [0, 2])  # restoring pixels, and behind the classifier
def test_a_step_of_calibrator_training_follows_the_device(
    step: int, small_model: NormalizedModel, observed: Observed, digits: Data
) -> None:
    fake_quantized = build(observed, X86_VNNI, Recipe("w4a4"))
    loss, gradient = _calibrator_step(fake_quantized, small_model, digits, CPU_ONLY, step)
    with OtherDevice():
        there, gradient_there = _calibrator_step(fake_quantized, small_model, digits, OTHER, step)
    assert there == loss
    assert torch.equal(gradient_there, gradient)


@pytest.mark.heavy
@pytest.mark.usefixtures("float32")
def test_a_whole_calibrator_training_follows_the_device(
    small_model: NormalizedModel, observed: Observed, digits: Data, tmp_path: Path
) -> None:
    fake_quantized = build(observed, X86_VNNI, Recipe("w4a4"))
    validation = Validation(digits.validation, CONDITIONS, table="cifar-c", seed=1, limit=20)

    def trained(device: Device, name: str) -> tuple[str, object]:
        torch.manual_seed(0)
        calibrator = Calibrator(32, 4)
        with device.holding(calibrator, fake_quantized, small_model):
            fit = train_calibrator(
                calibrator,
                fake_quantized,
                small_model,
                TrainingData(digits.training, CONDITIONS, "cifar-c"),
                validation,
                CalibratorConfig(batch_size=16),
                Phase("float", 6, 3, 1e-3, 0, tmp_path / f"{name}.pt"),
            )
        return state_hash(calibrator), fit

    wanted = trained(CPU_ONLY, "here")
    with OtherDevice():
        assert trained(OTHER, "there") == wanted


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("step", [0, 2])
def test_cuda_agrees_with_the_cpu(
    step: int, small_model: NormalizedModel, observed: Observed, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step in float32: loss and gradient to a thousandth, for sums of float32 in another order."""
    monkeypatch.setattr(devices, "bfloat16_kernels", lambda place: False)
    fake_quantized = build(observed, X86_VNNI, Recipe("w4a4"))
    loss, gradient = _calibrator_step(fake_quantized, small_model, digits, CPU_ONLY, step)
    there, gradient_there = _calibrator_step(fake_quantized, small_model, digits, find_device("cuda"), step)
    assert there == pytest.approx(loss, rel=1e-3)
    assert (gradient_there - gradient).norm() <= 1e-3 * gradient.norm()


# Memory.


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("MPS backend out of memory"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "mps", "python"],
)
@pytest.mark.parametrize(("most", "expected"), [(40, "expected 32, which fits"), (3, "expected more memory")])
def test_out_of_memory_is_one_line_with_the_batch_size_that_fits(
    most: int, expected: str, error: Exception, tmp_path: Path
) -> None:
    module = nn.Linear(1, 1)

    def loss(step: int, size: int) -> torch.Tensor:
        if size > most:
            raise error
        return module.weight.sum()

    with pytest.raises(InputError, match=f"^batch_size: {expected}.* got 128$"):
        training_loop.fit(
            module,
            torch.optim.SGD(module.parameters(), lr=0.1),
            steps=3,
            rates=lambda _: [0.1],
            loss=loss,
            batch_size=128,
            least_batch=16,
            judge=lambda: (0.0,),
            score=lambda found: found,
            judge_after=lambda _: False,
            describe=str,
            checkpoint=tmp_path / "none.pt",
            checkpoint_every=9,
            progress=lambda *_: None,
        )


def test_other_errors_are_not_taken_for_it() -> None:
    def attempt(size: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_that_fits(8, attempt)


# Speed.


def test_a_cpu_takes_few_large_images_at_once_and_other_devices_all() -> None:
    assert devices.part_size(torch.zeros(128, 3, 32, 32)) >= 128
    assert devices.part_size(torch.zeros(128, 3, 224, 224)) == 6
    assert devices.part_size(torch.zeros(2, 3, 2048, 2048)) == 1
    assert devices.part_size(torch.zeros(128, 3, 224, 224, device="meta")) == 128


def test_parts_give_the_outputs_and_the_gradient_of_the_whole(
    small_model: NormalizedModel, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked() -> list[torch.Tensor]:
        moving = images.clone().requires_grad_()
        seen = _outputs_of(small_model, moving)
        assert seen.features is not None
        seen.logits.square().sum().backward()
        assert moving.grad is not None
        return [seen.logits, seen.features, moving.grad]

    whole = asked()
    monkeypatch.setattr(devices, "PART_VALUES", 5 * images[0].numel())
    for found, wanted in zip(asked(), whole, strict=True):
        # Convolutions may sum in another order for another number of images.
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.heavy
@pytest.mark.usefixtures("float32")
def test_reference_networks_train_on_any_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr("sys.argv", ["train_baselines.py"])
    import train_baselines

    monkeypatch.setattr(train_baselines, "bfloat16_kernels", devices.bfloat16_kernels)

    def trained(device: Device, name: str) -> dict[str, torch.Tensor]:
        monkeypatch.setattr(train_baselines, "find_device", lambda _: device)
        monkeypatch.setattr(
            train_baselines, "open_data", lambda *_, **__: open_data("digits", seed=0, train_images=64)
        )
        train_baselines.main(
            [
                "--data",
                "digits",
                "--model",
                "resnet8",
                "--epochs",
                "1",
                "--threads",
                "1",
                "--out",
                str(tmp_path / name),
            ],
            standalone_mode=False,
        )
        assert read_json(tmp_path / name / "training.json")["device"] == device.description
        return torch.load(tmp_path / name / "weights.pt", weights_only=True)

    wanted = trained(CPU_ONLY, "here")
    with OtherDevice():
        found = trained(OTHER, "there")
    for key, value in wanted.items():
        assert torch.equal(found[key], value)
