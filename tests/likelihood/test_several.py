"""Several labels and numbers: against torch.distributions, dense formulas and transformers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Normal

import bella
from bella.likelihood import Gaussian, by_name, likelihood_of, nll, of_posterior, with_variance

SIZE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# ------------------------------------------------------------ several labels


def test_several_labels_are_bernoulli_trials_of_their_own():
    z = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 2, (5, 4))
    y[1, 2] = y[4] = -100
    counted = (y != -100).expand(3, 5, 4)
    each = -TorchBernoulli(logits=z).log_prob(y.clamp_min(0).double().expand(3, 5, 4))
    expected = (each * counted).sum((1, 2)) / counted.sum((1, 2))
    found = nll(z, y, likelihood="bernoulli")
    torch.testing.assert_close(found, expected.sum(), rtol=1e-12, atol=0)
    a, b = (torch.autograd.grad(v, z, retain_graph=True)[0] for v in (found, expected.sum()))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    for labels in (y.double(), y.to(torch.int8)):
        assert nll(z, labels, likelihood="bernoulli") == found


def test_several_labels_of_one_kind_are_transformers_own_loss():
    config = hf.BertConfig(**SIZE, num_labels=3, problem_type="multi_label_classification")
    network = hf.BertForSequenceClassification(config).eval()
    assert likelihood_of(network) == "bernoulli"
    ids, y = torch.randint(3, 40, (4, 6)), torch.randint(0, 2, (4, 3)).float()
    own = network(input_ids=ids, labels=y).loss
    posterior = bella.low_rank(network, 2, 2, ("query", "value")).eval()
    ours = nll(posterior(input_ids=ids), y, likelihood="bernoulli")
    torch.testing.assert_close(ours, 2 * own, rtol=1e-5, atol=0)  # particles begin alike


def test_extreme_logits_keep_their_loss():
    z = torch.tensor([[[200.0, -200.0]]])
    assert float(nll(z, torch.tensor([[0, 0]]), likelihood="bernoulli")) == 100
    assert float(nll(z, torch.tensor([[1, 0]]), likelihood="bernoulli")) == 0


# ------------------------------------------------------------ numbers


@pytest.mark.parametrize("numbers", [1, 3])
def test_numbers_are_normal(numbers):
    out = torch.randn(3, 5, 2 * numbers, dtype=torch.float64, requires_grad=True)
    y = torch.randn(5, numbers, dtype=torch.float64)
    mean, spread = out.chunk(2, -1)
    each = -Normal(mean, (spread / 2).exp()).log_prob(y)
    found = nll(out, y, likelihood="gaussian")
    torch.testing.assert_close(found, each.mean((1, 2)).sum(), rtol=1e-12, atol=0)
    if numbers == 1:
        assert nll(out, y.squeeze(-1), likelihood="gaussian") == found
    y[2, 0] = math.nan  # what is unknown does not count
    known = ~y.isnan().expand(3, -1, -1)
    expected = each[known].view(3, -1).mean(1).sum()
    found = nll(out, y, likelihood="gaussian")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert torch.autograd.grad(found, out)[0].isfinite().all()


def test_a_known_variance_leaves_the_outputs_to_the_means():
    mean, y = torch.randn(2, 6, 1).double(), torch.randn(6).double()
    found = nll(mean, y, likelihood=Gaussian(variance=0.25))
    expected = -Normal(mean.squeeze(-1), 0.5).log_prob(y).mean(1).sum()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    with pytest.raises(bella.BellaError, match="above 0"):
        Gaussian(variance=0.0)


def test_each_particle_may_have_numbers_of_its_own():
    out, y = torch.randn(3, 4, 2).double(), torch.randn(3, 4).double()
    expected = sum(nll(out[i : i + 1], y[i], likelihood="gaussian") for i in range(3))
    torch.testing.assert_close(nll(out, y, likelihood="gaussian"), expected)


@pytest.mark.parametrize("name", ["bernoulli", "gaussian", "classes"])
def test_the_fisher_matrix_has_the_root_that_laplace_asks_for(name):
    """The expected Hessian of the loss in the outputs, over labels drawn exactly."""
    f = torch.randn(4, dtype=torch.float64)
    kind = by_name(name)
    root = kind.root(f.unsqueeze(0))[0]

    def hessian(y):
        return torch.autograd.functional.hessian(
            lambda f: nll(f.view(1, 1, -1), y, likelihood=name, mean_over="labels") * y.numel(), f
        )

    if name == "classes":
        expected = hessian(torch.tensor([2]))
    elif name == "bernoulli":
        expected = hessian(torch.tensor([[1, 0, 1, 0]]))
    else:  # E over y = μ ± σ, which has the mean and variance of y
        mean, spread = f[:2], f[2:]
        std = (spread / 2).exp()
        ends = [mean + torch.tensor(s, dtype=f.dtype) * std for s in ([1, 1], [-1, -1])]
        expected = sum(hessian(y.unsqueeze(0)) for y in ends) / 2
    torch.testing.assert_close(root @ root.mT, expected, rtol=1e-10, atol=1e-12)


def test_one_label_of_transformers_is_a_number():
    def network(labels, **more):
        return hf.BertForSequenceClassification(hf.BertConfig(**SIZE, num_labels=labels, **more))

    assert likelihood_of(network(1)) == "gaussian"
    assert likelihood_of(network(2)) == "classes"
    assert likelihood_of(network(2, problem_type="regression")) == "gaussian"
    posterior = bella.low_rank(network(1), 2, 2, ("query", "value"))
    ids = torch.randint(3, 40, (4, 6))
    with pytest.raises(bella.BellaError, match="with_variance"):
        nll(posterior(input_ids=ids), torch.randn(4), likelihood="gaussian")
    with pytest.raises(bella.BellaError, match="with_variance"):
        bella.predict(posterior, {"input_ids": ids})


def test_a_learned_variance_is_each_particles_own():
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    assert with_variance(network, "2", log_variance=-1.0) is network
    assert likelihood_of(network) == "gaussian"
    posterior = bella.low_rank(network, 3, 2, ("0",), modules_to_save=("2",))
    assert of_posterior(posterior).name == "gaussian"
    out = posterior(torch.randn(5, 3).double())
    assert out.shape == (3, 5, 2)
    assert torch.equal(out[..., 1], torch.full((3, 5), -1.0, dtype=torch.float64))
    (name,) = [n for n in posterior.stacked_parameters() if "log_variance" in n]
    with torch.no_grad():
        posterior.stacked_parameters()[name].copy_(torch.tensor([[0.0], [1.0], [2.0]]))
    assert posterior(torch.randn(2, 3).double())[:, 0, 1].tolist() == [0, 1, 2]
    assert likelihood_of(posterior.soup()) == "gaussian"


def test_whole_copies_have_the_likelihood_of_what_was_copied():
    def bert(problem):
        config = hf.BertConfig(**SIZE, num_labels=2, problem_type=problem)
        return hf.BertForSequenceClassification(config)

    sizes = {"vocab_size": 40, "d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2}
    bart = hf.BartConfig(**sizes, decoder_ffn_dim=16, encoder_layers=1, encoder_attention_heads=2)
    mlp = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    networks = {
        "bernoulli": bert("multi_label_classification"),
        "gaussian": bert("regression"),
        "classes": hf.BartForCausalLM(bart),  # its labels are shifted already
        "tokens": hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2)),
    }
    for expected, network in [*networks.items(), ("gaussian", with_variance(mlp, "2"))]:
        assert likelihood_of(network) == expected
        assert of_posterior(bella.full(network, 2)).name == expected
    said = bella.predict(bella.full(mlp, 2), torch.randn(4, 3))
    assert said.mean.shape == (4,)


def test_a_variance_needs_a_linear_head():
    with pytest.raises(bella.BellaError, match="no Linear layer"):
        with_variance(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), "1")


# ------------------------------------------------------------ weights, and what a mean is over


def test_class_weights_are_those_of_cross_entropy():
    logits, y = torch.randn(2, 7, 3).double(), torch.tensor([0, 1, 2, 2, 1, -100, 0])
    weights = torch.tensor([0.2, 1.0, 3.0]).double()
    expected = sum(F.cross_entropy(x, y, weight=weights) for x in logits)
    torch.testing.assert_close(nll(logits, y, class_weights=weights), expected)
    torch.testing.assert_close(nll(logits, y, class_weights=[0.4, 2.0, 6.0]), expected)


def test_example_weights_count_an_example_so_often():
    logits, y = torch.randn(2, 4, 3).double(), torch.tensor([0, 1, 2, 1])
    often = torch.tensor([1, 3, 0, 2])
    rows = torch.arange(4).repeat_interleave(often)
    torch.testing.assert_close(
        nll(logits, y, weights=often.double()), nll(logits[:, rows], y[rows])
    )


@pytest.mark.parametrize("kind", ["tokens", "classes"])
def test_the_mean_over_examples_takes_a_text_for_one_datum(kind):
    logits = torch.randn(2, 3, 5, 6).double()
    y = torch.randint(0, 6, (3, 5))
    y[0, 2:] = y[1] = -100  # one short, one that says nothing
    own = [nll(logits[:, i : i + 1], y[i : i + 1], likelihood=kind) for i in (0, 2)]
    found = nll(logits, y, likelihood=kind, mean_over="examples")
    torch.testing.assert_close(found, sum(own) / 2)
    assert not torch.isclose(found, nll(logits, y, likelihood=kind))


def test_weights_and_means_go_together():
    """Σ_e w_e (Σ_t c_t ℓ_t / Σ_t c_t) / Σ_e w_e."""
    logits, y = torch.randn(1, 3, 4, 5).double(), torch.randint(0, 5, (3, 4))
    y[2, 1] = -100
    c, w = torch.rand(5).double(), torch.rand(3).double()
    each = F.cross_entropy(logits[0].flatten(0, 1), y.flatten(), reduction="none").view(3, 4)
    weigh = torch.where(y >= 0, c[y.clamp_min(0)], 0.0)
    expected = (w * (weigh * each).sum(1) / weigh.sum(1)).sum() / w.sum()
    found = nll(logits, y, mean_over="examples", class_weights=c, weights=w)
    torch.testing.assert_close(found, expected)


def test_a_weight_a_label_of_several():
    z, y = torch.randn(2, 5, 3).double(), torch.randint(0, 2, (5, 3))
    c = torch.tensor([1.0, 0.0, 2.0]).double()
    each = F.binary_cross_entropy_with_logits(z, y.double().expand(2, 5, 3), reduction="none")
    expected = ((each * c).sum((1, 2)) / (5 * c.sum())).sum()
    torch.testing.assert_close(nll(z, y, likelihood="bernoulli", class_weights=c), expected)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, y: nll(x, y, weights=torch.tensor([1.0, -1.0, 1.0, 1.0])), "negative"),
        (lambda x, y: nll(x, y, weights=torch.ones(3)), "one number an example"),
        (lambda x, y: nll(x, y, class_weights=[1.0, math.inf, 1.0]), "not finite"),
        (lambda x, y: nll(x, y, mean_over="batch"), "'labels' or 'examples'"),
        (lambda x, y: nll(x, y, likelihood="bernoulli"), "0 or 1 for each of the 3"),
        (lambda x, y: nll(x, y[:, None] * 2 + x[0].long() * 0, likelihood="bernoulli"), "range"),
        (lambda x, y: nll(x, y * 0.5 + 0.2, likelihood="bernoulli"), "neither 0 nor 1"),
        (lambda x, y: nll(x[..., :2], y == 1, likelihood="gaussian"), "bool"),
        (
            lambda x, y: nll(x[..., :2], y[:2].float(), likelihood="gaussian"),
            "do not fit the means",
        ),
        (
            lambda x, y: nll(x[..., :2], y.float(), likelihood="gaussian", class_weights=[1.0]),
            "no classes",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(bella.BellaError, match=words) as error:
        call(torch.randn(2, 4, 3), torch.tensor([0, 1, 2, 1]))
    assert "\n" not in str(error.value)
