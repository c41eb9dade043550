"""Low-rank particles on tables of rows and on convolutions over one and three axes."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers import gradients
from layer_cases import Sequences, Words
from network_cases import bert, call, tokens
from torch import nn

import bella

SCALE = 1.5  # alpha 3 at rank 2


def numbers(rows=6):
    return torch.randint(9, (rows, 5), generator=torch.Generator().manual_seed(2))


def words(**options):
    torch.manual_seed(0)
    network = Words().double()
    options = {"b_std": 0.5, "alpha": 3} | options
    return bella.low_rank(network, 3, 2, ("embed",), modules_to_save=("head",), **options)


def dense_words(network, table, head, x):
    rows = table[x]
    return F.linear(torch.tanh(network.inner(torch.tanh(rows))).mean(1), *head)


@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("chosen", [[0, 1, 2], [2, 0], [1]])
def test_a_particle_looks_up_in_its_own_table(shared_prefix, chosen):
    posterior = words(shared_prefix=shared_prefix)
    network, layer, head = posterior.network, *posterior.layers().values()
    x = numbers()
    with posterior.subset(chosen):
        y = posterior(x)
    (y**2).sum().backward()
    got = gradients(posterior)
    A = layer.A.detach().clone().requires_grad_()
    B = layer.B.detach().clone().requires_grad_()
    expected = [
        dense_words(
            network,
            layer.base.weight + SCALE * (B[i] @ A[i]).mT,
            (head.values["weight"][i], head.values["bias"][i]),
            x,
        )
        for i in chosen
    ]
    torch.testing.assert_close(y, torch.stack(expected), rtol=1e-12, atol=1e-12)
    torch.stack(expected).square().sum().backward()
    A.grad[:, :, 0] = 0  # padding learns nothing
    torch.testing.assert_close(got["embed.A"], A.grad, rtol=1e-10, atol=1e-12)
    # The padding's column of A is 0, so it adds nothing to B's gradient either.
    torch.testing.assert_close(got["embed.B"], B.grad, rtol=1e-10, atol=1e-12)


def test_tables_merge_and_padding_stays():
    posterior = words()
    x = numbers()
    y = posterior(x)
    tables = []
    for i in range(3):
        plain = posterior.particle(i)
        assert type(plain.embed) is nn.Embedding
        assert plain.embed.padding_idx == 0
        torch.testing.assert_close(plain(x), y[i], rtol=1e-12, atol=1e-12)
        assert not plain.embed.weight[0].any()
        tables.append(plain.embed.weight)
    torch.testing.assert_close(posterior.soup().embed.weight, torch.stack(tables).mean(0))
    move = bella.transport.repulsive(posterior, data_size=10, temperature=50.0, prior="delta")
    optimizer = torch.optim.AdamW(posterior.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        bella.nll(posterior(x), x[:, 0] % 3).backward()
        move.step()
        optimizer.step()
    assert not posterior.particle(1).embed.weight[0].any()
    assert not torch.allclose(posterior.particle(1).embed.weight, tables[1])


def test_a_table_starts_as_a_linear_of_one_input_would():
    network = nn.Sequential(nn.Embedding(5000, 8), nn.Flatten(), nn.Linear(8, 2))
    make = lambda **o: bella.low_rank(copy.deepcopy(network), 2, 4, ("0",), **o).layers()["0"].A  # noqa: E731
    assert make().abs().max() <= 1
    assert make().abs().max() > 0.9
    assert make(init="normal").std().item() == pytest.approx(1, rel=0.05)
    assert make(gain=3.0).abs().max() > 2.7


def test_a_table_comes_back_from_a_file(tmp_path):
    posterior = words()
    posterior.save(tmp_path)
    torch.manual_seed(0)
    again = bella.load(tmp_path, Words().double())
    assert torch.equal(again(numbers()), posterior(numbers()))


class Times(nn.Embedding):
    """Scaled rows, as Bart and Gemma have them."""

    def forward(self, x):
        return 4 * super().forward(x)


class Learned(nn.Embedding):
    """Rows by position, whatever the numbers are, as Bart's positions."""

    def forward(self, x):
        return super().forward(torch.arange(x.shape[-1]).expand(x.shape))


def test_scaled_tables_are_changed_in_what_they_answer():
    network = Words()
    network.embed = Times(9, 4)
    posterior = bella.low_rank(network.double(), 3, 2, ("embed",), b_std=0.5, alpha=3)
    layer = posterior.layers()["embed"]
    y = posterior(numbers())
    for i in range(3):
        torch.testing.assert_close(posterior.particle(i)(numbers()), y[i])
        table = 4 * layer.base.weight + SCALE * (layer.B[i] @ layer.A[i]).mT
        torch.testing.assert_close(posterior.particle(i).embed.weight, table)


@pytest.mark.parametrize(
    ("embed", "words"),
    [
        (lambda: Learned(9, 4), "does more than look up rows"),
        (lambda: nn.Embedding(9, 4, max_norm=1.0), "max_norm"),
        (lambda: nn.Embedding(9, 4, scale_grad_by_freq=True), "scale_grad_by_freq"),
        (lambda: nn.EmbeddingBag(9, 4), "EmbeddingBag"),
    ],
)
def test_tables_that_do_more_are_refused(embed, words):
    network = Words()
    network.embed = embed()
    with pytest.raises(bella.BellaError, match=words):
        bella.low_rank(network, 2, 2, ("embed",))


def test_a_table_asks_for_numbers_of_rows_and_laplace_leaves_it_out():
    posterior = words()
    with pytest.raises(bella.BellaError, match="int64 or int32"):
        posterior(torch.rand(6, 5))
    assert torch.equal(posterior(numbers().int()), posterior(numbers()))
    one = bella.low_rank(Words(), 1, 2, ("embed",), modules_to_save=("head",))
    with pytest.raises(bella.BellaError, match="Embedding"):
        bella.laplace(one, [(numbers(), numbers()[:, 0] % 3)])


@pytest.mark.parametrize("autocast", [False, True])
def test_word_embeddings_of_a_real_network(autocast):
    torch.manual_seed(0)
    posterior = bella.low_rank(
        bert().eval(),
        3,
        2,
        ("word_embeddings", "query"),
        modules_to_save=("classifier",),
        b_std=0.2,
    )
    inputs = tokens()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = call(posterior, inputs)
        assert (y[0] - y[1]).abs().max() > 1e-3
        for i in range(3):
            alone = call(posterior.particle(i), inputs)
            close = {"rtol": 0.1, "atol": 0.05} if autocast else {"rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(y[i], alone, **close)


def test_tables_are_those_of_peft():
    import peft

    torch.manual_seed(0)
    base = bert().eval()
    posterior = bella.low_rank(copy.deepcopy(base), 2, 4, ("word_embeddings",), alpha=8, b_std=0.1)
    layer = next(iter(posterior.layers().values()))
    inputs = tokens()
    ours = call(posterior, inputs)
    for i in range(2):
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["word_embeddings"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = peft.get_peft_model(copy.deepcopy(base), config)
        lora = next(m for m in theirs.modules() if hasattr(m, "lora_embedding_A"))
        lora.lora_embedding_A["default"].data.copy_(layer.A[i])
        lora.lora_embedding_B["default"].data.copy_(layer.B[i])
        alone = call(theirs.base_model.model.eval(), inputs)
        torch.testing.assert_close(ours[i], alone, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- convolutions over other axes

CONVOLUTIONS = {
    "1": (nn.Conv1d, {"kernel_size": 1}, (7,)),
    "3": (nn.Conv1d, {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2}, (9,)),
    "circular": (nn.Conv1d, {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}, (7,)),
    "same": (nn.Conv1d, {"kernel_size": 4, "padding": "same"}, (7,)),
    "no bias": (nn.Conv1d, {"kernel_size": 2, "bias": False}, (7,)),
    "3-D": (nn.Conv3d, {"kernel_size": (1, 2, 3), "padding": (0, 1, 1)}, (3, 4, 5)),
    "2-D": (nn.Conv2d, {"kernel_size": (3, 2), "padding": (1, 0)}, (4, 5)),
}


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions_are_dense_convolutions_with_a_changed_weight(case, first):
    kind, options, size = case
    torch.manual_seed(0)
    network = nn.Sequential(kind(2, 4, 1), nn.Tanh(), kind(4, 5, **options)).double()
    place = "0" if first else "2"
    options = {"alpha": 3, "b_std": 0.5, "shared_prefix": not first}
    posterior = bella.low_rank(network, 3, 2, (place,), **options)
    layer = posterior.layers()[place]
    x = torch.randn(4, 2, *size, dtype=torch.float64)
    y = posterior(x)
    y.square().sum().backward()
    got = gradients(posterior)
    A = layer.A.detach().clone().requires_grad_()
    B = layer.B.detach().clone().requires_grad_()
    expected = []
    for i in range(3):
        change = SCALE * (B[i] @ A[i]).reshape(layer.base.weight.shape)
        dense = [network[0], network[2]]
        run = [(m.base, m.base.weight + change) if m is layer else (m, m.weight) for m in dense]
        h = x
        for number, (module, weight) in enumerate(run):
            h = module._conv_forward(torch.tanh(h) if number else h, weight, module.bias)
        expected.append(h)
        torch.testing.assert_close(posterior.particle(i)(x), h, rtol=1e-10, atol=1e-12)
        assert type(posterior.particle(i)[int(place)]) is kind
    torch.testing.assert_close(y, torch.stack(expected), rtol=1e-10, atol=1e-12)
    torch.stack(expected).square().sum().backward()
    torch.testing.assert_close(got[f"{place}.A"], A.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got[f"{place}.B"], B.grad, rtol=1e-9, atol=1e-12)


def test_laplace_stands_around_convolutions_over_time():
    torch.manual_seed(0)
    network = Sequences(kernel_size=3, padding=1)
    options = {"modules_to_save": ("head",), "b_std": 0.3}
    posterior = bella.low_rank(network.double(), 1, 2, ("first", "second"), **options).eval()
    x, y = torch.randn(12, 2, 9, dtype=torch.float64), torch.arange(12) % 3
    made = bella.laplace(posterior, [(x, y)], prior_precision=1.0)
    mean, (covariance,) = made.linearised((x,), {}, 1.0)
    # The same from autograd: J Σ Jᵀ with the whole Jacobian of each example.
    parameters = posterior.stacked_parameters()

    def logits(values, one):
        return torch.func.functional_call(posterior, values, (one.unsqueeze(0),))[0, 0]

    values = {f"network.{name}": p.detach() for name, p in parameters.items()}
    jacobian = torch.func.jacrev(logits)(values, x[0])
    total = torch.zeros(3, 3, dtype=torch.float64)
    for linear, gaussian in made.gaussians():
        rows = len(linear.matrix())
        parts = [jacobian[f"network.{name}"].reshape(3, rows, -1) for name in linear.parameters()]
        total += gaussian.covariance(torch.cat(parts, -1).unsqueeze(1), 1.0)[0]
    torch.testing.assert_close(covariance[0], total)
    torch.testing.assert_close(mean, posterior(x)[0])


def test_a_speech_network_takes_particles_on_its_convolutions():
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=50,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=8,
        max_source_positions=10,
        max_target_positions=10,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    network = transformers.WhisperForAudioClassification(config).eval()
    posterior = bella.low_rank(network, 3, 2, ("conv1", "conv2"), b_std=0.3)
    x = torch.randn(4, 8, 20)
    with torch.no_grad():
        y = posterior(x).logits
        assert (y[0] - y[1]).abs().max() > 1e-4
        for i in range(3):
            torch.testing.assert_close(y[i], posterior.particle(i)(x).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda net: bella.low_rank(net, 3, 2, ("0", "2"), b_std=0.3),
        lambda net: bella.low_rank(net, 3, 2, ("0", "2"), b_std=0.3, shared_prefix=False),
        lambda net: bella.low_rank(net, 3, 1, (), modules_to_save=("0",), head_init="reset"),
        lambda net: bella.rank1(net, 3),
        lambda net: bella.sparse_subspace(net),
        lambda net: bella.full(net, 3),
    ],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.bool])
@pytest.mark.parametrize("autocast", [False, True])
def test_integers_never_round_a_weight(make, dtype, autocast):
    posterior = make(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))).eval()
    x = torch.randint(0, 2, (8, 6)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with pytest.raises((bella.BellaError, RuntimeError), match=r"x\.float|dtype"):
            posterior(x)
        assert posterior(x.float()).isfinite().all()
