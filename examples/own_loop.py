"""Particles in a training loop of your own.

A small network learns digits turned by a quarter; five particles of it then learn 200 upright
ones, 0 to 7, in a plain loop of PyTorch with one more line. Digits 8 and 9 are strange to them.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import bella
from bella.metrics import auroc_between

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32)
labels = torch.tensor(digits.target)

network = nn.Sequential(
    nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
)
turned = images.rot90(1, (1, 2)).flatten(1)
optimizer = torch.optim.Adam(network.parameters(), 3e-3)
for _ in range(150):
    optimizer.zero_grad()
    nn.functional.cross_entropy(network(turned), labels).backward()
    optimizer.step()
network[4] = nn.Linear(64, 8)

known = labels < 8
x, y = images[known].flatten(1), labels[known]
strange = images[~known].flatten(1)

posterior = bella.low_rank(
    network, 5, rank=4, target_modules=("0", "2"), modules_to_save=("4",), head_init="reset", gain=5
)
move = bella.transport.repulsive(posterior, data_size=200, temperature=10.0)
optimizer = torch.optim.AdamW(posterior.parameters(), lr=5e-3)
for epoch in range(30):
    for batch in torch.randperm(200).split(50):
        optimizer.zero_grad()
        loss = bella.nll(posterior(x[batch]), y[batch])  # summed over the particles
        loss.backward()
        move.step()  # the line that couples them
        optimizer.step()
    if epoch % 10 == 9:
        print(
            f"epoch {epoch + 1}: loss {loss / 5:.3f}, distance {move.log['distance']:.2f}, "
            f"repulsion over gradient {move.log['repulsion_ratio']:.3f}"
        )

test = bella.predict(posterior, x[200:])
other = bella.predict(posterior, strange)
print(f"right {(test.predictions == y[200:]).float().mean():.3f}, NLL {test.nll(y[200:]):.3f}")
for name in ("entropy", "mutual_information"):
    noticed = auroc_between(getattr(test, name), getattr(other, name))
    print(f"digits 8 and 9 noticed by {name}: AUROC {noticed:.3f}")

figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
for said, name, colour in ((test, "0 to 7", "#3b6ea5"), (other, "8 and 9", "#d1495b")):
    axis.hist(
        said.mutual_information,
        bins=40,
        range=(0, 0.6),
        density=True,
        alpha=0.6,
        color=colour,
        label=name,
    )
axis.set(xlabel="mutual information (nats)", yticks=[])
axis.legend(frameon=False)
figure.savefig(folder / "own_loop.png", dpi=90)
