"""Vectors as values of compiled code, against NumPy: memory that may not be touched, numbers beside vectors."""

import ctypes
import mmap

import numpy as np
import pytest

from gmkernels import elementary
from gmkernels.elementary import exp, fma, select
from gmkernels.lanes import filled, lanes_of, largest_of_lanes, load, load_some, store, store_some, sum_of_lanes
from gmkernels.pool import block_kernel

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@block_kernel
def widths(block, x, y):
    y[0] = lanes_of(x)


@block_kernel
def copy_some(block, x, y, at, count, other):
    store_some(y, at, count, load_some(x, at, count, other[0]))


@block_kernel
def load_all(block, x, y, at, count, other):
    store(y, 0, load_some(x, at, count, other[0]))


def lanes(dtype):
    found = np.empty(1, dtype)
    widths(1, found, found)
    return int(found[0])


@DTYPES
def test_only_so_many_elements_are_written(dtype):
    width = lanes(dtype)
    x = np.arange(4.0 * width).astype(dtype)
    for at in (0, 1, width):
        for count in (-3, 0, 1, 2, width - 1, width, width + 1):
            y = np.full_like(x, -1)
            copy_some(1, x, y, at, count, np.zeros(1, dtype))
            written = slice(at, at + min(max(count, 0), width))
            expected = np.full_like(x, -1)
            expected[written] = x[written]
            np.testing.assert_array_equal(y, expected)


@DTYPES
def test_lanes_that_are_not_loaded_hold_the_other_number(dtype):
    width = lanes(dtype)
    x = np.arange(1.0, 3 * width + 1).astype(dtype)
    for count in (-1, 0, 1, width - 1, width, width + 5):
        y = np.zeros(width, dtype)
        load_all(1, x, y, 3, count, np.array([-7.5], dtype))
        loaded = min(max(count, 0), width)
        np.testing.assert_array_equal(y, np.r_[x[3 : 3 + loaded], np.full(width - loaded, -7.5)])


def test_memory_beyond_the_end_is_not_touched():
    """The last elements of a page: what follows may not be read or written."""
    libc = ctypes.CDLL(None)
    pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    x = np.frombuffer(pages, np.float32, mmap.PAGESIZE // 4)
    x[-3:] = 1, 2, 3
    address = ctypes.c_void_p(start + mmap.PAGESIZE)
    assert libc.mprotect(address, mmap.PAGESIZE, 0) == 0
    try:
        copy_some(1, x, x, x.size - 3, 3, np.zeros(1, np.float32))
    finally:
        libc.mprotect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE)
    np.testing.assert_array_equal(x[-3:], [1, 2, 3])


@block_kernel
def arithmetic(block, x, y, out, n):
    a, b, c = load(x, 0), load(y, 0), x[0]
    d = a
    d += b
    d -= c
    d *= 2
    store(out, 0, a + b)
    store(out, n, c - b)
    store(out, 2 * n, a * 3)
    store(out, 3 * n, d)
    store(out, 4 * n, fma(a, c, b))
    store(out, 5 * n, fma(2, a, -1))
    store(out, 6 * n, select(a < b, a, 0))
    store(out, 7 * n, select(c >= b, b, a))
    store(out, 8 * n, select(a > 0, 1, b))
    store(out, 9 * n, select(b <= a, a, b))
    store(out, 10 * n, exp(b))
    store(out, 11 * n, filled(x, 5))
    out[12 * n] = sum_of_lanes(a)
    out[12 * n + 1] = largest_of_lanes(b)


@DTYPES
def test_arithmetic(dtype):
    n = lanes(dtype)
    x, y = np.random.default_rng(0).standard_normal((2, n)).astype(dtype)
    x[1] = y[1]  # neither is smaller
    out = np.zeros(12 * n + 2, dtype)
    arithmetic(1, x, y, out, n)
    c = x[0]
    expected = [
        x + y, c - y, x * dtype(3), ((x + y) - c) * dtype(2), x * c + y, 2 * x - 1, np.where(x < y, x, 0),
        np.where(c >= y, y, x), np.where(x > 0, 1, y), np.where(y <= x, x, y), elementary.exp(y), np.full(n, 5),
    ]  # fmt: skip
    # Sums of two rounded numbers, or one rounding instead of two
    np.testing.assert_allclose(out[: 12 * n].reshape(12, n), expected, rtol=0, atol=8 * np.finfo(dtype).eps)
    assert out[12 * n] == pytest.approx(x.sum(), rel=1e-5) and out[12 * n + 1] == y.max()


@block_kernel
def exponentials(block, x, vectors, elements):
    for i in range(0, x.size, lanes_of(x)):
        store_some(vectors, i, x.size - i, exp(load_some(x, i, x.size - i, 0)))
    for i in range(x.size):
        elements[i] = exp(x[i])


@DTYPES
def test_a_vector_has_the_bits_of_its_elements(dtype):
    info = np.finfo(dtype)
    x = np.linspace(np.log(info.tiny) - 5, np.log(info.max) + 5, 1003).astype(dtype)
    x = np.r_[x, np.array([0, np.inf, -np.inf, np.nan], dtype)]
    vectors, elements = np.empty_like(x), np.empty_like(x)
    exponentials(1, x, vectors, elements)
    assert vectors.tobytes() == elements.tobytes()
