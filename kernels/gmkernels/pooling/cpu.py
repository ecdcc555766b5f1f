"""Pooling in Numba: a block takes whole planes, a window after the other."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.pool import block_kernel, jitable
from gmkernels.pooling.spec import Pair, Windows, _windows

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]

_BLOCK = 1 << 14  # elements of the larger planes in a block


def _cut(*arrays: np.ndarray) -> tuple[int, int]:
    """Number of blocks, and of planes in each."""
    planes = arrays[0].shape[0] * arrays[0].shape[1]
    per_block = max(1, _BLOCK // max(1, *(a.size // max(1, planes) for a in arrays)))
    return -(-planes // per_block), per_block


@functools.lru_cache(1024)
def _numbers(w: Windows, size: Pair) -> np.ndarray:
    return np.array([*size, *w.number(size), *w.kernel, *w.stride, *w.padding, *w.dilation], np.int64)


@jitable
def _range(at, stride, padding, kernel, dilation, size):
    """First element of a window along an axis that is in the plane, and one past the last."""
    start = at * stride - padding
    first = 0 if start >= 0 else (dilation - 1 - start) // dilation
    last = min(kernel, (size - 1 - start) // dilation + 1)
    return start, first, last


@block_kernel
def _max_pool(block, x, y, indices, numbers, planes, per_block):
    height, width, rows, columns = numbers[0], numbers[1], numbers[2], numbers[3]
    kernel_h, kernel_w, stride_h, stride_w = numbers[4], numbers[5], numbers[6], numbers[7]
    padding_h, padding_w, dilation_h, dilation_w = numbers[8], numbers[9], numbers[10], numbers[11]
    for plane in range(block * per_block, min((block + 1) * per_block, planes)):
        source = x[plane * height * width : (plane + 1) * height * width]
        out = plane * rows * columns
        for p in range(rows):
            h, first, last = _range(p, stride_h, padding_h, kernel_h, dilation_h, height)
            for q in range(columns):
                w, left, right = _range(q, stride_w, padding_w, kernel_w, dilation_w, width)
                place = (h + first * dilation_h) * width + w + left * dilation_w
                best = source[place]
                for i in range(first, last):
                    for j in range(left, right):
                        at = (h + i * dilation_h) * width + w + j * dilation_w
                        value = source[at]
                        if value > best or (value != value and best == best):  # noqa: PLR0124
                            best, place = value, at
                y[out] = best
                indices[out] = place
                out += 1


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


@block_kernel
def _mean_pool(block, x, y, numbers, planes, per_block, include_pad, divisor, back):
    """y = means of the windows of x; or, if `back`, x = the shares of y in what they are means of."""
    height, width, rows, columns = numbers[0], numbers[1], numbers[2], numbers[3]
    kernel_h, kernel_w, stride_h, stride_w = numbers[4], numbers[5], numbers[6], numbers[7]
    padding_h, padding_w = numbers[8], numbers[9]
    for plane in range(block * per_block, min((block + 1) * per_block, planes)):
        source = x[plane * height * width : (plane + 1) * height * width]
        out = plane * rows * columns
        if back:
            source[:] = 0
        for p in range(rows):
            h, first, last = _range(p, stride_h, padding_h, kernel_h, 1, height)
            for q in range(columns):
                w, left, right = _range(q, stride_w, padding_w, kernel_w, 1, width)
                count = divisor
                if include_pad and divisor == 0:
                    count = (min(h + kernel_h, height + padding_h) - h) * (min(w + kernel_w, width + padding_w) - w)
                elif divisor == 0:
                    count = (last - first) * (right - left)
                share = y[out] / y.dtype.type(count) if back else y.dtype.type(0)
                total = y.dtype.type(0)
                for i in range(first, last):
                    line = (h + i) * width + w
                    if back:
                        for at in range(line + left, line + right):
                            source[at] += share
                    else:
                        for at in range(line + left, line + right):
                            total += source[at]
                if not back:
                    y[out] = total / y.dtype.type(count)
                out += 1


def _mean(x: np.ndarray, y: np.ndarray, attrs: Attrs, back: int) -> None:
    blocks, per_block = _cut(x, y)
    numbers = _numbers(_windows(dict(attrs)), x.shape[2:])
    include, divisor = int(attrs["count_include_pad"]), attrs["divisor"] or 0
    _mean_pool(blocks, x, y, numbers, x.shape[0] * x.shape[1], per_block, include, divisor, back)


def avg_pool2d(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _mean(inputs[0], outputs[0], attrs, 0)


def avg_pool2d_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _mean(outputs[0], inputs[0], attrs, 1)
