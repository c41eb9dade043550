"""Three adapters of PEFT become a posterior, and leave as adapters again.

Three LoRA fine-tunes of one network, trained with PEFT from other seeds. Bella runs them in one
pass, says what they dispute, trains them on together, and writes adapters that PEFT opens.
"""

import sys
from pathlib import Path

import peft
import torch
from sklearn.datasets import load_digits
from torch import nn

import bella

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)
turned = x.view(-1, 8, 8).rot90(1, (1, 2)).flatten(1)


def descend(network, inputs, labels, steps, rate):
    """Train what is not frozen."""
    trainable = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, rate)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), labels).backward()
        optimizer.step()


def base():
    """A network that has learnt the digits turned by a quarter, the same each time."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    descend(network, turned, y, 150, 3e-3)
    return network


train, test = slice(0, 150), slice(150, None)
folders = [folder / f"lora-{seed}" for seed in range(3)]
for seed, place in enumerate(folders):
    network = base()
    torch.manual_seed(seed)
    settings = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["0", "2"], modules_to_save=["4"])
    adapted = peft.get_peft_model(network, settings)
    descend(adapted, x[train], y[train], 100, 1e-2)
    adapted.save_pretrained(place)

posterior = bella.from_peft(base(), folders).eval()
said = bella.predict(posterior, x[test])
for seed, probs in enumerate(said.particle_probs):
    print(f"adapter {seed}: NLL {-probs.log()[torch.arange(len(probs)), y[test]].mean():.3f}")
print(f"all three: NLL {said.nll(y[test]):.3f}, disputed {said.mutual_information.mean():.3f} nats")

bella.fit(posterior, (x[train], y[train]), epochs=3, learning_rate=1e-3, progress=False)
said = bella.predict(posterior.eval(), x[test])
print(f"trained on together: NLL {said.nll(y[test]):.3f}")

written = bella.to_peft(posterior, folder / "out")
print("written:", ", ".join(place.name for place in written))
theirs = peft.PeftModel.from_pretrained(base(), folder / "out" / "particle-1").eval()
with torch.no_grad():
    apart = (theirs(x[test]) - posterior(x[test])[1]).abs().max()
print("PEFT's logits are the particle's:", bool(apart < 1e-4))
