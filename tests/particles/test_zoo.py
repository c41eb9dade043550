"""Every architecture of the zoo, every suffix alone: the particles alone, or a refusal.

One case by its name: ``python docs/zoo.py llama/q_proj``.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from zoo import ZOO
from zoo_base import ids
from zoo_check import Case, Trial, Verdict, cases, check, network_of, some_cases
from zoo_oracle import suffixes

import bella

pytestmark = pytest.mark.long


def faults(found: dict[Case, list[Verdict]]) -> list[str]:
    """A line for each call that is neither right nor refused."""
    return [
        f"{case.name} at {verdict.batch}: {verdict.kind}: {verdict.said}"
        for case, verdicts in found.items()
        for verdict in verdicts
        if verdict.kind in ("wrong", "raised")
    ]


def test_the_zoo_is_large_enough() -> None:
    assert len(ZOO) >= 45


@pytest.mark.parametrize("architecture", ZOO)
def test_some_suffixes_are_right_or_refused(architecture: str) -> None:
    found = {case: check(case) for case in some_cases(architecture)}
    assert found
    assert not faults(found), "\n".join(faults(found))


@pytest.mark.slow
def test_every_suffix_is_right_or_refused_and_most_fold() -> None:
    found = {case: check(case) for name in ZOO for case in cases(name)}
    assert not faults(found), "\n".join(faults(found))
    ran = Counter(verdict.how for verdicts in found.values() for verdict in verdicts)
    ran.pop("")  # refused
    assert (ran["folded"] + ran["shared"]) / ran.total() >= 0.85, ran


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2-moe"])
@pytest.mark.parametrize("target", ["experts", "gate_up_proj", "down_proj"])
def test_stacked_expert_weights_are_refused_by_name(architecture: str, target: str) -> None:
    if (architecture, target) == ("qwen2-moe", "down_proj"):
        target = "experts.down_proj"  # its shared expert has a layer of that name
    with pytest.raises(bella.BellaError, match=target):
        bella.low_rank(network_of(architecture), 2, 2, (target,))


CACHED = ("gpt2", "gpt-neox", "opt", "llama", "mistral", "qwen2", "gemma", "phi", "falcon", "bloom")


def goes_on(architecture: str, suffix: str, batch: int) -> None:
    """Two tokens after four: the logits of all six, or no cache, or a refusal."""
    try:
        posterior = Trial(Case(architecture, suffix, training=False)).posterior
        tokens = ids(batch)
        with torch.no_grad():
            whole = posterior(input_ids=tokens, use_cache=False).logits[:, :, 4:]
            cache = posterior(input_ids=tokens[:, :4], use_cache=True).past_key_values
            if cache is None:
                return
            rest = posterior(input_ids=tokens[:, 4:], past_key_values=cache).logits
    except bella.BellaError:
        return
    torch.testing.assert_close(rest, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", CACHED)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of a slower way
def test_a_cache_that_is_given_out_goes_on_as_the_whole_text(architecture: str) -> None:
    """Every suffix at one of two batches, the next one at the other."""
    for place, suffix in enumerate(suffixes(network_of(architecture))):
        goes_on(architecture, suffix, (1, 4)[place % 2])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CACHED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_cache_goes_on_at_the_other_batch(architecture: str) -> None:
    for place, suffix in enumerate(suffixes(network_of(architecture))):
        goes_on(architecture, suffix, (4, 1)[place % 2])


TURNS = (
    {},
    {"output_hidden_states": True},
    {"attention_mask": None},
    {"attention_mask": None, "input_ids": ids(2, 9)},
    {"output_hidden_states": False},
    {"output_hidden_states": True},
    {},
)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("architecture", ["roberta", "llama-sequence", "qwen2", "bart"])
def test_calls_of_other_kinds_follow_each_other(architecture: str, training: bool) -> None:
    found = [case for case in cases(architecture) if case.training == training]
    for case in (found[0], found[-2], found[-1]):
        try:
            trial = Trial(case)
        except bella.BellaError:
            continue
        for place, turn in enumerate(TURNS):
            verdict = trial.call(2, **turn)
            assert verdict.kind in ("right", "refused"), f"{case.name}, call {place}: {verdict}"
