"""Logits are found in what a network returns, and the network in what wraps it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qrobust
from qrobust.errors import InputError
from qrobust.quantization.integer_layers import ActivationQuantizer, IntegerLinear
from qrobust.quantization.ptq import quantize
from qrobust.quantization.recipe import Recipe
from qrobust.quantization.target import X86_VNNI
from qrobust.quantization.tracing import folded


class Result:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


class Net(nn.Module):
    """Means of the channels to so many numbers, which `wrap` returns in some form."""

    def __init__(self, wrap: Callable[[torch.Tensor], Any] = lambda z: z, numbers: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head, self.wrap = nn.Conv2d(3, 4, 1), nn.Linear(4, numbers), wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.head(self.stem(x).mean((2, 3))))


def load(network: nn.Module, classes: int = 3) -> nn.Module:
    return qrobust.load_classifier(network, num_classes=classes, image_size=8, normalization="none")


IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FORMS: dict[str, Callable[[torch.Tensor], Any]] = {
    "mapping": lambda z: {"features": z[:, :2], "logits": z},
    "mapping of one": lambda z: {"anything": z, "features": z[:, :2]},
    "mapping with an auxiliary head": lambda z: {"aux": -z, "out": z},
    "tuple": lambda z: (z, z[:, :2]),
    "tuple of features first": lambda z: (z[:, :2], z),
    "tuple with an auxiliary head": lambda z: (z, -z),
    "attribute": Result,
}


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_taken_out_of_what_holds_them(form: str) -> None:
    expected = Net()(IMAGES)
    model = load(Net(FORMS[form]))
    assert torch.equal(model(IMAGES), expected)
    assert torch.allclose(folded(model, IMAGES[:1])(IMAGES), expected, atol=1e-5)  # float32 rounding of two layers


@pytest.mark.parametrize("form", ["(N, 1)", "(N,)", "in a tuple"])
def test_one_logit_z_becomes_zero_and_z(form: str) -> None:
    wraps: dict[str, Callable[[torch.Tensor], Any]] = {
        "(N, 1)": lambda z: z,
        "(N,)": lambda z: z.squeeze(1),
        "in a tuple": lambda z: (z[:, 0],),
    }
    z = Net(numbers=1)(IMAGES)
    assert torch.equal(load(Net(wraps[form], 1), 2)(IMAGES), torch.cat((torch.zeros_like(z), z), 1))


@pytest.mark.parametrize("wrap", [lambda z: z, lambda z: z.squeeze(1), lambda z: z[:, 0]])
def test_one_logit_is_not_rounded(wrap: Callable[[torch.Tensor], Any]) -> None:
    graph = quantize(load(Net(wrap, 1), 2), X86_VNNI, [IMAGES], recipe=Recipe(ranges="moving-average"))
    called = [type(graph.get_submodule(n.target)) for n in graph.graph.nodes if n.op == "call_module"]
    assert ActivationQuantizer not in called[called.index(IntegerLinear) :]


@pytest.mark.parametrize(
    ("network", "classes", "match"),
    [
        (Net(lambda z: {"a": z, "b": -z}), 3, r"got dict of \['a'\] \(2, 3\), \['b'\] \(2, 3\); let the factory"),
        (Net(lambda z: {"logits": z[:, :2]}), 3, r"for the data's 3 classes, got dict of \['logits'\] \(2, 2\)"),
        (Net(lambda z: [1, 2]), 3, r"got list; let the factory return a module whose forward returns the logits"),
        (Net(numbers=1), 3, r"for the data's 3 classes, got \(2, 1\)$"),
        (Net(lambda z: z.sigmoid().squeeze(1), 1), 2, "the one output of Net is a sigmoid of it; let the network"),
        (nn.Sequential(Net(numbers=1), nn.Sigmoid()), 2, "the one output of Sequential is a sigmoid of it"),
    ],
)
def test_what_holds_no_logits_is_refused_in_one_line(network: nn.Module, classes: int, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        load(network, classes)
    assert "\n" not in str(caught.value)


def compiled_inside() -> nn.Module:
    network = nn.Sequential(Net(), nn.Identity())
    network[0] = torch.compile(network[0])  # type: ignore[assignment]  # it is a module
    network[1].compile()
    return network


WRAPPERS: dict[str, Callable[[], nn.Module]] = {
    "parallel": lambda: nn.DataParallel(Net()),
    "compiled": lambda: torch.compile(Net()),  # type: ignore[return-value]  # of a module it is one
    "parallel and compiled": lambda: torch.compile(nn.DataParallel(Net())),  # type: ignore[return-value]  # likewise
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(Net()),
    "compiled inside": compiled_inside,
}


@pytest.mark.parametrize("form", WRAPPERS)
def test_the_network_inside_is_taken(form: str) -> None:
    model = load(WRAPPERS[form]())
    assert torch.equal(model(IMAGES), Net()(IMAGES))
    assert torch.allclose(folded(model, IMAGES[:1])(IMAGES), Net()(IMAGES), atol=1e-5)  # float32 rounding
    assert all("_orig_mod" not in name and "module" not in name for name in model.state_dict())


def test_so_is_that_of_a_file_whose_weights_have_plain_names(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\ndef make(classes):\n"
        "    return torch.compile(nn.DataParallel(nn.Sequential(nn.Flatten(), nn.Linear(192, classes))))\n"
    )
    weights = {"1.weight": torch.ones(3, 192), "1.bias": torch.tensor([0.0, 1.0, 2.0])}
    torch.save(weights, tmp_path / "w.pt")
    model = qrobust.load_classifier(
        f"{tmp_path / 'mine.py'}:make",
        num_classes=3,
        image_size=8,
        weights=tmp_path / "w.pt",
        normalization="none",
    )
    assert torch.equal(model(torch.zeros(1, 3, 8, 8)), torch.tensor([[0.0, 1.0, 2.0]]))
