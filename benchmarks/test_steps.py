"""The steps of `workloads`, eager and captured, for pytest-benchmark. `gmcore bench` times them beside the peers."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import compare
from benchmarks.workloads import CPU_STEPS, STEPS

FORMS = [(name, form) for name in CPU_STEPS for form in compare.OURS if form in compare.contenders(name)]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_step(name: str, form: str, benchmark: Any) -> None:
    step = compare.build(name, form, STEPS[name].make())
    for _ in range(compare.WARM_UP):
        step()
    benchmark(step)
