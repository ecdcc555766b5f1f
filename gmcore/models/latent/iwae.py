"""The importance-weighted autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

from gmcore import nn, ops
from gmcore.models.base import Recipe
from gmcore.models.latent.vae import VAE
from gmcore.random import Generator, given_or_default
from gmcore.tensor import Tensor


class IWAE(VAE):
    """Importance weighted autoencoder (Burda, Grosse & Salakhutdinov, ICLR 2016).

    The VAE's model with the tighter bound

        L_k = E log 1/k sum_i w_i,   w_i = p(x, z_i) / q(z_i | x),   z_1 .. z_k ~ q(z | x)       (eq. 8)

    L_1 is the evidence lower bound, L_k <= L_(k+1) <= log p(x). Its gradient weighs those of log w_i by the
    normalised weights w~_i = w_i / sum_j w_j (eq. 14). The estimator that reports sum_i w~_i log w_i in place of
    the bound is not L_k.

    Parameters are the VAE's, except that `samples` is k and there is one estimator.
    """

    name = "iwae"
    summary = "importance-weighted autoencoder, k-sample bound"
    source = "Burda, Grosse & Salakhutdinov, Importance weighted autoencoders, ICLR 2016"
    recipe = Recipe(epochs=40, batch_size=20, learning_rate=1e-3, eps=1e-4, binarize="dynamic")
    settings = ("latent_size", "hidden_sizes", "likelihood", "variance", "samples", "activation")

    def __init__(
        self,
        data_size: int,
        latent_size: int = 50,
        hidden_sizes: Sequence[int] = (200, 200),
        *,
        likelihood: str = "bernoulli",
        variance: str = "diagonal",
        samples: int = 50,
        activation: str = "tanh",
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__(
            data_size, latent_size, hidden_sizes, likelihood=likelihood, variance=variance, samples=samples,
            activation=activation, encoder=encoder, decoder=decoder, generator=generator,
        )  # fmt: skip
        del self.config["estimator"]

    def bound(self, x: Tensor, *, generator: Generator | None = None, key: Tensor | None = None) -> Tensor:
        """L_k for each example, (n,)."""
        mu, logvar = self.encode(x)
        key = given_or_default(generator).draw() if key is None else key
        log_w = self.log_weights(x, mu, logvar, samples=self.samples, key=key)
        return ops.iwae_bound(log_w, axis=0)
