"""The steps of `workloads` with their sizes as arguments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import gmcore
from benchmarks import workloads
from gmcore.models.boltzmann.rbm import RBM
from gmcore.models.latent.iwae import IWAE
from gmcore.models.latent.vae import VAE
from gmcore.models.recurrent.char_rnn import CharRNN
from gmcore.random import Generator

Call = Callable[[], object]


def gaussian_sample(rows: int = 20_000, size: int = 100) -> Call:
    rng = np.random.default_rng(0)
    return workloads.gaussian_sample(
        *(gmcore.tensor(0.1 * rng.standard_normal((rows, size), np.float32), requires_grad=True) for _ in range(2))
    )


def iwae_bound(samples: int = 50, rows: int = 20_000) -> Call:
    log_w = np.random.default_rng(0).standard_normal((samples, rows), np.float32)
    return workloads.iwae_bound(gmcore.tensor(log_w, requires_grad=True))


def vae_step(batch: int = 100, hidden: int = 500) -> Call:
    model = VAE(workloads.DATA_SIZE, 20, (hidden,), generator=Generator(0))
    return workloads.train_step(model, workloads.images(batch))


def iwae_step(batch: int = 20, samples: int = 50, hidden: int = 200) -> Call:
    model = IWAE(workloads.DATA_SIZE, 50, (hidden, hidden), samples=samples, generator=Generator(0))
    return workloads.train_step(model, workloads.images(batch))


def cd_step(batch: int = 100, hidden: int = 500) -> Call:
    model = RBM(workloads.DATA_SIZE, hidden, chains=0, generator=Generator(0))
    model.weight.copy_(5.0 * model.weight.detach().numpy())
    return workloads.cd_step(model, workloads.images(batch), 1e-4)


def language_step(steps: int = 64, streams: int = 32, units: int = 256) -> Call:
    symbols = "".join(chr(33 + i) for i in range(65))
    model = CharRNN(symbols, "lstm", units, 1, generator=Generator(0))
    return workloads.language_step(model, workloads.excerpt(steps, streams))


def discriminator_step(batch: int = 64) -> Call:
    labels = (np.arange(batch) % 2).astype(np.float32)[:, None]
    return workloads.discriminator_step(workloads.discriminator(), workloads.images(batch), labels)


MAKE: dict[str, Callable[..., Call]] = {
    "small-op": workloads.small_op,
    "mlp-step": workloads.mlp_step,
    "gaussian-sample": gaussian_sample,
    "iwae-bound": iwae_bound,
    "vae-step": vae_step,
    "iwae-step": iwae_step,
    "cd-step": cd_step,
    "language-step": language_step,
    "discriminator-step": discriminator_step,
}
