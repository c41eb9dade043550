"""What a caller does to a network or around a call, together with each other and with every way
that particles run."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from helpers import adapted, gradients, mlp
from network_cases import NETWORKS, call, make
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import bella
from bella.posteriors.low_rank.layers import LowRankLayer

BF16 = torch.bfloat16


class Turned(nn.Module):
    """Blocks that take a table from a module that runs before all of them, as Llama's do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table, self.stem, self.head = Table(), nn.Linear(4, 6), nn.Linear(6, 3)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        table, x = self.table(x), self.stem(x)
        for block in self.blocks:
            x = torch.tanh(block(x)) * table
        return self.head(x)


class Table(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linspace(0.5, 1.5, 6, dtype=x.dtype)


def turned() -> bella.Posterior:
    return bella.low_rank(Turned(), 3, 2, (r"blocks\.[12]",), modules_to_save=("head",), b_std=0.5)


def alone(posterior: bella.Posterior, x: Tensor) -> Tensor:
    return torch.stack([posterior.particle(i)(x) for i in range(posterior.particles)])


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(3))


# ---------------------------------------------------------------- hooks of the caller


def scaled(_: nn.Module, args: tuple, outputs: object) -> object:
    return tree_map(lambda x: 1.1 * x if isinstance(x, Tensor) else x, outputs)


def halved(_: nn.Module, args: tuple) -> tuple:
    return tuple(x / 2 for x in args)


@pytest.mark.parametrize("known", [False, True])
def test_hooks_of_the_caller_count_once_wherever_they_hang(known: bool) -> None:
    """The second half of a pass ran those of the first again, on what the first had made."""
    posterior = turned()
    if known:
        posterior(X)  # a proof is over, which saw no hooks
    for name, module in posterior.network.named_modules():
        if name and not isinstance(module, nn.ModuleList) and "." not in name.partition(".")[2]:
            module.register_forward_hook(scaled)
            module.register_forward_pre_hook(halved)
    want = alone(posterior, X)
    torch.testing.assert_close(posterior(X), want)
    torch.testing.assert_close(posterior(posterior.prefix(X)), want)
    with posterior.subset([2, 0]):
        torch.testing.assert_close(posterior(X), want[[2, 0]])


def test_a_hook_hears_what_its_module_says_and_no_placeholder() -> None:
    posterior = turned()
    posterior(X)
    heard: list[Tensor] = []
    posterior.network.stem.register_forward_hook(lambda *said: heard.append(said[2]))
    posterior.prove(X)  # a new hook is a new kind of pass, and hears its proof as well
    heard.clear()
    posterior(X)
    assert len(heard) == 1
    torch.testing.assert_close(heard[0], posterior.network.stem(X))


def test_a_plain_network_keeps_the_hooks_of_layers_that_were_exchanged() -> None:
    network = nn.Sequential(nn.Linear(4, 4), QuickGELU(), nn.Linear(4, 3), nn.Linear(3, 3))
    posterior = bella.low_rank(network, 2, 2, ("0", "2"), modules_to_save=("3",), b_std=0.5)
    for module in posterior.network:
        module.register_forward_hook(scaled)
        module.register_forward_pre_hook(halved)
    torch.testing.assert_close(posterior(X), alone(posterior, X))
    heard: list[str] = []
    for key in "0123":
        posterior.network[int(key)].register_full_backward_hook(
            lambda *_, key=key: heard.append(key)  # type: ignore[misc]
        )
    posterior.soup()(X.requires_grad_()).sum().backward()
    X.requires_grad_(False)
    assert heard == list("3210")


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize("name", ["vit", "gpt2", "resnet", "encoder", "sequential"])
def test_what_inference_mode_began_trains(name: str) -> None:
    posterior, inputs = make(name)
    kwargs = dict(inputs)
    with torch.inference_mode():
        args, kwargs = posterior.begun(*kwargs.pop("args", ()), **kwargs)
    want = call(posterior, inputs)
    for case in (args, kwargs), posterior.some(args, kwargs, torch.arange(4)):
        found = call(posterior, {"args": case[0], **case[1]})
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
        found.sum().backward()
    turns = turned()
    with torch.inference_mode():
        stream = turns.prefix(X)
    turns(stream).sum().backward()  # its table goes past the entrance


@pytest.mark.parametrize("name", ["vit", "gpt2", "resnet", "encoder", "sequential"])
def test_what_autocast_began_in_a_bfloat16_network_goes_on_without_it(name: str) -> None:
    """It was widened to float32, which no layer of such a network reads."""
    posterior, inputs = make(name)
    posterior = posterior.eval().to(BF16)
    inputs = tree_map(lambda x: x.to(BF16) if x.is_floating_point() else x, inputs)
    with torch.no_grad():
        want = call(posterior, inputs)
        kwargs = dict(inputs)
        with torch.autocast("cpu", BF16):
            args, kwargs = posterior.begun(*kwargs.pop("args", ()), **kwargs)
        found = call(posterior, {"args": args, **kwargs})
    assert found.dtype == BF16
    assert (found - want).norm() < 0.05 * want.norm()


# ---------------------------------------------------------------- key-value caches


def writer(kind: str) -> bella.Posterior:
    """A language model that fills a cache, as they do unasked."""
    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 16}
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        tokens = {"vocab_size": 20, "bos_token_id": 1, "eos_token_id": 1}
        network: nn.Module = GPT2LMHeadModel(GPT2Config(**sizes, **dropout, **tokens))
    else:
        config = LlamaConfig(
            vocab_size=20,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
        )
        network = LlamaForCausalLM(config)
    assert network.config.use_cache  # type: ignore[union-attr]
    return bella.low_rank(network, 3, 2, (r".*\.[12]\..*(c_fc|up_proj)",), b_std=0.3)


TEXT = torch.arange(14).view(2, 7)
NAMED = "input_ids", "attention_mask"
MASK = torch.tensor([[1] * 7, [0] * 2 + [1] * 5])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("part", [None, (r".*\.[12]",), (r".*\.[12]\.(self_)?attn",)])
def test_recomputed_modules_fill_a_cache_once(kind: str, part: tuple[str, ...] | None) -> None:
    """A second run found what the first had put into it, and met twice as many tokens."""
    posterior = writer(kind).train()

    def stepped(own: bool) -> dict[str, Tensor]:
        posterior.zero_grad()
        if own:
            with posterior.own_inputs():
                own_texts = (x.expand(3, 2, 7) for x in (TEXT, MASK))
                posterior(**dict(zip(NAMED, own_texts, strict=True))).logits.sum().backward()
        else:
            posterior(**dict(zip(NAMED, (TEXT, MASK), strict=True))).logits.sum().backward()
        return gradients(posterior)

    want = stepped(False)
    bella.recompute(posterior, part)
    for own in (False, True):
        for name, value in stepped(own).items():
            torch.testing.assert_close(value, want[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_cache_that_gradients_go_through_is_carried_past_the_entrance(kind: str) -> None:
    posterior = writer(kind)
    first = next(name for name, _ in posterior.network.named_parameters())
    posterior.unfreeze([first])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing would be shared
        posterior(TEXT).logits.square().sum().backward()
    found = dict(posterior.network.named_parameters())[first].grad
    posterior.zero_grad()
    own = dict(posterior.network.named_parameters())[first]
    for i in range(3):
        with posterior.subset([i]):
            posterior(TEXT).logits.square().sum().backward()
    torch.testing.assert_close(found, own.grad, rtol=1e-4, atol=1e-5)

    frozen = {name: p.detach() for name, p in posterior.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        said = torch.func.functional_call(posterior, parameters, (TEXT,))
        return said.logits.square().sum()

    by_func = torch.func.grad(loss)(frozen)
    torch.testing.assert_close(by_func[f"network.{first}"], found, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("name", NETWORKS)
def test_autocast_leaves_a_float64_network_as_it_is(name: str) -> None:
    """As torch's does; factors were cast to fewer bits, and the products failed."""
    posterior, inputs = make(name, particles=2)
    posterior = posterior.eval().double()
    inputs = tree_map(lambda x: x.double() if x.is_floating_point() else x, inputs)
    with torch.no_grad():
        want = call(posterior, inputs)
        with torch.autocast("cpu", BF16):
            assert torch.equal(call(posterior, inputs), want)


@pytest.mark.parametrize(("held", "asked"), [(BF16, "fp16"), (torch.float16, "bf16")])
def test_two_kinds_of_sixteen_bits_are_refused_on_a_cpu(held: torch.dtype, asked: str) -> None:
    posterior = adapted(mlp(dtype=torch.float32)).to(held)
    x = X.to(held)
    with pytest.raises(bella.BellaError, match=f"precision='{asked}' with weights in {held}"):
        bella.predict(posterior, x, precision=asked)
    assert bella.predict(posterior, x, precision={"fp16": "bf16", "bf16": "fp16"}[asked])


# ---------------------------------------------------------------- subsets


def test_everything_that_runs_inside_a_subset_runs_the_subset() -> None:
    posterior = adapted(mlp(dtype=torch.float32), particles=5)
    want = bella.predict(posterior, X).particle_probs[[4, 1, 2]]
    with posterior.subset([4, 1, 2]):
        for options in (
            {},
            {"particles_per_pass": 1},
            {"particles_per_pass": 2},
            {"particles_per_pass": "auto", "memory": 2**20},
            {"stop": 0.0},
            {"stop": 1e-9, "first": 2},
        ):
            found = bella.predict(posterior, X, **options)  # type: ignore[call-overload]
            torch.testing.assert_close(found.particle_probs, want, msg=str(options))
        assert [i for part in bella.chunks(posterior, X) for i in part] == [4, 1, 2]
        small = bella.chunks(posterior, X, memory=2**14)
        assert [i for part in small for i in part] == [4, 1, 2]


def test_training_inside_a_subset_is_refused() -> None:
    posterior = adapted(mlp(dtype=torch.float32), particles=3)
    data = (X, torch.arange(5) % 3)
    for part in ([0, 1], [2, 1, 0]):
        with posterior.subset(part), pytest.raises(bella.BellaError, match="trains all 3"):
            bella.fit(posterior, data, epochs=1, progress=False)


# ---------------------------------------------------------------- torch.func


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own jvp
@pytest.mark.parametrize("kind", ["low rank", "convolutions", "sparse", "svgd"])
def test_transforms_of_torch_func_pass_through_particles(kind: str) -> None:
    torch.manual_seed(2)
    shape = (4,)
    if kind == "convolutions":
        shape = (2, 5, 5)
        network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 2, 3), nn.Flatten())
        posterior: bella.Posterior = bella.low_rank(network.double(), 3, 1, ("0", "1"), b_std=0.5)
    elif kind == "sparse":
        posterior = bella.sparse_subspace(mlp(), 0.5)
    else:
        posterior = adapted()
    if kind == "svgd":
        bella.transport.svgd(posterior, data_size=10)
    x = torch.randn(4, *shape, dtype=torch.float64)
    posterior(x)

    def said(one: Tensor) -> Tensor:
        torch.manual_seed(4)
        return posterior(one).sum(1)

    want = torch.autograd.functional.jacobian(said, x)
    torch.testing.assert_close(torch.func.jacrev(said, chunk_size=1)(x), want)
    direction = torch.ones_like(x)
    _, along = torch.func.jvp(said, (x,), (direction,))
    torch.testing.assert_close(along, want.flatten(2).sum(-1))
    if kind != "sparse":  # it draws
        torch.testing.assert_close(torch.func.jacrev(said)(x), want)
        several = torch.stack([x, 2 * x])
        each = torch.stack([posterior(one) for one in several])
        torch.testing.assert_close(torch.func.vmap(posterior)(several), each)
    for layer in posterior.layers().values():
        assert not isinstance(layer, LowRankLayer) or layer.A.grad is None


@pytest.mark.parametrize("name", bella.transport.TRANSPORTS)
def test_the_order_of_a_subset_decides_nothing_in_training(name: str) -> None:
    """`function` took the rows for particles in their own order, and pushed others apart."""
    found = []
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        posterior = adapted(particles=4).train()
        move = bella.transport.by_name(name, posterior, data_size=10, temperature=3.0)
        with posterior.subset(order):
            bella.nll(posterior(X.double()), torch.arange(5) % 3).backward()
        move.step()
        found.append(gradients(posterior))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, msg=key)


# ---------------------------------------------------------------- every kind of posterior


def every_kind() -> dict[str, bella.Posterior]:
    data = [(X, torch.arange(5) % 3)]

    def around(how: str) -> bella.Posterior:
        one = adapted(mlp(dtype=torch.float32), particles=1)
        return bella.laplace(one, data, predictive=how, prior_precision=1.0)  # type: ignore[arg-type]

    return {
        "low rank": adapted(mlp(dtype=torch.float32)),
        "heads": bella.low_rank(mlp(dtype=torch.float32), 2, 2, ("0",), modules_to_save=("2",)),
        "full": bella.full(mlp(dtype=torch.float32), 2),
        "rank 1": bella.rank1(mlp(dtype=torch.float32), 2),
        "sparse": bella.sparse_subspace(mlp(dtype=torch.float32), 0.5),
        "linearised": around("linearised"),
        "probit": around("probit"),
        "weights": around("weights"),
        "point": bella.Point(mlp(dtype=torch.float32)),
    }


KINDS = pytest.mark.parametrize("kind", every_kind())


@KINDS
def test_inputs_that_are_no_batch_are_refused_in_one_sentence(kind: str) -> None:
    posterior = every_kind()[kind].eval()
    for inputs in (None, X.tolist(), X.numpy(), torch.tensor(1.0), X[0], X[:0]):
        with pytest.raises(bella.BellaError, match="batch"):
            bella.predict(posterior, inputs)
    with pytest.raises(bella.BellaError, match="Row 2 of the inputs is not finite"):
        bella.predict(posterior, X.index_fill(0, torch.tensor([2]), torch.nan))


@KINDS
def test_every_kind_predicts_in_bfloat16_weights(kind: str) -> None:
    posterior = every_kind()[kind].eval()
    want = bella.predict(posterior, X, draws=200).probs
    found = bella.predict(posterior.to(BF16), X.to(BF16), draws=200).probs
    torch.testing.assert_close(found, want, rtol=0, atol=0.1)


@pytest.mark.parametrize("kind", ["linearised", "probit", "weights", "soup"])
def test_what_no_gradient_moves_is_not_trained(kind: str) -> None:
    some = every_kind()
    posterior = bella.Point(some["low rank"].soup()) if kind == "soup" else some[kind]
    with pytest.raises(bella.BellaError, match="train"):
        bella.fit(posterior, (X, torch.arange(5) % 3), epochs=1, progress=False)


def test_what_is_combined_costs_what_its_particles_cost() -> None:
    posterior = adapted(mlp(dtype=torch.float32), particles=1)
    for key, value in bella.cost(bella.Distilled(posterior)).items():
        assert key == "peak_memory" or value == bella.cost(posterior)[key]


# ---------------------------------------------------------------- writing


def test_tokens_of_another_network_and_a_base_in_fewer_bits_are_refused_before_writing() -> None:
    posterior = writer("llama")
    for wrong, said in ((TEXT + 20, "Token 33 is none"), (TEXT.float(), "no token numbers")):
        with pytest.raises(bella.BellaError, match=said):
            posterior.generate(input_ids=wrong, max_new_tokens=2)
    with pytest.raises(bella.BellaError, match="Token 33 is none"):
        posterior.score([TEXT[0], TEXT[1]], [TEXT[0], TEXT[1] + 20])
    with (
        bella.in_precision(posterior, "bf16"),
        pytest.raises(bella.BellaError, match="run passes inside"),
    ):
        posterior.generate(input_ids=TEXT, max_new_tokens=2)


# ---------------------------------------------------------------- blocks inside blocks


def test_an_inner_block_ends_without_ending_the_one_around_it() -> None:
    sparse = bella.sparse_subspace(mlp(dtype=torch.float32), 0.5).eval()
    with sparse.at_mean():
        want = sparse(X)
        with sparse.at_mean():
            pass
        assert torch.equal(sparse(X), want)
        assert torch.equal(copy.deepcopy(sparse)(X), want)
    assert not torch.equal(sparse(X), want)
    move = bella.transport.svgd(adapted(), data_size=10)
    with move.deaf():
        with move.deaf():
            pass
        assert not move.hears
    assert move.hears
    posterior = adapted(mlp(dtype=torch.float32), particles=4)
    with posterior.subset([0, 1]):
        with pytest.raises(ZeroDivisionError), posterior.subset([3]), posterior.own_inputs():
            raise ZeroDivisionError
        assert posterior.chosen == (0, 1)
        assert not posterior.axis.own_inputs
    assert posterior.chosen == (0, 1, 2, 3)


def test_batch_norms_that_somebody_puts_into_training_see_one_particle_at_a_time() -> None:
    """Their statistics were those of the rows of all particles together."""
    torch.manual_seed(0)
    posterior = bella.low_rank(
        nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(3))),
        3,
        2,
        (r"[12]\.0",),
        b_std=0.5,
    ).eval()
    known = posterior(X)
    stream = posterior.prefix(X)
    norms = [module for module in posterior.modules() if isinstance(module, nn.BatchNorm1d)]
    for norm in norms[1:]:
        norm.train()
    want = alone(posterior, X)
    with pytest.warns(UserWarning, match="normalises over the rows of all particles"):
        torch.testing.assert_close(posterior(X), want)
    with pytest.warns(UserWarning, match="normalises over the rows of all particles"):
        torch.testing.assert_close(posterior(stream), want)
    for norm in norms:
        norm.eval().reset_running_stats()
    assert not torch.equal(posterior(X), want)
    assert known.shape == want.shape
