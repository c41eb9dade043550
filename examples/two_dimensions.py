"""What a coupling does, where one can see it.

Points of two classes in a plane, and a network that has learnt something else there. Five
particles are trained on them under each coupling; the picture shows what they dispute of every
place. Far from the points nothing is known, and there they should dispute.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import make_moons
from torch import nn

import bella

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
x, y = make_moons(160, noise=0.2, random_state=0)
x, y = torch.tensor(x - [0.5, 0.25], dtype=torch.float32), torch.tensor(y)
grid = torch.cartesian_prod(torch.linspace(-3, 3, 81), torch.linspace(-2.6, 2.6, 71))
distance = torch.cdist(grid, x).min(1).values


def pre_trained():
    """A network that knows the four quarters of the plane, with a fresh head for two classes."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    )
    where = 4 * torch.rand(1000, 2) - 2
    quarter = ((where[:, 0] > 0) + 2 * (where[:, 1] > 0)).long()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(where), quarter).backward()
        optimizer.step()
    network[4] = nn.Linear(32, 2)
    return network


ways = {
    "ensemble": ("ensemble", {}),
    "repulsive, T = 1": ("repulsive", {}),
    "repulsive, T = 100": ("repulsive", {"temperature": 100.0}),
    "svgd": ("svgd", {}),
}
figure, axes = plt.subplots(1, len(ways), figsize=(11, 2.9), layout="constrained")
print("transport            right   disputed near   disputed far (nats)")
for axis, (name, (transport, options)) in zip(axes, ways.items(), strict=True):
    posterior = bella.low_rank(
        pre_trained(), 5, 4, ("2",), modules_to_save=("4",), gain=5, head_init="reset"
    )
    bella.fit(
        posterior,
        (x, y),
        transport=transport,
        transport_options=options,
        epochs=60,
        learning_rate=1e-2,
        progress=False,
    )
    right = (bella.predict(posterior, x).predictions == y).float().mean()
    disputed = bella.predict(posterior, grid).mutual_information
    near, far = disputed[distance < 0.2].mean(), disputed[distance > 1].mean()
    print(f"{name:20} {right:.2f}    {near:.4f}          {far:.4f}")
    image = disputed.view(81, 71).mT
    axis.imshow(image, extent=(-3, 3, -2.6, 2.6), origin="lower", cmap="YlOrRd", vmin=0, vmax=0.3)
    axis.scatter(*x.mT, c=y, s=5, cmap="bone", vmin=-0.3, vmax=1.6)
    axis.set(title=name, xticks=[], yticks=[])
figure.savefig(folder / "two_dimensions.png", dpi=90)
