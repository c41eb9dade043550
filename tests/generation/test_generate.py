"""What particles write, against a slow loop over merged networks and transformers' own generate."""

from __future__ import annotations

import functools
import math
import warnings

import pytest
import torch
import transformers as hf
from zoo import ZOO

import bella
from bella import BellaError

FOLDED = {
    "gpt2": "c_fc",
    "llama": "q_proj",
    "qwen2": "up_proj",
    "gemma": "k_proj",
    "mistral": "v_proj",
    "gpt-neox": "query_key_value",
    "falcon": "dense",
    "bloom": "dense_h_to_4h",
    "opt": "fc1",
    "phi": "fc2",
}
EXPERTS = {"mixtral": "q_proj", "qwen2-moe": "v_proj"}
OFTEN = ("gpt2", "llama", "mistral", "falcon", "bloom", "mixtral")
"""Of each kind one: absolute and rotary places, biased scores, windows, one key, experts."""
STEPS = 5


def writer(name: str = "llama", target: str | None = None, particles: int = 3, **options):
    """A small causal language model with particles that differ."""
    network = ZOO[name].network(name)
    target = target or {**FOLDED, **EXPERTS}.get(name, "q_proj")
    torch.manual_seed(7)
    return bella.low_rank(
        network, particles, rank=2, target_modules=(target,), b_std=0.6, alpha=4, seed=3, **options
    )


def prompts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(5, 35, (length,), generator=generator) for length in (6, 3, 8, 1)]


@torch.no_grad()
def slow(networks, prompt, steps=STEPS, end=2):
    """One greedy answer of several networks: every token reads the whole text, without padding."""
    text, told = prompt[None], []
    for _ in range(steps):
        logits = torch.stack([network(text).logits[0, -1].double() for network in networks])
        probs = logits.softmax(-1)
        mean = probs.mean(0)
        token = mean.argmax()
        entropies = torch.special.entr(probs).sum(-1)
        told.append(
            {
                "token": int(token),
                "particles": probs[:, token].log(),
                "average": mean[token].log(),
                "entropy": torch.special.entr(mean).sum(),
                "information": torch.special.entr(mean).sum() - entropies.mean(),
            }
        )
        text = torch.cat((text, token.view(1, 1)), 1)
        if int(token) == end:
            break
    return told


def check(answers, row, told):
    length = int(answers.lengths[row])
    assert answers.tokens[row, :length].tolist() == [step["token"] for step in told]
    assert (answers.tokens[row, length:] == 0).all()
    for name, values in (
        ("average", answers.token_log_probs),
        ("entropy", answers.token_entropy),
        ("information", answers.token_mutual_information),
    ):
        expected = torch.stack([step[name] for step in told])
        torch.testing.assert_close(values[row, :length].double(), expected, atol=2e-5, rtol=1e-4)
        assert (values[row, length:] == 0).all()
    expected = torch.stack([step["particles"] for step in told], -1)
    found = answers.particle_token_log_probs[:, row, :length].double()
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in OFTEN else pytest.mark.slow)
        for name in (*FOLDED, *EXPERTS)
    ],
)
def test_one_answer_is_that_of_a_slow_loop_over_merged_networks(name):
    posterior = writer(name)
    asked = prompts()
    with warnings.catch_warnings():
        if name in EXPERTS:  # whose rows mix in products of other sizes, they fold or they loop
            warnings.filterwarnings("ignore", "The particles of this")
        answers = posterior.generate(asked, max_new_tokens=STEPS)
    networks = [posterior.particle(i) for i in range(3)]
    for row, prompt in enumerate(asked):
        check(answers, row, slow(networks, prompt))
    (plan,) = posterior.plan()
    assert plan.how == "folded" or name in EXPERTS, plan
    assert "key-value cache" in str(plan)


def test_a_state_space_model_writes_as_well():
    posterior = writer("mamba", "x_proj")
    asked = [prompt for prompt in prompts() if len(prompt) == 6]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The particles of this")
        answers = posterior.generate(asked, max_new_tokens=STEPS)
    check(answers, 0, slow([posterior.particle(i) for i in range(3)], asked[0]))


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("kind", ["particle", "point"])
def test_one_particle_writes_what_transformers_writes(kind, sampled):
    if kind == "particle":
        posterior = writer("llama", particles=1)
        network = posterior.particle(0)
    else:
        network = ZOO["gpt2"].network("gpt2")
        posterior = bella.Point(network)
    ids = torch.randint(5, 35, (3, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    options = {"max_new_tokens": 12}
    if sampled:
        options |= {"do_sample": True, "temperature": 1.3, "top_k": 9, "top_p": 0.9}
        options |= {"repetition_penalty": 1.2}
    torch.manual_seed(11)
    truth = network.generate(input_ids=ids, attention_mask=mask, **options)[:, 6:]
    after = torch.get_rng_state()
    torch.manual_seed(11)
    answers = posterior.generate(input_ids=ids, attention_mask=mask, **options)
    assert torch.equal(answers.tokens, truth)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("folding", ["auto", "never"])
@pytest.mark.parametrize("sampled", [False, True])
def test_each_particle_writes_what_its_merged_network_writes(folding, sampled):
    posterior = writer("llama", folding=folding)
    asked = prompts()
    options = {"max_new_tokens": 6} | ({"do_sample": True, "top_p": 0.95} if sampled else {})
    found = posterior.generate(asked, each=True, seed=5, **options)
    ids, mask = bella.generation.texts.left_padded(asked, 0)
    differ = set()
    for i, answers in enumerate(found):
        torch.manual_seed(5)
        truth = posterior.particle(i).generate(ids, attention_mask=mask, **options)[:, 8:]
        differ.add(tuple(truth.flatten().tolist()))
        length = answers.tokens.shape[1]
        assert torch.equal(answers.tokens, truth[:, :length])
        assert (truth[:, length:] == 0).all()
        again = posterior.score(asked, [t[:n] for t, n in zip(truth, answers.lengths, strict=True)])
        torch.testing.assert_close(answers.particle_log_probs, again.particle_log_probs)
    assert len(differ) == 3  # otherwise nothing was compared
    (plan,) = (plan for plan in posterior.plan() if plan.words.startswith("answers"))
    assert plan.how == ("folded" if folding == "auto" else "looped")


@pytest.mark.parametrize("folding", ["auto", "never"])
def test_a_sampled_answer_is_drawn_from_the_average(folding):
    posterior = writer("llama", folding=folding)
    ids = torch.randint(5, 35, (3, 6), generator=torch.Generator().manual_seed(2))
    answers = posterior.generate(
        input_ids=ids, do_sample=True, temperature=0.8, top_k=5, max_new_tokens=6, seed=9
    )
    networks = [posterior.particle(i) for i in range(3)]
    text = ids
    torch.manual_seed(9)
    with torch.no_grad():
        for _ in range(6):
            probs = torch.stack([n(text).logits[:, -1].softmax(-1) for n in networks]).mean(0)
            scaled = probs.log() / 0.8
            low = scaled.topk(5).values[:, -1:]
            drawn = torch.multinomial(scaled.masked_fill(scaled < low, -math.inf).softmax(-1), 1)
            text = torch.cat((text, drawn), 1)
    for row, length in enumerate(answers.lengths.tolist()):
        assert answers.tokens[row, :length].tolist() == text[row, 6 : 6 + length].tolist()


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral"])
def test_padding_does_not_change_an_answer(name):
    posterior = writer(name)
    asked = prompts()
    together = posterior.generate(asked, max_new_tokens=STEPS)
    for row, prompt in enumerate(asked):
        alone = posterior.generate(prompt, max_new_tokens=STEPS)
        length = int(alone.lengths[0])
        assert int(together.lengths[row]) == length
        assert torch.equal(together.tokens[row, :length], alone.tokens[0])
        torch.testing.assert_close(together.mutual_information[row], alone.mutual_information[0])


def test_tokens_that_end_an_answer_count_and_what_follows_does_not():
    posterior = writer("llama")
    asked = prompts()
    free = posterior.generate(asked, max_new_tokens=8, eos_token_id=None)
    assert (free.lengths == 8).all()
    end = int(free.tokens[0, 2])
    answers = posterior.generate(asked, max_new_tokens=8, eos_token_id=[end, 39])
    for row in range(len(asked)):
        said = free.tokens[row].tolist()
        length = next((t + 1 for t in range(8) if said[t] in (end, 39)), 8)
        assert answers.lengths[row] == length
        assert answers.tokens[row, :length].tolist() == said[:length]
        assert (answers.tokens[row, length:] == 0).all()
    assert answers.lengths[0] == 3


def test_stopping_criteria_and_processors_of_a_caller_are_heard():
    posterior = writer("llama")
    asked = prompts()[:2]
    seen = []

    def after_two(input_ids, scores, **_):
        seen.append(len(input_ids))
        return torch.full((len(input_ids),), input_ids.shape[1] >= 8)

    def never_the_first(input_ids, scores):
        return scores.scatter(1, scores.argmax(-1, keepdim=True), -math.inf)

    answers = posterior.generate(asked, stopping_criteria=[after_two], max_new_tokens=9)
    assert answers.lengths.tolist() == [2, 2]
    assert seen == [2, 2]
    second = posterior.generate(asked, logits_processor=[never_the_first], max_new_tokens=1)
    assert not torch.equal(second.tokens, answers.tokens[:, :1])
    (first, *_) = posterior.generate(
        asked, each=True, stopping_criteria=[after_two], max_new_tokens=9
    )
    assert first.lengths.tolist() == [2, 2]


def test_a_subset_writes_alone():
    posterior = writer("llama")
    asked = prompts()
    with posterior.subset([2, 0]):
        answers = posterior.generate(asked, max_new_tokens=STEPS)
    networks = [posterior.particle(2), posterior.particle(0)]
    for row, prompt in enumerate(asked):
        check(answers, row, slow(networks, prompt))


def test_penalties_see_logits_of_the_particles_scale():
    network = ZOO["llama"].network("llama")
    posterior = bella.low_rank(network, 3, rank=2, target_modules=("q_proj",))  # alike at first
    ids = prompts()[0][None]
    options = {"repetition_penalty": 1.8, "max_new_tokens": 10}
    truth = posterior.particle(0).generate(ids, attention_mask=torch.ones_like(ids), **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The particles of this")
        answers = posterior.generate(input_ids=ids, **options)
    assert torch.equal(answers.tokens, truth[:, 6:])
    assert answers.mutual_information.abs().max() < 1e-6


def test_modes_network_and_random_numbers_are_left_as_they_were():
    posterior = writer("llama")
    posterior.train()
    posterior.network.model.layers[0].eval()
    modes = [m.training for m in posterior.modules()]
    before, config = torch.get_rng_state(), posterior.network.generation_config.to_dict()
    posterior.generate(prompts(), do_sample=True, seed=1, max_new_tokens=2)
    assert [m.training for m in posterior.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)
    assert posterior.network.generation_config.to_dict() == config
    assert "forward" not in vars(posterior.network)


class Silent(hf.LlamaForCausalLM):
    """Fills the cache that it is given, and does not return it."""

    @functools.wraps(hf.LlamaForCausalLM.forward)
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        return type(outputs)(logits=outputs.logits)


@pytest.mark.parametrize("folding", ["auto", "never"])
def test_a_cache_that_is_not_returned_is_each_particle_s_own_too(folding):
    plain, silent = (ZOO["llama"].network("llama") for _ in range(2))
    silent.__class__ = Silent
    options = {"rank": 2, "target_modules": ("v_proj",), "b_std": 0.6, "seed": 3}
    asked = prompts()
    truth = bella.low_rank(plain, 3, **options).generate(asked, max_new_tokens=STEPS)
    posterior = bella.low_rank(silent, 3, folding=folding, **options)
    answers = posterior.generate(asked, max_new_tokens=STEPS)
    assert torch.equal(answers.tokens, truth.tokens)
    torch.testing.assert_close(answers.token_log_probs, truth.token_log_probs)


def test_full_copies_write():
    ids = prompts()[0][None]
    full = bella.full(ZOO["llama"].network("llama"), 2)
    with torch.no_grad():
        for p in full.stacked_parameters().values():
            p[1] += 0.2 * torch.randn(p[1].shape, generator=torch.Generator().manual_seed(p.dim()))
    answers = full.generate(input_ids=ids, max_new_tokens=STEPS)
    check(answers, 0, slow([full.particle(i) for i in range(2)], ids[0]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_beams": 2}, "num_beams=2 is not for particles"),
        ({"num_return_sequences": 3, "do_sample": True}, "repeat a prompt"),
        ({"cache_implementation": "static"}, "caches of their own"),
        ({"output_scores": True}, "come with their figures"),
        ({"past_key_values": hf.DynamicCache()}, "caches of their own"),
        (
            {"do_sample": True, "temperature": -1.0, "max_new_tokens": 2},
            "transformers' generate refuses this",
        ),
        ({"max_new_tokens": 0}, "at least one"),
        ({"max_new_tokens": 70}, "73 tokens, and this network reads 32"),
        ({"generation_config": hf.GenerationConfig(max_new_tokens=62)}, "65 tokens"),
        ({"colour": 3}, "colour is no option"),
        ({"attention_mask": torch.tensor([[1, 1, 0]])}, "padding on the left"),
        ({"attention_mask": torch.tensor([[1, 1]])}, "padding on the left"),
        ({"prompts": "Hello"}, "either prompts or input_ids"),
        ({"input_ids": torch.ones(1, 0, dtype=torch.long)}, "with a token in it"),
    ],
)
def test_what_is_not_for_particles_is_refused(options, said):
    posterior = writer("llama", particles=2)
    with pytest.raises(BellaError, match=said):
        posterior.generate(**{"input_ids": torch.tensor([[5, 6, 7]])} | options)


def test_padded_tokens_without_a_mask_are_refused():
    posterior = writer("llama", particles=2)
    with pytest.raises(BellaError, match="attention_mask"):
        posterior.generate(input_ids=torch.tensor([[0, 6, 7], [5, 6, 7]]))


def test_posteriors_that_do_not_write_are_refused():
    with pytest.raises(BellaError, match="does not write text"):
        bella.Point(torch.nn.Linear(2, 2)).generate(torch.tensor([1]))
    with pytest.raises(BellaError, match="does not write text"):
        bella.Point(ZOO["bert"].network("bert")).generate(torch.tensor([1]))
    with pytest.raises(BellaError, match="an encoder"):
        bella.Point(ZOO["t5"].network("t5")).generate(torch.tensor([1]))
    drawn = bella.rank1(ZOO["llama"].network("llama"), 2, target_modules=("up_proj",))
    with pytest.raises(BellaError, match="other weights in every pass"):
        drawn.generate(torch.tensor([5]))


def test_pictures_go_to_every_particle():
    llava = ZOO["llava"]
    network = llava.network("llava")
    torch.manual_seed(7)
    posterior = bella.low_rank(
        network, 2, rank=2, target_modules=("q_proj",), b_std=0.6, alpha=4, seed=3
    )
    _, inputs = llava.inputs(2)
    inputs = {k: v for k, v in inputs.items() if k in ("input_ids", "pixel_values")}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The particles of this|Nothing is shared")
        answers = posterior.generate(**inputs, max_new_tokens=3, eos_token_id=None)
        each = posterior.generate(**inputs, max_new_tokens=3, eos_token_id=None, each=True)
    networks = [posterior.particle(i) for i in range(2)]
    text = inputs["input_ids"]
    for _ in range(3):
        probs = torch.stack(
            [n(input_ids=text, pixel_values=inputs["pixel_values"]).logits[:, -1] for n in networks]
        ).softmax(-1)
        text = torch.cat((text, probs.mean(0).argmax(-1, keepdim=True)), 1)
    assert torch.equal(answers.tokens, text[:, -3:])
    for i, alone in enumerate(each):
        truth = networks[i].generate(**inputs, max_new_tokens=3, eos_token_id=None)
        assert torch.equal(alone.tokens, truth[:, -3:])
