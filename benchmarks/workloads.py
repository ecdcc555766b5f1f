"""What the benchmarks run: training steps and operations of gmcore, at the sizes that reports are kept for.

Each function returns a call without arguments that does one step. Models are given their weights, their data
and the key of their noise by seed, so that a peer (`peers`) can be given the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import gmcore
from gmcore import nn, ops, optim
from gmcore.models.boltzmann.rbm import RBM
from gmcore.models.language import Excerpt
from gmcore.models.latent.iwae import IWAE
from gmcore.models.latent.vae import VAE
from gmcore.models.recurrent.char_rnn import CharRNN
from gmcore.random import Generator
from gmkernels import iwae, registry, sampling

Call = Callable[[], object]

SAMPLE_SHAPE = (20_000, 100)
BOUND_SHAPE = (50, 20_000)
DATA_SIZE = 784
NOISE_SEED = 1


class Step(NamedTuple):
    """What is compared with the peers."""

    title: str
    aim: float
    """Time of our captured step over that of the best peer: no more than this is wanted."""


STEPS = {
    "small-op": Step("8-element multiply, forward + backward", 0.40),
    "gaussian-sample": Step("Gaussian sample of 2,000,000 with KL, forward + backward", 0.12),
    "iwae-bound": Step("IWAE bound + gradient, 50 x 20,000", 0.40),
    "vae-step": Step("VAE 784-500-20, batch 100, step of Adam", 0.70),
    "iwae-step": Step("IWAE 784-200-200-50, k = 50, batch 20, step of Adam", 0.65),
    "cd-step": Step("RBM 784 x 500, CD-1, batch 100, step of SGD", 0.80),
    "language-step": Step("LSTM language model, 256 units, 65 characters, 64 steps of 32 streams, step of Adam", 0.85),
    "discriminator-step": Step(
        "Discriminator 28 x 28 (conv 32, conv 64 + batch norm, linear), batch 64, step of Adam", 0.85
    ),
}
"""The steps of `compare` by name."""


def images(n: int) -> np.ndarray:
    """Binary images, (n, 784): an eighth of the pixels lit, as in MNIST."""
    return (np.random.default_rng(0).random((n, DATA_SIZE)) < 0.125).astype(np.float32)


def gaussian_parameters() -> tuple[np.ndarray, np.ndarray]:
    """mu and logvar of `SAMPLE_SHAPE`."""
    rng = np.random.default_rng(0)
    mu = rng.standard_normal(SAMPLE_SHAPE, np.float32)
    return mu, 0.1 * rng.standard_normal(SAMPLE_SHAPE, np.float32)


def log_weights() -> np.ndarray:
    """Log importance weights of `BOUND_SHAPE`, spread like those of a trained model."""
    return 3.0 * np.random.default_rng(0).standard_normal(BOUND_SHAPE, np.float32) - 90.0


# -- operations ----------------------------------------------------------------------------------------------
def small_op() -> Call:
    """Eight elements, multiplied, with the gradients of both."""
    x = gmcore.tensor(np.arange(8.0, dtype=np.float32), requires_grad=True)
    y = gmcore.tensor(np.ones(8, np.float32), requires_grad=True)
    gradient = gmcore.tensor(np.ones(8, np.float32))

    def call() -> None:
        x.grad = y.grad = None
        (x * y).backward(gradient)

    return call


def incoming_gradients() -> tuple[np.ndarray, np.ndarray]:
    """Gradients of z and of the KL divergences, such as a decoder and a bound give."""
    return np.random.default_rng(1).standard_normal(SAMPLE_SHAPE, np.float32), np.ones(SAMPLE_SHAPE[0], np.float32)


def gaussian_sample(mu: gmcore.Tensor, logvar: gmcore.Tensor) -> Call:
    """A sample and its KL divergences, and from their gradients those of mu and logvar, which it returns."""
    generator = Generator(NOISE_SEED)
    incoming = [gmcore.tensor(g) for g in incoming_gradients()]

    def call() -> tuple[gmcore.Tensor, ...]:
        z, kl, _ = ops.gaussian_sample(mu, logvar, generator=generator)
        return gmcore.grad((z, kl), (mu, logvar), incoming)

    return call


def gaussian_sample_kernels(mu: np.ndarray, logvar: np.ndarray) -> Call:
    """The two kernels behind `gaussian_sample`, into buffers kept from call to call."""
    forward, backward = (registry.specs()[name] for name in ("gaussian_sample", "gaussian_sample_backward"))
    attrs = {"samples": None}
    key = Generator(NOISE_SEED).draw().numpy()
    z, kl, log_q = outputs = sampling.gaussian_sample(mu, logvar, key=key)
    incoming = (*incoming_gradients(), np.zeros_like(log_q), mu, logvar, key)
    gradients = (np.empty_like(mu), np.empty_like(logvar))

    def call() -> None:
        registry.run(forward, (mu, logvar, key), attrs, outputs=outputs)
        registry.run(backward, incoming, attrs, outputs=gradients)

    return call


def iwae_bound(log_w: gmcore.Tensor) -> Callable[[], gmcore.Tensor]:
    """The bound of every column and the gradient of their sum."""

    def call() -> gmcore.Tensor:
        log_w.grad = None
        loss = ops.iwae_bound(log_w, axis=0)[0].sum()
        loss.backward()
        return loss

    return call


def iwae_bound_kernels(log_w: np.ndarray) -> Call:
    """The two kernels behind `iwae_bound`, into buffers kept from call to call."""
    forward, backward = (registry.specs()[name] for name in ("iwae_bound", "iwae_bound_backward"))
    attrs = {"axis": 0}
    bound, weights, _ = outputs = iwae.iwae_bound(log_w, axis=0)
    incoming, gradients = (np.ones_like(bound), weights), (np.empty_like(log_w),)

    def call() -> None:
        registry.run(forward, (log_w,), attrs, outputs=outputs)
        registry.run(backward, incoming, attrs, outputs=gradients)

    return call


# -- training steps ------------------------------------------------------------------------------------------
def vae() -> VAE:
    """784-500-20, as in the VAE paper."""
    return VAE(DATA_SIZE, 20, (500,), generator=Generator(0))


def iwae_model() -> IWAE:
    """784-200-200-50 with 50 samples, as in the IWAE paper."""
    return IWAE(DATA_SIZE, 50, (200, 200), samples=50, generator=Generator(0))


def train_step(model: VAE, x: np.ndarray) -> Callable[[], gmcore.Tensor]:
    """One step of Adam on the batch `x`; returns the loss."""
    batch = gmcore.tensor(x)
    generator = Generator(NOISE_SEED)
    optimizer = optim.Adam(model.parameters(), lr=1e-3)

    def call() -> gmcore.Tensor:
        optimizer.zero_grad()
        loss, _ = model.loss(batch, generator=generator)
        loss.backward()
        optimizer.step()
        return loss

    return call


def rbm() -> RBM:
    """784 visible and 500 hidden units, with the spread-out weights of a machine that has learned something."""
    model = RBM(DATA_SIZE, 500, chains=0, generator=Generator(0))
    model.weight.copy_(5.0 * model.weight.detach().numpy())
    return model


def cd_step(model: RBM, v: np.ndarray, learning_rate: float) -> Call:
    """One step of CD-1 on the images `v`, by plain SGD."""
    generator = Generator(NOISE_SEED)
    optimizer = optim.SGD(model.parameters(), lr=learning_rate)

    def call() -> None:
        model.compute_gradients(v, generator=generator)
        optimizer.step()

    return call


def char_rnn() -> CharRNN:
    """An LSTM of 256 units over 65 characters."""
    return CharRNN("".join(chr(33 + i) for i in range(65)), "lstm", 256, 1, generator=Generator(0))


def excerpt(steps: int = 64, streams: int = 32, symbols: int = 65) -> Excerpt:
    """A piece of a text of random characters."""
    codes = np.random.default_rng(0).integers(symbols, size=(steps + 1, streams))
    return Excerpt(codes[:-1].copy(), codes[1:].copy(), True)


def language_step(model: CharRNN, batch: Excerpt) -> Callable[[], gmcore.Tensor]:
    """One step of Adam on an excerpt; returns the loss."""
    generator = Generator(NOISE_SEED)
    optimizer = optim.Adam(model.parameters(), lr=1e-3)

    def call() -> gmcore.Tensor:
        optimizer.zero_grad()
        loss = model.compute_gradients(batch, generator=generator).loss
        optimizer.step()
        return loss

    return call


def discriminator() -> nn.Sequential:
    """28 x 28 images to a logit by two convolutions of stride 2, the second with batch normalisation."""
    gmcore.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.BatchNorm2d(64),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 1),
    )


def discriminator_step(model: nn.Sequential, x: np.ndarray, labels: np.ndarray) -> Callable[[], gmcore.Tensor]:
    """One step of Adam on images (n, 784) and labels (n, 1), 1 for a real one; returns the loss."""
    images = gmcore.tensor(x.reshape(-1, 1, 28, 28))
    target = gmcore.tensor(labels)
    optimizer = optim.Adam(model.parameters(), lr=1e-3)

    def call() -> gmcore.Tensor:
        optimizer.zero_grad()
        loss = ops.binary_cross_entropy_with_logits(model(images), target)
        loss.backward()
        optimizer.step()
        return loss

    return call


def mlp_step() -> Call:
    """A step of SGD on a network 2-16-16-1 and a batch of 32: nearly all of it is overhead."""
    rng = np.random.default_rng(0)
    x = gmcore.tensor(rng.standard_normal((32, 2), np.float32))
    y = gmcore.tensor(rng.standard_normal((32, 1), np.float32))
    gmcore.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = optim.SGD(model.parameters(), lr=1e-2)

    def call() -> None:
        optimizer.zero_grad()
        ops.mean(ops.square(model(x) - y)).backward()
        optimizer.step()

    return call
