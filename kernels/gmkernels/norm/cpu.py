"""Batch normalisation in Numba: a block takes whole channels, which stay in the cache between its passes.

Where a channel's elements lie in runs, (N, C, H, W), the runs are copied into one line, since loops over runs of 49
take longer to begin and to end than they last; a channel that fits into a line is copied once. Where the elements are
single, (N, C), the vectors go along the channels of a strip. The mean is kept in two parts, the second what the
rounding of the first leaves, so that nothing is lost where it is far larger than the deviations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.elementary import same_bits
from gmkernels.norm.spec import LINE, channels_of_a_block, split
from gmkernels.pool import block_kernel, jitable, long_loop, part, reduction, scratch
from gmkernels.slots import claim, clear, release

Arrays = Sequence[np.ndarray]
Attrs = Mapping[str, Any]

_STRIP = 128
"""Channels of a block where their elements are single."""


@reduction
def _sum(x, center):
    total = x.dtype.type(0)
    for i in range(x.size):
        total += x[i] - center
    return total


@reduction
def _squares(x, center, rest):
    total = x.dtype.type(0)
    for i in range(x.size):
        d = (x[i] - center) - rest
        total += d * d
    return total


@reduction
def _moments(g, x, center):
    """Sums of g, of x - center and of their product."""
    first = second = both = x.dtype.type(0)
    for i in range(x.size):
        d = x[i] - center
        first += g[i]
        second += d
        both += g[i] * d
    return first, second, both


@jitable
def _affine(x, center, rest, scale, shift):
    for i in range(x.size):
        x[i] = ((x[i] - center) - rest) * scale + shift


@jitable
def _gradient(g, x, center, rest, scale, shift, slope):
    for i in range(g.size):
        g[i] = (g[i] - shift - ((x[i] - center) - rest) * slope) * scale


@jitable
def _copy(source, start, step, target, to, apart, runs, length):
    """Runs of some length, each begun so many elements after the one before, there and here."""
    long_loop()  # compiled once, and not at each call
    for n in range(runs):
        run, place = part(source, start + n * step, length), part(target, to + n * apart, length)
        for i in range(length):
            place[i] = run[i]


@jitable
def _pieces(batch, each):
    """A channel cut into lines: runs of a line, their length, and how many pieces the runs and one run are cut into."""
    runs, length = max(1, min(batch, LINE // each)), min(each, LINE)
    return runs, length, -(-batch // runs), -(-each // length)


@jitable
def _piece(number, batch, channels, each, c):
    """Of a piece of a channel: where it begins, its runs, their length."""
    long_loop()
    runs, length, _, across = _pieces(batch, each)
    first, at = number // across * runs, number % across * length
    return (first * channels + c) * each + at, min(runs, batch - first), min(length, each - at)


@block_kernel
def _rows(block, x, weight, bias, eps, y, mean, var, taken, lines, batch, each, per_block):
    slot = claim(taken)
    channels, line = mean.size, part(lines, slot * LINE, LINE)
    _, _, down, across = _pieces(batch, each)
    pieces, step = down * across, channels * each
    for c in range(block * per_block, min((block + 1) * per_block, channels)):
        first, total = x[c * each], 0.0  # the deviations from any element are small where the elements are not
        for piece in range(pieces):
            start, runs, length = _piece(piece, batch, channels, each, c)
            _copy(x, start, step, line, 0, length, runs, length)
            total += _sum(part(line, 0, runs * length), first)
        total = first + total / (batch * each)
        mean[c] = total
        rest = x.dtype.type(total - mean[c])
        total = 0.0
        for piece in range(pieces):
            start, runs, length = _piece(piece, batch, channels, each, c)
            if pieces > 1:
                _copy(x, start, step, line, 0, length, runs, length)
            total += _squares(part(line, 0, runs * length), mean[c], rest)
        var[c] = total / (batch * each)
        scale = x.dtype.type(weight[c] / math.sqrt(var[c] + same_bits(eps)))
        for piece in range(pieces):
            start, runs, length = _piece(piece, batch, channels, each, c)
            if pieces > 1:
                _copy(x, start, step, line, 0, length, runs, length)
            _affine(part(line, 0, runs * length), mean[c], rest, scale, bias[c])
            _copy(line, 0, length, y, start, step, runs, length)
    release(taken, slot)


@block_kernel
def _rows_backward(block, g, x, weight, mean, var, eps, d_x, d_weight, d_bias, taken, lines, batch, each, per_block):
    slot = claim(taken)
    channels, line, incoming = mean.size, part(lines, 2 * slot * LINE, LINE), part(lines, (2 * slot + 1) * LINE, LINE)
    _, _, down, across = _pieces(batch, each)
    pieces, step, real = down * across, channels * each, x.dtype.type
    for c in range(block * per_block, min((block + 1) * per_block, channels)):
        first = second = both = 0.0
        for piece in range(pieces):
            start, runs, length = _piece(piece, batch, channels, each, c)
            _copy(x, start, step, line, 0, length, runs, length)
            _copy(g, start, step, incoming, 0, length, runs, length)
            sums = _moments(part(incoming, 0, runs * length), part(line, 0, runs * length), mean[c])
            first += sums[0]
            second += sums[1]
            both += sums[2]
        rstd, rest = 1.0 / math.sqrt(var[c] + same_bits(eps)), second / (batch * each)
        both = (both - rest * first) * rstd
        d_bias[c], d_weight[c] = first, both
        shift, slope = real(first / (batch * each)), real(both * rstd / (batch * each))
        for piece in range(pieces):
            start, runs, length = _piece(piece, batch, channels, each, c)
            if pieces > 1:
                _copy(x, start, step, line, 0, length, runs, length)
                _copy(g, start, step, incoming, 0, length, runs, length)
            _gradient(
                part(incoming, 0, runs * length), part(line, 0, runs * length),
                mean[c], real(rest), real(weight[c] * rstd), shift, slope,
            )  # fmt: skip
            _copy(incoming, 0, length, d_x, start, step, runs, length)
    release(taken, slot)


@block_kernel
def _columns(block, x, weight, bias, eps, y, mean, var, batch):
    channels = mean.size
    left, width = block * _STRIP, min(_STRIP, channels - block * _STRIP)
    total, rest, scale = scratch(_STRIP, np.float64), scratch(_STRIP, x.dtype), scratch(_STRIP, x.dtype)
    total[:] = 0
    for n in range(batch):
        row = x[n * channels + left : n * channels + left + width]
        for j in range(width):
            total[j] += row[j]
    for j in range(width):
        total[j] /= batch
        mean[left + j] = total[j]
        rest[j] = total[j] - mean[left + j]
        total[j] = 0
    center = mean[left : left + width]
    for n in range(batch):
        row = x[n * channels + left : n * channels + left + width]
        for j in range(width):
            d = (row[j] - center[j]) - rest[j]
            total[j] += d * d
    for j in range(width):
        var[left + j] = total[j] / batch
        scale[j] = weight[left + j] / math.sqrt(var[left + j] + same_bits(eps))
    shift = bias[left : left + width]
    for n in range(batch):
        row = x[n * channels + left : n * channels + left + width]
        out = y[n * channels + left : n * channels + left + width]
        for j in range(width):
            out[j] = ((row[j] - center[j]) - rest[j]) * scale[j] + shift[j]


@block_kernel
def _columns_backward(block, g, x, weight, mean, var, eps, d_x, d_weight, d_bias, batch):
    channels = mean.size
    left, width = block * _STRIP, min(_STRIP, channels - block * _STRIP)
    first, second, both = scratch(_STRIP, np.float64), scratch(_STRIP, np.float64), scratch(_STRIP, np.float64)
    first[:] = 0
    second[:] = 0
    both[:] = 0
    center = mean[left : left + width]
    for n in range(batch):
        row = x[n * channels + left : n * channels + left + width]
        incoming = g[n * channels + left : n * channels + left + width]
        for j in range(width):
            d = row[j] - center[j]
            first[j] += incoming[j]
            second[j] += d
            both[j] += incoming[j] * d
    scale, rest = scratch(_STRIP, x.dtype), scratch(_STRIP, x.dtype)
    shift, slope = scratch(_STRIP, x.dtype), scratch(_STRIP, x.dtype)
    for j in range(width):
        rstd = 1.0 / math.sqrt(var[left + j] + same_bits(eps))
        both[j] = (both[j] - second[j] / batch * first[j]) * rstd
        d_bias[left + j], d_weight[left + j] = first[j], both[j]
        scale[j], rest[j] = weight[left + j] * rstd, second[j] / batch
        shift[j], slope[j] = first[j] / batch, both[j] * rstd / batch
    for n in range(batch):
        row = x[n * channels + left : n * channels + left + width]
        incoming = g[n * channels + left : n * channels + left + width]
        out = d_x[n * channels + left : n * channels + left + width]
        for j in range(width):
            out[j] = (incoming[j] - shift[j] - ((row[j] - center[j]) - rest[j]) * slope[j]) * scale[j]


def _launch(rows: Any, columns: Any, arrays: Sequence[Any], workspace: Arrays, shape: tuple[int, ...]) -> None:
    batch, channels, each = split(shape)
    if each == 1:
        columns(-(-channels // _STRIP), *arrays, batch)
    else:
        per_block = channels_of_a_block(shape)
        clear(workspace[0])
        rows(-(-channels // per_block), *arrays, *workspace, batch, each, per_block)


def batch_norm(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    eps = int(same_bits(np.float64(attrs["eps"])))
    _launch(_rows, _columns, (*inputs, eps, *outputs), workspace, inputs[0].shape)


def batch_norm_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    eps = int(same_bits(np.float64(attrs["eps"])))
    _launch(_rows_backward, _columns_backward, (*inputs, eps, *outputs), workspace, inputs[0].shape)
