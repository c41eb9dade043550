"""Options that are no numbers, as YAML gives them, are refused before the first step."""

from __future__ import annotations

import math

import pytest
from fit_cases import fit, make

import bella
from bella import transport


@pytest.mark.parametrize("name", ["temperature", "gamma", "prior_std", "warmup", "damping"])
@pytest.mark.parametrize("value", ["1", [1.0], True, {}])
def test_options_that_are_no_numbers_are_named(name, value):
    if name == "warmup":  # fit has its own, coupling_warmup
        with pytest.raises(bella.BellaError, match="warmup="):
            transport.repulsive(make(), data_size=8, warmup=value)
        return
    with pytest.raises(bella.BellaError, match=f"^{name}=") as error:
        fit(make(), transport_options={name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damping", [0, 0.0, -1e-3, math.nan, math.inf])
def test_damping_is_above_zero(damping):
    with pytest.raises(bella.BellaError, match="damping="):
        fit(make(b_std=0.0), transport_options={"damping": damping})
    fit(make(b_std=0.0), transport_options={"damping": 1e-3}, epochs=1)
