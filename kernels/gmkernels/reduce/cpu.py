"""Sums over axes in Numba.

A stage (`spec.stages`) adds up along one axis. Its vectors go along that axis, if that is the one whose elements are
neighbours, else along the axis whose elements are: rows of that are added to totals that stay in the cache, four at a
time. A block is one or several tiles: a strip of that axis, or so many sums, in a piece of the axis that is summed.
Float32 is added in float64, which costs nothing where memory is the limit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.pool import block_kernel, jitable, long_loop, part, reduction, scratch
from gmkernels.reduce.spec import BLOCK, STRIP, Stage, broadcast_axes, stages

Arrays = Sequence[np.ndarray]
Attrs = Mapping[str, Any]
Shape = tuple[int, ...]

_RUN = 2048  # terms added in one go, in 16 lanes or more; then their totals

# ---------------------------------------------------------------------------------------------------------
# Compiled
# ---------------------------------------------------------------------------------------------------------


@reduction
def _run(x):
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i])
    return total


@jitable
def _apart(x, start, count, stride):
    total = 0.0
    for i in range(count):
        total += np.float64(x[np.uint64(start + i * stride)])
    return total


@jitable
def _add_four(total, a, b, c, d):
    """total += the sum of four rows, which loads and stores the total once."""
    long_loop()
    for i in range(total.size):
        total[i] += (np.float64(a[i]) + np.float64(b[i])) + (np.float64(c[i]) + np.float64(d[i]))


@jitable
def _by_rows(x, start, count, stride, y, to, sums, apart):
    totals = scratch(STRIP, np.float64)
    total = part(totals, 0, sums)
    for j in range(sums):
        total[j] = 0
    r = 0
    while r + 4 <= count:
        at = start + r * stride
        _add_four(
            total, part(x, at, sums), part(x, at + stride, sums),
            part(x, at + 2 * stride, sums), part(x, at + 3 * stride, sums),
        )  # fmt: skip
        r += 4
    while r < count:
        row = part(x, start + r * stride, sums)
        for j in range(sums):
            total[j] += np.float64(row[j])
        r += 1
    for j in range(sums):
        y[np.uint64(to + j * apart)] = total[j]


@jitable
def _one_by_one(x, start, count, stride, y, to, sums, sums_stride, apart):
    for j in range(sums):
        at, total = start + j * sums_stride, 0.0
        if stride == 1:
            for done in range(0, count, _RUN):
                total += _run(part(x, at + done, min(_RUN, count - done)))
        else:
            total = _apart(x, at, count, stride)
        y[np.uint64(to + j * apart)] = total


@block_kernel
def _sum(block, x, y, numbers):
    """Tiles of a stage; `numbers` is what `_launch` makes. An index may be negative: strides are."""
    tiles, per_block, by_rows, count, stride = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    piece, pieces, apart = numbers[5], numbers[6], numbers[7]
    sums, sums_stride, sums_apart, width, strips = numbers[8], numbers[9], numbers[10], numbers[11], numbers[12]
    for tile in range(block * per_block, min((block + 1) * per_block, tiles)):
        first, rest = tile % strips * width, tile // strips
        number, rest = rest % pieces, rest // pieces
        start, to = number * piece * stride + first * sums_stride, number * apart + first * sums_apart
        for i in range(13, numbers.size, 3):
            at, rest = rest % numbers[i], rest // numbers[i]
            start += at * numbers[i + 1]
            to += at * numbers[i + 2]
        across, terms = min(width, sums - first), min(piece, count - number * piece)
        if by_rows:
            _by_rows(x, start, terms, stride, y, to, across, sums_apart)
        else:
            _one_by_one(x, start, terms, stride, y, to, across, sums_stride, sums_apart)


# ---------------------------------------------------------------------------------------------------------
# Launchers
# ---------------------------------------------------------------------------------------------------------


def _contiguous(shape: Shape) -> Shape:
    """Strides in elements."""
    return tuple([math.prod(shape[i + 1 :]) for i in range(len(shape))])


@functools.lru_cache(1024)
def _launch(stage: Stage, strides: Shape) -> tuple[int, np.ndarray]:
    """Number of blocks of a stage, and its numbers, for a block kernel to unpack."""
    shape, axis, piece, pieces = stage
    kept = [i for i, n in enumerate(shape) if i != axis and n != 1]
    outs = _contiguous(stage.left)
    neighbours = [i for i in kept if strides[i] == 1]
    by_rows = strides[axis] != 1 and bool(neighbours)
    inner = neighbours[-1] if by_rows else kept[-1] if kept else None
    sums, sums_stride, sums_apart = (1, 0, 0) if inner is None else (shape[inner], strides[inner], outs[inner])
    strips = -(-sums // (STRIP if by_rows else max(1, BLOCK // piece)))
    width = -(-sums // max(1, strips))
    outer = [i for i in reversed(kept) if i != inner]
    tiles = math.prod([shape[i] for i in outer]) * pieces * strips
    per_block = max(1, BLOCK // max(1, piece * width))
    numbers = [tiles, per_block, by_rows, shape[axis], strides[axis], piece, pieces, outs[axis]]
    numbers += [sums, sums_stride, sums_apart, width, strips]
    for i in outer:
        numbers += [shape[i], strides[i], outs[i]]
    return -(-tiles // per_block), np.array(numbers, np.int64)


@functools.lru_cache(1024)
def _launches(
    shape: Shape, strides: Shape, itemsize: int, axes: Shape, contiguous: bool
) -> list[tuple[int, np.ndarray]]:
    found: list[tuple[int, np.ndarray]] = []
    for stage in stages(shape, axes, contiguous):
        in_elements = _contiguous(stage.shape)
        if not contiguous and not found:
            in_elements = tuple([s // itemsize for n, s in zip(shape, strides) if n != 1])
            in_elements = (0,) * (len(stage.shape) - len(in_elements)) + in_elements
        found.append(_launch(stage, in_elements))
    return found


def _sum_over(axes: Shape, x: np.ndarray, y: np.ndarray, workspace: Arrays) -> None:
    contiguous = x.flags.c_contiguous
    if any([stride % x.itemsize for stride in x.strides]):  # of a field of records
        x = x.copy()
    launches = _launches(x.shape, x.strides, x.itemsize, axes, contiguous)
    for (blocks, numbers), target in zip(launches, (*workspace, y), strict=True):
        _sum(blocks, x, target, numbers)
        x = target


def add_up(x: np.ndarray, axis: int, y: np.ndarray) -> None:
    """y = the sums of a C-contiguous array along an axis, in one launch: of partial sums, of which there are few."""
    shape = math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :])
    blocks, numbers = _launch(Stage(shape, 1, max(1, shape[1]), 1), _contiguous(shape))
    _sum(blocks, x, y, numbers)


def sum(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _sum_over(attrs["axis"], inputs[0], outputs[0], workspace)


def sum_to(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _sum_over(broadcast_axes(inputs[0].shape, attrs["shape"]), inputs[0], outputs[0], workspace)
