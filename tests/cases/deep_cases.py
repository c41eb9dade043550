"""Networks with repeated blocks, of our own and of transformers."""

from __future__ import annotations

import torch
import transformers
from layer_cases import Residual, grads_of
from torch import nn

import bella

TRANSPORTS = ["ensemble", "repulsive", "svgd", "function"]


class Deep(nn.Module):
    """A stem, six residual blocks with dropout, and a head; it has no checkpointing of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(Residual(8), nn.Dropout(0.2), nn.Tanh()) for _ in range(6)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def deep(first: int = 2) -> bella.Posterior:
    layers = "|".join(str(number) for number in range(first, 6))
    targets = (rf"blocks\.({layers})\.0\.(up|down)",)
    return bella.low_rank(Deep(), 4, 2, targets, modules_to_save=("head",), b_std=0.3).train()


def vit() -> transformers.ViTForImageClassification:
    torch.manual_seed(1)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=4,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_labels=3,
        hidden_dropout_prob=0.1,
    )
    return transformers.ViTForImageClassification(config)


def gpt() -> transformers.GPT2ForSequenceClassification:
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=16, n_layer=4, n_head=2, n_positions=8, num_labels=3, pad_token_id=0
    )
    return transformers.GPT2ForSequenceClassification(config)


NETWORKS = {
    "vit": (vit, (r".*layers\.(2|3)\.mlp\.fc.",), ("classifier",)),
    "gpt": (gpt, (r".*h\.(1|3)\.mlp\.c_fc",), ("score",)),
}


def checkpointed_by_transformers(network: torch.nn.Module) -> None:
    """As a user of transformers asks for it: by the name of today, or the one before it."""
    new = getattr(network, "activation_checkpointing_enable", None)
    (new or network.gradient_checkpointing_enable)()


def hugging_face(name: str, checkpointed: bool) -> bella.Posterior:
    network, targets, heads = NETWORKS[name]
    posterior = bella.low_rank(network(), 4, 2, targets, modules_to_save=heads, b_std=0.3)
    if checkpointed:
        checkpointed_by_transformers(posterior.network)
    return posterior.train()


def inputs(name: str) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(5, 3, 8, 8) if name == "vit" else torch.randint(1, 20, (5, 8))


Y = torch.arange(5) % 3
CHUNKS = [[[0, 1, 2, 3]], [[0, 1, 2], [3]], [[0, 2], [1, 3]]]


def stepped(posterior, x, transport, chunks):
    """Gradients of a step in chunks, all graphs made before the first backward."""
    move = bella.transport.by_name(transport, posterior, data_size=10, temperature=5.0)
    posterior.prove(x)
    torch.manual_seed(3)  # dropout
    posterior.zero_grad()
    stream = posterior.prefix(x)
    move.prepare(stream)
    losses = []
    for chunk in chunks:
        with posterior.subset(chunk):
            losses.append(bella.nll(posterior(stream), Y))
    for loss in reversed(losses):  # the subsets have been left, and another ran last
        loss.backward()
    move.step()
    return grads_of(posterior)


def assert_same(found, expected):
    for name, value in expected.items():
        assert value.abs().max() > 0, name
        close = {"rtol": 1e-5, "atol": 2e-6 * float(value.abs().max())}
        torch.testing.assert_close(found[name], value, msg=name, **close)
