"""What measures a GPU, rehearsed where there is none: every case fits its kernel, and a run gives a table."""

import json

import pytest

from benchmarks import compare, gpu, report
from gmkernels import registry
from tests.support.cupy_stand_in import has_gpu

pytestmark = [pytest.mark.gpu] if has_gpu() else []
SHARE = 1e-6


@pytest.mark.parametrize("name", gpu.KERNELS)
def test_cases_fit_their_kernels(name):
    case = gpu.KERNELS[name]
    inputs, attrs, updated = case.make(SHARE)
    spec = registry.specs()[case.op]
    spec.infer(*inputs, **attrs)
    assert bool(updated) == spec.updates
    assert set(gpu.OURS) <= set(registry.entries(spec)), "a kernel on a GPU is to be measured on every backend"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the peers, where they are installed
def test_a_run_is_kept_and_becomes_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "TIMING", {"blocks": 1, "seconds": 0.001, "pause": 0.0, "burst": 1})
    names = ["iwae_bound", "gaussian_sample", "sum"]
    table = report.table(json.loads(json.dumps(gpu.measure(SHARE, [*names, "iwae-bound"]))))
    for name in names:
        assert f"| {name} | " in table
    assert "| IWAE bound, 50 x 20,000, with gradient | " in table


def test_a_kernel_that_differs_from_its_rivals_stops_the_run():
    import numpy as np

    gpu._compare("sum", "cuda", np.ones(3), "CuPy", np.ones(3) + 1e-4)
    with pytest.raises(compare.Disagreement, match="sum: cuda is .* from CuPy: nothing to compare"):
        gpu._compare("sum", "cuda", np.ones(3), "CuPy", np.ones(3) + 0.1)
