"""What arrays of NumPy and of CuPy have in common: which library they belong to, and where they lie.

NumPy's ufuncs and functions dispatch on CuPy arrays by themselves; only what makes an array of nothing must be asked
of the right library, ``namespace(x).empty(...)``. CuPy is imported by who has an array of it, never here.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = Any
"""A `numpy.ndarray`, or a `cupy.ndarray` on a GPU."""
Kernel = Callable[[Sequence[Any], Sequence[Any], Sequence[Any], Any], None]


def on_gpu(array: Array) -> bool:
    """Whether an array lies on a GPU: whether CuPy made it.

    Parameters
    ----------
    array : of NumPy or CuPy.
    """
    return not isinstance(array, np.ndarray)


def is_array(value: Any) -> bool:
    """Whether a value is an array of NumPy or of CuPy.

    Parameters
    ----------
    value : anything.
    """
    if isinstance(value, np.ndarray):
        return True
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(value, cupy.ndarray)


def namespace(*arrays: Array) -> Any:
    """The library of the arrays: `cupy` if one of them lies on a GPU, otherwise `numpy`.

    Parameters
    ----------
    arrays : of NumPy or CuPy.
    """
    return sys.modules["cupy"] if any(map(on_gpu, arrays)) else np


def through_host(kernel: Kernel) -> Kernel:
    """A kernel of NumPy that takes arrays on a GPU too, by way of host memory: the host waits for them.

    Parameters
    ----------
    kernel : ``kernel(inputs, outputs, workspace, attrs)`` that overwrites its outputs.
    """

    @functools.wraps(kernel)
    def anywhere(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Sequence[Any], attrs: Any) -> None:
        if not on_gpu(outputs[0]):
            kernel(inputs, outputs, workspace, attrs)
            return
        made = [np.empty(a.shape, a.dtype) for a in outputs]
        kernel([a.get() for a in inputs], made, [np.empty(a.shape, a.dtype) for a in workspace], attrs)
        for a, values in zip(outputs, made, strict=True):
            a.set(values)

    return anywhere


def address(array: Array) -> int:
    """Where the first element of an array lies, in its device's memory.

    Parameters
    ----------
    array : of NumPy or CuPy.
    """
    return array.data.ptr if on_gpu(array) else array.__array_interface__["data"][0]


def byte_bounds(array: Array) -> tuple[int, int]:
    """The addresses of the first byte of an array and of the one after its last; negative strides are allowed.

    Parameters
    ----------
    array : of NumPy or CuPy, with elements.
    """
    spans = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
    start = address(array)
    return start + sum(s for s in spans if s < 0), start + sum(s for s in spans if s > 0) + array.itemsize
