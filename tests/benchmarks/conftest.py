"""The steps of the benchmarks at sizes that take no time, on kernels that need not be compiled."""

import functools

import pytest

from benchmarks.workloads import STEPS

SIZES = {
    "small-op": {},
    "mlp-step": {"batch": 5, "width": 4},
    "vae-step": {"batch": 3, "data": 12, "hidden": 5, "latent": 2},
    "iwae-step": {"batch": 3, "data": 12, "hidden": 5, "latent": 2, "samples": 4},
    "cd-step": {"batch": 4, "visible": 9, "hidden": 5},
    "language-step": {"steps": 4, "streams": 3, "units": 5, "symbols": 6},
    "gaussian-sample": {"rows": 6, "size": 5},
    "iwae-bound": {"samples": 5, "rows": 7},
    "discriminator-step": {"batch": 4, "channels": 2},
}


@pytest.fixture
def tiny(monkeypatch):
    """`STEPS` at `SIZES`."""
    monkeypatch.setenv("GMKERNELS_BACKEND", "reference")
    for name, step in STEPS.items():
        monkeypatch.setitem(STEPS, name, step._replace(make=functools.partial(step.make, **SIZES[name])))
    return STEPS
