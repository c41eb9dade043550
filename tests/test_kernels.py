"""The fastest float32 that is float32: chosen by time among what measures as float32."""

from __future__ import annotations

import json
import threading

import fit_cases
import pytest
import torch
from torch import nn

import bella
from bella import kernels
from bella.errors import BellaError

SWITCH = torch.backends.mkldnn.matmul
CPU = torch.device("cpu")


@pytest.fixture
def another(monkeypatch):
    """A machine on which the switch's other value is float32 and twice as fast."""
    monkeypatch.setattr(kernels, "FEWEST", 0)
    monkeypatch.setattr(kernels, "_measured", {})
    monkeypatch.setattr(kernels, "error_of", lambda *_: 3.7e-7)
    monkeypatch.setattr(kernels, "seconds_of", lambda *_: {"default": 2.0, "bf16": 1.0})


@pytest.fixture
def network():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def test_what_is_used_here_is_float32():
    """On the machine that runs this, whatever its switch does."""
    layer = nn.Linear(1024, 1024, bias=False)
    x = torch.randn(64, 1024)
    with torch.no_grad(), bella.fast_float32(layer):
        found = layer(x)
    exact = x.double() @ layer.weight.double().mT
    assert (found - exact).norm() / exact.norm() < kernels.TOLERANCE


def test_the_error_is_that_of_the_kernel():
    """As large as a product by hand has it; where the switch rounds it is far above the bound."""
    x, weight, _ = kernels._factors(256, 512, CPU)
    before = SWITCH.fp32_precision
    SWITCH.fp32_precision = "bf16"
    try:
        found = x @ weight.mT
    finally:
        SWITCH.fp32_precision = before
    exact = x.double() @ weight.double().mT
    error = kernels.error_of("bf16", CPU, ((256, 512, 1),))
    assert 0.3 < error / float((found - exact).norm() / exact.norm()) < 3
    assert error < kernels.TOLERANCE or error > 1e-4


def test_a_kernel_that_rounds_is_not_timed_and_not_used(monkeypatch, network):
    monkeypatch.setattr(kernels, "FEWEST", 0)
    monkeypatch.setattr(kernels, "_measured", {})
    monkeypatch.setattr(kernels, "error_of", lambda *_: 2.3e-3)
    monkeypatch.setattr(kernels, "seconds_of", lambda *_: pytest.fail("it was timed"))
    with bella.fast_float32(network) as kernel:
        assert kernel.name == "default"
        assert SWITCH.fp32_precision == "none"


def test_what_is_not_clearly_faster_is_not_used(another, monkeypatch, network):
    monkeypatch.setattr(kernels, "seconds_of", lambda *_: {"default": 1.1, "bf16": 1.0})
    assert kernels.fastest(network).name == "default"


def test_small_networks_and_other_dtypes_are_not_measured(monkeypatch, network):
    monkeypatch.setattr(kernels, "measure", lambda *_: pytest.fail("it was measured"))
    assert kernels.fastest(network).name == "default"
    monkeypatch.setattr(kernels, "FEWEST", 1)
    assert kernels.fastest(network.double()).name == "default"
    assert kernels.fastest(nn.Conv2d(3, 3, 3)).name == "default"


def test_shapes_are_those_with_most_weights():
    layers = [nn.Linear(4, 4), nn.Linear(2, 3), nn.Linear(4, 4), nn.Linear(9, 1), nn.Linear(1, 2)]
    network = nn.Sequential(*layers)
    assert kernels.shapes_of(network) == ((4, 4, 2), (1, 9, 1), (3, 2, 1))
    assert kernels.shapes_of(network.double()) == ()


def test_the_outermost_decides_and_the_last_puts_back(another, network):
    with bella.fast_float32(network) as kernel:
        assert kernel.facts() == {"kernel": "bf16", "error": 3.7e-7, "times_faster": 2.0}
        with bella.fast_float32(nn.Linear(1, 1).double()) as inner:
            assert inner is kernel
        assert SWITCH.fp32_precision == "bf16"
    assert SWITCH.fp32_precision == "none"
    with pytest.raises(ZeroDivisionError), bella.fast_float32(network):
        raise ZeroDivisionError
    assert SWITCH.fp32_precision == "none"


def test_threads_share_the_switch(another, network):
    """One that leaves while another is inside leaves the switch; the last puts it back."""
    first_is_in, second_is_in, first_left = (threading.Event() for _ in range(3))
    seen = []

    def first():
        with bella.fast_float32(network):
            first_is_in.set()
            second_is_in.wait(10)
        first_left.set()

    def second():
        first_is_in.wait(10)
        with bella.fast_float32(network):
            second_is_in.set()
            first_left.wait(10)
            seen.append(SWITCH.fp32_precision)

    threads = [threading.Thread(target=call) for call in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen == ["bf16"]
    assert SWITCH.fp32_precision == "none"


def test_a_caller_who_asks_for_the_default_has_it(another, network):
    SWITCH.fp32_precision = "ieee"
    try:
        with bella.fast_float32(network) as kernel:
            assert (kernel.name, SWITCH.fp32_precision) == ("default", "ieee")
        assert SWITCH.fp32_precision == "ieee"
    finally:
        SWITCH.fp32_precision = "none"


def test_what_the_caller_set_stays(another, network):
    SWITCH.fp32_precision = "tf32"
    try:
        with bella.fast_float32(network) as kernel:
            assert kernel.name == SWITCH.fp32_precision == "tf32"
        assert SWITCH.fp32_precision == "tf32"
        with (
            pytest.raises(BellaError, match="the caller of bella has set 'tf32'"),
            bella.fast_float32(network, "bf16"),
        ):
            pass
    finally:
        SWITCH.fp32_precision = "none"


def test_a_run_says_what_it_used_and_goes_on_with_it(another, monkeypatch, tmp_path):
    used = []
    monkeypatch.setattr(
        bella.posterior.Posterior,
        "forward",
        seen(bella.posterior.Posterior.forward, used),
    )
    record = fit_cases.fit(fit_cases.make(), epochs=1, folder=tmp_path)
    assert record.float32["kernel"] == "bf16"
    assert set(used) == {"bf16"}
    assert json.loads((tmp_path / "run.json").read_text())["float32"] == record.float32
    assert fit_cases.state_of(tmp_path)["kernel"] == "bf16"

    # The other kernel is no faster today, and the run keeps it all the same.
    monkeypatch.setattr(kernels, "fastest", lambda _: kernels.Kernel())
    record = fit_cases.fit(fit_cases.make(), epochs=2, folder=tmp_path)
    assert record.float32["kernel"] == "bf16"
    assert set(used) == {"bf16"}

    # A machine on which it rounds cannot go on with the run.
    monkeypatch.setattr(kernels, "error_of", lambda *_: 2.3e-3)
    with pytest.raises(BellaError, match=r"'bf16', and on this machine .* is 0.002, above 1e-06"):
        fit_cases.fit(fit_cases.make(), epochs=3, folder=tmp_path)
    assert SWITCH.fp32_precision == "none"


def test_a_run_of_the_default_kernel_keeps_it(another, monkeypatch, tmp_path):
    with monkeypatch.context() as before:
        before.setattr(kernels, "fastest", lambda _: kernels.Kernel())
        fit_cases.fit(fit_cases.make(), epochs=1, folder=tmp_path)
    used = []
    monkeypatch.setattr(
        bella.posterior.Posterior, "forward", seen(bella.posterior.Posterior.forward, used)
    )
    record = fit_cases.fit(fit_cases.make(), epochs=2, folder=tmp_path)
    assert record.float32["kernel"] == "default"
    assert set(used) == {"none"}
    posterior = fit_cases.make()
    with (
        bella.fast_float32(posterior),
        pytest.raises(BellaError, match="'default', and a block of bella"),
    ):
        fit_cases.fit(posterior, epochs=3, folder=tmp_path)


def test_predictions_run_inside(another, monkeypatch):
    used = []
    monkeypatch.setattr(
        bella.posterior.Posterior, "forward", seen(bella.posterior.Posterior.forward, used)
    )
    posterior = fit_cases.make()
    bella.predict(posterior, fit_cases.problem()[0])
    bella.evaluate(posterior, fit_cases.problem())
    assert set(used) == {"bf16"}
    assert SWITCH.fp32_precision == "none"


def seen(forward, used):
    def call(self, *args, **kwargs):
        used.append(SWITCH.fp32_precision)
        return forward(self, *args, **kwargs)

    return call
