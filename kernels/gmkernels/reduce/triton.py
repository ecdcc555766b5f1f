"""Sums over axes in Triton, stage by stage (`spec.stages` with the cut for GPUs).

A stage reads an array (outer, length, inner) and adds up along its middle axis, or along the pieces of that. Where
inner is 1, a program sums some whole rows (or a piece of them), lanes along the row. Elsewhere its lanes go along
inner, and rows are added to totals in registers. Everything is added in float64: the conversions and additions of an
element take a fraction of the time of its bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import triton
import triton.language as tl

from gmkernels import launch
from gmkernels.reduce.spec import GPU, Stage, broadcast_axes, stages

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]

_TILE = 2048
"""Elements that a program holds at a time: 16 of each of its 128 threads, four 128-bit loads of float32."""
_WIDEST = 1024


@triton.jit(do_not_specialize=["outer", "length", "piece", "pieces"])
def _sum_rows(x, y, outer, length, piece, pieces, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """y[o, p] = the sum of x[o, p piece : (p + 1) piece]; `length` and `piece` are in multiples of UNIT."""
    length *= UNIT
    piece *= UNIT
    program = tl.program_id(0)
    number = program % pieces
    rows = (program // pieces).to(length.dtype) * ROWS + tl.arange(0, ROWS)
    first, last = number * piece, tl.minimum((number + 1) * piece, length)
    total = tl.zeros((ROWS, COLUMNS), tl.float64)
    for start in range(first, last, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        mask = (rows[:, None] < outer) & (columns[None, :] < last)
        total += tl.load(x + rows[:, None] * length + columns[None, :], mask, 0.0).to(tl.float64)
    tl.store(y + rows * pieces + number, tl.sum(total, axis=1).to(y.dtype.element_ty), rows < outer)


@triton.jit(do_not_specialize=["length", "inner", "piece", "pieces", "strips"])
def _sum_columns(
    x, y, length, inner, piece, pieces, strips, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """y[o, p, j] = the sum of x[o, p piece : (p + 1) piece, j]; `inner` is in multiples of UNIT."""
    inner *= UNIT
    program = tl.program_id(0)
    strip, rest = program % strips, program // strips
    number, block = rest % pieces, (rest // pieces).to(inner.dtype)
    columns = strip * COLUMNS + tl.arange(0, COLUMNS)
    first, last = number * piece, tl.minimum((number + 1) * piece, length)
    total = tl.zeros((ROWS, COLUMNS), tl.float64)
    for start in range(first, last, ROWS):
        rows = start + tl.arange(0, ROWS)
        mask = (rows[:, None] < last) & (columns[None, :] < inner)
        at = (block * length + rows)[:, None] * inner + columns[None, :]
        total += tl.load(x + at, mask, 0.0).to(tl.float64)
    tl.store(
        y + (block * pieces + number) * inner + columns, tl.sum(total, axis=0).to(y.dtype.element_ty), columns < inner
    )


def add_stage(stage: Stage, x: Any, y: Any) -> None:
    """y = the sums of the pieces of a contiguous array along its middle axis, in one launch.

    Parameters
    ----------
    stage : how they are cut: of three axes.
    x : of its shape.
    y : of as many elements as it leaves.
    """
    (outer, length, inner), _, piece, pieces = stage
    if outer * inner == 0:
        return
    vector = 16 // x.itemsize
    if inner == 1:
        columns = min(triton.next_power_of_2(max(piece, 1)), _WIDEST)
        rows = min(triton.next_power_of_2(outer), _TILE // columns)
        unit = math.gcd(length, piece, vector)
        grid = triton.cdiv(outer, rows) * pieces
        arguments: tuple[Any, ...] = (x, y, outer, length // unit, piece // unit, pieces)
        launch.triton(_sum_rows, (grid,), arguments, {"UNIT": unit, "ROWS": rows, "COLUMNS": columns})
        return
    columns = min(triton.next_power_of_2(inner), GPU.strip)
    strips = triton.cdiv(inner, columns)
    rows = min(triton.next_power_of_2(max(piece, 1)), _TILE // columns)
    unit = math.gcd(inner, vector)
    arguments = (x, y, length, inner // unit, piece, pieces, strips)
    launch.triton(_sum_columns, (strips * pieces * outer,), arguments, {"UNIT": unit, "ROWS": rows, "COLUMNS": columns})


def _sum_over(axes: tuple[int, ...], x: Any, y: Any, workspace: Arrays) -> None:
    for stage, target in zip(stages(x.shape, axes, True, GPU), (*workspace, y), strict=True):
        add_stage(stage, x, target)
        x = target


def add_up(x: Any, outer: int, length: int, inner: int, y: Any) -> None:
    """y = the sums of a contiguous array (outer, length, inner) along its middle axis, in one launch: of partial sums.

    Parameters
    ----------
    x : of outer length inner elements.
    outer, length, inner : its shape.
    y : of outer inner elements.
    """
    add_stage(Stage((outer, length, inner), 1, length, 1), x, y)


def sum(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _sum_over(attrs["axis"], inputs[0], outputs[0], workspace)


def sum_to(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _sum_over(broadcast_axes(inputs[0].shape, attrs["shape"]), inputs[0], outputs[0], workspace)
