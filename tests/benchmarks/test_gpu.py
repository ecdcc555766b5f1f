"""What measures a GPU, rehearsed where there is none: every case fits its kernel, and a run gives a table."""

import json
import re
from types import SimpleNamespace

import cupy
import numpy as np
import pytest

from benchmarks import compare, gpu, peers, report
from gmkernels import bench, registry
from gmkernels.cost import Device
from tests.support import cuda_stand_in
from tests.support.cupy_stand_in import has_gpu

SHARE = 1e-6


@pytest.mark.parametrize("name", gpu.KERNELS)
def test_cases_fit_their_kernels(name):
    case = gpu.KERNELS[name]
    inputs, attrs, updated = case.make(SHARE)
    spec = registry.specs()[case.op]
    spec.infer(*inputs, **attrs)
    assert bool(updated) == spec.updates
    assert set(gpu.OURS) <= set(registry.entries(spec)), "a kernel on a GPU is to be measured on every backend"


@pytest.fixture
def brief(monkeypatch):
    """Times of one call each."""

    def once(call, *, seconds, synchronize):
        return bench._times(call, 0.0, 1, synchronize)[0] * 1e-9

    monkeypatch.setattr(bench, "median_time", once)
    monkeypatch.setattr(gpu, "TIMING", {"blocks": 1, "seconds": 0.0, "pause": 0.0, "burst": 1})


@pytest.fixture
def libraries(monkeypatch):
    """CuPy's random numbers, where it is a stand-in, and PyTorch and JAX, where they are installed: on a CPU, if there
    is no GPU, and torch.compile is PyTorch then."""
    if has_gpu():
        return
    rng = np.random.default_rng(0)
    monkeypatch.setattr(cupy, "random", SimpleNamespace(
        standard_normal=lambda size, dtype: cupy.asarray(rng.standard_normal(size, dtype)),
        random_sample=lambda size, dtype: cupy.asarray(rng.random(size, dtype)),
    ), raising=False)  # fmt: skip
    if gpu.importlib.util.find_spec("torch") is not None:
        import torch

        def from_dlpack(a):
            if a.dtype.name == "bfloat16":
                return torch.from_numpy(a._host.view(np.int16)).view(torch.bfloat16)
            return torch.from_numpy(a._host)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch, "from_dlpack", from_dlpack)
        monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
        monkeypatch.setattr(peers.library(gpu.TORCH), "configure", lambda device: None)
    if gpu.importlib.util.find_spec("jax") is not None:
        import jax

        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        monkeypatch.setattr(jax.dlpack, "from_dlpack", lambda a: jax.numpy.asarray(a._host))
        monkeypatch.setattr(peers.library(gpu.JAX), "configure", lambda device: None)


@pytest.fixture
def device():
    return Device("A GPU (measured)", 4e12, 6e13, 3.3e13, half_factor=11.8)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the peers, where they are installed
@pytest.mark.parametrize("name", gpu.KERNELS)
def test_every_kernel_and_what_it_is_compared_with_runs(name, brief, libraries, device, monkeypatch, capsys):
    if not has_gpu() and "bfloat16" in name:
        monkeypatch.setattr(gpu, "OURS", ("cuda",))  # Triton's interpreter gets it wrong
    found = gpu.measure_kernel(name, SHARE, device)
    ours = [contender for contender in found["contenders"] if contender in gpu.OURS]
    assert ours == list(gpu.OURS) and found["absent"] == {}
    rivals = [contender for contender in found["contenders"] if contender not in ours]
    printed = capsys.readouterr().out
    assert all(re.search(rf"{own} .*[;,] \d+\.\d\d x {rival}\b", printed) for own in ours for rival in rivals)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", gpu.STEPS)
def test_every_step_runs(name, brief):
    found = gpu.measure_step(name, small=True)
    assert {compare.CAPTURED, compare.EAGER} <= set(found["contenders"]) and compare.EAGER in found["peak"]


@pytest.mark.slow
def test_a_run_is_kept_and_becomes_a_table(brief, libraries, tmp_path):
    names = ["iwae_bound", "gaussian_sample", "sum"]
    kept = []
    figures = gpu.measure(SHARE, [*names, "iwae-bound"], keep=lambda f: kept.append(len(f["kernels"])))
    assert kept == [1, 2, 3, 3] and figures["failed"] == {}
    table = report.table(json.loads(json.dumps(figures)))
    for name in names:
        assert f"| {name} | " in table
    assert "| IWAE bound, 50 x 20,000, with gradient | " in table


def test_a_kernel_is_told_beside_what_a_user_would_write(brief, device, capsys):
    found = gpu.measure_kernel("iwae_bound_backward", SHARE, device)
    assert gpu.CUPY in found["contenders"]
    lines = capsys.readouterr().out.splitlines()
    for own in gpu.OURS:
        (line,) = [line for line in lines if f" {own} " in line]
        assert re.search(r" of the floor, by copy; \d+\.\d\d x CuPy", line)


def test_ratios_are_of_the_same_blocks():
    times = bench.Comparison("triton", {"triton": [1.0, 4.0, 9.0], "cuda": [2.0, 2.0, 2.0], "CuPy": [4.0, 8.0, 12.0],
                                        "PyTorch": [1.0, 1.0, 2.0]})  # fmt: skip
    assert gpu._beside_rivals("triton", times) == "; 0.50 x CuPy, 4.00 x PyTorch"
    assert gpu._beside_rivals("cuda", times) == "; 0.25 x CuPy, 2.00 x PyTorch"
    assert gpu._beside_rivals("triton", bench.Comparison("triton", {"triton": [1.0], "cuda": [1.0]})) == ""


def test_instructions_are_what_bounds_normal_numbers(device):
    """60 slots and 4 bytes each: 1.8 ps and 1 ps."""
    spec, (inputs, attrs, _) = registry.specs()["normal"], gpu.KERNELS["normal"].make(SHARE)
    n = np.prod(attrs["shape"])
    found = bench.KernelReport.of(spec, inputs, attrs, "cuda", seconds=n * 4e-12, device=device)
    assert found.bound == "slots" and found.floor == pytest.approx(n * 60 / 3.3e13)
    assert found.share == pytest.approx(5 / 11)


def test_a_run_ends_within_eight_minutes(monkeypatch, tmp_path):
    """Nothing is begun after seven, and no case takes a minute."""
    clock = iter([0.0, 100.0, 419.0, 421.0, 450.0])
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(gpu.bench, "measure_gpu", lambda share: Device("A GPU (measured)", 4e12, 6e13, 3e13))
    begun = []
    monkeypatch.setattr(gpu, "measure_kernel", lambda name, share, device: begun.append(name) or {})
    gpu.main(["sum", "adam", "iwae_bound"], tmp_path)
    assert begun == ["iwae_bound", "adam"]


def test_what_is_aimed_at_is_measured_first(monkeypatch):
    begun = []
    monkeypatch.setattr(gpu.bench, "measure_gpu", lambda share: Device("A GPU (measured)", 4e12, 6e13, 3e13))
    for kind in ("measure_kernel", "measure_step"):
        monkeypatch.setattr(gpu, kind, lambda name, *rest: begun.append(name) or {})
    gpu.measure()
    assert set(begun[: len(gpu.AIMS)]) == set(gpu.AIMS) and begun.index("vae-step") < begun.index("dropout")


@pytest.mark.skipif(has_gpu(), reason="asks the stand-in for CuPy")
def test_without_a_gpu_it_says_what_is_missing(capsys):
    with cuda_stand_in.machine(error=35), pytest.raises(SystemExit) as ended:
        gpu.main([])
    assert ended.value.code == 2 and "error: no GPU can be used: there is no NVIDIA driver" in capsys.readouterr().err


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
        gpu.main(["sum", "uniform", "discriminator-step"], tmp_path)
    assert "the others: python -m benchmarks.gpu discriminator-step\n" in capsys.readouterr().out


def test_a_kernel_that_differs_from_its_rivals_stops_the_run():
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
