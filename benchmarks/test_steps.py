"""The steps of `workloads`, eager and captured, for pytest-benchmark. `gmcore bench` times them beside the peers."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import compare
from benchmarks.workloads import STEPS


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("form", compare.OURS)
def test_step(name: str, form: str, benchmark: Any) -> None:
    if form not in compare.contenders(name):
        pytest.skip("a step of tapes, which a captured one has none of")
    step = compare.build(name, form, STEPS[name].make())
    for _ in range(compare.WARM_UP):
        step()
    benchmark(step)
