"""Three reference networks of the field in their forms for 32x32 images: torchvision's, with a stem that
does not throw the image away before it is looked at.

He et al., arXiv 1512.03385; Sandler et al., arXiv 1801.04381; Simonyan and Zisserman, arXiv 1409.1556,
with batch normalisation.
"""

from __future__ import annotations

from torch import nn


def cifar_resnet18(num_classes: int) -> nn.Module:
    """ResNet-18 with a 3x3 stem and no max-pool: 11.2 M parameters, 556 M multiply-accumulates at 32x32."""
    from torchvision.models import resnet18

    model = resnet18(num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    model.maxpool = nn.Identity()
    return model


def cifar_mobilenet_v2(num_classes: int) -> nn.Module:
    """MobileNetV2 whose first two strides are 1: 2.2 M parameters, 88 M multiply-accumulates at 32x32."""
    from torchvision.models import mobilenet_v2

    model = mobilenet_v2(num_classes=num_classes)
    strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    for convolution in strided[:2]:
        convolution.stride = (1, 1)
    return model


def cifar_vgg16_bn(num_classes: int) -> nn.Module:
    """VGG-16 with batch norm, its features and one linear layer: 14.7 M parameters, 313 M multiply-accumulates."""
    from torchvision.models import vgg16_bn

    model = vgg16_bn(num_classes=num_classes)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Linear(512, num_classes)
    return model
