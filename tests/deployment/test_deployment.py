from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from qrobust.classifier import NormalizedModel, count_macs
from qrobust.deployment import profiling
from qrobust.deployment.audit import audit
from qrobust.deployment.classifiers import OnnxClassifier
from qrobust.deployment.export import export
from qrobust.deployment.onnx_graph import load
from qrobust.deployment.parity import check_export, compare, parity
from qrobust.deployment.profiling import latencies_ms, median_interval, ratio_intervals
from qrobust.errors import ExportCheckError, InputError
from qrobust.quantization.ptq import quantize, restore
from qrobust.quantization.recipe import Recipe
from qrobust.quantization.target import (
    ARM64,
    X86_AVX2,
    X86_VNNI,
    Target,
)
from qrobust.record import Audit, Parity


@pytest.fixture
def exported(small_model: NormalizedModel, images: torch.Tensor, tmp_path: Path) -> tuple[Path, nn.Module]:
    fake_quantized = quantize(small_model, X86_VNNI, [images])
    export(fake_quantized, tmp_path / "int8.onnx", 32, {"class_names": ["a", "b"], "note": "text"})
    return tmp_path / "int8.onnx", fake_quantized


def test_exported_twin_is_integer_dynamic_and_says_the_same(
    exported: tuple[Path, nn.Module], images: torch.Tensor
) -> None:
    path, fake_quantized = exported
    session = OnnxClassifier(path, 1)
    for n in (1, 3, 24):
        wanted, got = fake_quantized(images[:n]), session(images[:n])
        assert got.shape == (n, 10)
        # Fused kernels may differ from unfused ones by a step of the last activation here and there.
        assert (wanted - got).abs().mean() < 0.02 * fake_quantized(images).std()
    counted = audit(path)
    assert counted.integer_ops == counted.quantizable_ops == 10
    zeros = 32 * 32 * 9 * 8  # of the fourth channel of the first convolution's 8 filters
    assert counted.integer_macs == counted.total_macs == count_macs(fake_quantized, 32) + zeros
    assert counted.float_compute == {}
    proto = load(path)
    assert len(proto.graph.input) == len(proto.graph.output) == 1
    stored = {i.name: i.data_type for i in proto.graph.initializer if int(np.prod(i.dims)) > 64}
    assert set(stored.values()) == {onnx.TensorProto.INT8}
    assert {p.key: p.value for p in proto.metadata_props} == {"class_names": '["a", "b"]', "note": "text"}


def test_unfused_graph_equals_the_twin_exactly(exported: tuple[Path, nn.Module], images: torch.Tensor) -> None:
    """ONNX's own reference runtime, an independent implementation, gives the fake-quantized model's logits."""
    from onnx.reference import ReferenceEvaluator

    path, fake_quantized = exported
    (logits,) = ReferenceEvaluator(str(path)).run(None, {"images": images[:2].numpy()})
    # Float32 sums in another order may move an activation that lies on a rounding border by a step.
    assert np.abs(logits - fake_quantized(images[:2]).numpy()).mean() < 0.01 * float(fake_quantized(images).std())


@pytest.mark.parametrize("bits", ["w8a8", "w6a8", "w4a8", "w4a4"])
@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_narrow_bits_are_integer_and_exact(
    bits: str, storage: str, small_model: NormalizedModel, images: torch.Tensor, tmp_path: Path
) -> None:
    fake_quantized = quantize(small_model, X86_VNNI, [images], recipe=Recipe(bits))
    path = tmp_path / "narrow.onnx"
    export(fake_quantized, path, 32, storage=storage)
    counted = audit(path)
    assert counted.integer_ops == counted.quantizable_ops == 10
    stored = [i.data_type for i in load(path).graph.initializer if int(np.prod(i.dims)) > 64]
    assert (onnx.TensorProto.INT4 in stored) == (storage == "int4" and bits.startswith("w4"))
    wanted, got = fake_quantized(images), OnnxClassifier(path, 1)(images)
    # As above: a step of a deep activation here and there, of which a 4-bit one is 17 times as long.
    assert (wanted - got).abs().mean() < (0.1 if bits == "w4a4" else 0.02) * wanted.std()


def test_layers_kept_in_float_stay_there(small_model: NormalizedModel, images: torch.Tensor, tmp_path: Path) -> None:
    # Left to itself, onnxruntime quantizes a float layer between quantized tensors on a grid of its own.
    recipe = Recipe("w4a4", exceptions=(("blocks.1.conv1", "float"), ("blocks.2.*", "float")))
    fake_quantized = quantize(small_model, X86_VNNI, [images], recipe=recipe)
    export(fake_quantized, tmp_path / "mixed.onnx", 32)
    counted = audit(tmp_path / "mixed.onnx")
    assert counted.quantizable_ops - counted.integer_ops == 1 + 3
    wanted, got = fake_quantized(images), OnnxClassifier(tmp_path / "mixed.onnx", 1)(images)
    # A step of a 4-bit activation here and there.
    assert (wanted - got).abs().mean() < 0.1 * wanted.std()
    again = restore(small_model, X86_VNNI, 32, fake_quantized.state_dict(), recipe=recipe)
    assert torch.equal(again(images), wanted)


@pytest.mark.parametrize(
    ("target", "kernel", "channels"), [(X86_VNNI, 3, 4), (X86_AVX2, 3, 4), (ARM64, 3, 3), (X86_VNNI, 5, 3)]
)
def test_a_fourth_channel_of_zeros_changes_no_bit(
    target: Target, kernel: int, channels: int, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    # The image is read twice, by one convolution that is widened and by an addition that is not.
    network = ReadTwice(nn.Conv2d(3, 3, kernel, padding=kernel // 2), nn.Conv2d(3, 5, 1, stride=8))
    fake_quantized = quantize(network, target, [images])
    export(fake_quantized, tmp_path / "wide.onnx", 32)
    stored = [tuple(i.dims) for i in load(tmp_path / "wide.onnx").graph.initializer if len(i.dims) == 4]
    assert sorted(stored) == [(3, channels, kernel, kernel), (5, 3, 1, 1)]
    monkeypatch.setattr("qrobust.deployment.export._widen", lambda proto: None)
    export(fake_quantized, tmp_path / "plain.onnx", 32)
    wide, plain = (OnnxClassifier(tmp_path / f"{name}.onnx", 1) for name in ("wide", "plain"))
    assert torch.equal(wide(images), plain(images))
    counted = audit(tmp_path / "wide.onnx", signed_activations=target.signed)
    assert counted.integer_ops == counted.quantizable_ops == 2


class ReadTwice(nn.Module):
    def __init__(self, first: nn.Conv2d, last: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.last = first, last

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(images) + images).mean((2, 3))


def test_float_export_equals_torch(small_model: NormalizedModel, images: torch.Tensor, tmp_path: Path) -> None:
    export(small_model, tmp_path / "float.onnx", 32)
    session = OnnxClassifier(tmp_path / "float.onnx", 1)
    assert torch.allclose(session(images), small_model(images), atol=1e-4)
    counted = audit(tmp_path / "float.onnx")
    assert counted.integer_ops == counted.integer_macs == 0
    assert counted.total_macs == count_macs(small_model, 32)
    measured = parity(small_model, session, images, small_model(images).argmax(1))
    assert measured.agreement == measured.torch_accuracy == measured.session_accuracy == 1


def constant(logits: list[list[float]]) -> Callable[[torch.Tensor], torch.Tensor]:
    table = torch.tensor(logits)
    return lambda images: table[: len(images)]


def test_parity_tells_ties_from_disagreement() -> None:
    images, labels = torch.zeros(3, 3, 4, 4), torch.zeros(3, dtype=torch.long)
    ours = constant([[5.0, 0.0], [1.0, 0.99], [5.0, 0.0]])
    theirs = constant([[5.0, 0.0], [0.99, 1.0], [0.0, 5.0]])
    measured = parity(ours, theirs, images, labels)
    assert measured.agreement == pytest.approx(1 / 3)
    assert measured.agreement_beyond_ties == pytest.approx(2 / 3)
    with pytest.raises(ExportCheckError, match=r"agree on 66\.7 %"):
        check_export("int8", audit_of(1, 1), measured, 1)


def audit_of(integer: int, compute: int) -> Audit:
    left = {"Conv": compute - integer} if compute > integer else {}
    return Audit(
        integer_ops=integer,
        quantizable_ops=compute,
        integer_compute={"QLinearConv": integer},
        float_compute=left,
        other_ops={},
        integer_macs=integer,
        total_macs=compute,
        integer_mac_share=integer / compute,
        unknown_macs={},
        time_share={},
    )


ALIKE = Parity(
    n=1000,
    agreement=1.0,
    agreement_beyond_ties=1.0,
    max_logit_difference=0.0,
    mean_logit_difference=0.0,
    torch_accuracy=0.9,
    session_accuracy=0.9,
)


@pytest.mark.parametrize(
    ("n", "wrong", "passes"), [(143, 4, True), (143, 5, False), (1000, 22, True), (1000, 23, False)]
)
def test_agreement_passes_where_its_interval_reaches_the_least(n: int, wrong: int, passes: bool) -> None:
    measured = replace(
        ALIKE, n=n, agreement=0.0, agreement_beyond_ties=1 - wrong / n, torch_accuracy=0.5, session_accuracy=0.5
    )
    with nullcontext() if passes else pytest.raises(ExportCheckError, match="parity"):
        check_export("int8", audit_of(1, 1), measured, 1)


def test_float_compute_is_refused_where_integers_were_claimed() -> None:
    with pytest.raises(ExportCheckError, match=r"runs 3 .* expected its 4 quantized layers; in float: 2 Conv"):
        check_export("int8", audit_of(3, 5), ALIKE, 4)
    check_export("int8", audit_of(3, 5), ALIKE, 3)  # what is in float was never claimed to be integer
    check_export("float", audit_of(3, 5), ALIKE)


def test_ties_of_probabilities_are_those_of_their_logits() -> None:
    # Of a thousand classes, two that lie one step of the logits apart; the file rounds probabilities to 8 bits.
    logits = torch.linspace(-6, 3, 1000).repeat(20, 1)
    logits[:, 998], logits[:, 999] = 8.0, 8.1
    probabilities = logits.softmax(1)
    rounded = (probabilities * 255).round()
    rounded[:, 998] = rounded[:, 999]  # the first of equals is the answer
    labels = torch.full((20,), 999)
    assert compare(probabilities, rounded, labels).agreement_beyond_ties == 0
    found = compare(probabilities, rounded, labels, logits=logits)
    assert (found.agreement, found.agreement_beyond_ties) == (0, 1)
    logits[:, 999] = 9.0
    assert compare(logits.softmax(1), rounded, labels, logits=logits).agreement_beyond_ties == 0


def test_an_accuracy_that_ties_do_not_explain_is_refused() -> None:
    audited = audit_of(3, 5)
    with pytest.raises(ExportCheckError, match="accuracy"):
        check_export("float", audited, replace(ALIKE, session_accuracy=0.85))
    # Four ties of a thousand fell the other way, all for the better: six in that many could by chance.
    tied = replace(ALIKE, agreement=0.996)
    check_export("float", audited, replace(tied, session_accuracy=0.904))
    with pytest.raises(ExportCheckError, match=r"differs by 0\.70 points in float, expected at most 0\.60"):
        check_export("float", audited, replace(tied, session_accuracy=0.907))


class NotExportable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not today\nsecond line")


def test_failed_export_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ExportCheckError, match="cannot export") as caught:
        export(NotExportable(), tmp_path / "x.onnx", 8)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    for path, match in ((tmp_path / "none.onnx", "no file"), (tmp_path / "bad.onnx", "refuses")):
        with pytest.raises(InputError, match=match) as caught:
            audit(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="not a readable"):
        load(tmp_path / "bad.onnx")


def test_session_with_two_inputs_is_refused(tmp_path: Path) -> None:
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["a", "b"], ["c"])],
        "g",
        [tensor("a", 1, [1, 2]), tensor("b", 1, [1, 2])],
        [tensor("c", 1, [1, 2])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(InputError, match="one image input"):
        OnnxClassifier(tmp_path / "two.onnx", 1)


def test_latencies_are_measured_for_each(exported: tuple[Path, nn.Module]) -> None:
    sessions = {name: OnnxClassifier(exported[0], 1) for name in ("a", "b")}
    measured = latencies_ms(sessions, 32, 2, rounds=3)
    assert set(measured) == {"a", "b"}
    assert all(ms > 0 for ms in measured.values())


def test_the_interval_of_a_median_is_that_of_the_sign_test() -> None:
    """Of fifty values the 18th and the 33rd, as tables of the sign test say; of six all."""
    values = np.random.default_rng(0).permutation(np.arange(1.0, 51.0))
    assert median_interval(values) == (18, 33)
    assert median_interval(np.arange(6.0)) == (0, 5)


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that becomes twice as slow slows both."""
    drift = np.linspace(1, 2, 50)
    samples = {"float": 3 * drift, "int8": drift, "slow": 2 * drift}
    found = ratio_intervals(samples, "int8")
    assert set(found) == {"float", "slow"}
    assert found["float"] == pytest.approx((3, 3))
    assert found["slow"] == pytest.approx((2, 2))


def test_a_graph_of_a_fixed_batch_is_called_as_often_as_it_takes() -> None:
    """By a clock that only calls move on: 2 ms a call of at most four images."""

    class Timed:
        input_name, dtype, path = "images", np.uint8, Path("timed.onnx")

        def __init__(self, batch: int | None) -> None:
            self.batch, self.session, self.seen = batch, self, set[tuple[int, ...]]()

        def input_shape(self, image_size: int, batch_size: int) -> tuple[int, ...]:
            return (self.batch or batch_size, image_size, image_size, 3)

        def run(self, _: None, feed: dict[str, np.ndarray]) -> None:
            assert feed["images"].dtype == np.uint8
            assert feed["images"].max() > 200
            self.seen.add(feed["images"].shape)
            clock[0] += 2e-3

    clock, both = [0.0], {"open": Timed(None), "fixed": Timed(4)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiling.time, "perf_counter", lambda: clock[0])
        measured = latencies_ms(both, 8, 32, rounds=3)  # type: ignore[arg-type]  # what it asks of a classifier
    assert measured == pytest.approx({"open": 2, "fixed": 16})
    assert [one.seen for one in both.values()] == [{(32, 8, 8, 3)}, {(4, 8, 8, 3)}]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "convolutions"), [("resnet18", 20), ("mobilenet_v2", 52), ("vgg16_bn", 13)])
def test_torchvision_networks_come_out_integer(name: str, convolutions: int, tmp_path: Path) -> None:
    from qrobust.models.loading import load_model
    from qrobust.models.registry import find_model

    model = load_model(
        find_model(f"torchvision:{name}"),
        classes=10,
        image_size=64,
        weights=None,
        pretrained=False,
        normalization=None,
        seed=0,
    )
    pixels = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    export(quantize(model, X86_VNNI, [pixels]), tmp_path / "int8.onnx", 64)
    counted = audit(tmp_path / "int8.onnx")
    assert counted.float_compute == {}
    assert counted.integer_ops == counted.quantizable_ops == convolutions + (3 if name == "vgg16_bn" else 1)
