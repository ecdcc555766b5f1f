"""Products of few rows with the transpose of a matrix, as a layer's rows with its weight, which BLAS makes slowly.

A general BLAS packs both operands before it multiplies. With few rows that is much of the work, and most where the
second operand has to be transposed: OpenBLAS makes 100 x 784 x 500 at three quarters of its rate of large products,
and 16 x 784 x 500 at a third. Here only the second is packed, a panel at a time, by vectors; the rows are read where
they lie. So a product of few rows and a transposed matrix takes 0.75 of the time, of 16 rows half.

It has the signature of `cblas_sgemm`, so that block kernels call either by its address, and it is compiled once and
not as a part of each of them.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numba import types

from gmkernels import blas
from gmkernels.blas import NO_TRANS, TRANS
from gmkernels.dense.panel import WIDE, pack, product
from gmkernels.dense.tiles import PANEL_BYTES
from gmkernels.pool import c_function, scratch

_array: Any = numba.carray  # type: ignore[attr-defined]
_DEPTH = 512
"""Most rows of a panel: it lies on the stack, and takes 64 KB there."""
_WIDTH = PANEL_BYTES // 4
_PANEL = _DEPTH * _WIDTH


def suits(library: blas.Blas, dtype: np.dtype[Any], trans_a: int, trans_b: int, m: int, k: int, n: int) -> bool:
    """Whether `address` makes a product faster than the library.

    Measured on a core with 512-bit vectors, against OpenBLAS, over m from 1 to 700, and k and n from 2 to 2048: 1.1 to
    2.9 times as fast where this says so, of the smallest products 0.9; from 400 rows on they are equal. OpenBLAS has
    kernels of its own for up to a million multiplications, which win with few rows. MKL was not measured.
    """
    return (
        WIDE and library.name.endswith("OpenBLAS") and dtype.char == "f" and trans_a == NO_TRANS and trans_b == TRANS
        and 6 <= m <= 256 and k >= 48 and n >= 48 and (m >= 32 or m * k * n > 1e6)
    )  # fmt: skip


def _sgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """cblas_sgemm for row-major matrices, trans_a = NO_TRANS, trans_b = TRANS, alpha = 1, beta = 0, and k > 0."""
    rows, matrix, result = _array(a, 1), _array(b, 1), _array(c, 1)  # helpers know elements, not lengths
    panel = scratch(_PANEL, result.dtype)
    depth = -(-k // -(-k // _DEPTH))  # pieces of one length
    for left in range(0, n, _WIDTH):
        columns = min(_WIDTH, n - left)
        for first in range(0, k, depth):
            inner = min(depth, k - first)
            pack(matrix, left * ldb + first, True, ldb, inner, columns, panel, 0)
            product(rows, first, lda, panel, 0, inner, columns, first > 0, result, left, ldc, m)


@functools.cache
def _compiled() -> Any:
    flag, size, number, matrix = types.int32, types.int64, types.float32, types.CPointer(types.float32)
    return c_function(
        _sgemm,
        types.void(flag, flag, flag, size, size, size, number, matrix, size, matrix, size, number, matrix, size),
    )


def address() -> int:
    """Address of a function that is called as `cblas_sgemm` with 64-bit integers, for products that it `suits`."""
    return int(_compiled().address)
