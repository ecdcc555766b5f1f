"""What is said of the machine's GPUs, and the command that mends what is missing."""

import sys

import pytest

from gmkernels import devices
from tests.support.cuda_stand_in import machine


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
    import re

    with machine(**changes):
        assert re.search(says, devices.problem() or "")
        assert not any(name.startswith("cuda:") for name in devices.examine())


def test_an_old_driver(monkeypatch):
    import cupy

    monkeypatch.setattr(cupy.cuda.runtime, "driverGetVersion", lambda: 12040)
    monkeypatch.setattr(cupy.cuda.runtime, "runtimeGetVersion", lambda: 13000)
    said = devices.problem()
    assert said is not None and "supports CUDA 12.4, CuPy is built for 13.0" in said
    assert 'pip install "gmcore[cuda12]"' in said
    monkeypatch.setattr(cupy.cuda.runtime, "runtimeGetVersion", lambda: 12090)
    assert devices.problem() is None, "a driver runs later minor versions"


@pytest.mark.parametrize(
    "driver, command", [(None, "[cuda13]"), (12080, "[cuda12]"), (13000, "[cuda13]"), (13010, "[cuda13]")]
)
def test_without_cupy(driver, command, monkeypatch):
    monkeypatch.setattr(devices, "_is_there", lambda module: False)
    monkeypatch.setattr(devices, "driver_version", lambda: driver)
    said = devices.problem()
    assert said is not None and "CuPy is not installed" in said and command in said
    assert ("no NVIDIA driver" in said) == (driver is None)
    found = devices.examine()
    assert command in found["missing"] and "triton" in found["missing"]


def test_a_broken_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    said = devices.problem()
    assert said is not None and "CuPy cannot be imported" in said and "pip uninstall" in said


def test_an_old_gpu():
    with machine(capability="75"):
        assert "compute capability 7.5" in devices.examine()["cuda:0"]
        assert "too old for the kernels here, which need 8.0" in devices.examine()["cuda:0"]
