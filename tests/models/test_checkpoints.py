"""One network, saved the ways that training scripts save it."""

from __future__ import annotations

import argparse
import collections
import pathlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from qrobust.errors import InputError
from qrobust.models.checkpoints import read_weights
from qrobust.models.loading import load_model
from qrobust.models.registry import find_model
from qrobust.models.resnet import SmallResNet, resnet8

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def network() -> SmallResNet:
    torch.manual_seed(7)
    return resnet8(10)


def loaded(path: Path, spec: str = "resnet8") -> State:
    found = find_model(spec)
    choices: dict[str, Any] = {"image_size": 32, "pretrained": False, "normalization": "none", "seed": 0}
    return load_model(found, classes=10, weights=path, **choices).network.state_dict()


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def other(state: State) -> State:
    """Weights that fit as well, and are others."""
    return {name: value + 1 for name, value in state.items()}


ARGUMENTS = argparse.Namespace(model="resnet8", lr=0.1, root=pathlib.PurePosixPath("/data"))


class Metric:
    """A class of a training script."""

    def __init__(self) -> None:
        self.best = np.float64(91.2)


def optimizer(network: nn.Module) -> dict[str, Any]:
    made = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    return made.state_dict()


WAYS: dict[str, Callable[[SmallResNet, State], object]] = {
    "torchvision's reference": lambda net, s: {
        "model": s,
        "optimizer": optimizer(net),
        "epoch": 3,
        "args": ARGUMENTS,
    },
    "timm's": lambda _, s: {"arch": "resnet8", "state_dict": s, "version": 2, "args": ARGUMENTS, "metric": 91.2},
    "PyTorch's tutorial": lambda net, s: {"model_state_dict": s, "optimizer_state_dict": optimizer(net), "loss": 0.1},
    "PyTorch's example": lambda _, s: {"state_dict": prefixed(s, "module."), "best_acc1": torch.tensor(91.2)},
    "Lightning's": lambda _, s: {"state_dict": prefixed(s, "model."), "hyper_parameters": {"lr": 0.1}},
    "numpy's numbers": lambda _, s: {"state_dict": s, "best": np.float64(91.2), "counts": np.arange(3)},
    "dictionaries with defaults": lambda _, s: {"net": s, "log": collections.defaultdict(Metric, a=Metric())},
    "objects of the script": lambda _, s: {"net": s, "metric": Metric(), "where": pathlib.Path("/data")},
    "compiled": lambda _, s: prefixed(s, "_orig_mod."),
    "compiled, then parallel": lambda _, s: prefixed(s, "module._orig_mod."),
    "parallel, then compiled": lambda _, s: prefixed(s, "_orig_mod.module."),
    "parallel twice": lambda _, s: prefixed(s, "module.module."),
    "compiled within": lambda _, s: {k.replace("conv1.", "conv1._orig_mod.", 1): v for k, v in s.items()},
    "averaged": lambda net, _: AveragedModel(net).state_dict(),
    "averaged, then parallel": lambda net, _: nn.DataParallel(AveragedModel(net)).state_dict(),
    "averaged in a container": lambda net, _: {
        "epoch": 3,
        "model_ema": AveragedModel(nn.DataParallel(net)).state_dict(),
    },
    "twice the same": lambda _, s: {"ema": s, "net": {k: v.clone() for k, v in s.items()}, "acc": 91.2},
    "deep": lambda _, s: {"trainer": {"state": {"model": prefixed(s, "net.")}}},
    "whole": lambda net, _: net,
    "whole and parallel, in a container": lambda net, _: {"model": nn.DataParallel(net), "epoch": 3},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "first format"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_network(way: str, zipped: bool, network: SmallResNet, tmp_path: Path) -> None:
    if not zipped and way.startswith("whole"):
        pytest.skip("torch reads no network of its first format without executing what is in the file")
    torch.save(WAYS[way](network, network.state_dict()), tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    found, expected = loaded(tmp_path / "w.pt"), network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items() if "num_batches" not in name)


@pytest.mark.parametrize("place", ["state_dict", "state_dict_ema"])
def test_of_several_that_differ_the_user_chooses(place: str, network: SmallResNet, tmp_path: Path) -> None:
    states = {"state_dict": network.state_dict(), "state_dict_ema": other(network.state_dict())}
    torch.save({"epoch": 3, **states, "optimizer": optimizer(network)}, tmp_path / "w.pt")
    with pytest.raises(
        InputError, match=r"several weights that fit .*\(state_dict, state_dict_ema\), which differ"
    ) as caught:
        loaded(tmp_path / "w.pt")
    assert str(caught.value).endswith(f"choose one: --weights {tmp_path / 'w.pt'}:state_dict")
    found = loaded(Path(f"{tmp_path / 'w.pt'}:{place}"))
    assert torch.equal(found["fc.weight"], states[place]["fc.weight"])
    with pytest.raises(InputError, match=r"expected one of state_dict, state_dict_ema in .*, got 'ema'"):
        loaded(Path(f"{tmp_path / 'w.pt'}:ema"))


def test_a_network_beside_other_entries_is_taken_only_by_name(network: SmallResNet, tmp_path: Path) -> None:
    """A LightningModule with a weighted criterion: to leave that out is the user's decision."""
    state = prefixed(network.state_dict(), "model.") | {"criterion.weight": torch.ones(10)}
    torch.save({"state_dict": state}, tmp_path / "w.ckpt")
    with pytest.raises(
        InputError, match=r"a part of .* fits the model \(state_dict.model\), not all of it"
    ) as caught:
        loaded(tmp_path / "w.ckpt")
    chosen = str(caught.value).rpartition("--weights ")[2]
    assert torch.equal(loaded(Path(chosen))["fc.bias"], network.state_dict()["fc.bias"])


def test_teacher_and_student_are_both_listed(network: SmallResNet, tmp_path: Path) -> None:
    state = network.state_dict()
    torch.save(prefixed(state, "student.") | prefixed(other(state), "teacher."), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"\(student, teacher\), not all of it"):
        loaded(tmp_path / "w.pt")
    assert torch.equal(loaded(Path(f"{tmp_path / 'w.pt'}:teacher"))["fc.bias"], state["fc.bias"] + 1)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_names_of_wrappers_that_are_the_networks_own_are_kept(prefix: str, tmp_path: Path) -> None:
    """Without what might be a wrapper's name, these two would be one."""
    own = {"model.fc.weight": torch.zeros(2), "net.fc.weight": torch.ones(2)}
    torch.save(prefixed({name: value + 5 for name, value in own.items()}, prefix), tmp_path / "w.pt")
    found = read_weights(tmp_path / "w.pt", own).tensors
    assert {k: v.tolist() for k, v in found.items()} == {"model.fc.weight": [5, 5], "net.fc.weight": [6, 6]}


def test_weights_of_the_network_within_the_users_own(network: SmallResNet, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "w.pt")
    own = prefixed(network.state_dict(), "model.")
    assert read_weights(tmp_path / "w.pt", own).tensors.keys() == own.keys()


def test_a_file_whose_name_has_a_colon(network: SmallResNet, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "a:b.pt")
    assert loaded(tmp_path / "a:b.pt").keys() == network.state_dict().keys()
    torch.save({"net": network.state_dict()}, tmp_path / "a:b.pt")
    assert loaded(Path(f"{tmp_path / 'a:b.pt'}:net")).keys() == network.state_dict().keys()
    with pytest.raises(InputError, match=r"no file .*nowhere\.pt:net"):
        loaded(tmp_path / "nowhere.pt:net")


def test_what_does_not_fit_is_told_of_the_nearest(network: SmallResNet, tmp_path: Path) -> None:
    state = network.state_dict()
    del state["fc.bias"]
    torch.save(
        {"optimizer": {"state": {"m": torch.zeros(3)}}, "model": prefixed(state, "module.")}, tmp_path / "w.pt"
    )
    with pytest.raises(InputError, match=r"1 entries missing \['fc.bias'\], 0 unknown"):
        loaded(tmp_path / "w.pt")


class Evil:
    """Pickled, it asks for a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


RAN: list[object] = []


def run_me(*arguments: object) -> dict[str, object]:
    RAN.append(arguments)
    return {}


@pytest.mark.parametrize("function", [run_me, eval, exec, open, getattr])
def test_nothing_in_a_file_is_executed(function: Callable[..., object], network: SmallResNet, tmp_path: Path) -> None:
    marker = tmp_path / "made"
    arguments = {open: (str(marker), "w"), getattr: (network, "fc")}.get(function, (f"open({str(marker)!r}, 'w')",))
    torch.save({"args": Evil(function, *arguments), "model": network.state_dict()}, tmp_path / "w.pt")
    assert loaded(tmp_path / "w.pt").keys() == network.state_dict().keys()
    assert not marker.exists()
    assert RAN == []


def test_weights_that_a_call_would_make_are_none(network: SmallResNet, tmp_path: Path) -> None:
    torch.save({"model": Evil(run_me, network.state_dict())}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"expected a state dict of tensors in .*w\.pt, got none"):
        loaded(tmp_path / "w.pt")
    (tmp_path / "p.pt").write_bytes(pickle.dumps(Evil(run_me, 1)))
    with pytest.raises(InputError, match="not a readable state dict"):
        loaded(tmp_path / "p.pt")
    assert RAN == []


def test_files_that_hold_themselves_end(network: SmallResNet, tmp_path: Path) -> None:
    ring: dict[str, Any] = {"a": {}}
    ring["a"]["b"] = ring["a"]["c"] = ring
    block = nn.Module()
    block._modules["first"] = block._modules["second"] = block
    torch.save({"ring": ring, "block": block, "net": network.state_dict()}, tmp_path / "w.pt")
    assert loaded(tmp_path / "w.pt").keys() == network.state_dict().keys()


def test_buffers_that_are_not_kept_are_no_weights(tmp_path: Path) -> None:
    net = nn.BatchNorm2d(3)
    net.register_buffer("passing", torch.zeros(2), persistent=False)
    torch.save(nn.Sequential(net), tmp_path / "w.pt")
    found = read_weights(tmp_path / "w.pt", nn.Sequential(nn.BatchNorm2d(3)).state_dict())
    assert found.tensors.keys() == nn.Sequential(nn.BatchNorm2d(3)).state_dict().keys()
