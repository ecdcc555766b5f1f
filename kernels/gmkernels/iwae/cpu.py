"""The importance-weighted bound in Numba.

The array is (outer, K, inner), the samples on the middle axis. Where inner > 1, tiles of neighbouring columns
go through the samples together, a vector of columns at a time. Where inner = 1, the vectors lie along the
samples.

What bounds both kernels is the number of instructions of an exponential. Forward, a column is read once: eight
samples at a time raise the highest so far, which costs an exponential, to scale what was summed before, and not
a second pass (Milakov & Gimelshein, arXiv:1805.02867). The weights are computed where they are used, backward:
to write and read them would take longer than the exponentials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.elementary import exp_factors, fma, log, select
from gmkernels.iwae.spec import split
from gmkernels.pool import block_kernel, jitable, long_loop, part, scratch
from gmkernels.rows import add_row, copy_row, largest_of, sum_of

Arrays = Sequence[np.ndarray]

_BLOCK = 16384  # elements
_TILE = 2048
"""Most columns of a tile: its highest numbers and sums stay in the first-level cache."""
_TILES = 8
"""Into how many tiles columns are cut at least, where that leaves each `_BLOCK` elements."""
_RUN = 64  # terms summed in the arrays' dtype before they go to a float64 sum
_ROW_RUN = 1024  # the same along a row, where 8 or more lanes share the terms


def _cut(outer: int, samples: int, inner: int) -> tuple[int, int, int]:
    """Number of blocks, of tiles in each, and of columns of a tile."""
    wanted = max(inner // _TILES, _BLOCK // samples, 1)
    width = min(inner, _TILE, -(-wanted // 64) * 64)
    tiles = outer * -(-inner // width) if inner else 0
    per_block = max(1, _BLOCK // (samples * width)) if inner else 1
    return -(-tiles // per_block), per_block, width


@jitable
def _fill(x, value):
    for j in range(x.size):
        x[j] = value


@jitable
def _difference(x, highest):
    """x - highest; 0 where they are equal, be they infinite."""
    return select(x != highest, x - highest, 0.0)


@jitable
def _larger(x, y):
    """The larger number. If one is NaN, so will the sum be, whichever this is."""
    return select(x > y, x, y)


@jitable
def _plus_exp(total, x, highest):
    """total + e^(x - highest)."""
    p, power = exp_factors(_difference(x, highest))
    return fma(p, power, total)


@jitable
def _add_eight(a, b, c, d, e, f, g, h, highest, total):
    """Raise `highest` to what eight samples have, and add their exponentials to `total`, which is relative to it."""
    long_loop()
    for j in range(highest.size):
        top = _larger(_larger(_larger(a[j], b[j]), _larger(c[j], d[j])), highest[j])
        top = _larger(_larger(_larger(e[j], f[j]), _larger(g[j], h[j])), top)
        p, power = exp_factors(_difference(highest[j], top))
        two = _plus_exp(_plus_exp(p * power * total[j], a[j], top), b[j], top)
        four = _plus_exp(_plus_exp(two, c[j], top), d[j], top)
        six = _plus_exp(_plus_exp(four, e[j], top), f[j], top)
        total[j] = _plus_exp(_plus_exp(six, g[j], top), h[j], top)
        highest[j] = top


@jitable
def _add(x, highest, total):
    """The same for one sample, with one exponential: the lower of `highest` and the sample relative to the other."""
    long_loop()
    for j in range(highest.size):
        p, power = exp_factors(-abs(_difference(x[j], highest[j])))
        above, e = x[j] > highest[j], p * power
        total[j] = select(above, fma(total[j], e, 1.0), total[j] + e)
        highest[j] = _larger(x[j], highest[j])


@jitable
def _lower(total, highest, top):
    """Make sums of exponentials relative to `highest` relative to `top`."""
    long_loop()
    for j in range(total.size):
        p, power = exp_factors(_difference(highest[j], top[j]))
        total[j] *= p * power


@jitable
def _finish(total, samples, highest, bound, scale):
    """The bound, and what makes weights of exponentials. A NaN among the samples is in the total, not in `highest`."""
    long_loop()
    log_samples = bound.dtype.type(log(np.float64(samples)))
    for j in range(total.size):
        highest[j] = select(total[j] == total[j], highest[j], np.nan)
        bound[j] = highest[j] + (log(bound.dtype.type(total[j])) - log_samples)
        scale[j] = select(highest[j] == -np.inf, 0.0, 1.0 / total[j])


@block_kernel
def _columns(block, log_w, bound, highest, scale, samples, inner, per_block, most):
    befores, sums, totals = scratch(_TILE, log_w.dtype), scratch(_TILE, log_w.dtype), scratch(_TILE, np.float64)
    per_outer = -(-inner // most)
    tiles = bound.size // inner * per_outer
    for tile in range(block * per_block, min((block + 1) * per_block, tiles)):
        outer = tile // per_outer
        column = tile % per_outer * most
        width = min(most, inner - column)
        at = outer * inner + column
        before, run_sum, total = part(befores, 0, width), part(sums, 0, width), part(totals, 0, width)
        top = part(highest, at, width)
        _fill(top, -np.inf)
        _fill(total, 0)
        for run in range(0, samples, _RUN):
            start, stop = (outer * samples + run) * inner + column, min(_RUN, samples - run)
            if run:
                copy_row(top, before)
            _fill(run_sum, 0)
            for k in range(0, stop - 7, 8):
                a, b = part(log_w, start + k * inner, width), part(log_w, start + (k + 1) * inner, width)
                c, d = part(log_w, start + (k + 2) * inner, width), part(log_w, start + (k + 3) * inner, width)
                e, f = part(log_w, start + (k + 4) * inner, width), part(log_w, start + (k + 5) * inner, width)
                g, h = part(log_w, start + (k + 6) * inner, width), part(log_w, start + (k + 7) * inner, width)
                _add_eight(a, b, c, d, e, f, g, h, top, run_sum)
            for k in range(stop // 8 * 8, stop):
                _add(part(log_w, start + k * inner, width), top, run_sum)
            if run:
                _lower(total, before, top)
            add_row(run_sum, total)
        _finish(total, samples, top, part(bound, at, width), part(scale, at, width))


@jitable
def _scaled_exp(x, highest, scale, y):
    for j in range(x.size):
        p, power = exp_factors(_difference(x[j], highest))
        y[j] = scale * p * power


@block_kernel
def _rows(block, log_w, bound, highest, scale, samples, per_block):
    exponentials = scratch(_ROW_RUN, log_w.dtype)
    total = scratch(1, np.float64)
    for row in range(block * per_block, min((block + 1) * per_block, bound.size)):
        x = log_w[row * samples : (row + 1) * samples]
        highest[row] = largest_of(x)
        total[0] = 0
        for at in range(0, samples, _ROW_RUN):
            run = x[at : at + _ROW_RUN]
            _scaled_exp(run, highest[row], x.dtype.type(1), exponentials)
            total[0] += sum_of(exponentials[: run.size])
        _finish(total, samples, highest[row : row + 1], bound[row : row + 1], scale[row : row + 1])


def iwae_bound(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    (log_w,) = inputs
    bound, highest, scale = (a.reshape(-1) for a in outputs)
    outer, samples, inner = split(log_w.shape, attrs["axis"])
    blocks, per_block, width = _cut(outer, samples, inner)
    if inner == 1:
        _rows(blocks, log_w.reshape(-1), bound, highest, scale, samples, per_block)
    else:
        _columns(blocks, log_w.reshape(-1), bound, highest, scale, samples, inner, per_block, width)


@jitable
def _multiply(x, y, z):
    for j in range(z.size):
        z[j] = x[j] * y[j]


@jitable
def _weigh(factor, x, highest, d):
    long_loop()
    for j in range(d.size):
        p, power = exp_factors(_difference(x[j], highest[j]))
        d[j] = factor[j] * p * power


@block_kernel
def _backward_columns(block, g, log_w, highest, scale, d, samples, inner, per_block, most):
    factors = scratch(_TILE, g.dtype)
    per_outer = -(-inner // most)
    tiles = g.size // inner * per_outer
    for tile in range(block * per_block, min((block + 1) * per_block, tiles)):
        outer = tile // per_outer
        column = tile % per_outer * most
        width = min(most, inner - column)
        at = outer * inner + column
        factor, top = part(factors, 0, width), part(highest, at, width)
        _multiply(part(g, at, width), part(scale, at, width), factor)
        for k in range(samples):
            at = (outer * samples + k) * inner + column
            _weigh(factor, part(log_w, at, width), top, part(d, at, width))


@block_kernel
def _backward_rows(block, g, log_w, highest, scale, d, samples, per_block):
    for row in range(block * per_block, min((block + 1) * per_block, g.size)):
        lo, hi = row * samples, (row + 1) * samples
        _scaled_exp(log_w[lo:hi], highest[row], g[row] * scale[row], d[lo:hi])


def iwae_bound_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    g_bound, log_w, highest, scale = inputs
    outer, samples, inner = split(log_w.shape, attrs["axis"])
    blocks, per_block, width = _cut(outer, samples, inner)
    arrays = [a.reshape(-1) for a in (g_bound, log_w, highest, scale, *outputs)]
    if inner == 1:
        _backward_rows(blocks, *arrays, samples, per_block)
    else:
        _backward_columns(blocks, *arrays, samples, inner, per_block, width)
