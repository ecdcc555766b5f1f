"""What measures a GPU, rehearsed where there is none: every case fits its kernel, and a run gives a table."""

import json

import pytest

from benchmarks import compare, gpu, report
from gmkernels import registry
from gmkernels.cost import Device

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
    kept = []
    figures = gpu.measure(
        SHARE, [*names, "iwae-bound", "cd-25, batch 100"], keep=lambda f: kept.append(len(f["kernels"]))
    )
    assert kept == [1, 2, 3, 3, 3] and figures["failed"] == {}
    table = report.table(json.loads(json.dumps(figures)))
    for name in names:
        assert f"| {name} | " in table
    assert "| IWAE bound, 50 x 20,000, with gradient | " in table
    assert "| RBM 784 x 500, CD-25, batch 100, SGD | " in table


def figures(**kernels):
    return {"gpu": {"name": "A GPU (measured)"}, "kernels": kernels, "steps": {}, "failed": {}, "versions": {}}


def test_what_fails_is_told_and_what_was_measured_before_is_kept(tmp_path, monkeypatch, capsys):
    def measure_kernel(name, share, device):
        if name == "sum":
            raise ValueError("no sum")
        return {"share": 0.5}

    monkeypatch.setattr(gpu, "measure_kernel", measure_kernel)
    monkeypatch.setattr(gpu.bench, "measure_gpu", lambda share: Device("A GPU (measured)", 4e12, 6e13, 3e13))
    file = tmp_path / "a-gpu.json"
    file.write_text(json.dumps(figures(adam=1, iwae_bound=2) | {"failed": {"iwae_bound": "once"}}))
    with pytest.raises(SystemExit, match="failed:\n  sum: ValueError: no sum"):
        gpu.main(["sum", "iwae_bound"], tmp_path)
    found = json.loads(file.read_text())
    assert found["kernels"] == {"adam": 1, "iwae_bound": {"share": 0.5}}
    assert found["failed"] == {"sum": "ValueError: no sum"}
    gpu.main(["sum", "adam", "--minutes", "0"], tmp_path)
    assert "the others: python -m benchmarks.gpu adam sum\n" in capsys.readouterr().out
    assert json.loads(file.read_text()) == found
    monkeypatch.setattr(gpu, "_works", lambda: False)
    with pytest.raises(SystemExit, match="failed:\n  sum: ValueError: no sum"):
        gpu.main(["sum", "uniform", "vae-step"], tmp_path)
    assert "the others: python -m benchmarks.gpu vae-step\n" in capsys.readouterr().out


def test_a_kernel_that_differs_from_its_rivals_stops_the_run():
    import numpy as np

    gpu._compare("sum", "cuda", np.ones(3), "CuPy", np.ones(3) + 1e-4)
    with pytest.raises(compare.Disagreement, match="sum: cuda is .* from CuPy: nothing to compare"):
        gpu._compare("sum", "cuda", np.ones(3), "CuPy", np.ones(3) + 0.1)


def test_aims_are_of_what_is_measured_and_are_met_or_not():
    assert gpu.AIMS.keys() <= gpu.KERNELS.keys() | gpu.STEPS.keys()
    aim = gpu.AIMS["last-layer"]
    assert aim.text() == "0.50 x torch.compile, memory 0.10 x torch.compile"
    seconds, peaks = {"ours": 1.0, gpu.COMPILED: 2.0}, {compare.EAGER: 9, gpu.COMPILED: 100}
    assert aim.met(seconds, 0.0, peaks, "ours") == "yes"
    assert aim.met(seconds, 0.0, peaks | {compare.EAGER: 12}, "ours") == "no"
    assert aim.met(seconds | {"ours": 1.1}, 0.0, peaks, "ours") == "no"
    assert aim.met({"ours": 1.0}, 0.0, peaks, "ours") == aim.met(seconds, 0.0, {}, "ours") == "-"
    half_step = gpu.AIMS["gibbs_half_step 4096, bfloat16"]
    assert half_step.text() == "60% of the floor, 0.50 x PyTorch"
    assert [half_step.met({"cuda": 1.0, gpu.TORCH: 2.0}, s, {}, "cuda") for s in (0.6, 0.59)] == ["yes", "no"]


def test_the_peak_of_a_step_is_beside_what_it_leaves():
    import cupy

    kept = []

    def step():
        kept[:] = [cupy.ones(1 << 10)]
        between = [cupy.ones(1 << 16) for _ in range(3)]
        return between[0]

    assert gpu._peak(compare.EAGER, step) == 2 * (8 << 16)
    assert gpu.memory_text({compare.EAGER: 1 << 20, gpu.TORCH: 4 << 20}) == "1.0 MiB, PyTorch 4.0 (0.25)"


def test_torch_compile_is_asked_for_its_memory_without_graphs(tiny, monkeypatch):
    pytest.importorskip("torch", reason="PyTorch, a peer, is not installed")
    library, modes = gpu.peers.library(gpu.COMPILED), []
    monkeypatch.setattr(compare, "build", lambda *given: modes.append(library.MODE) or (lambda: None))
    gpu._without_graphs("last-layer", {"device": "cpu"})
    assert modes == [None] and library.MODE == "reduce-overhead"
