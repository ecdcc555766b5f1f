"""What arrays of NumPy and of CuPy have in common: which library they belong to, and where they lie.

NumPy's ufuncs and functions dispatch on CuPy arrays by themselves; only what makes an array of nothing must be asked
of the right library, ``namespace(x).empty(...)``. CuPy is imported by who has an array of it, never here.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

Array = Any
"""A `numpy.ndarray`, or a `cupy.ndarray` on a GPU."""


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


def as_array(value: Any) -> Array:
    """What NumPy's functions give of arrays of no dimensions as an array: CuPy gives one, NumPy a scalar.

    Parameters
    ----------
    value : an array, or a scalar of NumPy.
    """
    return np.asarray(value) if isinstance(value, np.generic) else value


def namespace(*arrays: Array) -> Any:
    """The library of the arrays: `cupy` if one of them lies on a GPU, otherwise `numpy`.

    Parameters
    ----------
    arrays : of NumPy or CuPy.
    """
    return sys.modules["cupy"] if any(map(on_gpu, arrays)) else np


def address(array: Array) -> int:
    """Where the first element of an array lies, in its device's memory.

    Parameters
    ----------
    array : of NumPy or CuPy.
    """
    return array.data.ptr if on_gpu(array) else array.__array_interface__["data"][0]


def is_same(a: Array, b: Array) -> bool:
    """Whether two arrays are the same elements: one array, or two that a program has made of one.

    Parameters
    ----------
    a, b : of NumPy or CuPy.
    """
    forms = ((x.shape, x.strides, x.dtype, on_gpu(x)) for x in (a, b))
    return a is b or (next(forms) == next(forms) and address(a) == address(b))


def byte_bounds(array: Array) -> tuple[int, int]:
    """The addresses of the first byte of an array and of the one after its last; negative strides are allowed.

    Parameters
    ----------
    array : of NumPy or CuPy, with elements.
    """
    spans = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
    start = address(array)
    return start + sum(s for s in spans if s < 0), start + sum(s for s in spans if s > 0) + array.itemsize
