"""NumPy's arithmetic as launches of a block kernel, with NumPy's results bit for bit, denormals included.

A step that is repeated as a table of launches (`pool.Launches`) needs no Python for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from gmkernels.pool import Launch, block_kernel, jitable, keep_denormals, long_loop, part, restore_state, scratch
from gmkernels.rows import copy_row

_BLOCK = 16384  # elements: 64 kB of float32, about 10 us, against a few us to start a thread
_TILE = 512  # elements

_CODES: dict[Any, int] = {np.add: 0, np.subtract: 1, np.multiply: 2, np.divide: 3, np.negative: 4, np.positive: 5}


@jitable
def _apply(code, a, b, y):
    long_loop()  # by itself: nothing is moved to where denormals are flushed
    a, b = a[: y.size], b[: y.size]
    if code == 0:
        for i in range(y.size):
            y[i] = a[i] + b[i]
    elif code == 1:
        for i in range(y.size):
            y[i] = a[i] - b[i]
    elif code == 2:
        for i in range(y.size):
            y[i] = a[i] * b[i]
    elif code == 3:
        for i in range(y.size):
            y[i] = a[i] / b[i]
    elif code == 4:
        for i in range(y.size):
            y[i] = -a[i]
    else:
        for i in range(y.size):
            y[i] = a[i]


@jitable
def _fill(x, number):
    for i in range(x.size):
        x[i] = number


@block_kernel
def _arithmetic(block, code, a, b, y, columns, a_row, a_column, b_row, b_column):
    before = keep_denormals()
    first, second, third = scratch(_TILE, y.dtype), scratch(_TILE, y.dtype), scratch(_TILE, y.dtype)
    in_place = a.ctypes.data == y.ctypes.data or b.ctypes.data == y.ctypes.data
    at, stop = block * _BLOCK, min((block + 1) * _BLOCK, y.size)
    while at < stop:
        row, column = at // columns, at % columns
        width = min(stop - at, columns - column, _TILE)
        x, z = part(first, 0, width), part(second, 0, width)
        if a_column == 1:
            x = part(a, row * a_row + column, width)
        else:  # as many times the same number
            _fill(x, a[row * a_row])
        if b_column == 1:
            z = part(b, row * b_row + column, width)
        else:
            _fill(z, b[row * b_row])
        if in_place:  # a loop that is given one array twice finds that it overlaps, and takes no vectors
            _apply(code, x, z, part(third, 0, width))
            copy_row(part(third, 0, width), part(y, at, width))
        else:
            _apply(code, x, z, part(y, at, width))
        at += width
    restore_state(before)


class Array(Protocol):
    """What is looked at before there are numbers."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...


def _broadcast_strides(x: Array, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of `x` in elements, as an array of `shape`."""
    along = [0 if n == 1 else stride // x.dtype.itemsize for n, stride in zip(x.shape, x.strides, strict=True)]
    return (0,) * (len(shape) - len(along)) + tuple(along)


def _rows(inputs: Sequence[Array], out: Array) -> tuple[int, list[tuple[int, int]]] | None:
    """The output as rows: the number of columns and for each array the strides of rows and columns, in elements; None
    if it takes more than two axes, or others than the kernel has."""
    axes: list[tuple[int, tuple[int, ...]]] = []
    every = [_broadcast_strides(x, out.shape) for x in (*inputs, out)]
    for n, along in zip(out.shape, zip(*every, strict=True), strict=True):
        if n == 1:
            continue
        if axes and all(outer == inner * n for outer, inner in zip(axes[-1][1], along, strict=True)):
            axes[-1] = axes[-1][0] * n, along
        else:
            axes.append((n, along))
    still = (0,) * len(every)
    (_, by_row), (columns, by_column) = [(1, still)] * (2 - len(axes)) + axes[-2:]
    contiguous = by_row[-1] in (0, columns) and by_column[-1] == (columns > 1)
    if len(axes) > 2 or not contiguous or not all(stride in (0, 1) for stride in by_column) or min(by_row) < 0:
        return None
    return columns, list(zip(by_row, by_column, strict=True))


def is_launched(function: Any, inputs: Sequence[Array], out: Array) -> bool:
    """Whether `launch` has a launch that does what ``function(*inputs, out=out)`` does.

    Parameters
    ----------
    function : anything that can be called.
    inputs : arrays, or what has their shape, strides and dtype, that broadcast to the shape of `out`.
    out : likewise.
    """
    if function not in _CODES or out.dtype.char not in "fd" or 0 in out.shape:
        return False
    if any(a.dtype != out.dtype or any(stride % a.dtype.itemsize for stride in a.strides) for a in inputs):
        return False
    return _rows(inputs, out) is not None


def _flat(a: np.ndarray) -> np.ndarray:
    """The memory from the first element of `a` to its last."""
    extent = 1 + sum((n - 1) * stride for n, stride in zip(a.shape, a.strides, strict=True)) // a.itemsize
    return np.lib.stride_tricks.as_strided(a, (extent,), (a.itemsize,))


def launch(function: Any, inputs: Sequence[np.ndarray], out: np.ndarray) -> Launch:
    """The launch that does what ``function(*inputs, out=out)`` does.

    Parameters
    ----------
    function : `numpy.add`, `subtract`, `multiply`, `divide`, `negative`, or `positive`, which copies.
    inputs : float32 or float64 arrays that broadcast to the shape of `out`. One that shares memory with `out` lies
        where `out` does.
    out : of their dtype. `is_launched` says whether functions, dtypes and layouts fit.
    """
    rows = _rows((inputs[0], inputs[-1]), out)
    assert rows is not None
    columns, ((a_row, a_column), (b_row, b_column), _) = rows
    memory = _flat(inputs[0]), _flat(inputs[-1]), _flat(out)
    arguments = (_CODES[function], *memory, columns, a_row, a_column, b_row, b_column)
    return Launch(_arithmetic, -(-out.size // _BLOCK), arguments, False)
