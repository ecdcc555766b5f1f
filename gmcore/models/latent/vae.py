"""The variational autoencoder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from gmcore import nn, ops
from gmcore.data import Dataset
from gmcore.errors import ArgumentError
from gmcore.models.base import Recipe, check_size
from gmcore.models.generative import GenerativeModel
from gmcore.models.latent.networks import (
    BernoulliDecoder,
    GaussianDecoder,
    GaussianEncoder,
    standard_normal_log_prob,
)
from gmcore.random import Generator, given_or_default, shift_key
from gmcore.tensor import Tensor, no_grad

# Log weights are evaluated in chunks of about this many decoder outputs, so that memory does not grow with k.
_CHUNK_ELEMENTS = 1 << 21


class VAE(GenerativeModel):
    """Auto-encoding variational Bayes (Kingma & Welling, ICLR 2014).

    p(z) = N(0, I), p(x | z) Bernoulli or Gaussian, q(z | x) = N(mu(x), diag exp(logvar(x))). Training maximises
    the evidence lower bound E_q log p(x, z) - log q(z | x) <= log p(x) by one of the two estimators

        A:  1/L sum_l [log p(x, z_l) - log q(z_l | x)]                        (eq. 6)
        B:  -KL(q(z | x) || p(z)) + 1/L sum_l log p(x | z_l)                   (eq. 7)

    with z_l = mu(x) + exp(logvar(x) / 2) eps_l, eps_l ~ N(0, I). Course slides that print the Gaussian KL
    without its factor 1/2 describe a beta = 2 VAE; the KL here is 1/2 sum(e^logvar + mu^2 - 1 - logvar).

    Parameters
    ----------
    data_size : length of a data vector.
    latent_size : length of z.
    hidden_sizes : widths of the encoder's hidden layers; the decoder has them reversed.
    likelihood : "bernoulli" (x in [0, 1]) or "gaussian".
    variance : of the Gaussian decoder: "diagonal" (a head of its own) or "shared" (one learned number).
    estimator : "A" or "B".
    samples : L.
    activation : "tanh", "relu", "softplus" or "sigmoid".
    encoder, decoder : Modules in place of the default ones (see `networks`).
    generator : initialises the weights.

    Raises
    ------
    ArgumentError : a size below 1 or an option that does not exist.
    """

    name = "vae"
    summary = "variational autoencoder, SGVB estimators A and B"
    source = "Kingma & Welling, Auto-encoding variational Bayes, ICLR 2014"
    recipe = Recipe(epochs=100, batch_size=20, learning_rate=1e-3, binarize="dynamic")
    settings: ClassVar[tuple[str, ...]] = (
        "latent_size", "hidden_sizes", "likelihood", "variance", "estimator", "samples", "activation",
    )  # fmt: skip

    encoder: Any
    decoder: Any

    def __init__(
        self,
        data_size: int,
        latent_size: int = 20,
        hidden_sizes: Sequence[int] = (200, 200),
        *,
        likelihood: str = "bernoulli",
        variance: str = "diagonal",
        estimator: str = "B",
        samples: int = 1,
        activation: str = "tanh",
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        check_size("data_size", data_size)
        check_size("latent_size", latent_size)
        if isinstance(hidden_sizes, str) or not isinstance(hidden_sizes, Iterable):
            raise ArgumentError(f"hidden_sizes must be several positive integers, got {hidden_sizes!r}")
        sizes = [check_size("hidden_sizes", size) for size in hidden_sizes]
        if estimator not in ("A", "B"):
            raise ArgumentError(f"estimator {estimator!r}; expected 'A' or 'B'")
        if likelihood not in ("bernoulli", "gaussian"):
            raise ArgumentError(f"likelihood {likelihood!r}; expected 'bernoulli' or 'gaussian'")
        self.config = {
            "data_size": data_size, "latent_size": latent_size, "hidden_sizes": sizes, "likelihood": likelihood,
            "variance": variance, "estimator": estimator, "samples": samples, "activation": activation,
        }  # fmt: skip
        self.data_size = data_size
        self.latent_size = latent_size
        self.estimator = estimator
        self.samples = check_size("samples", samples)
        self.encoder = encoder or GaussianEncoder(data_size, sizes, latent_size, activation, generator)
        if decoder is not None:
            self.decoder = decoder
        elif likelihood == "bernoulli":
            self.decoder = BernoulliDecoder(latent_size, sizes[::-1], data_size, activation, generator)
        else:
            self.decoder = GaussianDecoder(latent_size, sizes[::-1], data_size, activation, generator, variance)

    @classmethod
    def build(cls, dataset: Dataset, settings: Mapping[str, Any], generator: Generator) -> GenerativeModel:
        model = super().build(dataset, settings, generator)
        assert isinstance(model, VAE)
        model.decoder.fit_bias(dataset.train.mean(axis=0))
        return model

    @property
    def support(self) -> str:
        return self.decoder.support

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu and logvar of q(z | x), each (n, latent_size). Raises `ShapeError` unless x is (n, data_size)."""
        return self.encoder(self.as_rows(x))

    def bound(self, x: Tensor, *, generator: Generator | None = None, key: Tensor | None = None) -> Tensor:
        """The estimate of the bound for each example, (n,); with `key`, at the noise that it names."""
        mu, logvar = self.encode(x)
        z, kl, log_q = ops.gaussian_sample(mu, logvar, samples=self.samples, generator=generator, key=key)
        log_p_x = self.decoder.log_prob(z, x)
        if self.estimator == "A":
            return ops.mean(log_p_x + standard_normal_log_prob(z) - log_q, axis=0)
        return ops.mean(log_p_x, axis=0) - kl

    def minibatch_bound(
        self, x: Tensor, data_count: int, *, generator: Generator | None = None, key: Tensor | None = None
    ) -> Tensor:
        """Estimate of the bound on all of `data_count` examples from M of them: N/M sum_i L(x_i) (eq. 8)."""
        return ops.sum(self.bound(x, generator=generator, key=key)) * (data_count / x.shape[0])

    def loss(self, x: Tensor, *, generator: Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        bound = ops.mean(self.bound(x, generator=generator))
        return -bound, {"bound": bound}

    def log_weights(self, x: Tensor, mu: Tensor, logvar: Tensor, *, samples: int, key: Tensor) -> Tensor:
        """log w = log p(x, z) - log q(z | x) at `samples` draws of z from q, (samples, n)."""
        z, _, log_q = ops.gaussian_sample(mu, logvar, samples=samples, key=key)
        return self.decoder.log_prob(z, x) + standard_normal_log_prob(z) - log_q

    def log_likelihood(self, x: Tensor, *, samples: int, generator: Generator | None = None) -> Tensor:
        """The importance-weighted bound log 1/k sum_i w_i with k = `samples`, (n,).

        In host memory. Streams over the samples: memory does not grow with k, and the result does not depend on how
        k is cut, because each chunk draws its own part of one draw of the random stream.
        """
        check_size("samples", samples)
        key = given_or_default(generator).draw()
        chunk = max(1, _CHUNK_ELEMENTS // max(1, x.shape[0] * self.data_size))
        with no_grad():
            mu, logvar = self.encode(x)
            total = np.full(x.shape[0], -np.inf)
            for start in range(0, samples, chunk):
                count = min(chunk, samples - start)
                part = shift_key(key, start * mu.size)
                log_w = self.log_weights(x, mu, logvar, samples=count, key=part)
                total = np.logaddexp(total, ops.logsumexp(log_w, axis=0).cpu().numpy().astype(np.float64))
        return Tensor(total - math.log(samples))

    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        with no_grad():
            shape = (check_size("n", n), self.latent_size)
            return self.decoder.mean(ops.normal(shape, device=self.device, generator=generator))

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        with no_grad():
            z, _, _ = ops.gaussian_sample(*self.encode(x), generator=generator)
            return self.decoder.mean(z)
