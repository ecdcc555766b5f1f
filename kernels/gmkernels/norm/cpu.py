"""Batch normalisation in Numba: a block takes whole channels, which stay in the cache between its passes.

Where a channel's elements lie in runs, (N, C, H, W), the vectors go along them and their sums stay in registers; where
they are single, (N, C), along the channels of a strip. The mean is kept in two parts, the second what the rounding of
the first leaves, so that nothing is lost where it is far larger than the deviations. The mean of the squares about the
first part exceeds the variance by the second's square, which is no larger than the variance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.elementary import inline, same_bits, select
from gmkernels.lanes import filled, lanes_of, load, load_some, store, store_some, sum_of_lanes
from gmkernels.norm.spec import split
from gmkernels.pool import block_kernel, jitable, part, scratch

Arrays = Sequence[np.ndarray]
Attrs = Mapping[str, Any]

_BLOCK = 1 << 14
"""Elements of a block, at least, where channels lie in runs."""
_STRIP = 64
"""Channels of a block where their elements are single."""
_TERMS = 64
"""Numbers that are added in the arrays' dtype, of each lane or column, before their sum goes to a float64 one."""


@jitable
def _together(x):
    """Elements of a run whose sums are so short."""
    return _TERMS * lanes_of(x)


@jitable
def _runs_together(x, length):
    """Runs of a length whose sums are."""
    return max(1, _TERMS // -(-length // lanes_of(x)))


@jitable
def _near(x, zero):
    """Where deviations are counted from: a number of a channel, unless that is not finite."""
    return select(abs(x) < np.inf, x, zero)


@jitable
def _sums(x, start, step, runs, length, center):
    """Sums of x - center and of its square over runs, each begun so many elements after the one before."""
    total, square, together = 0.0, 0.0, _runs_together(x, length)
    for first in range(0, runs, together):
        ds = squares = filled(x, 0)
        for n in range(first, min(runs, first + together)):
            for i in range(0, length, lanes_of(x)):
                d = load_some(x, start + n * step + i, length - i, center) - center
                ds, squares = ds + d, squares + d * d
        total += sum_of_lanes(ds)
        square += sum_of_lanes(squares)
    return total, square


@jitable
def _moments(g, x, start, step, runs, length, center):
    """Sums of g, of x - center and of their product."""
    first = second = both = 0.0
    together = _runs_together(x, length)
    for run in range(0, runs, together):
        gs = ds = products = filled(x, 0)
        for n in range(run, min(runs, run + together)):
            for i in range(0, length, lanes_of(x)):
                h = load_some(g, start + n * step + i, length - i, 0)
                d = load_some(x, start + n * step + i, length - i, center) - center
                gs, ds, products = gs + h, ds + d, products + h * d
        first += sum_of_lanes(gs)
        second += sum_of_lanes(ds)
        both += sum_of_lanes(products)
    return first, second, both


@block_kernel
def _rows(block, x, weight, bias, eps, y, mean, var, batch, each, per_block):
    channels, real, zero = mean.size, x.dtype.type, x.dtype.type(0)
    step = channels * each
    for c in range(block * per_block, min((block + 1) * per_block, channels)):
        start, total = c * each, 0.0
        first = _near(x[start], zero)  # the deviations from any element are small where the elements are not
        for at in range(0, each, _together(x)):
            total += _sums(x, start + at, step, batch, min(_together(x), each - at), first)[0]
        total /= batch * each
        mean[c] = first + total
        center, rest = mean[c], real(total - (np.float64(mean[c]) - first))
        total = 0.0
        for at in range(0, each, _together(x)):
            total += _sums(x, start + at, step, batch, min(_together(x), each - at), center)[1]
        var[c] = total / (batch * each) - rest * rest
        scale, shift = real(weight[c] / math.sqrt(var[c] + same_bits(eps))), bias[c]
        for n in range(batch):
            for i in range(0, each, lanes_of(x)):
                at, left = start + n * step + i, each - i
                store_some(y, at, left, ((load_some(x, at, left, 0) - center) - rest) * scale + shift)


@block_kernel
def _rows_backward(block, g, x, weight, mean, var, eps, d_x, d_weight, d_bias, batch, each, per_block):
    channels, real = mean.size, x.dtype.type
    step = channels * each
    for c in range(block * per_block, min((block + 1) * per_block, channels)):
        start, center = c * each, mean[c]
        first = second = both = 0.0
        for at in range(0, each, _together(x)):
            sums = _moments(g, x, start + at, step, batch, min(_together(x), each - at), center)
            first, second, both = first + sums[0], second + sums[1], both + sums[2]
        rstd = 1.0 / math.sqrt(var[c] + same_bits(eps))
        second /= batch * each
        both = (both - second * first) * rstd
        d_bias[c], d_weight[c] = first, both
        shift, slope = real(first / (batch * each)), real(both * rstd / (batch * each))
        rest, scale = real(second), real(weight[c] * rstd)
        for n in range(batch):
            for i in range(0, each, lanes_of(x)):
                at, left = start + n * step + i, each - i
                d = (load_some(x, at, left, 0) - center) - rest
                store_some(d_x, at, left, (load_some(g, at, left, 0) - shift - d * slope) * scale)


@jitable
def _clear(row):
    for j in range(0, row.size, lanes_of(row)):
        store(row, j, filled(row, 0))


@jitable
def _add_to(total, row):
    for j in range(total.size):
        total[j] += row[j]


def _down(term: Any) -> Any:
    """total += sums of term(x - center) over rows."""

    @jitable
    def add(x, at, step, rows, center, total):
        sums, width = scratch(_STRIP, x.dtype), total.size
        for first in range(0, rows, _TERMS):
            _clear(sums)
            for n in range(first, min(rows, first + _TERMS)):
                for j in range(0, width, lanes_of(x)):
                    d = load_some(x, at + n * step + j, width - j, 0) - load(center, j)
                    store(sums, j, load(sums, j) + term(d))
            _add_to(total, sums)

    return add


_sum_down, _squares_down = _down(inline(lambda d: d)), _down(inline(lambda d: d * d))


@jitable
def _moments_down(g, x, at, step, rows, center, first, second, both):
    """Add to the totals the sums of g, of x - center and of their product."""
    gs, ds, products = scratch(_STRIP, x.dtype), scratch(_STRIP, x.dtype), scratch(_STRIP, x.dtype)
    width = first.size
    for begin in range(0, rows, _TERMS):
        for sums in (gs, ds, products):
            _clear(sums)
        for n in range(begin, min(rows, begin + _TERMS)):
            for j in range(0, width, lanes_of(x)):
                h = load_some(g, at + n * step + j, width - j, 0)
                d = load_some(x, at + n * step + j, width - j, 0) - load(center, j)
                store(gs, j, load(gs, j) + h)
                store(ds, j, load(ds, j) + d)
                store(products, j, load(products, j) + h * d)
        _add_to(first, gs)
        _add_to(second, ds)
        _add_to(both, products)


@block_kernel
def _columns(block, x, weight, bias, eps, y, mean, var, batch):
    channels, zero = mean.size, x.dtype.type(0)
    left, width = block * _STRIP, min(_STRIP, channels - block * _STRIP)
    totals, center, rest = scratch(_STRIP, np.float64), scratch(_STRIP, x.dtype), scratch(_STRIP, x.dtype)
    scale, shift, total = scratch(_STRIP, x.dtype), scratch(_STRIP, x.dtype), part(totals, 0, width)
    for j in range(width):
        center[j], total[j] = _near(x[left + j], zero), 0.0
    _sum_down(x, left, channels, batch, center, total)
    for j in range(width):
        first, total[j] = np.float64(center[j]), total[j] / batch
        mean[left + j] = center[j] = first + total[j]
        rest[j], total[j] = total[j] - (center[j] - first), 0.0
    _squares_down(x, left, channels, batch, center, total)
    for j in range(width):
        var[left + j] = total[j] / batch - rest[j] * rest[j]
        scale[j], shift[j] = weight[left + j] / math.sqrt(var[left + j] + same_bits(eps)), bias[left + j]
    for n in range(batch):
        for j in range(0, width, lanes_of(x)):
            at = n * channels + left + j
            d = load_some(x, at, width - j, 0) - load(center, j) - load(rest, j)
            store_some(y, at, width - j, d * load(scale, j) + load(shift, j))


@block_kernel
def _columns_backward(block, g, x, weight, mean, var, eps, d_x, d_weight, d_bias, batch):
    channels = mean.size
    left, width = block * _STRIP, min(_STRIP, channels - block * _STRIP)
    first, second, both = scratch(_STRIP, np.float64), scratch(_STRIP, np.float64), scratch(_STRIP, np.float64)
    center, rest, scale = scratch(_STRIP, x.dtype), scratch(_STRIP, x.dtype), scratch(_STRIP, x.dtype)
    shift, slope = scratch(_STRIP, x.dtype), scratch(_STRIP, x.dtype)
    for j in range(width):
        center[j] = mean[left + j]
        first[j] = second[j] = both[j] = 0.0
    totals = part(first, 0, width), part(second, 0, width), part(both, 0, width)
    _moments_down(g, x, left, channels, batch, center, totals[0], totals[1], totals[2])
    for j in range(width):
        rstd = 1.0 / math.sqrt(var[left + j] + same_bits(eps))
        second[j] /= batch
        both[j] = (both[j] - second[j] * first[j]) * rstd
        d_bias[left + j], d_weight[left + j] = first[j], both[j]
        scale[j], rest[j] = weight[left + j] * rstd, second[j]
        shift[j], slope[j] = first[j] / batch, both[j] * rstd / batch
    for n in range(batch):
        for j in range(0, width, lanes_of(x)):
            at = n * channels + left + j
            d = load_some(x, at, width - j, 0) - load(center, j) - load(rest, j)
            h = load_some(g, at, width - j, 0) - load(shift, j)
            store_some(d_x, at, width - j, (h - d * load(slope, j)) * load(scale, j))


def _launch(rows: Any, columns: Any, arrays: Sequence[Any], shape: tuple[int, ...]) -> None:
    batch, channels, each = split(shape)
    if each == 1:
        columns(-(-channels // _STRIP), *arrays, batch)
    else:
        per_block = max(1, _BLOCK // max(1, batch * each))
        rows(-(-channels // per_block), *arrays, batch, each, per_block)


def batch_norm(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    eps = int(same_bits(np.float64(attrs["eps"])))
    _launch(_rows, _columns, (*inputs, eps, *outputs), inputs[0].shape)


def batch_norm_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    eps = int(same_bits(np.float64(attrs["eps"])))
    _launch(_rows_backward, _columns_backward, (*inputs, eps, *outputs), inputs[0].shape)
