"""Softmax of rows in Triton: a program holds some short rows, or goes over a long one twice.

A number that is no class cannot be refused without waiting for the device: its loss and its gradient are NaN.

A probability is exp(l - top) / total, whose exponential is off by (1 + d) 1e-7, relative, at a difference d: of the
probability, which is at most exp(-d), that is below 2e-7, absolute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import triton
import triton.language as tl

from gmkernels import launch
from gmkernels.elementary_triton import widened

Arrays = Sequence[Any]

_LONGEST = 4096
"""Classes of a row that a program holds in registers."""
_TILE = 2048
_CHOICES = launch.Choices(
    "softmax_cross_entropy_backward.triton",
    (
        {"rows": 16, "columns": 128, "warps": 4}, {"rows": 8, "columns": 128, "warps": 4},
        {"rows": 4, "columns": 256, "warps": 4}, {"rows": 32, "columns": 128, "warps": 8},
    ),
    (1 << 20,),
)  # fmt: skip


@triton.jit
def _shift_of(top):
    """What is taken from the logits of a row, so that exponentials do not overflow; a masked row stays as it is."""
    return tl.where(top == -float("inf"), 0.0, top)


@triton.jit
def _store_loss(loss, logits, target, row, inside, classes, shift, total):
    """loss = log(total) - (the logit of the target - shift)."""
    chosen = tl.load(target + row, inside, 0)
    fits = (chosen >= 0) & (chosen < classes)
    logit = widened(tl.load(logits + row * classes + chosen, inside & fits, float("nan")))
    tl.store(loss + row, (tl.log(total) - (logit - shift)).to(loss.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["rows", "classes"])
def _short_rows(
    logits, target, loss, probabilities, rows, classes,
    UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    classes *= UNIT
    row = tl.program_id(0).to(classes.dtype) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = row < rows
    mask = inside[:, None] & (column[None, :] < classes)
    at = row[:, None] * classes + column[None, :]
    x = widened(tl.load(logits + at, mask, -float("inf")))
    shift = _shift_of(tl.max(x, axis=1))
    e = tl.exp(x - shift[:, None])
    total = tl.sum(e, axis=1)
    total = tl.where(total == 0, 1.0, total)
    tl.store(probabilities + at, (e / total[:, None]).to(probabilities.dtype.element_ty), mask)
    _store_loss(loss, logits, target, row, inside, classes, shift, total)


@triton.jit(do_not_specialize=["classes"])
def _long_row(logits, target, loss, probabilities, classes, UNIT: tl.constexpr, COLUMNS: tl.constexpr):
    """Each lane keeps the largest logit that it has seen, and its sum of exponentials over that."""
    classes *= UNIT
    row = tl.program_id(0).to(classes.dtype)
    logits_row, probabilities_row = logits + row * classes, probabilities + row * classes
    largest = tl.full((COLUMNS,), -float("inf"), widened(tl.zeros((), logits.dtype.element_ty)).dtype)
    sums = tl.zeros_like(largest)
    for start in range(0, classes, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        x = widened(tl.load(logits_row + column, column < classes, -float("inf")))
        larger = tl.maximum(largest, x)
        shift = _shift_of(larger)
        sums = sums * tl.exp(largest - shift) + tl.exp(x - shift)
        largest = larger
    shift = _shift_of(tl.max(largest, axis=0))
    total = tl.sum(sums * tl.exp(largest - shift), axis=0)
    total = tl.where(total == 0, 1.0, total)
    for start in range(0, classes, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        x = widened(tl.load(logits_row + column, column < classes, 0.0))
        p = tl.exp(x - shift) / total
        tl.store(probabilities_row + column, p.to(probabilities.dtype.element_ty), column < classes)
    _store_loss(loss, logits, target, row, row >= 0, classes, shift, total)


@triton.jit(do_not_specialize=["rows", "classes", "strips"])
def _backward(
    g, probabilities, target, d_logits, rows, classes, strips,
    UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    classes *= UNIT
    program = tl.program_id(0)
    row = (program // strips).to(classes.dtype) * ROWS + tl.arange(0, ROWS)
    column = program % strips * COLUMNS + tl.arange(0, COLUMNS)
    inside = row < rows
    mask = inside[:, None] & (column[None, :] < classes)
    at = row[:, None] * classes + column[None, :]
    chosen = tl.load(target + row, inside, 0)
    factor = widened(tl.load(g + row, inside, 0.0))
    factor = tl.where((chosen >= 0) & (chosen < classes), factor, float("nan"))[:, None]
    scaled = factor * widened(tl.load(probabilities + at, mask, 0.0))
    d = tl.where(column[None, :] == chosen[:, None], scaled - factor, scaled)
    tl.store(d_logits + at, d.to(d_logits.dtype.element_ty), mask)


def softmax_cross_entropy(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    logits, target = inputs
    loss, probabilities = outputs
    rows, classes = logits.shape
    if logits.size == 0:
        loss.fill(float("nan"))  # of no classes; if there are rows at all
        return
    unit = math.gcd(classes, 16 // logits.itemsize)
    if classes <= _LONGEST:
        columns = triton.next_power_of_2(classes)
        per_program = min(max(1, _TILE // columns), triton.next_power_of_2(rows))
        launch.triton(
            _short_rows,
            (triton.cdiv(rows, per_program),),
            (logits, target, loss, probabilities, rows, classes // unit),
            {"UNIT": unit, "ROWS": per_program, "COLUMNS": columns},
            warps=4 if columns <= _TILE else 8,
        )
    else:
        arguments = (logits, target, loss, probabilities, classes // unit)
        launch.triton(_long_row, (rows,), arguments, {"UNIT": unit, "COLUMNS": _LONGEST}, warps=8)


def softmax_cross_entropy_backward(
    inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]
) -> None:
    g, probabilities, target = inputs
    rows, classes = probabilities.shape
    if probabilities.size == 0:
        return
    choice = _CHOICES.at(probabilities.size)
    unit = math.gcd(classes, 16 // probabilities.itemsize)
    columns = min(triton.next_power_of_2(classes), choice["columns"])
    per_program = choice["rows"] * choice["columns"] // columns
    strips = triton.cdiv(classes, columns)
    launch.triton(
        _backward,
        (triton.cdiv(rows, per_program) * strips,),
        (g, probabilities, target, outputs[0], rows, classes // unit, strips),
        {"UNIT": unit, "ROWS": per_program, "COLUMNS": columns},
        warps=choice["warps"],
    )
