"""What is said of the machine's GPUs, and the command that mends what is missing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cupy
import pytest

from gmkernels import devices
from tests.support.cuda_stand_in import machine
from tests.support.cupy_stand_in import has_gpu

pytestmark = pytest.mark.skipif(has_gpu(), reason="asks the stand-in for CuPy")


def test_a_gpu_that_works():
    with machine(devices=2, capability="90", memory=2**36):
        assert devices.problem() is None
        found = devices.examine()
    assert found["state"] == "ready"
    assert found["cuda:0"] == "emulated device, compute capability 9.0, 64.0 of 64.0 GiB free"
    assert "cuda:1" in found and "cuda:2" not in found


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"error": 35}, "there is no NVIDIA driver: install one .* without a GPU everything runs on the CPU"),
        ({"error": 100}, "the driver sees no GPU"),
        ({"devices": 0}, "the driver sees no GPU .*CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_machine_without_a_gpu(changes, says):
    with machine(**changes):
        assert re.search(says, devices.problem() or "")
        assert not any(name.startswith("cuda:") for name in devices.examine())


@pytest.mark.parametrize(
    "driver, built, says",
    [
        (
            12040,
            13000,
            "CUDA 12.4, CuPy is built for 13.0; update the driver, or pip uninstall cupy-cuda13x, then pip "
            'install "gmcore[cuda12]"; ',
        ),
        (11080, 12090, "CUDA 11.8, CuPy is built for 12.9; update the driver; "),
        (11080, 13000, "CUDA 11.8, CuPy is built for 13.0; update the driver; "),
    ],
)
def test_an_old_driver(driver, built, says, monkeypatch):
    monkeypatch.setattr(cupy.cuda.runtime, "driverGetVersion", lambda: driver)
    monkeypatch.setattr(cupy.cuda.runtime, "runtimeGetVersion", lambda: built)
    assert f"the driver is too old: it supports {says}without a GPU" in (devices.problem() or "")


def test_a_driver_runs_later_minor_versions(monkeypatch):
    monkeypatch.setattr(cupy.cuda.runtime, "driverGetVersion", lambda: 12040)
    monkeypatch.setattr(cupy.cuda.runtime, "runtimeGetVersion", lambda: 12090)
    assert devices.problem() is None


@pytest.mark.parametrize(
    "driver, command",
    [
        (None, "[cuda13]"),
        (11080, 'update the driver, which supports CUDA 11.8, then pip install "gmcore[cuda13]"'),
        (12080, "[cuda12]"),
        (13000, "[cuda13]"),
        (13010, "[cuda13]"),
    ],
)
def test_without_cupy(driver, command, monkeypatch):
    monkeypatch.setattr(devices, "_is_there", lambda module: False)
    monkeypatch.setattr(devices, "driver_version", lambda: driver)
    said = devices.problem()
    assert said is not None and "CuPy is not installed" in said and command in said
    assert ("no NVIDIA driver" in said) == (driver is None)
    found = devices.examine()
    assert command in found["missing"] and "triton" in found["missing"]


def test_a_broken_cupy(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('libnvrtc.so: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.syspath_prepend(tmp_path)
    said = devices.problem()
    assert said is not None and "CuPy cannot be imported" in said and "pip uninstall" in said
    assert devices.examine()["state"] == said


@pytest.mark.parametrize("built, command", [(12090, "[cuda12]"), (13000, "[cuda13]")])
def test_what_is_missing_comes_without_a_second_cupy(built, command, monkeypatch):
    """A CuPy for CUDA 12 works with a driver of CUDA 13."""
    monkeypatch.setattr(devices, "_is_there", lambda module: module == "cupy")
    monkeypatch.setattr(devices, "driver_version", lambda: 13000)
    monkeypatch.setattr(cupy.cuda.runtime, "runtimeGetVersion", lambda: built)
    assert command in devices.examine()["missing"]


def test_an_old_gpu():
    with machine(capability="75"):
        assert "compute capability 7.5" in devices.examine()["cuda:0"]
        assert "too old for the kernels here, which need 8.0" in devices.examine()["cuda:0"]


def test_one_extra_alone_brings_a_cupy():
    """Two would hide each other's files: the tests, the peers and an extra for a driver go together."""
    setup = (Path(__file__).parents[2] / "setup.py").read_text()
    brings = [line.split('"')[1] for line in setup.splitlines() if '"cupy' in line]
    assert brings == ["cuda12", "cuda13"]


ON_THE_CPU = """
import numpy as np
import gmcore, gmkernels
x = gmcore.tensor(np.ones((3, 4), np.float32), requires_grad=True)
(x * x).sum().backward()
assert gmkernels.explain("leaky_relu", np.ones(5, np.float32), negative_slope=0.1).chosen in ("cpu", "reference")
"""
NOTHING_OF_A_GPU = """
import sys
assert "cupy" not in sys.modules and "triton" not in sys.modules, "imported for nothing"
"""
REFUSED = """
try:
    gmcore.tensor([1.0], device="cuda")
except gmcore.errors.DeviceError:
    pass
else:
    raise AssertionError("there is no GPU")
"""


def run_without_warnings(code):
    """A process in which every warning is an error."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "GMKERNELS_BACKEND": "reference"}
    program = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(program, env=environment, capture_output=True, text=True, check=False)


def test_without_a_gpu_everything_runs_on_the_cpu_and_nothing_warns():
    """With CuPy and Triton installed, or without them."""
    done = run_without_warnings(ON_THE_CPU + NOTHING_OF_A_GPU)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_without_a_gpu_nothing_warns_where_cupy_was_imported():
    done = run_without_warnings("import cupy" + ON_THE_CPU + REFUSED)
    if "No module named 'cupy'" in done.stderr:
        pytest.skip("CuPy itself is not installed")
    assert done.returncode == 0 and not done.stderr, done.stderr
