"""A float ONNX file as the network: what is taken and refused, layouts, presets, parity."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

import qrobust
from qrobust.deployment.imported import check_import, origin_of
from qrobust.errors import InputError
from qrobust.models.onnx_import.file import read_onnx
from qrobust.models.onnx_import.network import as_network
from qrobust.models.registry import find_model

RANDOM = np.random.default_rng(0)
WEIGHTS = {
    "stem.weight": RANDOM.normal(0, 0.3, (6, 3, 3, 3)).astype(np.float32),
    "head.weight": RANDOM.normal(0, 0.5, (5, 6)).astype(np.float32),
    "head.bias": RANDOM.normal(0, 0.5, 5).astype(np.float32),
}
BODY = (
    helper.make_node("Conv", ["x", "stem.weight"], ["c"], name="/stem/Conv", strides=[2, 2]),
    helper.make_node("Relu", ["c"], ["r"], name="/Relu"),
    helper.make_node("GlobalAveragePool", ["r"], ["p"], name="/pool/GlobalAveragePool"),
    helper.make_node("Flatten", ["p"], ["f"], name="/Flatten"),
    helper.make_node("Gemm", ["f", "head.weight", "head.bias"], ["z"], name="/head/Gemm", transB=1),
)
FLOAT, UINT8, HALF = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.FLOAT16


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto] = BODY,
    *,
    shape: Sequence[int | str] = ("N", 3, 16, 16),
    pixels: int = FLOAT,
    outputs: Sequence[str] = ("z",),
    inputs: Sequence[onnx.ValueInfoProto] = (),
    domains: Sequence[str] = (),
    opset: int = 17,
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(nodes[0].input[0], pixels, shape), *inputs],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in WEIGHTS.items()],
    )
    versions = [helper.make_opsetid(domain, opset) for domain in ("", *domains)]
    onnx.save(helper.make_model(graph, opset_imports=versions, ir_version=8), path)
    return path


def network(path: Path) -> fx.GraphModule:
    found = as_network(read_onnx(path))
    assert isinstance(found, fx.GraphModule)
    return found


IMAGES = torch.rand((4, 3, 16, 16), generator=torch.Generator().manual_seed(0))
TO_NCHW = helper.make_node("Transpose", ["pixels"], ["x"], perm=[0, 3, 1, 2])


def test_layers_are_torchs_own_and_have_the_names_of_their_weights(tmp_path: Path) -> None:
    found = network(save(tmp_path / "a.onnx"))
    kinds = {name: type(module) for name, module in found.named_modules() if name}
    assert kinds["stem"] is nn.Conv2d
    assert kinds["head"] is nn.Linear
    assert torch.equal(found.head.weight, torch.from_numpy(WEIGHTS["head.weight"]))
    assert check_import(found, IMAGES) < 1e-6  # float32 rounding


def test_channels_last_costs_no_operator(tmp_path: Path) -> None:
    path = save(tmp_path / "a.onnx", [TO_NCHW, *BODY], shape=("N", 16, 16, 3))
    found = network(path)
    assert [node.target for node in found.graph.nodes if node.op == "call_function"] == [torch.flatten]
    assert check_import(found, IMAGES) < 1e-6  # float32 rounding


def test_a_batch_that_the_file_fixes_is_left_open(tmp_path: Path) -> None:
    shaped = [*BODY[:3], helper.make_node("Reshape", ["p", "one"], ["f"]), *BODY[4:]]
    one = helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.array([1, 6], np.int64)))
    path = save(tmp_path / "a.onnx", [shaped[0], one, *shaped[1:]], shape=(1, 3, 16, 16))
    found = network(path)
    assert found(IMAGES).shape == (4, 5)
    assert check_import(found, IMAGES) < 1e-6  # float32 rounding


def test_pixels_of_uint8_are_declared(tmp_path: Path) -> None:
    cast = [TO_NCHW, helper.make_node("Cast", ["x"], ["y"], to=FLOAT), *BODY]
    cast[2] = helper.make_node("Conv", ["y", "stem.weight"], ["c"], strides=[2, 2])
    path = save(tmp_path / "a.onnx", cast, shape=("N", 16, 16, 3), pixels=UINT8)
    model = qrobust.load_classifier(str(path), num_classes=5, image_size=16)
    wanted = network(path)(torch.round(255 * IMAGES))
    assert torch.allclose(model(torch.round(255 * IMAGES) / 255), wanted, rtol=1e-4)
    assert check_import(network(path), 255 * IMAGES) < 1e-4


@pytest.mark.parametrize(("kind", "classes"), [("Softmax", 5), ("Sigmoid", 5)])
def test_what_makes_probabilities_is_left_out_at_the_end(kind: str, classes: int, tmp_path: Path) -> None:
    end = helper.make_node(kind, ["z"], ["s"])
    named = helper.make_node("Identity", ["s"], ["y"])
    path = save(tmp_path / "a.onnx", [*BODY, end, named], outputs=["y"])
    found = network(path)
    assert torch.equal(found(IMAGES), network(save(tmp_path / "b.onnx"))(IMAGES))
    assert check_import(found, IMAGES) < 1e-6  # against the file, which has it


def test_of_several_outputs_the_logits_are_taken(tmp_path: Path) -> None:
    path = save(tmp_path / "a.onnx", outputs=["f", "z"])
    model = qrobust.load_classifier(str(path), num_classes=5, image_size=16, normalization="none")
    assert torch.equal(model(IMAGES), network(save(tmp_path / "b.onnx"))(IMAGES))


class Block(nn.Module):
    """GELU, layer norm, hardswish and a hard sigmoid, which old versions of ONNX have to write out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.gelu = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.GELU()
        self.swish, self.gate, self.head = nn.Hardswish(), nn.Hardsigmoid(), nn.Linear(8, 5)
        nn.init.normal_(self.norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.gelu(self.norm(self.stem(x).flatten(2).transpose(1, 2)))
        return self.head(self.swish(tokens).mean(1) * self.gate(tokens).mean(1))


@pytest.mark.filterwarnings("ignore")  # torch announces that this exporter will go
def test_what_old_versions_write_out_is_one_layer_again(tmp_path: Path) -> None:
    block = Block().eval()
    path = tmp_path / "a.onnx"
    torch.onnx.export(block, (IMAGES[:2],), path, opset_version=11, dynamo=False)
    found = network(path)
    kinds = {type(module) for module in found.modules()}
    assert {nn.GELU, nn.LayerNorm, nn.Hardswish, nn.Hardsigmoid} <= kinds
    assert torch.allclose(found(IMAGES), block(IMAGES), atol=1e-5)  # float32 rounding of a dozen operators


def test_gradients_are_those_of_the_network(tmp_path: Path) -> None:
    found, given = network(save(tmp_path / "a.onnx")), IMAGES.clone().requires_grad_(True)
    found(given).sum().backward()
    step = torch.zeros_like(IMAGES)
    step[:, 1, 5, 5] = 1e-2
    with torch.no_grad():
        difference = (found(IMAGES + step) - found(IMAGES - step)).sum() / 2e-2
    assert given.grad is not None
    # A central difference of a piecewise linear function, in float32.
    assert float(given.grad[:, 1, 5, 5].sum()) == pytest.approx(float(difference), abs=1e-3)


BRANCH = helper.make_graph(
    [helper.make_node("Identity", ["z"], ["i"])], "branch", [], [helper.make_empty_tensor_value_info("i")]
)
EXTRA = helper.make_tensor_value_info("other", FLOAT, ["N", 3, 16, 16])
REFUSED = {
    "control flow": (
        {"nodes": [*BODY, helper.make_node("If", ["t"], ["i"], then_branch=BRANCH, else_branch=BRANCH)]},
        "has control flow (If); expected operators alone",
    ),
    "two images": (
        {"inputs": [EXTRA]},
        "expected one image as input, got 2 inputs (x, other)",
    ),
    "custom operators": (
        {"nodes": [*BODY, helper.make_node("Magic", ["z"], ["m"], domain="mine")], "domains": ["mine"]},
        "needs custom operators: mine:Magic",
    ),
    "an operator without a torch form": (
        {"nodes": [*BODY, helper.make_node("Det", ["z"], ["d"], name="last")], "outputs": ["d"]},
        ": Det 'last' has no torch form here",
    ),
    "a sort of padding": (
        {
            "nodes": [helper.make_node("AveragePool", ["x"], ["z"], kernel_shape=[3, 3], dilations=[2, 2])],
            "opset": 19,
        },
        ": AveragePool with dilations has no torch form here",
    ),
    "no image": (
        {"shape": ["N", 192]},
        ": expected images (N, C, S, S) or (N, S, S, C) of a float type or uint8, got float (?, 192)",
    ),
    "no square": (
        {"shape": ["N", 3, 16, 24]},
        ": expected square images of 3 channels or 1, got (?, 3, 16, 24)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_one_line(name: str, tmp_path: Path) -> None:
    options, message = REFUSED[name]
    path = save(tmp_path / "a.onnx", **options)  # type: ignore[arg-type]  # as `save` takes them
    with pytest.raises(InputError) as caught:
        as_network(read_onnx(path))
    space = "" if message.startswith(":") else " " if not message.startswith("expected") else ": "
    assert str(caught.value) == f"model: {path}{space}{message}"


def test_weights_in_other_files_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(InputError, match=r"keeps weights in other files \(weights\.bin\); expected one file"):
        find_model(str(path))


@pytest.mark.parametrize("content", [b"", b"no onnx", b"\x08\x08"])
def test_a_file_that_is_no_onnx(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(InputError, match="is not a readable ONNX file"):
        find_model(str(tmp_path / "a.onnx"))
    with pytest.raises(InputError, match=r"model: no file .*missing\.onnx"):
        find_model(str(tmp_path / "missing.onnx"))


BROKEN = {
    "operators in a circle": [
        *BODY[:4],
        helper.make_node("Identity", ["y"], ["z"]),
        helper.make_node("Identity", ["z"], ["y"]),
    ],
    "a value that nothing makes": [*BODY[:4], helper.make_node("Relu", ["nothing"], ["z"])],
    "an operator without inputs": [*BODY[:4], helper.make_node("Mul", [], ["z"])],
    "an attribute of another type": [helper.make_node("LeakyRelu", ["x"], ["s"], alpha="a"), *BODY],
    "a constant without end": [
        helper.make_node("Constant", [], ["n"], value_ints=[2**40]),
        helper.make_node("ConstantOfShape", ["n"], ["c"]),
        helper.make_node("Add", ["x", "c"], ["z"]),
    ],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_graph_that_does_not_fit_together_is_one_line(name: str, tmp_path: Path) -> None:
    nodes = BROKEN[name]
    first = helper.make_node("Identity", ["image"], ["x"])
    outputs = ["s", "z"] if name == "an attribute of another type" else ["z"]
    path = save(tmp_path / "a.onnx", [first, *nodes], outputs=outputs)
    with pytest.raises(InputError) as caught:
        as_network(read_onnx(path))
    assert str(caught.value).startswith(f"model: {path}: ")
    assert "\n" not in str(caught.value)


def test_a_network_that_says_something_else_is_refused_with_the_operator(tmp_path: Path) -> None:
    found = network(save(tmp_path / "a.onnx"))
    found.stem.weight.data[0, 0, 0, 0] += 0.01
    with pytest.raises(InputError, match=r"differs from the file by .* \(n = 4\), .*; first at Conv '/stem/Conv'$"):
        check_import(found, IMAGES)


def test_the_size_that_a_file_fixes_is_the_only_one(tmp_path: Path) -> None:
    path = str(save(tmp_path / "a.onnx"))
    with pytest.raises(InputError, match=r"^image_size: expected 16, which .*a\.onnx takes alone, got 32$"):
        qrobust.load_classifier(path, num_classes=5, image_size=32, normalization="none")


def test_other_weights_are_refused(tmp_path: Path) -> None:
    path = str(save(tmp_path / "a.onnx"))
    with pytest.raises(InputError, match=r"^weights: expected none, .*a\.onnx holds its own, got w\.pt$"):
        qrobust.load_classifier(path, num_classes=5, image_size=16, normalization="none", weights="w.pt")


def test_preprocessing_is_what_metadata_of_qrobust_say(tmp_path: Path) -> None:
    path = save(tmp_path / "a.onnx")
    proto = onnx.load(path)
    declared = {"size": 16, "resize": "letterbox", "crop_ratio": 0.875, "interpolation": "bicubic", "fill": 7}
    about = {"declared": declared | {"antialias": True, "mean": [0.5] * 3}}
    helper.set_model_props(proto, {"qrobust.graph": "float", "preprocessing": json.dumps(about)})
    onnx.save(proto, path)
    preset = find_model(str(path)).preset
    assert (preset.resize, preset.image_size, preset.interpolation, preset.fill) == ("letterbox", 16, "bicubic", 7)
    assert (preset.normalization, preset.crop_ratio) == ("none", None)


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    path = save(tmp_path / "a.onnx", pixels=HALF)
    proto = onnx.load(path)
    halves = [numpy_helper.from_array(value.astype(np.float16), name) for name, value in WEIGHTS.items()]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(halves)
    onnx.save(proto, path)
    found = network(path)
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    assert check_import(found, IMAGES) < 2e-3  # a few roundings to 11 bits
    origin = origin_of(found)
    assert origin is not None
    assert origin.file.is_half
