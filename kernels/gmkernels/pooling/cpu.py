"""Pooling in Numba: a block takes whole planes.

Most windows lie inside the plane, close together. Those are made as if there were one at every place, also where the
stride leaves places out: their elements with one number then lie side by side, and loops over them take vectors. What
overhangs, or is far apart, or alone, is made window by window.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.elementary import select
from gmkernels.pool import block_kernel, jitable, part, scratch
from gmkernels.pooling.spec import Pair, Windows, _windows
from gmkernels.rows import add_row, copy_row
from gmkernels.vectors import sum_of_row

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]

_BLOCK = 1 << 14  # elements of the larger planes in a block
_TILE = 2048
"""Places whose windows are made at once: what is known of them stays near."""
_TWO_TILES = 2 * _TILE  # a name, since `scratch` takes a constant
_FEW, _APART = 8, 16
"""Fewer windows than that inside a plane, or of so many places more than one window, go window by window."""


def _cut(*arrays: np.ndarray) -> tuple[int, int]:
    """Number of blocks, and of planes in each."""
    planes = arrays[0].shape[0] * arrays[0].shape[1]
    per_block = max(1, _BLOCK // max(1, *(a.size // max(1, planes) for a in arrays)))
    return -(-planes // per_block), per_block


def _inside(w: Windows, size: Pair) -> tuple[int, int, int, int, int]:
    """Of the windows that are made together the first row, one past the last, the first column, one past the last, and
    how many rows are made at once."""
    first = [-(-p // s) for p, s in zip(w.padding, w.stride)]
    along = zip(size, w.number(size), w.kernel, w.stride, w.padding, w.dilation)
    last = [min(m, (n - 1 + p - d * (k - 1)) // s + 1) for n, m, k, s, p, d in along]
    down, across = max(0, last[0] - first[0]), max(0, last[1] - first[1])
    length = (across - 1) * w.stride[1] + 1  # of a row
    if down * across < _FEW or w.stride[0] * w.stride[1] > _APART or length > _TILE:
        return 0, 0, 0, 0, 1
    return first[0], last[0], first[1], last[1], (_TILE - length) // (w.stride[0] * size[1]) + 1


@functools.lru_cache(1024)
def _numbers(w: Windows, size: Pair) -> np.ndarray:
    """Pairs of height and width: the plane's, the number of windows, kernel, stride, padding and dilation; then what
    `_inside` says."""
    numbers = (size, w.number(size), w.kernel, w.stride, w.padding, w.dilation, _inside(w, size))
    return np.array(list(itertools.chain.from_iterable(numbers)), np.int64)


@jitable
def _range(at, stride, padding, kernel, dilation, size):
    """First element of a window along an axis that is in the plane, and one past the last."""
    start = at * stride - padding
    before, room = max(0, -start), size - start
    if dilation > 1:  # a division takes as long as a window
        before, room = -(-before // dilation), (room - 1) // dilation + 1
    return start, before, min(kernel, room)


# ---------------------------------------------------------------------------------------------------------
# Maxima
# ---------------------------------------------------------------------------------------------------------


@jitable
def _larger(value, best):
    """Whether a value takes the place of the best so far: a NaN does, and keeps it."""
    return (not value <= best) & (not np.isnan(best))


@jitable
def _raise_best(values, shift, best, shifts, new_best, new_shifts):
    """The best with the values `shift` places on. In place, stores would be masked, which loads have to wait for."""
    for k in range(best.size):
        better = _larger(values[k], best[k])
        new_best[k] = select(better, values[k], best[k])
        new_shifts[k] = select(better, shift, shifts[k])


@jitable
def _maxima_inside(source, maxima, places, numbers, tiles, shifts):
    width, columns, kernel_h, kernel_w = numbers[1], numbers[3], numbers[4], numbers[5]
    down, across = numbers[6] * width, numbers[7]  # from window to window
    line, step = numbers[10] * width, numbers[11]  # from element to element
    top, bottom, left, right, at_once = numbers[12], numbers[13], numbers[14], numbers[15], numbers[16]
    corner = left * across - numbers[8] * width - numbers[9]
    for p in range(top, bottom, at_once):
        rows = min(at_once, bottom - p)
        start, n = corner + p * down, (rows - 1) * down + (right - left - 1) * across + 1
        best, moved = part(tiles, 0, n), part(shifts, 0, n)
        new, new_moved = part(tiles, _TILE, n), part(shifts, _TILE, n)
        copy_row(part(source, start, n), best)
        for k in range(n):
            moved[k] = 0
        for i in range(kernel_h):
            for j in range(kernel_w):
                if i + j > 0:
                    shift = i * line + j * step
                    _raise_best(part(source, start + shift, n), np.int32(shift), best, moved, new, new_moved)
                    best, moved, new, new_moved = new, new_moved, best, moved
        for r in range(rows):
            out = (p + r) * columns + left
            for q in range(right - left):
                k = r * down + q * across
                maxima[out + q] = best[k]
                places[out + q] = start + k + moved[k]


@block_kernel
def _max_pool(block, x, y, indices, numbers, planes, per_block):
    tiles, shifts = scratch(_TWO_TILES, x.dtype), scratch(_TWO_TILES, np.int32)
    height, width, rows, columns = numbers[0], numbers[1], numbers[2], numbers[3]
    kernel_h, kernel_w, stride_h, stride_w = numbers[4], numbers[5], numbers[6], numbers[7]
    padding_h, padding_w, dilation_h, dilation_w = numbers[8], numbers[9], numbers[10], numbers[11]
    top, bottom, before, after = numbers[12], numbers[13], numbers[14], numbers[15]
    windows = rows * columns
    for plane in range(block * per_block, min((block + 1) * per_block, planes)):
        source = part(x, plane * height * width, height * width)
        maxima, places = part(y, plane * windows, windows), part(indices, plane * windows, windows)
        _maxima_inside(source, maxima, places, numbers, tiles, shifts)
        if (bottom - top) * (after - before) == windows:
            continue
        for p in range(rows):
            h, first, last = _range(p, stride_h, padding_h, kernel_h, dilation_h, height)
            for q in range(columns):
                if top <= p < bottom and before <= q < after:
                    continue
                w, left, right = _range(q, stride_w, padding_w, kernel_w, dilation_w, width)
                place = (h + first * dilation_h) * width + w + left * dilation_w
                best = source[place]
                for i in range(first, last):
                    for j in range(left, right):
                        at = (h + i * dilation_h) * width + w + j * dilation_w
                        better = _larger(source[at], best)
                        best, place = select(better, source[at], best), select(better, at, place)
                maxima[p * columns + q] = best
                places[p * columns + q] = place


def max_pool2d(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    (x,), (y, indices) = inputs, outputs
    blocks, per_block = _cut(x, y)
    numbers = _numbers(_windows(dict(attrs)), x.shape[2:])
    _max_pool(blocks, x, y, indices, numbers, x.shape[0] * x.shape[1], per_block)


@block_kernel
def _gather(block, x, indices, y, size, each, planes, per_block):
    for plane in range(block * per_block, min((block + 1) * per_block, planes)):
        for k in range(plane * each, (plane + 1) * each):
            place = indices[k]
            y[k] = x[plane * size + place] if 0 <= place < size else np.nan


def plane_gather(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    (x, indices), (y,) = inputs, outputs
    blocks, per_block = _cut(x, y)
    size, each = x.shape[2] * x.shape[3], y.shape[2] * y.shape[3]
    _gather(blocks, x, indices, y, size, each, x.shape[0] * x.shape[1], per_block)


@block_kernel
def _scatter(block, x, indices, y, size, each, planes, per_block):
    for plane in range(block * per_block, min((block + 1) * per_block, planes)):
        target = y[plane * size : (plane + 1) * size]
        target[:] = 0
        for k in range(plane * each, (plane + 1) * each):
            place = indices[k]
            if 0 <= place < size:
                target[place] += x[k]


def plane_scatter(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    (x, indices), (y,) = inputs, outputs
    blocks, per_block = _cut(x, y)
    size, each = y.shape[2] * y.shape[3], x.shape[2] * x.shape[3]
    _scatter(blocks, x, indices, y, size, each, y.shape[0] * y.shape[1], per_block)


# ---------------------------------------------------------------------------------------------------------
# Means
# ---------------------------------------------------------------------------------------------------------


@jitable
def _means_inside(x, y, numbers, tile, divisor, back):
    """y = means of the windows of x; or, if `back`, x += the shares of y in what they are means of."""
    width, columns, kernel_h, kernel_w = numbers[1], numbers[3], numbers[4], numbers[5]
    down, across = numbers[6] * width, numbers[7]  # from window to window
    top, bottom, left, right, at_once = numbers[12], numbers[13], numbers[14], numbers[15], numbers[16]
    corner = left * across - numbers[8] * width - numbers[9]
    count = y.dtype.type(divisor if divisor != 0 else kernel_h * kernel_w)
    for p in range(top, bottom, at_once):
        rows = min(at_once, bottom - p)
        start, n = corner + p * down, (rows - 1) * down + (right - left - 1) * across + 1
        total = part(tile, 0, n)
        if back:
            for k in range(n):
                total[k] = 0
            for r in range(rows):
                for q in range(right - left):
                    total[r * down + q * across] = y[(p + r) * columns + left + q] / count
        for i in range(kernel_h):
            for j in range(kernel_w):
                elements = part(x, start + i * width + j, n)
                if back:
                    add_row(total, elements)
                elif i + j == 0:
                    copy_row(elements, total)
                else:
                    add_row(elements, total)
        if not back:
            for r in range(rows):
                for q in range(right - left):
                    y[(p + r) * columns + left + q] = total[r * down + q * across] / count


@block_kernel
def _mean_pool(block, x, y, numbers, planes, per_block, include_pad, divisor, back):
    """y = means of the windows of x; or, if `back`, x = the shares of y in what they are means of."""
    tile = scratch(_TILE, x.dtype)
    height, width, rows, columns = numbers[0], numbers[1], numbers[2], numbers[3]
    kernel_h, kernel_w, stride_h, stride_w = numbers[4], numbers[5], numbers[6], numbers[7]
    padding_h, padding_w = numbers[8], numbers[9]
    top, bottom, before, after = numbers[12], numbers[13], numbers[14], numbers[15]
    windows = rows * columns
    for plane in range(block * per_block, min((block + 1) * per_block, planes)):
        source, means = part(x, plane * height * width, height * width), part(y, plane * windows, windows)
        if back:
            source[:] = 0
        _means_inside(source, means, numbers, tile, divisor, back)
        if (bottom - top) * (after - before) == windows:
            continue
        for p in range(rows):
            h, first, last = _range(p, stride_h, padding_h, kernel_h, 1, height)
            for q in range(columns):
                if top <= p < bottom and before <= q < after:
                    continue
                w, left, right = _range(q, stride_w, padding_w, kernel_w, 1, width)
                count = divisor
                if include_pad and divisor == 0:
                    count = (min(h + kernel_h, height + padding_h) - h) * (min(w + kernel_w, width + padding_w) - w)
                elif divisor == 0:
                    count = (last - first) * (right - left)
                out = p * columns + q
                share = means[out] / y.dtype.type(count) if back else y.dtype.type(0)
                total = y.dtype.type(0)
                for i in range(first, last):
                    line = (h + i) * width + w
                    if back:
                        for at in range(line + left, line + right):
                            source[at] += share
                    else:
                        total += sum_of_row(source, line + left, right - left)
                if not back:
                    means[out] = total / y.dtype.type(count)


def _mean(x: np.ndarray, y: np.ndarray, attrs: Attrs, back: int) -> None:
    blocks, per_block = _cut(x, y)
    numbers = _numbers(_windows(dict(attrs)), x.shape[2:])
    include, divisor = int(attrs["count_include_pad"]), attrs["divisor"] or 0
    _mean_pool(blocks, x, y, numbers, x.shape[0] * x.shape[1], per_block, include, divisor, back)


def avg_pool2d(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _mean(inputs[0], outputs[0], attrs, 0)


def avg_pool2d_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _mean(outputs[0], inputs[0], attrs, 1)
