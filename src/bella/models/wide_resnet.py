"""Wide residual networks for 32 x 32 images (Zagoruyko & Komodakis 2016)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bella.errors import BellaError


class WideBlock(nn.Module):
    """Batch norm, ReLU and 3x3 convolution, twice, beside a shortcut.

    Where the shape changes, the shortcut is a 1x1 convolution of the first normalised input.

    Args:
        inputs: channels in.
        outputs: channels out.
        stride: of the first convolution.
        dropout: probability between the two convolutions.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = (
            None
            if inputs == outputs and stride == 1
            else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) to (batch, outputs, h / stride, w / stride)."""
        y = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = self.dropout(F.relu(self.bn2(self.conv1(y))))
        return self.conv2(y) + shortcut


class WideResNet(nn.Module):
    """WRN-depth-width: logits of shape (batch, classes) for images (batch, 3, 32, 32).

    Args:
        depth: number of convolutions on the longest path; 6 k + 4.
        width: factor on the 16, 32 and 64 channels of the three stages.
        classes: number of classes.
        dropout: probability inside the blocks.

    Raises:
        BellaError: a depth that is not 6 k + 4 with k at least 1.
    """

    def __init__(
        self, depth: int = 28, width: int = 10, classes: int = 10, *, dropout: float = 0.0
    ):
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise BellaError(f"depth={depth}: a wide ResNet has 6 k + 4 layers, such as 16 or 28.")
        blocks = (depth - 4) // 6
        channels = 16
        self.conv = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        for stage in range(3):
            outputs = (16 << stage) * width
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                self.stages.append(WideBlock(channels, outputs, stride, dropout))
                channels = outputs
        self.bn = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.kaiming_normal_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        y = F.relu(self.bn(self.stages(self.conv(x))))
        return self.classifier(y.mean((2, 3)))
