"""Products that OpenBLAS makes slowly, by kernels of 512-bit vectors.

There are two kinds. All of them, where its kernels are for 256-bit vectors and the processor has wider ones
(`Blas.is_narrow`). And those of few rows: a general BLAS packs both operands before it multiplies, which is much of
the work then, and most where the second operand has to be transposed, as a layer's weight has: 100 x 784 x 500 goes at
three quarters of the rate of large products, 16 x 784 x 500 at a third.

Here only the second operand is packed, a panel at a time, by vectors; the first is read where it lies. The functions
have the signatures of `cblas_sgemm` and `cblas_dgemm`, so that block kernels call either by its address, and they are
compiled once and not as a part of each of them.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numba import types

from gmkernels import blas
from gmkernels.blas import NO_TRANS, TRANS
from gmkernels.dense.panel import WIDE, pack, product, transpose
from gmkernels.dense.tiles import PANEL_BYTES
from gmkernels.pool import c_function, scratch

_array: Any = numba.carray  # type: ignore[attr-defined]
_DEPTH = 512
"""Most rows of a panel: it lies on the stack, and takes 64 KB there."""
_PANEL = _DEPTH * PANEL_BYTES // 4
_PAGE = 4096
"""Rows whose numbers lie so many bytes apart, or a multiple, are copied: all their numbers belong into the same few
lines of the caches, from which they drive each other out before the next rows, their neighbours, are read. Products go
1.08 to 1.14 times as fast then; at other distances they would be 0.95 to 1.0 times as fast."""
_ROWS, _CROWDED_DEPTH = 128, 256
"""Most rows that are copied, and most of their numbers: they lie on the stack too, and take 128 KB there."""
_COPY = _ROWS * _CROWDED_DEPTH


def are_ours(library: blas.Blas, dtype: np.dtype[Any], trans_a: int, trans_b: int, m: int, k: int, n: int) -> bool:
    """Whether our function makes a product faster than the library.

    Measured on one core, over m from 1 to 2048, and k and n from 2 to 2048. Against kernels of 256-bit vectors: where
    this says so, from as fast to 1.9 times as fast, 1.4 times with a latent space of 20 units on either side, and 1.5
    to 1.9 times where m, k and n are 64 or more. Against OpenBLAS's kernels of 512-bit vectors, in float32: 1.1 to 2.9
    times as fast, of the smallest products 0.9; from 400 rows on they are equal, and OpenBLAS has kernels of its own
    for up to a million multiplications, which win with few rows. MKL's 512-bit kernels, on Intel's processors, were not
    measured.
    """
    if library.is_narrow:
        return m >= 8 and k >= 16 and n >= 16
    return (
        WIDE and library.name.endswith("OpenBLAS") and dtype.char == "f" and trans_a == NO_TRANS and trans_b == TRANS
        and 6 <= m <= 256 and k >= 48 and n >= 48 and (m >= 32 or m * k * n > 1e6)
    )  # fmt: skip


def choose(
    library: blas.Blas, dtype: np.dtype[Any], trans_a: int, trans_b: int, m: int, k: int, n: int
) -> tuple[int, int]:
    """Address of what multiplies (m, k) by (k, n), and whether its integers have 64 bits: ours, or the library's."""
    if are_ours(library, dtype, trans_a, trans_b, m, k, n):
        return address(dtype), 1
    return library.gemm_address(dtype), int(library.wide)


def _gemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """cblas_sgemm or cblas_dgemm for row-major matrices, with beta 0 or 1, and k > 0."""
    left, right, result = _array(a, 1), _array(b, 1), _array(c, 1)  # helpers know elements, not lengths
    width = PANEL_BYTES // result.itemsize
    panel = scratch(_PANEL, result.dtype)
    down, along = (lda, 1) if trans_a == NO_TRANS else (1, lda)
    crowded = along * result.itemsize % _PAGE == 0
    copy = scratch(_COPY, result.dtype)
    deepest, most_rows = (_CROWDED_DEPTH, _ROWS) if crowded else (_DEPTH, max(m, 1))  # a range has no step of 0
    depth = -(-k // -(-k // deepest))  # pieces of one length
    for first in range(0, k, depth):  # outside, so that the rows' part stays in the L2 cache for all panels
        inner, add = min(depth, k - first), first > 0 or beta != 0
        for top in range(0, m, most_rows):
            rows = min(most_rows, m - top)
            if crowded:
                transpose(left, first * lda + top, lda, rows, inner, copy, 0, inner)
            for column in range(0, n, width):
                columns = min(width, n - column)
                if trans_b == TRANS:
                    pack(right, column * ldb + first, True, ldb, inner, columns, panel, 0)
                else:
                    pack(right, first * ldb + column, False, ldb, inner, columns, panel, 0)
                if alpha != 1:
                    for i in range(inner * width):
                        panel[i] *= alpha
                at = top * ldc + column
                if crowded:
                    product(copy, 0, inner, 1, panel, 0, inner, columns, add, result, at, ldc, rows)
                else:
                    product(left, first * along, down, along, panel, 0, inner, columns, add, result, at, ldc, rows)


@functools.cache
def _compiled(dtype: np.dtype[Any]) -> Any:
    flag, size, number = types.int32, types.int64, types.float32 if dtype.char == "f" else types.float64
    matrix = types.CPointer(number)
    return c_function(
        _gemm,
        types.void(flag, flag, flag, size, size, size, number, matrix, size, matrix, size, number, matrix, size),
    )


def address(dtype: np.dtype[Any]) -> int:
    """Address of `_gemm` in float32 or float64, whose integers have 64 bits."""
    return int(_compiled(dtype).address)
