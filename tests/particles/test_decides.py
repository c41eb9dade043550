"""What is held back from the second half decides nothing there, on whatever examples."""

from __future__ import annotations

import pytest
import torch
from fit_cases import Blocks, make, problem


class Decides(Blocks):
    """What arrives at the network decides past the entrance, on examples that no proof sees."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x, mask):
        return self.how(super().forward(x), x, mask)


@pytest.mark.parametrize(
    "how",
    [
        lambda y, x, mask: y.masked_fill((mask == 0)[:, None], -1e4),
        lambda y, x, mask: y / (x[:, 0] != 7).to(y)[:, None],
        lambda y, x, mask: torch.where(x[:, :1] > 6, 0.0, y),
        lambda y, x, mask: y + x.nan_to_num(0, posinf=1.0)[:, :1].clamp(6, 7),
    ],
    ids=["mask", "unequal", "above", "clamped"],
)
@pytest.mark.parametrize("training", [True, False])
def test_what_decides_past_the_entrance_is_not_a_placeholder(how, training):
    """A placeholder never equals anything, and on most examples nobody notices."""
    posterior = make(network=Decides(how), b_std=0.5).train(training)
    x, _ = problem(8)
    mask = torch.ones(8)
    with pytest.warns(UserWarning, match="decides past the entrance"):
        posterior(x, mask)  # proves on examples of which none is masked, and none is 7
    x, mask = x.clone(), mask.clone()
    x[3, 0], mask[5] = 7.0, 0.0
    expected = torch.stack([posterior.particle(i)(x, mask) for i in range(3)])
    torch.testing.assert_close(posterior(x, mask), expected)
