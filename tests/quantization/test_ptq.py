from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch.ao.quantization
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from qrobust.classifier import NormalizedModel, state_hash
from qrobust.data.loading import open_data
from qrobust.data.splits import Data, Split
from qrobust.errors import InputError
from qrobust.quantization import ptq
from qrobust.quantization.convert import weight_scale
from qrobust.quantization.equalization import equalize
from qrobust.quantization.integer_layers import ActivationQuantizer, IntegerConv2d, IntegerLinear
from qrobust.quantization.layerwise import execute_layerwise
from qrobust.quantization.ptq import (
    build,
    keep_worst_in_float,
    observe,
    prepare,
    quantize,
    restore,
    search,
)
from qrobust.quantization.recipe import BITS, Recipe
from qrobust.quantization.sensitivity import (
    LayerEffect,
    divergence,
    layer_effects,
    layer_noise,
    sqnr_db,
    worst_layers,
)
from qrobust.quantization.target import (
    ARM64,
    TARGETS,
    X86_AVX2,
    X86_VNNI,
    Target,
)
from qrobust.quantization.tracing import (
    calls,
    described,
    folded,
    normal_form,
    trace,
)
from qrobust.shifts.filters import to_unit


@pytest.fixture(autouse=True)
def few_rounding_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptq, "ROUNDING_STEPS", 60)


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits", seed=0, calibration_images=48, test_images=48)


@pytest.fixture
def calibration(digits: Data) -> list[torch.Tensor]:
    return [to_unit(images) for images, _ in digits.calibration.batches(16)]


@pytest.fixture
def validation(digits: Data) -> Split:
    return digits.validation.first(40)


def integer_layers(fake_quantized: nn.Module) -> list[IntegerConv2d | IntegerLinear]:
    return [m for m in fake_quantized.modules() if isinstance(m, IntegerConv2d | IntegerLinear)]


@pytest.mark.parametrize("bits", list(BITS))
@pytest.mark.parametrize("target", list(TARGETS.values()), ids=lambda t: t.name)
def test_integers_stay_in_their_bits(
    bits: str, target: Target, small_model: NormalizedModel, calibration: list[torch.Tensor]
) -> None:
    fake_quantized = quantize(small_model, target, calibration, recipe=Recipe(bits))
    layers = integer_layers(fake_quantized)
    assert len(layers) == 10
    weight_bits, activation_bits = BITS[bits]
    for layer in layers[1:-1]:
        limit = target.weights(weight_bits)[1]
        assert layer.qmax == limit
        assert layer.weight_int.abs().max() <= limit
        assert layer.weight_int.abs().max() > limit // 2
    assert layers[0].qmax == layers[-1].qmax == target.weights(8)[1]
    ranges = {(q.qmin, q.qmax) for q in fake_quantized.modules() if isinstance(q, ActivationQuantizer)}
    assert ranges == {target.activations(8), target.activations(activation_bits)}


def test_narrow_activations_are_those_that_layers_read(
    small_model: NormalizedModel, calibration: list[torch.Tensor]
) -> None:
    fake_quantized = quantize(small_model, X86_VNNI, calibration, recipe=Recipe("w4a4"))
    modules = dict(fake_quantized.named_modules(remove_duplicate=False))
    checked = 0
    for node, layer in calls(fake_quantized, (IntegerConv2d, IntegerLinear)):
        quantizer = modules[str(node.args[0].target)]  # type: ignore[union-attr]  # an integer layer reads a quantizer
        assert quantizer.qmax == (15 if layer.qmax == 7 else 255)  # type: ignore[operator]  # a module's attribute
        checked += 1
    assert checked == 10


def test_7_bit_weights_cannot_saturate_a_pair() -> None:
    limit = X86_AVX2.weight_range[1]
    assert 255 * 2 * limit <= 2**15 - 1 < 255 * 2 * (limit + 2)


def test_clipped_weight_scale_is_better_than_the_widest(small_model: NormalizedModel) -> None:
    weight = small_model.get_submodule("network.conv1").weight
    assert isinstance(weight, torch.Tensor)

    def error(scale: torch.Tensor) -> torch.Tensor:
        scale = scale.view(-1, 1, 1, 1)
        return ((weight / scale).round().clamp(-7, 7) * scale - weight).square().flatten(1).sum(1)

    widest = weight.flatten(1).abs().amax(1) / 7
    assert (error(weight_scale(weight, 7)) <= error(widest) + 1e-9).all()
    assert torch.equal(weight_scale(weight, 127), weight.flatten(1).abs().amax(1) / 127)


def test_exceptions_and_edges(small_model: NormalizedModel, calibration: list[torch.Tensor]) -> None:
    recipe = Recipe("w4a8", edges="float", exceptions=(("blocks.0.*", "w8a8"), ("blocks.1.conv1", "float")))
    fake_quantized = quantize(small_model, X86_VNNI, calibration, recipe=recipe)
    kinds = {str(n.target): m for n, m in calls(fake_quantized, (IntegerConv2d, IntegerLinear, nn.Conv2d, nn.Linear))}
    assert isinstance(kinds["network.conv1"], nn.Conv2d)
    assert isinstance(kinds["network.fc"], nn.Linear)
    assert isinstance(kinds["network.blocks.1.conv1"], nn.Conv2d)
    assert kinds["network.blocks.0.conv1"].qmax == 127
    assert kinds["network.blocks.2.conv1"].qmax == 7
    again = restore(small_model, X86_VNNI, 32, fake_quantized.state_dict(), recipe=recipe)
    assert torch.equal(fake_quantized(calibration[0]), again(calibration[0]))


def test_equalization_keeps_the_function_and_balances_channels() -> None:
    torch.manual_seed(0)
    model = (
        nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.ReLU(),
            nn.Conv2d(8, 4, 1),
        )
        .eval()
        .requires_grad_(False)
    )
    with torch.no_grad():
        model[0].weight *= torch.logspace(-2, 2, 8).view(-1, 1, 1, 1)  # type: ignore[operator]  # a convolution's
    images = torch.rand(2, 3, 16, 16)
    graph = normal_form(trace(model), images[:1])
    wanted = graph(images)
    assert equalize(graph) == 2
    # Float32 rounding at the size of the outputs.
    assert torch.allclose(graph(images), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    first, second, third = (graph.get_submodule(name).weight for name in ("0", "3", "5"))
    out = first.flatten(1).abs().amax(1)  # type: ignore[operator, union-attr]  # a convolution's weight
    into = second.flatten(1).abs().amax(1)  # type: ignore[operator, union-attr]  # a convolution's weight
    # The fixed point of the iteration: what leaves a channel equals what takes it up.
    assert torch.allclose(out, into, rtol=0.05)
    assert third is not None


def test_relu6_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 4, 1)).eval()
    assert equalize(normal_form(trace(model), torch.rand(1, 3, 16, 16))) == 0


def test_bias_correction_brings_means_back(small_model: NormalizedModel, calibration: list[torch.Tensor]) -> None:
    recipe = Recipe("w4a8")
    observed = observe(small_model, calibration, recipe)
    plain = build(observed, X86_VNNI, recipe)
    corrected = build(observed, X86_VNNI, replace(recipe, correct_bias=True))

    def gaps(fake_quantized: torch.fx.GraphModule) -> list[float]:
        found = []
        for visit in execute_layerwise(observed.graph, fake_quantized, observed.images):
            error = visit.float_output() - visit.output()
            mean = error.mean([0, *range(2, error.ndim)])
            found.append(float((mean.abs() - visit.layer.bias_scale / 2).max()))
        return found

    assert max(gaps(plain)) > 0.01
    # Half a step of the bias, and float32 sums over some ten thousand values.
    assert max(gaps(corrected)) < 1e-4


@pytest.mark.heavy
def test_learned_rounding_beats_nearest_and_moves_weights_by_one_step(
    small_model: NormalizedModel, calibration: list[torch.Tensor]
) -> None:
    recipe = Recipe("w4a8")
    observed = observe(small_model, calibration, recipe)
    nearest = build(observed, X86_VNNI, recipe)
    learned = build(observed, X86_VNNI, replace(recipe, rounding="adaround"))
    reference = observed.graph(observed.images)
    assert (learned(observed.images) - reference).square().mean() < (
        nearest(observed.images) - reference
    ).square().mean()
    for a, b in zip(integer_layers(nearest), integer_layers(learned), strict=True):
        assert (a.weight_int.int() - b.weight_int.int()).abs().max() <= 1
        if a.qmax == 127:
            assert torch.equal(a.weight_int, b.weight_int)
    again = build(observed, X86_VNNI, replace(recipe, rounding="adaround"))
    assert state_hash(learned) == state_hash(again)


def test_walk_sees_what_the_networks_compute(small_model: NormalizedModel, calibration: list[torch.Tensor]) -> None:
    observed = observe(small_model, calibration, Recipe())
    fake_quantized = build(observed, X86_VNNI, Recipe())
    visits = list(execute_layerwise(observed.graph, fake_quantized, calibration[0]))
    assert [v.name for v in visits] == observed.layers
    assert torch.allclose(visits[-1].output(), fake_quantized(calibration[0]))
    # Folding batch norm rounds differently.
    assert torch.allclose(visits[-1].float_output(), small_model(calibration[0]), atol=1e-4)


def test_sqnr_closed_form() -> None:
    x = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    # A uniform signal on b bits: 6.02 dB each.
    rounded = ActivationQuantizer(2 / 255, 128, 0, 255)(x)
    assert sqnr_db(x, rounded) == pytest.approx(6.02 * 8, abs=0.2)
    assert sqnr_db(x, x) == 200
    assert sqnr_db(x, torch.zeros_like(x)) == 0


def test_divergence_closed_form() -> None:
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    assert divergence(p.log(), q.log()) == pytest.approx(0.5 * (2.0**0.5 * 2**0.5 / 1.0 - 2) + 0.14384, abs=1e-4)


def test_sensitivity_names_the_layer_that_was_spoilt(
    small_model: NormalizedModel, calibration: list[torch.Tensor], validation: Split
) -> None:
    observed = observe(small_model, calibration, Recipe())
    fake_quantized = build(observed, X86_VNNI, Recipe())
    spoilt = fake_quantized.get_submodule("network.blocks.1.conv1")
    assert isinstance(spoilt, IntegerConv2d)
    spoilt.weight_int //= 32
    spoilt.weight_int *= 32
    effects = layer_effects(observed.graph, fake_quantized, validation)
    assert [e.name for e in effects] == observed.layers
    assert max(effects, key=lambda e: e.divergence).name == "blocks.1.conv1"
    noise = layer_noise(observed.graph, fake_quantized, calibration[0])
    assert min(noise, key=lambda n: n.weight_sqnr_db).name == "blocks.1.conv1"
    # The graph that was judged is as it was.
    assert not any(isinstance(m, IntegerConv2d) for m in observed.graph.modules())


def test_keep_float_auto(small_model: NormalizedModel, calibration: list[torch.Tensor], validation: Split) -> None:
    recipe, effects = keep_worst_in_float(small_model, X86_VNNI, lambda: calibration, validation, Recipe("w4a4"), 2)
    worst = sorted(effects, key=lambda e: -e.divergence)[:2]
    assert {name for name, bits in recipe.exceptions} == {e.name for e in worst}
    fake_quantized = quantize(small_model, X86_VNNI, calibration, recipe=recipe)
    assert len(integer_layers(fake_quantized)) == 8
    with pytest.raises(
        InputError, match="auto:N with N from 1 to 9 for the 10 layers that are quantized, got auto:10"
    ):
        keep_worst_in_float(small_model, X86_VNNI, lambda: calibration, validation, Recipe(), 10)


@pytest.mark.heavy
def test_search_keeps_the_best_so_far(
    small_model: NormalizedModel, calibration: list[torch.Tensor], validation: Split
) -> None:
    fake_quantized, recipe, trials, observed = search(
        small_model, X86_VNNI, lambda: calibration, validation, Recipe("w4a8")
    )
    assert len(trials) == 8
    best = min(trials, key=lambda t: t.divergence)
    assert (recipe.ranges, recipe.equalize, recipe.correct_bias, recipe.rounding) == (
        best.ranges,
        best.equalize,
        best.correct_bias,
        best.rounding,
    )
    assert best.kept
    logits = torch.cat([fake_quantized(to_unit(images)) for images, _ in validation.batches(50)])
    reference = torch.cat([observed.graph(to_unit(images)) for images, _ in validation.batches(50)])
    assert divergence(reference, logits) == pytest.approx(best.divergence, rel=1e-4)


def test_signed_activations(small_model: NormalizedModel, calibration: list[torch.Tensor]) -> None:
    unsigned = quantize(small_model, X86_VNNI, calibration)
    signed = quantize(small_model, ARM64, calibration)
    # The same grids, shifted by 128.
    assert torch.allclose(unsigned(calibration[0]), signed(calibration[0]), atol=1e-5)


class Dead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 4, 3)
        nn.init.constant_(self.conv.bias, -100)  # type: ignore[arg-type]  # it has a bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.conv(x).relu()).mean((2, 3))


def test_bad_input(small_model: NormalizedModel, calibration: list[torch.Tensor]) -> None:
    with pytest.raises(InputError, match="bits: expected one of w8a8, w6a8, w4a8, w4a4, got 'w3a8'"):
        Recipe("w3a8")
    with pytest.raises(InputError, match=r"'blocks\.1\.conv3'; the nearest is 'blocks\.1\.conv[12]'"):
        quantize(small_model, X86_VNNI, calibration, recipe=Recipe(exceptions=(("blocks.1.conv3", "float"),)))
    with pytest.raises(InputError, match=r"layer_bits: expected one of .*, float for 'fc', got 'w5'"):
        Recipe(exceptions=(("fc", "w5"),))
    for none in ([], [torch.empty(0, 3, 32, 32)]):
        with pytest.raises(InputError, match="calibration_images: expected at least one image, got none"):
            quantize(small_model, X86_VNNI, none)
    fake_quantized = quantize(small_model, X86_VNNI, calibration)
    with pytest.raises(InputError, match="quantized already"):
        quantize(fake_quantized, X86_VNNI, calibration)


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()


def pruned(net: nn.Sequential) -> None:
    for layer in (net[0], net[3], net[7]):
        prune.l1_unstructured(layer, "weight", 0.5)


def older_norms(net: nn.Sequential) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of the newer ones
        nn.utils.weight_norm(net[0])
    nn.utils.spectral_norm(net[3])


def newer_norms(net: nn.Sequential) -> None:
    parametrizations.weight_norm(net[0])
    parametrizations.spectral_norm(net[7])


def tied(net: nn.Sequential) -> None:
    net.insert(4, nn.Conv2d(8, 8, 3, padding=1))
    net[4].weight = net[3].weight
    net.insert(4, nn.ReLU())


@pytest.mark.parametrize("change", [pruned, older_norms, newer_norms, tied])
@pytest.mark.parametrize("equalize", [False, True])
def test_weights_that_are_computed_or_shared_are_quantized_as_they_are(
    change: Callable[[nn.Sequential], None], equalize: bool, calibration: list[torch.Tensor]
) -> None:
    net = plain()
    change(net)
    net.eval()
    images = calibration[0]
    with torch.no_grad():
        said = net(images)
        assert torch.allclose(folded(net, images[:1])(images), said, atol=1e-5 * float(said.abs().max()))
        fake_quantized = quantize(net, X86_VNNI, calibration, recipe=Recipe(equalize=equalize))
        assert float((fake_quantized(images) - said).abs().max() / said.std()) < 0.1
        assert torch.equal(net(images), said)  # the network is not changed


class Twice(nn.Module):
    """One layer called twice, one kernel in two functional convolutions, uneven padding before a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.pad, self.stem = nn.ZeroPad2d((0, 2, 0, 2)), nn.Conv2d(3, 8, 3)
        self.conv, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)
        self.kernel = nn.Parameter(torch.randn(8, 8, 3, 3) / 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv(self.stem(self.pad(x))))
        x = F.max_pool2d(F.conv2d(x, self.kernel, padding=1), 2) + F.conv2d(x, self.kernel, None, 2, 1)
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


def test_layers_have_the_names_and_the_geometry_that_their_author_gave_them(calibration: list[torch.Tensor]) -> None:
    torch.manual_seed(0)
    net, images = Twice().eval(), calibration[0]
    with torch.no_grad():
        said = net(images)
        assert torch.allclose(folded(net, images[:1])(images), said, atol=1e-5 * float(said.abs().max()))
    _, layers = prepare(net, images[:1], Recipe(exceptions=(("conv", "float"), ("stem", "float"))))
    bits = Recipe(exceptions=(("conv", "float"), ("stem", "float"))).for_layers(layers)
    assert layers == ["stem", "conv", "kernel_layer", "kernel_layer_conv2d_1", "conv__call2", "head"]
    assert [name for name in layers if bits[name] is None] == ["stem", "conv", "conv__call2"]
    effects = [LayerEffect(name, 9, 0.0, len(layers) - index) for index, name in enumerate(layers)]
    assert worst_layers(effects[1:], 4) == ("conv", "kernel_layer", "kernel_layer_conv2d_1", "head")


class Logarithms(nn.Module):
    """A module called twice, and the logarithm of what is negative after it: NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1))
        nn.init.constant_(self.stem[0].weight, 0)
        nn.init.constant_(self.stem[0].bias, -1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stem[0](self.stem(x).log()).mean((2, 3))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            Dead(),
            "'relu_explicit' after 'conv' is constant (observed [0.0, 0.0]); check the weights and the "
            "calibration images",
        ),
        (Logarithms(), "'log' after 'stem.1' holds NaN or infinity; check the weights and the images"),
    ],
)
def test_activations_without_a_range_name_the_nearest_layer(network: nn.Module, message: str) -> None:
    with pytest.raises(InputError) as caught:
        quantize(network.eval(), X86_VNNI, [torch.rand(2, 3, 8, 8)])
    assert str(caught.value) == f"calibration: activation {message}"


def test_nodes_are_described_by_the_modules_of_the_network(small_model: NormalizedModel) -> None:
    graph, _ = ptq.prepare(small_model, torch.rand(1, 3, 32, 32), Recipe())
    nodes = {node.name: node for node in graph.graph.nodes}
    for name, words in (
        ("network_pool_explicit", "in 'pool'"),
        ("flatten", "after 'pool'"),
        ("normalization", "in 'normalization'"),
        ("network_blocks_1_relu2", "in 'blocks.1.relu2'"),
    ):
        assert described(graph, nodes[name]) == f"{name!r} {words}"
    assert described(graph, next(iter(graph.graph.nodes))) == "'images'"


def test_networks_quantized_by_torch_are_refused() -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fake = torch.nn.Sequential(torch.ao.quantization.FakeQuantize())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fake(x).mean((2, 3))

    with pytest.raises(InputError, match=r"quantized already \('fake\.0': FakeQuantize\)"):
        quantize(Held().eval(), X86_VNNI, [torch.rand(2, 3, 8, 8)])


def stores_of(size: int) -> int:
    """How many tensor stores of so many bytes are alive."""
    tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.layout == torch.strided]
    stores = [tensor.untyped_storage() for tensor in tensors]
    return len({s.data_ptr() for s in stores if s.nbytes() == size})


@pytest.mark.heavy
def test_batches_are_let_go(small_model: NormalizedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptq, "KEPT_IMAGES", 8)
    generator, alive = torch.Generator().manual_seed(0), []

    def batches() -> Iterator[torch.Tensor]:
        for _ in range(12):
            images = torch.rand(5, 3, 32, 32, generator=generator)
            alive.append(stores_of(images.untyped_storage().nbytes()))
            yield images

    observed = observe(small_model, batches(), Recipe())
    assert observed.images.shape == (8, 3, 32, 32)
    # This batch, the one before, the first, and one that was kept whole.
    assert max(alive) <= 4


def test_weights_say_which_images_a_divergence_is_of() -> None:
    reference, logits = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    one = torch.zeros(5, dtype=torch.float64)
    one[3] = 1
    assert divergence(reference, logits, one) == pytest.approx(divergence(reference[3:4], logits[3:4]), rel=1e-5)
    alike = torch.full((5,), 0.2, dtype=torch.float64)
    assert divergence(reference, logits, alike) == pytest.approx(divergence(reference, logits), rel=1e-5)
