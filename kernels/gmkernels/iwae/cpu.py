"""The importance-weighted bound in Numba.

The array is (outer, K, inner), the samples on the middle axis. Where inner > 1, tiles of neighbouring columns
go through the samples together, a vector of columns at a time. Where inner = 1, the vectors lie along the
samples. A tile is read from memory once and then stays in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.elementary import exp, log, maximum, select
from gmkernels.iwae.spec import split
from gmkernels.pool import block_kernel, jitable, reduction, scratch

Arrays = Sequence[np.ndarray]

_TILE = 256  # columns
_RUN = 64  # terms summed in the arrays' dtype before they go to a float64 sum
_ROW_RUN = 1024  # the same along a row, where 8 or more lanes share the terms
_BLOCK = 16384  # elements


def _cut(outer: int, samples: int, inner: int) -> tuple[int, int]:
    """Number of blocks, and of tiles in each."""
    tiles = outer * -(-inner // _TILE)
    per_block = max(1, _BLOCK // (samples * min(max(inner, 1), _TILE)))
    return -(-tiles // per_block), per_block


@jitable
def _raise_to(x, highest):
    for j in range(x.size):
        highest[j] = maximum(x[j], highest[j])


@jitable
def _shifted_exp(x, highest, w):
    for j in range(x.size):
        difference = x[j] - highest[j]
        w[j] = exp(select(x[j] == highest[j], x.dtype.type(0), difference))


@jitable
def _add_moments(w, first, second):
    for j in range(w.size):
        first[j] += w[j]
        second[j] += w[j] * w[j]


@jitable
def _flush(total, part):
    for j in range(part.size):
        total[j] += part[j]
        part[j] = 0


@jitable
def _finish(highest, first, second, samples, ess, scale):
    """Turn the highest log weight into the bound; `scale` makes weights of the exponentials."""
    log_samples = log(np.float64(samples))
    for j in range(highest.size):
        shift = np.float64(highest[j])
        empty = shift == -np.inf
        scale[j] = select(empty, 0.0, 1.0 / first[j])
        ess[j] = select(empty, 0.0, first[j] * first[j] / second[j])
        highest[j] = shift + (log(first[j]) - log_samples)


@jitable
def _multiply(w, scale):
    for j in range(w.size):
        w[j] *= scale[j]


@jitable
def _product(g, weights, d):
    for j in range(d.size):
        d[j] = g[j] * weights[j]


@block_kernel
def _columns(block, log_w, bound, weights, ess, samples, inner, per_block):
    highest = scratch(_TILE, log_w.dtype)
    sums, squares = scratch(_TILE, log_w.dtype), scratch(_TILE, log_w.dtype)
    sums[:] = 0
    squares[:] = 0
    scale = scratch(_TILE, log_w.dtype)
    first = scratch(_TILE, np.float64)
    second = scratch(_TILE, np.float64)
    per_outer = -(-inner // _TILE)
    tiles = bound.size // inner * per_outer
    for tile in range(block * per_block, min((block + 1) * per_block, tiles)):
        outer = tile // per_outer
        column = tile % per_outer * _TILE
        width = min(_TILE, inner - column)
        start = outer * samples * inner + column
        highest[:width] = -np.inf
        for k in range(samples):
            at = start + k * inner
            _raise_to(log_w[at : at + width], highest[:width])
        first[:width] = 0
        second[:width] = 0
        for k in range(samples):
            at = start + k * inner
            w = weights[at : at + width]
            _shifted_exp(log_w[at : at + width], highest[:width], w)
            _add_moments(w, sums[:width], squares[:width])
            if (k + 1) % _RUN == 0 or k + 1 == samples:
                _flush(first[:width], sums[:width])
                _flush(second[:width], squares[:width])
        at = outer * inner + column
        _finish(highest[:width], first[:width], second[:width], samples, ess[at : at + width], scale[:width])
        for j in range(width):  # a slice would be assigned with a check of shapes that takes seconds to compile
            bound[at + j] = highest[j]
        for k in range(samples):
            at = start + k * inner
            _multiply(weights[at : at + width], scale[:width])


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
        _finish(bound[row : row + 1], first, second, samples, ess[row : row + 1], scale)
        _row_scale(w, scale[0], w)


def iwae_bound(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    (log_w,) = inputs
    bound, weights, ess = (a.reshape(-1) for a in outputs)
    outer, samples, inner = split(log_w.shape, attrs["axis"])
    blocks, per_block = _cut(outer, samples, inner)
    if inner == 1:
        _rows(blocks, log_w.reshape(-1), bound, weights, ess, samples, per_block)
    else:
        _columns(blocks, log_w.reshape(-1), bound, weights, ess, samples, inner, per_block)


@block_kernel
def _backward_columns(block, g, weights, d, samples, inner, per_block):
    per_outer = -(-inner // _TILE)
    tiles = g.size // inner * per_outer
    for tile in range(block * per_block, min((block + 1) * per_block, tiles)):
        outer = tile // per_outer
        column = tile % per_outer * _TILE
        width = min(_TILE, inner - column)
        for k in range(samples):
            at = (outer * samples + k) * inner + column
            here = outer * inner + column
            _product(g[here : here + width], weights[at : at + width], d[at : at + width])


@block_kernel
def _backward_rows(block, g, weights, d, samples, per_block):
    for row in range(block * per_block, min((block + 1) * per_block, g.size)):
        lo, hi = row * samples, (row + 1) * samples
        _row_scale(weights[lo:hi], g[row], d[lo:hi])


def iwae_bound_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    g_bound, weights = inputs
    outer, samples, inner = split(weights.shape, attrs["axis"])
    blocks, per_block = _cut(outer, samples, inner)
    arrays = g_bound.reshape(-1), weights.reshape(-1), outputs[0].reshape(-1)
    if inner == 1:
        _backward_rows(blocks, *arrays, samples, per_block)
    else:
        _backward_columns(blocks, *arrays, samples, inner, per_block)
