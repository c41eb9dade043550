"""Networks of torch's own layers, in the layouts in which people write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from zoo_base import LENGTH, Architecture, Inputs, pixels, series

WIDTH = 8


def encoder(batch_first: bool, **options) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        WIDTH, 2, 12, dropout=0.0, batch_first=batch_first, **options
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class SequenceFirst(nn.Module):
    """Takes (batch, length, width) and works inside on (length, batch, width)."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.encoder = encoder(batch_first=False)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x).transpose(0, 1)).mean(0))


class TimeMajor(nn.Module):
    """Folds time before the batch, (time * batch, width), as fairseq and frames of videos do."""

    def __init__(self):
        super().__init__()
        self.embed, self.fc = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).transpose(0, 1)
        time, batch, width = h.shape
        h = torch.tanh(self.fc(h.reshape(time * batch, width)))
        return self.head(h.view(time, batch, width).mean(0))


class Frames(nn.Module):
    """Folds time after the batch, (batch * time, channels, ...): rows in the order of examples."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.mix = nn.Conv1d(4, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.conv(x.flatten(0, 1).unsqueeze(1))))
        h = h.mean((2, 3)).unflatten(0, x.shape[:2])  # batch, time, channels
        return self.head(torch.relu(self.mix(h.mT)).mean(-1))


class Recurrent(nn.Module):
    def __init__(self, batch_first: bool):
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=batch_first)
        self.mix, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.embed(x)
        states, (last, _) = self.lstm(h if self.batch_first else h.transpose(0, 1))
        states = torch.tanh(self.mix(states))
        return self.head(states), last[-1]


class Queries(nn.Module):
    """Learned queries, the same for every example, attend to the input (Perceiver, DETR)."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(4, WIDTH))
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(self.queries)  # no batch
        weights = (query @ self.key(x).mT).softmax(-1)
        return self.head(weights @ x).mean(1)


class Tower(nn.Module):
    """A convolutional network with batch norm, squeeze-and-excitation and two outputs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.down, self.up = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
            for _ in range(2)
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.stem(x)
        h = h * torch.sigmoid(self.up(torch.relu(self.down(h.mean((2, 3), keepdim=True)))))
        for block in self.blocks:
            h = h + block(h)
        return {"logits": self.head(h.mean((2, 3))), "map": h}


class UNet(nn.Module):
    """Carries what came before the blocks past them."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.leave = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = kept = torch.relu(self.enter(x))
        for layer in self.inner:
            h = torch.relu(layer(h))
        return self.leave(torch.cat((h, kept), 1))


class Multihead(nn.Module):
    """nn.MultiheadAttention, which reads its output projection's weight without calling it."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.embed(x)
        attended, weights = self.attention(h, h, h)
        return self.head(attended.mean(1)), weights


def mixer() -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)
    )


def one_series(batch: int) -> Inputs:
    return (series(batch),), {}


def masked(batch: int) -> Inputs:
    mask = torch.zeros(batch, LENGTH, dtype=torch.bool)
    mask[::2, -2:] = True
    return (series(batch),), {"src_key_padding_mask": mask}


def length_first(batch: int) -> Inputs:
    return (series(batch).transpose(0, 1).contiguous(),), {}


def frames(batch: int) -> Inputs:
    return (pixels(batch, 8, LENGTH),), {}


def picture(batch: int) -> Inputs:
    return (pixels(batch, 8),), {}


ZOO = {
    "torch-encoder": Architecture(lambda: encoder(True), one_series),
    "torch-encoder-masked": Architecture(lambda: encoder(True, norm_first=True), masked),
    "torch-encoder-length-first": Architecture(lambda: encoder(False), length_first),
    "sequence-first": Architecture(SequenceFirst, one_series),
    "time-major": Architecture(TimeMajor, one_series),
    "frames": Architecture(Frames, frames),
    "lstm": Architecture(lambda: Recurrent(True), one_series),
    "lstm-length-first": Architecture(lambda: Recurrent(False), one_series),
    "queries": Architecture(Queries, one_series),
    "tower": Architecture(Tower, picture),
    "unet": Architecture(UNet, picture),
    "multihead": Architecture(Multihead, one_series),
    "sequential": Architecture(mixer, one_series),
}
