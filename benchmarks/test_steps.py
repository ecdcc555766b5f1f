"""The steps of `workloads`, gmcore's and the peers', for pytest-benchmark; those that peers compile with `-m slow`.

Groups are timed one contender after the other. `gmcore bench` times them in alternating blocks, and checks them first.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import compare
from benchmarks.workloads import CPU_STEPS, STEPS

COMPILED = ("torch.compile", "JAX")


@pytest.mark.parametrize(
    ("name", "contender"),
    [
        pytest.param(name, contender, marks=[pytest.mark.slow] if contender in COMPILED else [])
        for name in CPU_STEPS
        for contender in compare.contenders(name)
    ],
)
def test_step(name: str, contender: str, benchmark: Any) -> None:
    benchmark.group = name
    step = compare.build(name, contender, STEPS[name].make())
    for _ in range(compare.WARM_UP):
        step()
    benchmark(step)
