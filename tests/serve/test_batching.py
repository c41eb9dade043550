"""The queue: who is answered with whom, who is refused, and that nobody is forgotten."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError

import pytest

from bella.serve.batching import Batcher, ClosedError, FullError, LateError


class Passes:
    """Doubles numbers; the first pass waits until it is let go."""

    def __init__(self, **options):
        self.seen, self.gate, self.began = [], threading.Event(), threading.Event()
        self.batcher = Batcher(self.answer, **({"wait": 0.0} | options))

    def answer(self, items, key):
        self.seen.append((list(items), key))
        self.began.set()
        assert self.gate.wait(10)
        if "bad" in items:
            raise ValueError("bad")
        return [2 * item for item in items]

    def blocked(self):
        """A pass that runs, so that what comes now queues up."""
        first = self.batcher.submit([0])
        assert self.began.wait(10)
        return first


@pytest.fixture
def make():
    made = []

    def passes(**options):
        made.append(Passes(**options))
        return made[-1]

    yield passes
    for one in made:
        one.gate.set()
        one.batcher.close()


def test_what_queues_up_while_a_pass_runs_is_answered_in_one(make):
    passes = make(batch=8)
    first = passes.blocked()
    others = [passes.batcher.submit([i, 10 * i]) for i in range(1, 4)]
    passes.gate.set()
    assert first.result(10) == [0]
    assert [job.result(10) for job in others] == [[2 * i, 20 * i] for i in range(1, 4)]
    assert passes.seen[1:] == [([1, 10, 2, 20, 3, 30], None)]


def test_a_pass_takes_no_more_than_fits_in_the_order_of_arrival(make):
    passes = make(batch=4)
    passes.blocked()
    jobs = [passes.batcher.submit(items) for items in ([1, 2], [3], [4, 5, 6], [7])]
    passes.gate.set()
    assert jobs[-1].result(10) == [14]
    assert [items for items, _ in passes.seen[1:]] == [[1, 2, 3], [4, 5, 6, 7]]


def test_only_equal_keys_are_answered_together(make):
    passes = make(batch=8)
    passes.blocked()
    jobs = [passes.batcher.submit([i], key) for i, key in enumerate("abab", 1)]
    passes.gate.set()
    assert [job.result(10) for job in jobs] == [[2], [4], [6], [8]]
    assert passes.seen[1:] == [([1, 3], "a"), ([2, 4], "b")]


def test_a_pass_waits_for_others_but_not_longer_than_it_says():
    times = []
    batcher = Batcher(lambda items, key: times.append(len(items)) or items, batch=3, wait=0.5)
    begun = time.monotonic()
    jobs = [batcher.submit([i]) for i in range(3)]
    assert [job.result(10) for job in jobs] == [[0], [1], [2]]
    assert time.monotonic() - begun < 0.4  # full: it waits no longer
    assert batcher.submit([3]).result(10) == [3]
    assert time.monotonic() - begun >= 0.5
    assert times == [3, 1]
    batcher.close()


def test_the_queue_is_bounded_and_has_room_again(make):
    passes = make(queue=3)
    passes.blocked()
    passes.batcher.submit([1, 2])
    with pytest.raises(FullError, match="3 examples are waiting, of 3"):
        passes.batcher.submit([3])
    passes.gate.set()
    while passes.batcher.held:
        time.sleep(0.001)
    assert passes.batcher.submit([3]).result(10) == [6]


def test_who_waits_too_long_is_told_and_costs_no_pass(make):
    passes = make()
    passes.blocked()
    late = passes.batcher.submit([1], seconds=0.01)
    gone = passes.batcher.submit([2])
    assert gone.cancel()
    kept = passes.batcher.submit([3])
    time.sleep(0.02)
    passes.gate.set()
    assert kept.result(10) == [6]
    with pytest.raises(LateError):
        late.result(10)
    with pytest.raises(CancelledError):
        gone.result(10)
    assert [items for items, _ in passes.seen] == [[0], [3]]
    assert passes.batcher.held == 0


def test_one_that_cannot_be_answered_fails_by_itself(make):
    passes = make(batch=8)
    passes.blocked()
    jobs = [passes.batcher.submit([item]) for item in (1, "bad", 2)]
    passes.gate.set()
    assert (jobs[0].result(10), jobs[2].result(10)) == ([2], [4])
    with pytest.raises(ValueError, match="bad"):
        jobs[1].result(10)
    assert passes.batcher.alive


def test_closing_answers_what_was_accepted(make):
    passes = make(batch=2)
    first = passes.blocked()
    jobs = [passes.batcher.submit([i]) for i in range(1, 6)]
    closing = threading.Thread(target=passes.batcher.close)
    closing.start()
    while passes.batcher.alive:
        time.sleep(0.001)
    with pytest.raises(ClosedError):
        passes.batcher.submit([9])
    passes.gate.set()
    closing.join(10)
    assert not closing.is_alive()
    assert [first.result(0), *(job.result(0) for job in jobs)] == [[2 * i] for i in range(6)]


def test_many_threads_lose_and_mix_up_nothing():
    heard = []
    batcher = Batcher(
        lambda items, key: [(key, 3 * item) for item in items],
        batch=7,
        wait=0.001,
        queue=10_000,
        passes=3,
        heard=lambda count, seconds: heard.append(count),
    )
    found = {}

    def ask(start):
        for number in range(start, start + 60):
            items = list(range(number, number + 1 + number % 3))
            found[number] = batcher.submit(items, number % 2).result(10)

    threads = [threading.Thread(target=ask, args=(100 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher.close()
    assert len(found) == 480
    for number, answers in found.items():
        items = range(number, number + 1 + number % 3)
        assert answers == [(number % 2, 3 * item) for item in items]
    assert sum(heard) == sum(len(answers) for answers in found.values())
    assert max(heard) <= 7
    assert len(heard) < 480  # some were answered together
