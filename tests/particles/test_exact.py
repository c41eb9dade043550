"""Full float32 inside a block, and the caller's switches afterwards."""

from __future__ import annotations

import threading

import pytest

from bella.particles.exact import SWITCHES, exactly


def now():
    return [switch.fp32_precision for switch in SWITCHES]


@pytest.fixture(autouse=True)
def as_users_have_it():
    before = now()
    for switch in SWITCHES:
        switch.fp32_precision = "tf32"
    yield
    for switch, value in zip(SWITCHES, before, strict=True):
        switch.fp32_precision = value


def test_products_are_full_float32_inside_and_as_before_afterwards():
    with exactly("cuda"):
        assert set(now()) == {"ieee"}
        with exactly("cuda"):
            pass
        assert set(now()) == {"ieee"}
    assert set(now()) == {"tf32"}


def test_a_cpu_is_left_alone():
    with exactly("cpu"):
        assert set(now()) == {"tf32"}


def test_errors_and_threads_leave_the_callers_switches():
    opened, go_on = threading.Event(), threading.Event()

    def other():
        with exactly("cuda"):
            opened.set()
            go_on.wait(10)

    def fails():
        with exactly("cuda"):
            thread.start()
            opened.wait(10)
            raise ValueError("inside")

    thread = threading.Thread(target=other)
    with pytest.raises(ValueError, match="inside"):
        fails()
    assert set(now()) == {"ieee"}  # the other block is open
    go_on.set()
    thread.join()
    assert set(now()) == {"tf32"}
