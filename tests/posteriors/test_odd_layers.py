"""Layers that are not what their class says: adapted and merged rightly, or refused when made."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from transformers.pytorch_utils import Conv1D

import bella


class Codes(nn.Linear):
    """Keeps int8 codes and a scale for each row, as 8-bit loaders leave it."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        scale = self.weight.detach().abs().amax(1) / 127
        codes = (self.weight.detach() / scale[:, None]).round().to(torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype) * self.scale[:, None], self.bias)


class Packed(nn.Linear):
    """Keeps two 4-bit codes in a byte, so that its weight has another shape than it multiplies
    with."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        codes = torch.randint(0, 16, (outputs * inputs,))
        packed = (codes[::2] * 16 + codes[1::2]).to(torch.uint8)
        self.weight = nn.Parameter(packed.unsqueeze(1), requires_grad=False)

    def forward(self, x):
        low, high = self.weight[:, 0] % 16, self.weight[:, 0] // 16
        codes = torch.stack([high, low], 1).reshape(self.out_features, self.in_features)
        return F.linear(x, (codes.to(x.dtype) - 8) / 20, self.bias)


class Scaled(nn.Linear):
    """An equalised learning rate: the weight is multiplied by a number in the forward."""

    def forward(self, x):
        return F.linear(x, 0.5 * self.weight, self.bias)


class Unit(nn.Linear):
    """Rows of length one, made in the forward: affine in the input, not in the weight."""

    def forward(self, x):
        return F.linear(x, F.normalize(self.weight, dim=1), self.bias)


class Cosine(nn.Linear):
    """Not affine in its input."""

    def forward(self, x):
        return 3 * F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=1))


class Centred(nn.Linear):
    """Lets a row depend on the other rows."""

    def forward(self, x):
        return super().forward(x - x.mean(0, keepdim=True))


class Positions(nn.Linear):
    """Adds what depends on the position."""

    def forward(self, x):
        y = super().forward(x)
        return y + torch.arange(y.shape[-2], dtype=y.dtype)[:, None] if y.dim() > 2 else y


class Deaf(nn.Linear):
    """Passes no gradient to its input, as dynamic quantisation does."""

    def forward(self, x):
        return super().forward(x.detach())


class TurnedConv1D(Conv1D):
    """A subclass of another name: still (in, out)."""


def patched(inputs, outputs):
    """A module whose forward somebody has exchanged, as offloading does."""
    made = nn.Linear(inputs, outputs)
    forward = made.forward
    made.forward = lambda x: 2 * forward(x)
    return made


def hooked(inputs, outputs):
    """A hook changes what the layer says."""
    made = nn.Linear(inputs, outputs)
    made.register_forward_hook(lambda module, args, y: 3 * y)
    return made


NORMS = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "older weight norm": torch.nn.utils.weight_norm,
    "older spectral norm": torch.nn.utils.spectral_norm,
}
ADAPTED = {
    "int8 codes": Codes,
    "packed codes": Packed,
    "scaled": Scaled,
    "unit rows": Unit,
    "exchanged forward": patched,
    "hook": hooked,
    "Conv1D's subclass": lambda i, o: TurnedConv1D(o, i),
    **{name: lambda i, o, norm=norm: norm(nn.Linear(i, o)) for name, norm in NORMS.items()},
}
REFUSED = {
    "cosine": (Cosine, "is not linear in its inputs"),
    "centred": (Centred, "(not linear|depend)"),
    "positions": (Positions, "treats positions differently"),
    "no gradient": (Deaf, "passes no gradient"),
    "lazy": (lambda i, o: nn.LazyLinear(o), "call the network once"),
}


def network(layer, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), layer(6, 8), nn.Tanh(), nn.Linear(8, 3))


def rows():
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.filterwarnings("ignore:1 of the layers hold codes")  # tests/models/test_quantised.py
@pytest.mark.parametrize("shape", [(4, 6), (4, 5, 6)])
@pytest.mark.parametrize("layer", ADAPTED.values(), ids=ADAPTED)
def test_particles_stand_on_what_the_layer_computes_and_merge_into_it(layer, shape):
    base = network(layer).double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        before = base(x)
    posterior = bella.low_rank(base, 3, 2, ("2",), alpha=3, b_std=0.5).eval()
    low_rank = posterior.layers()["2"]
    with torch.no_grad():
        hidden = torch.tanh(base[0](x))
        y = posterior(x)
        assert (y[0] - y[1]).abs().max() > 1e-2
        inner = network(layer).double().eval()[2](hidden)
        for i in range(3):
            delta = 1.5 * low_rank.B[i] @ low_rank.A[i]
            expected = base[4](torch.tanh(inner + hidden @ delta.mT))
            torch.testing.assert_close(y[i], expected)
            torch.testing.assert_close(posterior.particle(i)(x), expected, rtol=1e-6, atol=1e-6)
            assert posterior.particle(i)(x).dtype == torch.float64
        low_rank.B.zero_()
        torch.testing.assert_close(posterior.soup()(x), before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layer", ADAPTED.values(), ids=ADAPTED)
def test_gradients_pass_through_odd_layers(layer):
    posterior = bella.low_rank(network(layer).eval(), 2, 2, ("0", "2"), b_std=0.5)
    posterior(rows()).square().sum().backward()
    got = {k: p.grad.clone() for k, p in posterior.stacked_parameters().items()}
    steps = {}
    for name, p in posterior.stacked_parameters().items():
        direction = torch.sin(torch.arange(p.numel()) + 1.0).view_as(p)
        with torch.no_grad():
            losses = []
            for sign in (1, -1):
                p.add_(sign * 1e-2 * direction)
                losses.append(posterior(rows()).double().square().sum())
                p.sub_(sign * 1e-2 * direction)
        steps[name] = float(losses[0] - losses[1]) / 2e-2, float((got[name] * direction).sum())
    for name, (measured, gradient) in steps.items():
        assert measured == pytest.approx(gradient, rel=0.02, abs=0.02), name


@pytest.mark.parametrize(("layer", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_affine_is_refused_when_the_posterior_is_made(layer, words):
    base = network(layer)
    flags = [p.requires_grad for p in base.parameters()]
    modules = list(base.modules())
    with pytest.raises(bella.BellaError, match=words) as error:
        bella.low_rank(base, 2, 2, ("2",))
    assert "\n" not in str(error.value)
    assert list(base.modules()) == modules
    assert [p.requires_grad for p in base.parameters()] == flags


@pytest.mark.filterwarnings("ignore:.*(torch.ao.quantization is|are) deprecated")
def test_dynamically_quantised_layers_are_refused_by_their_library():
    kinds = {nn.Linear: torch.ao.quantization.default_dynamic_qconfig}
    torch.backends.quantized.engine = "qnnpack" if "qnnpack" in supported() else supported()[-1]
    base = torch.ao.quantization.quantize_dynamic(network(nn.Linear), kinds)
    for make in (bella.low_rank, bella.rank1, bella.sparse_subspace):
        with pytest.raises(bella.BellaError, match=r"torch\.ao\..*Linear"):
            make(copy.deepcopy(base), target_modules=("2",))


def supported():
    return torch.backends.quantized.supported_engines


def test_asking_a_layer_leaves_no_trace():
    class Counts(nn.Linear):
        def __init__(self, inputs, outputs):
            super().__init__(inputs, outputs)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(x) + 0 * torch.rand(())

    base = network(Counts).train()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    posterior = bella.low_rank(base, 2, 2, ("2",))
    posterior.particle(0)
    assert torch.equal(torch.rand(2), expected)
    assert base[2].base.calls == 0
    assert base[2].base.training


# ---------------------------------------------------------------- convolutions


class Padded(nn.Conv2d):
    """Its own padding; linear in the weight."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class Override(nn.Conv2d):
    """Standardises its weight in the method that torch's forward calls."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight / weight.std(), bias)


class CodesConv(nn.Conv2d):
    def __init__(self, *args):
        super().__init__(*args)
        codes = (self.weight.detach() * 300).round().to(torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)

    def forward(self, x):
        return self._conv_forward(x, self.weight.to(x.dtype) / 300, self.bias)


class Gained(nn.Conv2d):
    """A factor for each output channel, which a kernel of rank many channels does not fit."""

    def forward(self, x):
        gain = torch.linspace(1, 2, self.out_channels).view(-1, 1, 1, 1).to(x)
        return self._conv_forward(x, self.weight * gain, self.bias)


def conv_network(layer):
    torch.manual_seed(0)
    return nn.Sequential(layer, nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LazyLinear(3))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Padded(2, 5, 3),
        *(lambda norm=norm: norm(nn.Conv2d(2, 5, 3, stride=2)) for norm in NORMS.values()),
        lambda: parametrizations.weight_norm(nn.Conv2d(2, 5, 1)),
        lambda: nn.Conv2d(2, 5, 3, padding="same", padding_mode="circular"),
    ],
)
def test_odd_convolutions_merge_into_what_they_compute(build):
    x = torch.randn(4, 2, 7, 7)
    base = conv_network(build()).eval()
    base(x)
    posterior = bella.low_rank(base, 3, 2, ("0",), b_std=0.5).eval()
    with torch.no_grad():
        y = posterior(x)
        assert (y[0] - y[1]).abs().max() > 1e-2
        for i in range(3):
            torch.testing.assert_close(posterior.particle(i)(x), y[i])


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Override, "transforms its weight"),
        (CodesConv, "no ordinary parameter"),
        (Gained, "another weight"),
    ],
)
def test_convolutions_that_transform_their_weight_are_refused(layer, words):
    base = conv_network(layer(2, 5, 3)).eval()
    base(torch.randn(1, 2, 7, 7))
    with pytest.raises(bella.BellaError, match=words):
        bella.low_rank(base, 2, 2, ("0",))


# ---------------------------------------------------------------- heads, rank-1, sparse


@pytest.mark.parametrize("norm", NORMS)
def test_heads_with_norms_are_copied_whole_or_refused(norm):
    base = network(lambda i, o: nn.Linear(i, o))
    base[4] = NORMS[norm](base[4])
    make = lambda: bella.low_rank(base.eval(), 3, 2, ("0",), modules_to_save=("4",), b_std=0.3)  # noqa: E731
    if norm.startswith("older"):
        with pytest.raises(bella.BellaError, match=r"torch\.nn\.utils\.parametrizations"):
            make()
        return
    posterior = make()
    with torch.no_grad():
        for value in posterior.layers()["4"].values.values():
            value.add_(0.3 * torch.randn_like(value))
        y = posterior(rows())
    assert (y[0] - y[1]).abs().max() > 1e-2
    for i in range(3):
        torch.testing.assert_close(posterior.particle(i)(rows()), y[i])


@pytest.mark.parametrize("kind", ["Linear", "patched", "hooked"])
def test_heads_keep_what_somebody_put_on_them(kind):
    base = network(nn.Linear).eval()
    base[4] = {"Linear": nn.Linear, "patched": patched, "hooked": hooked}[kind](8, 3)
    x = rows()
    with torch.no_grad():
        before = base(x)
    posterior = bella.low_rank(base, 2, 2, (), modules_to_save=("4",))
    for y in posterior(x):
        torch.testing.assert_close(y, before)
    torch.testing.assert_close(posterior.particle(1)(x), before)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (lambda: Codes(8, 3), "int8"),
        (lambda: nn.ModuleList([nn.Linear(8, 3)]), "never called as a whole"),
        (lambda: nn.Tanh(), "without parameters"),
    ],
)
def test_heads_that_no_particle_could_own_are_refused(head, words):
    base = network(nn.Linear)
    base.add_module("head", head())
    with pytest.raises(bella.BellaError, match=words):
        bella.low_rank(base, 2, 2, ("2",), modules_to_save=("head",))


def test_a_whole_network_of_codes_is_refused_and_its_floating_part_may_be_copied():
    x = rows()
    with pytest.raises(bella.BellaError, match="int8"):
        bella.full(network(Codes), 2)
    base = network(Codes).eval()
    expected = base(x)
    for y in bella.full(base, 2, trainable=("4",))(x):
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("layer", [Codes, Cosine, Unit, hooked, patched, ADAPTED["weight norm"]])
@pytest.mark.parametrize("make", [bella.rank1, bella.sparse_subspace])
def test_rank_1_and_sparse_layers_leave_odd_layers_alone(make, layer):
    with pytest.raises(bella.BellaError, match="'2'"):
        make(network(layer), target_modules=("2",))
    posterior = make(network(layer))
    assert set(posterior.layers()) == {"0", "4"}
    posterior.eval()
    assert posterior(rows()).isfinite().all()


def test_rank_1_factors_stand_on_a_forward_that_is_linear_in_its_weight():
    options = {"posterior": "deterministic", "random_sign_init": -0.5}
    posterior = bella.rank1(network(Scaled).eval(), 3, **options).eval()
    assert set(posterior.layers()) == {"0", "2", "4"}
    y = posterior(rows())
    assert (y[0] - y[1]).abs().max() > 1e-2
    for k in range(3):
        torch.testing.assert_close(posterior.particle(k)(rows()), y[k])
