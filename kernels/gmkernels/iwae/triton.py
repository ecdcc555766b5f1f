"""The importance-weighted bound in Triton.

The array is (outer, samples, inner). A program has a tile of neighbouring columns (or of rows, where inner is 1) and
goes through the samples, or a piece of them, a few at a time: each step raises the highest so far and scales what was
summed before (Milakov & Gimelshein, arXiv:1805.02867), so log_w is read once. Sums of pieces are joined by a second
kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import triton
import triton.language as tl

from gmkernels import launch
from gmkernels.elementary_triton import number_of, widened
from gmkernels.iwae.spec import gpu_pieces, split

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]


@triton.jit
def _difference(x, highest):
    """x - highest; 0 where they are equal, be they infinite."""
    return tl.where(x != highest, x - highest, 0.0)


@triton.jit
def _add(x, highest, total, AXIS: tl.constexpr):
    """Raise `highest` to what x has along AXIS, and add the exponentials of x to `total`, which is relative to it.

    A NaN is in the total alone.
    """
    top = tl.maximum(tl.max(x, axis=AXIS, keep_dims=True), highest)
    terms = tl.sum(tl.exp(_difference(x, top)), axis=AXIS, keep_dims=True)
    return top, total * tl.exp(_difference(highest, top)).to(total.dtype) + terms.to(total.dtype)


@triton.jit
def _finish(total, highest, samples, at, mask, bound, peak, scale):
    """Store the bound, the highest sample, and what makes weights of exponentials."""
    highest = tl.where(total == total, highest, float("nan"))
    log_mean = tl.log(total / samples).to(highest.dtype)
    tl.store(bound + at, highest + log_mean, mask=mask)
    tl.store(peak + at, highest, mask=mask)
    tl.store(scale + at, tl.where(highest == float("-inf"), 0.0, (1.0 / total).to(highest.dtype)), mask=mask)


# Programs are (tiles of COLUMNS columns, pieces of the samples). Where ROWS, inner is 1: a tile is (COLUMNS, SAMPLES),
# and UNIT divides `samples` and `piece`; elsewhere it is (SAMPLES, COLUMNS), and UNIT divides `inner`. Launchers pass
# these numbers divided by it, so that the compiler knows what is aligned. Where UNIT is 1, kernels say that two columns
# are neighbours: warps go along them (see gmkernels.conv.triton).


@triton.jit
def _tile(COLUMNS: tl.constexpr, SAMPLES: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """The columns of this program, and 0, 1, ... along the samples."""
    column = tl.arange(0, COLUMNS)
    if WIDE:
        column = column.to(tl.int64)
    column += number_of(0, WIDE) * COLUMNS
    k = tl.arange(0, SAMPLES)
    if ROWS:
        column, k = column[:, None], k[None, :]
    else:
        column, k = column[None, :], k[:, None]
    return column, k


@triton.jit
def _first(column, samples, inner, ROWS: tl.constexpr, UNIT: tl.constexpr):
    """The offset of the first sample of columns."""
    if ROWS:
        first = column * samples
    else:
        first = tl.max_constancy(column // inner, (1, UNIT)) * ((samples - 1) * inner) + column
    return first


@triton.jit
def _offset(first, k, inner, ROWS: tl.constexpr):
    """The offset of samples k."""
    if ROWS:
        offset = first + k
    else:
        offset = first + k * inner
    return offset


@triton.jit(do_not_specialize=["samples", "inner", "columns", "piece"])
def _bound(
    log_w, bound, peak, scale, tops, totals, samples, inner, columns, piece,
    UNIT: tl.constexpr, COLUMNS: tl.constexpr, SAMPLES: tl.constexpr, ROWS: tl.constexpr, JOIN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    if ROWS:
        samples *= UNIT
        piece *= UNIT
    else:
        inner *= UNIT
        columns *= UNIT
    AXIS: tl.constexpr = 1 if ROWS else 0
    column, k = _tile(COLUMNS, SAMPLES, ROWS, WIDE)
    first = _first(column, samples, inner, ROWS, UNIT)
    begin = number_of(1, WIDE) * piece
    end = tl.minimum(begin + piece, samples)
    if ROWS:
        end = tl.multiple_of(end, UNIT)
    exists = column < columns
    REAL: tl.constexpr = tl.float64 if log_w.dtype.element_ty == tl.float64 else tl.float32
    highest = tl.full(column.shape, float("-inf"), REAL)
    total = tl.zeros(column.shape, tl.float64)
    for at in range(begin, end, SAMPLES):
        source = log_w + _offset(first, at + k, inner, ROWS)
        if UNIT == 1 and not ROWS:
            source = tl.max_contiguous(source, (1, 2))
        x = tl.load(source, mask=exists & (k < end - at), other=float("-inf"))
        highest, total = _add(widened(x), highest, total, AXIS)
    if JOIN:
        of_piece = number_of(1, WIDE) * columns + column
        tl.store(tops + of_piece, highest, mask=exists)
        tl.store(totals + of_piece, total, mask=exists)
    else:
        _finish(total, highest, samples, column, exists, bound, peak, scale)


@triton.jit(do_not_specialize=["samples", "columns", "pieces"])
def _join(
    tops, totals, bound, peak, scale, samples, columns, pieces,
    COLUMNS: tl.constexpr, PIECES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A program for COLUMNS columns: their sums from those of the pieces, (pieces, columns)."""
    column = number_of(0, WIDE) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    piece = tl.arange(0, PIECES)[:, None]
    exists = column < columns
    mask = exists & (piece < pieces)
    top = tl.load(tops + piece * columns + column, mask=mask, other=float("-inf"))
    of_piece = tl.load(totals + piece * columns + column, mask=mask, other=0)
    highest = tl.max(top, axis=0, keep_dims=True)
    total = tl.sum(of_piece * tl.exp(_difference(top, highest)).to(tl.float64), axis=0, keep_dims=True)
    _finish(total, highest, samples, column, exists, bound, peak, scale)


@triton.jit(do_not_specialize=["samples", "inner", "columns", "piece"])
def _backward(
    g, log_w, peak, scale, d, samples, inner, columns, piece,
    UNIT: tl.constexpr, COLUMNS: tl.constexpr, SAMPLES: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    if ROWS:
        samples *= UNIT
        piece *= UNIT
    else:
        inner *= UNIT
        columns *= UNIT
    column, k = _tile(COLUMNS, SAMPLES, ROWS, WIDE)
    first = _first(column, samples, inner, ROWS, UNIT)
    exists = column < columns
    highest = widened(tl.load(peak + column, mask=exists, other=0))
    factor = widened(tl.load(g + column, mask=exists, other=0)) * widened(tl.load(scale + column, mask=exists, other=0))
    begin = number_of(1, WIDE) * piece
    end = tl.minimum(begin + piece, samples)
    if ROWS:
        end = tl.multiple_of(end, UNIT)
    for at in range(begin, end, SAMPLES):
        offset, mask = _offset(first, at + k, inner, ROWS), exists & (k < end - at)
        source, target = log_w + offset, d + offset
        if UNIT == 1 and not ROWS:
            source, target = tl.max_contiguous(source, (1, 2)), tl.max_contiguous(target, (1, 2))
        x = widened(tl.load(source, mask=mask, other=0))
        tl.store(target, factor * tl.exp(_difference(x, highest)), mask=mask)


BOUND = launch.Choices(
    "iwae_bound.triton",
    ({"tile": 2048, "warps": 4}, {"tile": 4096, "warps": 4}, {"tile": 4096, "warps": 8}, {"tile": 1024, "warps": 4}),
    classes=(1 << 20,),
)  # fmt: skip
BACKWARD = launch.Choices("iwae_bound_backward.triton", BOUND.candidates, classes=(1 << 20,))
_MOST_PIECES = 65535
"""Programs along the second axis of a grid."""


def _grid(
    shape: Sequence[int], itemsize: int, piece: int, tile: int
) -> tuple[tuple[int, int], tuple[int, int, int, int], dict[str, Any]]:
    """Grid, numbers and constants of a launch for (outer, samples, inner) in pieces of so many samples."""
    outer, samples, inner = shape
    columns, rows, vector = outer * inner, inner == 1, 16 // itemsize
    unit = math.gcd(samples, piece, vector) if rows else math.gcd(inner, vector)
    if rows:
        at_once = min(triton.next_power_of_2(piece), 1024, tile)
        side = min(triton.next_power_of_2(columns), tile // at_once)
        numbers = (samples // unit, inner, columns, piece // unit)
    else:
        side = min(triton.next_power_of_2(columns), max(tile // 4, 64))
        at_once = min(triton.next_power_of_2(piece), tile // side)
        numbers = (samples, inner // unit, columns // unit, piece)
    constants = {"UNIT": unit, "COLUMNS": side, "SAMPLES": at_once, "ROWS": rows}
    return (-(-columns // side), -(-samples // piece)), numbers, constants


def iwae_bound(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    (log_w,) = inputs
    bound = outputs[0]
    if not bound.size:
        return
    shape = split(log_w.shape, attrs["axis"])
    choice = BOUND.at(log_w.size)
    pieces, piece = gpu_pieces(*shape)
    grid, numbers, constants = _grid(shape, log_w.itemsize, piece, choice["tile"])
    parts = tuple(workspace) or (None, None)
    constants["JOIN"] = pieces > 1
    launch.triton(_bound, grid, (log_w, *outputs, *parts, *numbers), constants, warps=choice["warps"])
    if pieces > 1:
        height = triton.next_power_of_2(pieces)
        width = min(triton.next_power_of_2(bound.size), max(1, choice["tile"] // height))
        constants = {"COLUMNS": width, "PIECES": height}
        arguments = (*workspace, *outputs, shape[1], bound.size, pieces)
        launch.triton(_join, (-(-bound.size // width),), arguments, constants, warps=4)


def iwae_bound_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    log_w = inputs[1]
    if not log_w.size:
        return
    shape = split(log_w.shape, attrs["axis"])
    choice = BACKWARD.at(log_w.size)
    shortest = 16 if shape[2] > 1 else 1024
    piece = shortest * triton.cdiv(shape[1], shortest * _MOST_PIECES)
    grid, numbers, constants = _grid(shape, log_w.itemsize, piece, choice["tile"])
    launch.triton(_backward, grid, (*inputs, *outputs, *numbers), constants, warps=choice["warps"])
