"""The steps of the benchmarks at sizes that take no time, on kernels that need not be compiled."""

import functools

import pytest

from benchmarks.workloads import STEPS


@pytest.fixture
def tiny(monkeypatch):
    """`STEPS`, small by default."""
    monkeypatch.setattr("gmkernels.registry._environment", "reference")
    for name, step in STEPS.items():
        monkeypatch.setitem(STEPS, name, step._replace(make=functools.partial(step.make, **step.small)))
    return STEPS
