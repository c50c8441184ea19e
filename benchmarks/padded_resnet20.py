"""The ResNet-20 of most public CIFAR-10 checkpoints: shortcuts without parameters, entries `layer1` to `layer3`.

He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385, section 4.2 with shortcuts of kind A:
where a stage halves the picture, every other pixel is taken, and channels that are new are zero. qrobust's own
`resnet20` projects there. As a network of one's own: `--model benchmarks/padded_resnet20.py:make`.

    python benchmarks/padded_resnet20.py WEIGHTS PROJECTED    # the same network as weights of the built-in `resnet20`
"""

from __future__ import annotations

import click
import torch
from torch import nn
from torch.nn import functional as F

from qrobust.models.registry import BUILT_IN
from qrobust.models.resnet import BasicBlock

BLOCKS, WIDTHS = 3, (16, 32, 64)


class PaddedShortcut(nn.Module):
    """Every other pixel, between as many channels of zeros: `(N, C, H, W)` to `(N, 2 C, H / 2, W / 2)`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[1] // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))


class PaddedResNet20(nn.Module):
    """Logits `(N, num_classes)` of images `(N, 3, 32, 32)`."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1, self.layer2, self.layer3 = (
            self._stage(before, width) for before, width in zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)
        )
        self.linear = nn.Linear(WIDTHS[-1], num_classes)

    @staticmethod
    def _stage(before: int, width: int) -> nn.Sequential:
        blocks = [
            BasicBlock(before, width, width // before),
            *(BasicBlock(width, width, 1) for _ in range(BLOCKS - 1)),
        ]
        if before != width:
            blocks[0].shortcut = PaddedShortcut()
        return nn.Sequential(*blocks)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What the last layer reads `(N, 64)`."""
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.features(x))


def make(num_classes: int) -> nn.Module:
    """The network, to be given its weights."""
    return PaddedResNet20(num_classes)


def projected(padded: PaddedResNet20) -> nn.Module:
    """The same function by the built-in `resnet20`: its 1x1 convolutions put channels between zeros."""
    network = BUILT_IN["resnet20"](padded.linear.out_features)
    state = network.state_dict()
    for name, value in padded.state_dict().items():
        stage, _, rest = name.partition(".")
        block, _, part = rest.partition(".")
        if stage.startswith("layer"):
            state[f"blocks.{(int(stage[-1]) - 1) * BLOCKS + int(block)}.{part}"] = value
        else:
            state[name.replace("linear", "fc")] = value
    for name in [name for name in state if name.endswith("shortcut.0.weight")]:
        weight, norm = torch.zeros_like(state[name]), name.removesuffix("0.weight") + "1"
        channels = torch.arange(weight.shape[1])
        weight[channels + weight.shape[1] // 2, channels] = 1
        state[name] = weight
        state[f"{norm}.running_var"] = torch.full_like(state[f"{norm}.running_var"], 1 - nn.BatchNorm2d(1).eps)
    network.load_state_dict(state)
    return network


@click.command()
@click.argument("weights")
@click.argument("out")
def main(weights: str, out: str) -> None:
    """Write a public checkpoint as a state dict of the built-in `resnet20`."""
    kept = torch.load(weights, map_location="cpu", weights_only=True)
    padded = PaddedResNet20(10)
    padded.load_state_dict({k.removeprefix("module."): v for k, v in kept["state_dict"].items()})
    with open(out, "wb") as file:  # given a name, torch writes it into the file, whose hash then depends on it
        torch.save(projected(padded).state_dict(), file)


if __name__ == "__main__":
    main()
