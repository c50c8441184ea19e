"""A public checkpoint's network and the built-in one that stands for it in benchmarks are the same function."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_shortcuts_without_parameters_are_projections_between_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from padded_resnet20 import PaddedResNet20, projected

    torch.manual_seed(0)
    padded = PaddedResNet20(10)
    for module in padded.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        wanted, found = padded.eval()(images), projected(padded).eval()(images)
    # A running variance of 1 - eps is rounded to float32.
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
