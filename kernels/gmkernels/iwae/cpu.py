"""The importance-weighted bound in Numba.

The array is (outer, K, inner), the samples on the middle axis. Where inner > 1, tiles of neighbouring columns
go through the samples together, a vector of columns at a time. Where inner = 1, the vectors lie along the
samples. A tile is read from memory once and then stays in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.elementary import exp, fma, log, maximum, select
from gmkernels.iwae.spec import split
from gmkernels.pool import block_kernel, jitable, long_loop, part, reduction, scratch

Arrays = Sequence[np.ndarray]

_TILE = 512
"""Most columns of a tile."""
_TILE_ELEMENTS = 32768
"""Most elements of a tile of several rows, so that it stays in the second-level cache."""
_RUN = 64  # terms summed in the arrays' dtype before they go to a float64 sum
_ROW_RUN = 1024  # the same along a row, where 8 or more lanes share the terms
_BLOCK = 16384  # elements


def _cut(outer: int, samples: int, inner: int) -> tuple[int, int, int]:
    """Number of blocks, of tiles in each, and of columns of a tile."""
    width = min(max(inner, 1), max(64, min(_TILE, _TILE_ELEMENTS // samples // 64 * 64)))
    tiles = outer * -(-inner // width)
    per_block = max(1, _BLOCK // (samples * width))
    return -(-tiles // per_block), per_block, width


@jitable
def _fill(x, value):
    for j in range(x.size):
        x[j] = value


@jitable
def _raise_to(x, highest):
    long_loop()
    for j in range(x.size):
        highest[j] = select(x[j] > highest[j], x[j], highest[j])  # passes NaN over: the sums will be NaN


@jitable
def _shifted_exp(x, highest, w, first, second):
    long_loop()
    for j in range(x.size):
        e = exp(select(x[j] == highest[j], x.dtype.type(0), x[j] - highest[j]))
        w[j] = e
        first[j] += e
        second[j] = fma(e, e, second[j])


@jitable
def _flush(total, part):
    for j in range(part.size):
        total[j] += part[j]
        part[j] = 0


@jitable
def _finish(highest, first, second, samples, bound, ess, scale):
    """The bound and the effective sample size; `scale` makes weights of the exponentials."""
    long_loop()
    log_samples = log(np.float64(samples))
    for j in range(highest.size):
        shift = np.float64(highest[j])
        empty = (shift == -np.inf) & (first[j] == first[j])
        scale[j] = select(empty, 0.0, 1.0 / first[j])
        ess[j] = select(empty, 0.0, first[j] * first[j] / second[j])
        bound[j] = shift + (log(first[j]) - log_samples)


@jitable
def _multiply(w, scale):
    long_loop()
    for j in range(w.size):
        w[j] *= scale[j]


@jitable
def _product(g, x, y):
    long_loop()
    for j in range(y.size):
        y[j] = g[j] * x[j]


@block_kernel
def _columns(block, log_w, bound, weights, ess, samples, inner, per_block, most):
    tops, scale = scratch(_TILE, log_w.dtype), scratch(_TILE, log_w.dtype)
    sums, squares = scratch(_TILE, log_w.dtype), scratch(_TILE, log_w.dtype)
    first_totals, second_totals = scratch(_TILE, np.float64), scratch(_TILE, np.float64)
    per_outer = -(-inner // most)
    tiles = bound.size // inner * per_outer
    for tile in range(block * per_block, min((block + 1) * per_block, tiles)):
        outer = tile // per_outer
        column = tile % per_outer * most
        width = min(most, inner - column)
        start = outer * samples * inner + column
        highest, one, two = part(tops, 0, width), part(sums, 0, width), part(squares, 0, width)
        first, second = part(first_totals, 0, width), part(second_totals, 0, width)
        _fill(highest, -np.inf)
        for k in range(samples):
            _raise_to(part(log_w, start + k * inner, width), highest)
        _fill(one, 0)
        _fill(two, 0)
        _fill(first, 0)
        _fill(second, 0)
        for k in range(samples):
            at = start + k * inner
            _shifted_exp(part(log_w, at, width), highest, part(weights, at, width), one, two)
            if (k + 1) % _RUN == 0 or k + 1 == samples:
                _flush(first, one)
                _flush(second, two)
        at = outer * inner + column
        _finish(highest, first, second, samples, part(bound, at, width), part(ess, at, width), scale)
        for k in range(samples):
            _multiply(part(weights, start + k * inner, width), scale)


@jitable
def _row_maximum(x):
    highest = x.dtype.type(-np.inf)
    for j in range(x.size):
        highest = maximum(x[j], highest)
    return highest


@jitable
def _row_exp(x, highest, w):
    for j in range(x.size):
        w[j] = exp(select(x[j] == highest, x.dtype.type(0), x[j] - highest))


@reduction
def _row_moments(w):
    first = w.dtype.type(0)
    second = w.dtype.type(0)
    for j in range(w.size):
        first += w[j]
        second += w[j] * w[j]
    return first, second


@jitable
def _row_scale(x, factor, y):
    for j in range(x.size):
        y[j] = x[j] * factor


@block_kernel
def _rows(block, log_w, bound, weights, ess, samples, per_block):
    scale = scratch(1, log_w.dtype)
    first = scratch(1, np.float64)
    second = scratch(1, np.float64)
    for row in range(block * per_block, min((block + 1) * per_block, bound.size)):
        x = log_w[row * samples : (row + 1) * samples]
        w = weights[row * samples : (row + 1) * samples]
        bound[row] = _row_maximum(x)
        first[0] = 0
        second[0] = 0
        for at in range(0, samples, _ROW_RUN):
            run = w[at : at + _ROW_RUN]
            _row_exp(x[at : at + _ROW_RUN], bound[row], run)
            one, two = _row_moments(run)
            first[0] += one
            second[0] += two
        here = bound[row : row + 1]
        _finish(here, first, second, samples, here, ess[row : row + 1], scale)
        _row_scale(w, scale[0], w)


def iwae_bound(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    (log_w,) = inputs
    bound, weights, ess = (a.reshape(-1) for a in outputs)
    outer, samples, inner = split(log_w.shape, attrs["axis"])
    blocks, per_block, width = _cut(outer, samples, inner)
    if inner == 1:
        _rows(blocks, log_w.reshape(-1), bound, weights, ess, samples, per_block)
    else:
        _columns(blocks, log_w.reshape(-1), bound, weights, ess, samples, inner, per_block, width)


@block_kernel
def _backward_columns(block, g, weights, d, samples, inner, per_block, most):
    per_outer = -(-inner // most)
    tiles = g.size // inner * per_outer
    for tile in range(block * per_block, min((block + 1) * per_block, tiles)):
        outer = tile // per_outer
        column = tile % per_outer * most
        width = min(most, inner - column)
        for k in range(samples):
            at = (outer * samples + k) * inner + column
            _product(part(g, outer * inner + column, width), part(weights, at, width), part(d, at, width))


@block_kernel
def _backward_rows(block, g, weights, d, samples, per_block):
    for row in range(block * per_block, min((block + 1) * per_block, g.size)):
        lo, hi = row * samples, (row + 1) * samples
        _row_scale(weights[lo:hi], g[row], d[lo:hi])


def iwae_bound_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    g_bound, weights = inputs
    outer, samples, inner = split(weights.shape, attrs["axis"])
    blocks, per_block, width = _cut(outer, samples, inner)
    arrays = g_bound.reshape(-1), weights.reshape(-1), outputs[0].reshape(-1)
    if inner == 1:
        _backward_rows(blocks, *arrays, samples, per_block)
    else:
        _backward_columns(blocks, *arrays, samples, inner, per_block, width)
