"""Dense layers on the CPU: tiles of products by single-threaded BLAS or our own, and Numba around them, on one pool."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numba
import numpy as np

from gmkernels import blas
from gmkernels.blas import NO_TRANS
from gmkernels.dense import products, spec
from gmkernels.dense.tiles import UNIT, tiles
from gmkernels.elementary import expm1, sigmoid, softplus, tanh
from gmkernels.gemm import gemm
from gmkernels.pool import block_kernel, jitable, long_loop
from gmkernels.reduce.cpu import add_up
from gmkernels.registry import KernelError

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]

_jit: Any = functools.partial(numba.njit, nogil=True, error_model="numpy")

# ---------------------------------------------------------------------------------------------------------
# Products
# ---------------------------------------------------------------------------------------------------------


@_jit
def edge(tile, tiles, size):
    """Where tile number `tile` of a dimension of `size` begins (and the one before it ends)."""
    units = (size + UNIT - 1) // UNIT
    return min(size, tile * units // tiles * UNIT)


@_jit
def product_tile(function, wide, a, trans_a, lda, b, trans_b, ldb, c, k, top, bottom, left, right, n):
    """c[top:bottom, left:right] = a[top:bottom] @ b[:, left:right], with matrices as BLAS reads them (`operands`)."""
    item = c.itemsize
    a_tile = a.ctypes.data + item * (top * lda if trans_a == NO_TRANS else top)
    b_tile = b.ctypes.data + item * (left if trans_b == NO_TRANS else left * ldb)
    c_tile = c.ctypes.data + item * (top * n + left)
    rows, columns = bottom - top, right - left
    gemm(function, wide, c, trans_a, trans_b, rows, columns, k, 1, a_tile, lda, b_tile, ldb, 0, c_tile, n)


@block_kernel
def _matmul(block, function, wide, a, trans_a, lda, b, trans_b, ldb, c, m, k, n, row_tiles, column_tiles):
    row, column = block // column_tiles, block % column_tiles
    top, bottom = edge(row, row_tiles, m), edge(row + 1, row_tiles, m)
    left, right = edge(column, column_tiles, n), edge(column + 1, column_tiles, n)
    product_tile(function, wide, a, trans_a, lda, b, trans_b, ldb, c, k, top, bottom, left, right, n)


def operands(a: np.ndarray, b: np.ndarray) -> tuple[Any, ...]:
    """The first arguments of a block kernel that multiplies; of the matrices it uses the addresses.

    They are not given by their addresses, so that a recording of the launch sees those that have been packed: memory
    that no other launch writes.
    """
    library = blas.find()
    assert library is not None
    a, trans_a, lda = blas.layout(a)
    b, trans_b, ldb = blas.layout(b)
    if not library.wide and max(*a.shape, *b.shape, lda, ldb) >= 2**31:
        raise KernelError(f"this {library.name} has 32-bit integers, too few for {a.shape} by {b.shape} matrices")
    (m, k), n = a.shape, b.shape[1]
    function, wide = products.choose(library, a.dtype, trans_a, trans_b, m, k, n)
    return function, wide, a, trans_a, lda, b, trans_b, ldb


def matmul(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """A stack of products is NumPy's, one call of the BLAS after the other."""
    a, b = inputs
    if a.ndim == 2:
        multiply(a, b, outputs[0], *tiles(*a.shape, b.shape[1]))
    else:
        np.matmul(a, b, out=outputs[0])


def multiply(a: np.ndarray, b: np.ndarray, c: np.ndarray, row_tiles: int, column_tiles: int) -> None:
    """c = a b in so many tiles. Transposed views go to BLAS as they are; a matrix without contiguous rows or columns is
    packed."""
    (m, k), n = a.shape, b.shape[1]
    if c.size == 0 or k == 0:
        c.fill(0)
        return
    arguments = operands(a, b)
    with blas.for_product(m, k, n):
        _matmul(row_tiles * column_tiles, *arguments, c, m, k, n, row_tiles, column_tiles)


# ---------------------------------------------------------------------------------------------------------
# Linear layers
# ---------------------------------------------------------------------------------------------------------

_CODES = {name: code for code, name in enumerate(spec.ACTIVATIONS)}
_IDENTITY, _TANH, _SIGMOID, _RELU, _SOFTPLUS = range(5)


@jitable
def _activate(y, activation):
    """y = activation(y), in place."""
    long_loop()
    if activation == _TANH:
        for i in range(y.size):
            y[i] = tanh(y[i])
    elif activation == _SIGMOID:
        for i in range(y.size):
            y[i] = sigmoid(y[i])
    elif activation == _RELU:
        for i in range(y.size):
            y[i] = 0 if y[i] <= 0 else y[i]  # NaN stays
    elif activation == _SOFTPLUS:
        for i in range(y.size):
            y[i] = softplus(y[i])


@jitable
def _add(y, x):
    x = x[: y.size]
    for i in range(y.size):
        y[i] += x[i]


@block_kernel
def _linear(
    block, function, wide, x, trans_x, ldx, w, trans_w, ldw, y, bias, m, k, n, row_tiles, column_tiles, activation
):
    row, column = block // column_tiles, block % column_tiles
    top, bottom = edge(row, row_tiles, m), edge(row + 1, row_tiles, m)
    left, right = edge(column, column_tiles, n), edge(column + 1, column_tiles, n)
    if k > 0:
        product_tile(function, wide, x, trans_x, ldx, w, trans_w, ldw, y, k, top, bottom, left, right, n)
    else:
        y[top * n : bottom * n] = 0  # there is one column tile
    if bias.size > 0:
        for r in range(top, bottom):
            _add(y[r * n + left : r * n + right], bias[left:right])
    if column_tiles == 1:
        _activate(y[top * n : bottom * n], activation)
    else:
        for r in range(top, bottom):
            _activate(y[r * n + left : r * n + right], activation)


def linear(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """The activation is applied to a tile of the product by the block that made it."""
    x, weight, *rest = inputs
    (y,) = outputs
    if y.size == 0:
        return
    k, n = x.shape[-1], y.shape[-1]
    m = y.size // n
    bias = np.ascontiguousarray(rest[0]) if rest else np.empty(0, y.dtype)
    row_tiles, column_tiles = tiles(m, k, n)
    arguments = operands(x.reshape(m, k), weight.T)
    code = _CODES[attrs.get("activation", "identity")]
    with blas.for_product(m, k, n):
        _linear(row_tiles * column_tiles, *arguments, y, bias, m, k, n, row_tiles, column_tiles, code)


@jitable
def _times_slope(g, y, out, activation):
    """out = g activation'(pre), where y = activation(pre)."""
    long_loop()
    g, y = g[: out.size], y[: out.size]
    one = out.dtype.type(1)
    if activation == _TANH:
        for i in range(out.size):
            out[i] = g[i] * (one - y[i] * y[i])
    elif activation == _SIGMOID:
        for i in range(out.size):
            out[i] = g[i] * (y[i] * (one - y[i]))
    elif activation == _RELU:
        for i in range(out.size):
            out[i] = g[i] * (0 if y[i] <= 0 else one)
    elif activation == _SOFTPLUS:
        for i in range(out.size):
            out[i] = g[i] * -expm1(-y[i])
    else:
        for i in range(out.size):
            out[i] = g[i]


@jitable
def _add_rows(total, rows, features):
    """total += the sum of four rows that lie `features` apart, which loads and stores the total once."""
    long_loop()
    a, b = rows[: total.size], rows[features : features + total.size]
    c, d = rows[2 * features : 2 * features + total.size], rows[3 * features : 3 * features + total.size]
    for i in range(total.size):
        total[i] += (np.float64(a[i]) + np.float64(b[i])) + (np.float64(c[i]) + np.float64(d[i]))


@block_kernel
def _activation_backward(block, g, y, d_pre, partial, d_bias, rows, features, rows_per_block, strips, activation):
    row_block, strip = block // strips, block % strips
    top, bottom = row_block * rows_per_block, min(rows, (row_block + 1) * rows_per_block)
    left, right = strip * spec.STRIP, min(features, (strip + 1) * spec.STRIP)
    total = partial[row_block * features + left : row_block * features + right]
    total[:] = 0
    for r in range(top, bottom):
        lo, hi = r * features + left, r * features + right
        _times_slope(g[lo:hi], y[lo:hi], d_pre[lo:hi], activation)
    fours = (bottom - top) // 4
    for four in range(fours):
        _add_rows(total, d_pre[(top + 4 * four) * features + left :], features)
    for r in range(top + 4 * fours, bottom):
        _add(total, d_pre[r * features + left : r * features + right])
    if rows_per_block >= rows:
        for i in range(right - left):
            d_bias[left + i] = total[i]


def activation_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """A block makes its part of d_pre and its column sums; those of several row blocks are added in order."""
    g, y = inputs
    d_pre, d_bias = outputs
    (partial,) = workspace
    features = g.shape[-1]
    rows = math.prod(g.shape[:-1])
    rows_per_block, row_blocks, strips = spec.backward_blocks(rows, features)
    code = _CODES[attrs["activation"]]
    sizes = (rows, features, rows_per_block, strips, code)
    _activation_backward(row_blocks * strips, g, y, d_pre, partial, d_bias, *sizes)
    if not 0 < rows <= rows_per_block:
        add_up(partial, 0, d_bias)
