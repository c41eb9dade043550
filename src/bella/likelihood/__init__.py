"""What is scored: a network's outputs, and their negative log-likelihood; a file a likelihood.

The labels of a data set stand where its network's own loss wants them. A `Likelihood` puts outputs
and labels beside each other, position by position: *scores* (particles, batch, ..., s) and
*targets* (batch, ...), so that all else (loss, weights, predictive, figures) sees one form:

``classes``
    a class number for each position, as it stands: classification, tokens, masked language models,
    and the decoder of an encoder-decoder network. s logits, one a class.
``tokens``
    the tokens themselves: position t is scored on token t + 1, the last one on none. Causal
    language models shift so inside their own loss.
``bernoulli``
    several labels at once, each 0 or 1. Each label is a position with two classes.
``gaussian``
    numbers. Each number is a position with a mean and a log variance.

What has the label -100 (a number that is NaN) counts nowhere. `likelihood_of` names what a network
is trained with. Where the classes stand among the outputs is `bella.classes.ClassAxis`.
"""

from bella.likelihood.base import IGNORED, Likelihood
from bella.likelihood.bernoulli import Bernoulli
from bella.likelihood.classes import Classes
from bella.likelihood.gaussian import Gaussian, with_variance
from bella.likelihood.networks import (
    LIKELIHOODS,
    Name,
    by_name,
    likelihood_of,
    likelihood_of_outputs,
    of_posterior,
    resolve,
)
from bella.likelihood.outputs import logits_of
from bella.likelihood.scoring import Mean, losses, nll, targets_of, weigh
from bella.likelihood.tokens import Tokens

__all__ = [
    "IGNORED",
    "LIKELIHOODS",
    "Bernoulli",
    "Classes",
    "Gaussian",
    "Likelihood",
    "Mean",
    "Name",
    "Tokens",
    "by_name",
    "likelihood_of",
    "likelihood_of_outputs",
    "logits_of",
    "losses",
    "nll",
    "of_posterior",
    "resolve",
    "targets_of",
    "weigh",
    "with_variance",
]
