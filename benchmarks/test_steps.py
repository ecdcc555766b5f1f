"""Training steps: forward, backward and the optimiser, op by op."""

from __future__ import annotations

from typing import Any

from benchmarks import workloads


def test_mlp_step(benchmark: Any) -> None:
    benchmark(workloads.mlp_step())


def test_vae_step(benchmark: Any) -> None:
    benchmark(workloads.train_step(workloads.vae(), workloads.images(100)))


def test_iwae_step(benchmark: Any) -> None:
    benchmark(workloads.train_step(workloads.iwae_model(), workloads.images(20)))
