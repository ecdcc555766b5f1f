"""Devices: their names, and how arrays get there.

``"cpu"`` has NumPy's arrays, and ``"cuda"`` those of CuPy: ``"cuda:1"`` on the second GPU, ``"cuda"`` on the current
one. Everything that one operation is given lies on one device, Python's numbers apart, and a GPU has to be the current
one then, as CuPy wants it: ``with cupy.cuda.Device(1): ...``. Training, evaluation and repetitions of captured
steps see to that themselves. CuPy is imported when a GPU is first asked for.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import numpy as np

from gmcore.errors import (
    ArgumentError,
    DeviceError,
    DeviceMemoryError,
    MissingPackageError,
    user_function,
    user_line,
)
from gmkernels import registry
from gmkernels.arrays import Array, on_gpu

_NAME = re.compile(r"cpu|cuda(?::(\d+))?")


def cupy() -> ModuleType:
    """CuPy, where there is a GPU for it.

    Raises
    ------
    MissingPackageError : it is not installed.  DeviceError : no driver, one that is too old, or no GPU.
    """
    try:
        found = importlib.import_module("cupy")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        if missing and error.name != "cupy":
            raise
        raise (MissingPackageError if missing else DeviceError)(f"no GPU can be used: {_problem()}") from None
    _number_of_gpus(found)
    return found


def _problem() -> str | None:
    from gmkernels import devices  # which asks the driver: only where something is wrong

    return devices.problem()


def _number_of_gpus(cupy: ModuleType) -> int:
    try:
        count: int = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(f"no GPU can be used: {_problem() or error}") from None
    if not count:
        raise DeviceError(f"no GPU can be used: {_problem()}")
    return count


def gpu_number(device: str) -> int | None:
    """The number of the GPU that a device is, None for the CPU.

    Parameters
    ----------
    device : ``"cpu"``, ``"cuda"`` for the current GPU, or ``"cuda:1"``.

    Raises
    ------
    ArgumentError : another name.
    MissingPackageError, DeviceError : there is no such GPU, or nothing to use it with.
    """
    match = _NAME.fullmatch(device) if isinstance(device, str) else None
    if match is None:
        raise ArgumentError(f"device {device!r}; expected 'cpu', 'cuda' or 'cuda:0' (called at {user_line()})")
    if device == "cpu":
        return None
    library = cupy()
    if match[1] is None:
        return int(library.cuda.runtime.getDevice())
    number, count = int(match[1]), _number_of_gpus(library)
    if number >= count:
        raise DeviceError(f"device {device!r}: expected one of the {count} GPUs here, cuda:0 to cuda:{count - 1}")
    return number


def check_device(device: str | None) -> None:
    """Raise as `gpu_number` unless tensors can live on `device`; None is the default, the CPU."""
    if device is not None:
        gpu_number(device)


def device_of(array: Array) -> str:
    """``"cpu"``; ``"cuda:0"`` for an array on the first GPU."""
    return f"cuda:{array.device.id}" if on_gpu(array) else "cpu"


def put(array: Array, device: str | None) -> Array:
    """The numbers of an array on a device: the array itself where it is there, and for None.

    Parameters
    ----------
    array : of NumPy or CuPy.
    device : as for `gpu_number`.

    Raises
    ------
    As `gpu_number`.  DeviceMemoryError : no room there.
    """
    if device is None:
        return array
    number = gpu_number(device)
    if number is None:
        return array.get() if on_gpu(array) else array
    if on_gpu(array) and array.device.id == number:
        return array
    library = cupy()
    with library.cuda.Device(number):
        return allocating(library.asarray, array)


def allocating(function: Callable[..., Array], *args: Any, **options: Any) -> Array:
    """``function(*args, **options)``, which allocates memory of the current device.

    Raises
    ------
    DeviceMemoryError : no room there; it names what the user called.
    """
    try:
        return function(*args, **options)
    except MemoryError as error:
        raise memory_error(error) from None


def memory_error(error: MemoryError, name: str = "") -> MemoryError:
    """What to raise for a memory error: if the current GPU has no room, a `DeviceMemoryError` that says what there is;
    any other as it is.

    Of the error of a GPU nothing is kept but its text: its frames hold arrays, and the caller who handles it wants
    the room.

    Parameters
    ----------
    name : of what was to be computed; by default the function that the user called.
    """
    text = str(error)
    if not isinstance(error, (DeviceMemoryError, registry.DeviceMemoryError)):
        cupy = sys.modules.get("cupy")
        if cupy is None or not isinstance(error, cupy.cuda.memory.OutOfMemoryError):
            return error
        from gmkernels import launch

        text = launch.describe_memory(error)
    error.__traceback__ = None
    line = "" if isinstance(error, DeviceMemoryError) else f" (called at {user_line()})"
    return DeviceMemoryError(f"{name or user_function()}: {text}{line}")


def using(device: str) -> AbstractContextManager[Any]:
    """Makes a GPU the current one inside the block, as its arrays want; leaves it as it is for ``"cpu"``.

    Parameters
    ----------
    device : as for `gpu_number`.

    Raises
    ------
    As `gpu_number`.
    """
    number = gpu_number(device)
    return nullcontext() if number is None else cupy().cuda.Device(number)


def put_all(batch: Any, device: str) -> Any:
    """A batch with the arrays in it, however deep in tuples, on a device.

    Parameters
    ----------
    batch : an array of NumPy, a tuple of such, or anything else, which stays as it is.
    device : as for `gpu_number`.
    """
    if isinstance(batch, tuple):
        parts = [put_all(part, device) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    return put(batch, device) if isinstance(batch, np.ndarray) else batch


def put_beside(array: np.ndarray, like: Array) -> Array:
    """An array of the CPU on the device of `like`."""
    return put(array, device_of(like)) if on_gpu(like) else array


def constant_beside(number: np.ndarray, like: Array) -> Array:
    """A number, an array of no dimensions, on the GPU of `like`; kept there for the next time."""
    return _constant(number.dtype, number.tobytes(), device_of(like))


@functools.lru_cache(maxsize=4096)
def _constant(dtype: np.dtype[Any], content: bytes, device: str) -> Array:
    return put(np.frombuffer(content, dtype).reshape(()), device)


__all__ = [
    "allocating", "check_device", "constant_beside", "cupy", "device_of", "gpu_number", "memory_error", "put",
    "put_all", "put_beside", "using",
]  # fmt: skip
