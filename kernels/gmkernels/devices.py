"""What there is to run GPU kernels with: the driver, the GPUs, the packages; and what mends what is missing."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from gmkernels.registry import OLDEST_GPU

NO_DEVICE = 100  # cudaErrorNoDevice
OLDEST_CUDA = 12000
"""The CUDA whose driver the packages of `install_command` need at least."""
WITHOUT = "without a GPU everything runs on the CPU"


def driver_version() -> int | None:
    """The newest CUDA that the machine's driver supports, 12040 for 12.4; None without a driver. Needs no package."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    return version.value if library.cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value else None


def install_command(driver: int | None) -> str:
    """The command that installs what GPU kernels need.

    Parameters
    ----------
    driver : the newest CUDA that the driver supports, as from `driver_version`.
    """
    if driver is not None and driver < OLDEST_CUDA:
        return f"update the driver, which supports CUDA {version(driver)}, then {install_command(None)}"
    return f'pip install "gmcore[cuda{12 if driver is not None and driver < 13000 else 13}]"'


def problem() -> str | None:
    """Why no GPU can be used here and what mends it, in one line; None if one can."""
    if not _is_there("cupy"):
        driver = driver_version()
        if driver is None:
            return f"there is no NVIDIA driver, and CuPy is not installed: {install_command(None)}; {WITHOUT}"
        return f"CuPy is not installed: {install_command(driver)}"
    try:
        import cupy
    except ImportError as error:
        reason = str(error).strip().splitlines()[0]
        again = f"pip uninstall cupy-cuda12x cupy-cuda13x, then {install_command(driver_version())}"
        return f"CuPy cannot be imported ({reason}): {again}"
    runtime = cupy.cuda.runtime
    try:
        driver, built = runtime.driverGetVersion(), runtime.runtimeGetVersion()
        if not driver:
            return f"there is no NVIDIA driver: install one (`nvidia-smi` then shows the GPU); {WITHOUT}"
        if driver // 1000 < built // 1000:
            again = f", or pip uninstall cupy-cuda{built // 1000}x, then {install_command(driver)}"
            other = "" if driver < OLDEST_CUDA else again
            return (
                f"the driver is too old: it supports CUDA {version(driver)}, CuPy is built for {version(built)}; "
                f"update the driver{other}; {WITHOUT}"
            )
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        if error.status != NO_DEVICE:
            return f"CUDA does not work ({error}); `nvidia-smi` shows the state of the driver; {WITHOUT}"
        count = 0
    return None if count else f"the driver sees no GPU (is CUDA_VISIBLE_DEVICES empty?); {WITHOUT}"


def version(number: int) -> str:
    """12.4 for 12040.

    Parameters
    ----------
    number : a version of CUDA as its libraries give it.
    """
    return f"{number // 1000}.{number % 1000 // 10}"


def examine() -> dict[str, str]:
    """What there is, by name, and what mends what is missing: the report of ``gmcore doctor``.

    Returns
    -------
    dict: versions of the packages, each GPU by its name (``"cuda:0"``), and under ``"state"`` whether kernels run.
    """
    driver = driver_version()
    found = {
        "state": problem() or "ready",
        "driver": "none" if driver is None else f"of CUDA {version(driver)}",
        "cupy": _package("cupy", "cupy-cuda13x", "cupy-cuda12x", "cupy"),
        "triton": _package("triton", "triton"),
        "ml_dtypes": _package("ml_dtypes", "ml_dtypes"),
    }
    missing = [name for name in ("cupy", "triton", "ml_dtypes") if not _is_there(name)]
    wanted = driver
    if (cupy := _cupy()) is not None:
        # What else is missing comes with the same CuPy, not with another beside it.
        wanted = cupy.cuda.runtime.runtimeGetVersion()
        try:
            found["nvrtc"] = "{}.{}".format(*cupy.cuda.nvrtc.getVersion())
        except Exception as error:  # whatever the loader says: it is what the reader needs
            found["nvrtc"] = f"cannot be loaded ({str(error).strip().splitlines()[0]})"
            missing.append("nvrtc")
        headers = _headers()
        found["headers of CUDA"] = str(headers or "not found: CuPy compiles its own kernels with them")
        if headers is None:
            missing.append("headers of CUDA")
        if found["state"] == "ready":
            for number in range(cupy.cuda.runtime.getDeviceCount()):
                found[f"cuda:{number}"] = _described(number)
    if missing:
        found["missing"] = f"{', '.join(missing)}: {install_command(wanted)}"
    return found


def _cupy() -> Any:
    """CuPy, or None if it is not installed or cannot be imported, of which `problem` tells."""
    try:
        return importlib.import_module("cupy") if _is_there("cupy") else None
    except ImportError:
        return None


def _headers() -> Path | None:
    """The folder with CUDA's headers: of NVIDIA's wheels (for CUDA 13, for CUDA 12), or of an installation."""
    nvidia = importlib.util.find_spec("nvidia")
    wheels = [Path(place) for place in (nvidia.submodule_search_locations or ())] if nvidia is not None else []
    roots = [*(w / part for w in wheels for part in ("cu13", "cuda_runtime")), Path(os.environ.get("CUDA_PATH", ""))]
    folders = [root / "include" for root in (*roots, Path("/usr/local/cuda"))]
    return next((folder for folder in folders if (folder / "cuda_fp16.h").exists()), None)


def _described(number: int) -> str:
    """A GPU in words: name, compute capability, memory, and whether it is too old."""
    import cupy

    device = cupy.cuda.Device(number)
    name = cupy.cuda.runtime.getDeviceProperties(number)["name"]
    capability = int(device.compute_capability)
    free, total = device.mem_info
    old = f"; too old for the kernels here, which need {OLDEST_GPU / 10:.1f}: CuPy computes instead"
    return (
        f"{name.decode() if isinstance(name, bytes) else name}, compute capability {capability / 10:.1f}, "
        f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free{old if capability < OLDEST_GPU else ''}"
    )


def _package(module: str, *distributions: str) -> str:
    """Version of the distribution that has a module."""
    for name in distributions:
        try:
            return f"{importlib.metadata.version(name)} ({name})"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "present" if _is_there(module) else "not installed"


def _is_there(module: str) -> bool:
    return sys.modules.get(module) is not None or importlib.util.find_spec(module) is not None
