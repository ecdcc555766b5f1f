"""Training steps: forward, backward and the optimiser, op by op."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import workloads


def test_mlp_step(benchmark: Any) -> None:
    benchmark(workloads.mlp_step())


def test_vae_step(benchmark: Any) -> None:
    benchmark(workloads.train_step(workloads.vae(), workloads.images(100)))


def test_iwae_step(benchmark: Any) -> None:
    benchmark(workloads.train_step(workloads.iwae_model(), workloads.images(20)))


def test_cd_step(benchmark: Any) -> None:
    benchmark(workloads.cd_step(workloads.rbm(), workloads.images(100), 1e-4))


def test_language_step(benchmark: Any) -> None:
    benchmark(workloads.language_step(workloads.char_rnn(), workloads.excerpt()))


def test_discriminator_step(benchmark: Any) -> None:
    labels = (np.arange(64) % 2).astype(np.float32)[:, None]
    benchmark(workloads.discriminator_step(workloads.discriminator(), workloads.images(64), labels))
