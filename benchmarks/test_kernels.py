"""Every kernel at the size of `kernels.CASES`, with its share of the floor."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import kernels
from gmkernels import bench


@pytest.mark.parametrize("name", kernels.CASES)
def test_kernel(name: str, benchmark: Any) -> None:
    spec, example, call = kernels.prepare(name)
    benchmark(call)
    if not benchmark.disabled:
        report = bench.KernelReport.of(spec, example.inputs, example.attrs, seconds=benchmark.stats.stats.median)
        benchmark.extra_info |= {
            "backend": report.backend,
            "floor_us": report.floor * 1e6,
            "share_of_floor": report.share,
            "bound": report.bound,
            "ns_per_element": report.seconds / max(1, report.elements) * 1e9,
        }
