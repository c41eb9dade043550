"""Residual networks for small images (He et al. 2016), ResNet-18 as it is trained on CIFAR."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes.

    Args:
        inputs: channels in.
        outputs: channels out.
        stride: of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if inputs != outputs or stride != 1:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) to (batch, outputs, h / stride, w / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Logits of shape (batch, classes) for images (batch, channels, h, w) of about 32 x 32.

    The first convolution is 3x3 with stride 1, and nothing is pooled before the first block.

    Args:
        classes: number of classes.
        channels: of the images.
        width: channels of the first stage; each stage has twice those of the one before.
        blocks: number of blocks in each stage; (2, 2, 2, 2) is ResNet-18.
    """

    def __init__(
        self,
        classes: int = 10,
        *,
        channels: int = 3,
        width: int = 64,
        blocks: Sequence[int] = (2, 2, 2, 2),
    ):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.stages = nn.Sequential()
        inputs = width
        for stage, count in enumerate(blocks):
            for block in range(count):
                stride = 2 if stage and not block else 1
                self.stages.append(BasicBlock(inputs, width << stage, stride))
                inputs = width << stage
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        y = self.stages(F.relu(self.bn(self.conv(x))))
        return self.classifier(y.mean((2, 3)))


def resnet18(classes: int = 10, *, channels: int = 3) -> ResNet:
    """ResNet-18 for 32 x 32 images: 11.2 million parameters."""
    return ResNet(classes, channels=channels)


def small_resnet(classes: int = 10, *, channels: int = 1) -> ResNet:
    """Three stages of one block, 16 to 64 channels: trains on a CPU."""
    return ResNet(classes, channels=channels, width=16, blocks=(1, 1, 1))
