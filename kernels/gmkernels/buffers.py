"""Memory for the results of kernels, taken again from results that nobody holds any more.

A step of training asks for the same arrays each time. The C library gives large ones back to the system as they
are freed, and in the next step every page is missing, found and cleared again at its first touch: a quarter of the
time of an IWAE step. So a large array is lent from a buffer, which the last view of the array gives back.

While `tracemalloc` traces, arrays are NumPy's own, so that it counts what is in use.
"""

from __future__ import annotations

import math
import sys
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

SMALLEST = 1 << 17  # bytes; the C library keeps smaller ones itself
MOST_IDLE = 1 << 28  # bytes kept while nobody uses them
ALIGNMENT = 64  # bytes of a cache line, and of the widest vectors

_idle: dict[int, list[Any]] = {}
"""Buffers that nobody uses, by size."""
_idle_bytes = 0
_lock = threading.Lock()
"""Taken only if it is free: an array may die at any moment, also in a thread that holds it."""


class _Buffer(np.ndarray):
    """The memory: a type of its own, because NumPy shortens chains of bases of one type."""


class _Loan(np.ndarray):
    """What an array that was lent has as its base, and its views through it; it dies with the last of them."""

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:  # modules may be gone at the end
        global _idle_bytes
        buffer: Any = self.base
        if finalizing() or type(buffer) is not _Buffer:  # at the end of the process, or a view that someone took
            return
        if not tracemalloc.is_tracing() and _lock.acquire(blocking=False):
            if _idle_bytes + buffer.size <= MOST_IDLE:
                _idle_bytes += buffer.size
                _idle.setdefault(buffer.size, []).append(buffer)
            _lock.release()


def is_loan(array: np.ndarray) -> bool:
    """Whether it is what a lent array has as its base: no view, but all of the memory that was lent."""
    return type(array) is _Loan


def is_small(shape: Sequence[int], dtype: np.dtype[Any]) -> bool:
    """Whether `empty` leaves an array to NumPy."""
    return math.prod(shape) * dtype.itemsize < SMALLEST


def empty(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    """An uninitialised array; a large one may lie where one that is gone has lain.

    Parameters
    ----------
    shape, dtype : of the array.
    """
    global _idle_bytes
    size = math.prod(shape) * dtype.itemsize
    if size < SMALLEST or tracemalloc.is_tracing():
        return np.empty(shape, dtype)
    step = 1 << (size.bit_length() - 4)  # sizes in steps of an eighth at most, so that others fit again
    size = (size + step - 1) & -step
    buffer = None
    if _lock.acquire(blocking=False):
        if fitting := _idle.get(size):
            buffer = fitting.pop()
            _idle_bytes -= size
        _lock.release()
    if buffer is None:
        room = np.empty(size + ALIGNMENT, np.uint8)
        start = -room.ctypes.data % ALIGNMENT
        buffer = room[start : start + size].view(_Buffer)
    return np.ndarray(shape, dtype, buffer.view(_Loan))


def release() -> None:
    """Give the memory that nobody uses back to the system."""
    global _idle_bytes
    with _lock:
        idle = list(_idle.values())  # kept until the lock is free: freeing them runs other code
        _idle.clear()
        _idle_bytes = 0
    del idle
