"""A small op, forward and backward: the overhead of the tape. The budget is 0.4 of PyTorch's time."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import peers, workloads


def test_small_op_gmcore(benchmark: Any) -> None:
    benchmark(workloads.small_op())


def test_small_op_pytorch(benchmark: Any) -> None:
    pytest.importorskip("torch")
    benchmark(peers.make("PyTorch", "small-op", workloads.small_op()))
