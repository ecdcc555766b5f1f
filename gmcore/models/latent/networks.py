"""Encoders and decoders that models with latent variables share, as conditional densities.

Any Module with the same methods may take their place:

    encoder(x) -> mu, logvar            of q(z | x), each (..., latent_size)
    decoder.log_prob(z, x) -> (...)     log p(x | z), summed over the data's axis
    decoder.mean(z) -> (..., data_size) E[x | z]
    decoder.support                     where x must lie
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gmcore import nn, ops
from gmcore.errors import ArgumentError
from gmcore.models.generative import marginal_logits
from gmcore.nn import init
from gmcore.random import Generator
from gmcore.tensor import Tensor

LOG_2PI = math.log(2.0 * math.pi)

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "softplus": nn.Softplus, "sigmoid": nn.Sigmoid}


def linear(in_features: int, out_features: int, generator: Generator | None) -> nn.Linear:
    """A Linear with Glorot's uniform weights and zero bias (Glorot & Bengio 2010), as the IWAE paper uses."""
    layer = nn.Linear(in_features, out_features)
    assert layer.bias is not None
    init.xavier_uniform_(layer.weight, generator=generator)
    init.zeros_(layer.bias)
    return layer


def set_bias(layer: nn.Linear, values: np.ndarray) -> None:
    """Write the bias of a layer made by `linear`."""
    assert layer.bias is not None
    layer.bias.copy_(values.astype(layer.bias.dtype))


def mlp(sizes: Sequence[int], activation: str, generator: Generator | None) -> nn.Sequential:
    """Linear layers of these sizes, each followed by the activation."""
    if activation not in [*ACTIVATIONS]:
        raise ArgumentError(f"activation {activation!r}; expected one of {', '.join(ACTIVATIONS)}")
    layers: list[nn.Module] = []
    for a, b in zip(sizes, sizes[1:], strict=False):
        layers += [linear(a, b, generator), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I), summed over the last axis."""
    return -0.5 * ops.sum(z * z, axis=-1) - 0.5 * LOG_2PI * z.shape[-1]


class GaussianEncoder(nn.Module):
    """q(z | x) = N(mu(x), diag exp(logvar(x))): two linear heads on a shared trunk."""

    def __init__(
        self,
        data_size: int,
        hidden_sizes: Sequence[int],
        latent_size: int,
        activation: str,
        generator: Generator | None,
    ) -> None:
        super().__init__()
        self.trunk = mlp([data_size, *hidden_sizes], activation, generator)
        width = [data_size, *hidden_sizes][-1]
        self.mu = linear(width, latent_size, generator)
        self.logvar = linear(width, latent_size, generator)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.mu(h), self.logvar(h)


class BernoulliDecoder(nn.Module):
    """p(x | z) = prod_d Bernoulli(x_d; sigmoid(logits_d(z))); also a cross-entropy for x in [0, 1]."""

    support = "unit-interval"

    def __init__(
        self,
        latent_size: int,
        hidden_sizes: Sequence[int],
        data_size: int,
        activation: str,
        generator: Generator | None,
    ) -> None:
        super().__init__()
        self.trunk = mlp([latent_size, *hidden_sizes], activation, generator)
        self.logits = linear([latent_size, *hidden_sizes][-1], data_size, generator)

    def log_prob(self, z: Tensor, x: Tensor) -> Tensor:
        return nn.bernoulli_log_prob(self.logits, self.trunk(z), x)

    def mean(self, z: Tensor) -> Tensor:
        return ops.sigmoid(self.logits(self.trunk(z)))

    def fit_bias(self, mean: np.ndarray) -> None:
        """Start at the data's mean: output bias = logit(mean), with means kept off 0 and 1."""
        set_bias(self.logits, marginal_logits(mean))


class GaussianDecoder(nn.Module):
    """p(x | z) = N(x; mean(z), diag exp(logvar)).

    logvar is a head on the shared trunk (``variance="diagonal"``), or one learned number for all of x
    (``"shared"``), with which a linear model is probabilistic PCA.
    """

    support = "real"

    def __init__(
        self,
        latent_size: int,
        hidden_sizes: Sequence[int],
        data_size: int,
        activation: str,
        generator: Generator | None,
        variance: str = "diagonal",
    ) -> None:
        super().__init__()
        if variance not in ("diagonal", "shared"):
            raise ArgumentError(f"variance {variance!r}; expected 'diagonal' or 'shared'")
        width = [latent_size, *hidden_sizes][-1]
        self.trunk = mlp([latent_size, *hidden_sizes], activation, generator)
        self.mu = linear(width, data_size, generator)
        self.logvar: nn.Linear | nn.Parameter
        if variance == "diagonal":
            self.logvar = linear(width, data_size, generator)
        else:
            self.logvar = nn.Parameter(np.zeros(1, np.float32))

    def log_prob(self, z: Tensor, x: Tensor) -> Tensor:
        h = self.trunk(z)
        logvar = self.logvar(h) if isinstance(self.logvar, nn.Module) else self.logvar
        return -0.5 * ops.sum(LOG_2PI + logvar + ops.square(x - self.mu(h)) * ops.exp(-logvar), axis=-1)

    def mean(self, z: Tensor) -> Tensor:
        return self.mu(self.trunk(z))

    def fit_bias(self, mean: np.ndarray) -> None:
        """Start at the data's mean."""
        set_bias(self.mu, mean)
