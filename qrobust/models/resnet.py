"""The small residual networks for 32x32 images of He et al., "Deep Residual Learning for Image
Recognition", arXiv 1512.03385, section 4.2, with projection shortcuts."""

from __future__ import annotations

import torch
from torch import nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: `(N, C, H, W)` to `(N, planes, H / stride, W / stride)`."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(in_planes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.shortcut(x))


class SmallResNet(nn.Module):
    """`6 n + 2` layers in three stages of `width`, `2 width` and `4 width` channels.

    Args:
        depth: 8, 14, 20, 32, 44 or 56: any `6 n + 2`.
        num_classes: length of the logits.
        width: channels of the first stage.
    """

    def __init__(self, depth: int, num_classes: int, width: int = 16) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        layers: list[nn.Module] = []
        planes = width
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        for stage in range(3):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(BasicBlock(planes, width * 2**stage, stride))
                planes = width * 2**stage
        self.blocks = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(planes, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.flatten(self.pool(self.blocks(x)), 1))


def resnet8(num_classes: int) -> SmallResNet:
    """ResNet-8, 13 M multiply-accumulates at 32x32: the demo's network."""
    return SmallResNet(8, num_classes)


def resnet20(num_classes: int) -> SmallResNet:
    """ResNet-20, 41 M multiply-accumulates at 32x32."""
    return SmallResNet(20, num_classes)


def resnet32(num_classes: int) -> SmallResNet:
    """ResNet-32, 70 M multiply-accumulates at 32x32."""
    return SmallResNet(32, num_classes)
