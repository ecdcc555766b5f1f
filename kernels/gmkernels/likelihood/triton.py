"""Log-likelihoods in Triton: a program sums some rows, or a part of a long one; the gradient is cut into tiles.

The errors of the exponential (see `gmkernels.elementary_triton`) fit the tolerances: a term of the sum is m |l| +
log(1 + z), z = exp(-|l|), where z is off by (1 + |l|) 1e-7, relative. Where m is 0 that is what the term is off by, at
most 5e-6 before z vanishes at |l| = 87. A slope is off by z (1 + |l|) 1e-7 < 2e-7, absolute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import triton
import triton.language as tl

from gmkernels import launch
from gmkernels.elementary_triton import log1p_unit, widened
from gmkernels.likelihood.spec import GPU_CHUNK, chunks
from gmkernels.reduce.triton import add_up

Arrays = Sequence[Any]

_TILE = 1024
"""Elements that a program of the sums holds at a time."""
_FEW_ROWS = 2048
"""Below this many, a program takes as few rows as it can, so that there are more programs."""
_CHOICES = launch.Choices(
    "bernoulli_log_prob_backward.triton",
    (
        {"rows": 16, "columns": 128, "warps": 4}, {"rows": 8, "columns": 128, "warps": 4},
        {"rows": 4, "columns": 256, "warps": 4}, {"rows": 32, "columns": 128, "warps": 8},
    ),
    (1 << 20,),
)  # fmt: skip


@triton.jit(do_not_specialize=["rows", "x_rows", "length", "parts"])
def _log_prob(
    logits, x, sums, rows, x_rows, length, parts,
    UNIT: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """sums[row, part] = log p of a part of CHUNK elements of a row; `length` is in multiples of UNIT."""
    length *= UNIT
    program = tl.program_id(0)
    part = program % parts
    row = (program // parts).to(length.dtype) * ROWS + tl.arange(0, ROWS)
    x_row = row % x_rows
    last = tl.minimum((part + 1) * CHUNK, length)
    total = widened(tl.zeros((ROWS, COLUMNS), logits.dtype.element_ty))
    for start in range(part * CHUNK, last, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = (row[:, None] < rows) & (column[None, :] < last)
        logit = widened(tl.load(logits + row[:, None] * length + column[None, :], mask, 0.0))
        label = widened(tl.load(x + x_row[:, None] * length + column[None, :], mask, 0.0))
        size = tl.abs(logit)
        missed = tl.where(logit > 0, 1 - label, label)
        # An infinite logit that is right costs nothing; NaN stays in the logarithm.
        cost = tl.where(missed == 0, 0.0, missed * size) + log1p_unit(tl.exp(-size))
        total += tl.where(mask, cost, 0.0)
    tl.store(sums + row * parts + part, (0 - tl.sum(total, axis=1)).to(sums.dtype.element_ty), row < rows)


@triton.jit(do_not_specialize=["rows", "x_rows", "length", "strips"])
def _log_prob_backward(
    g, logits, x, d_logits, rows, x_rows, length, strips,
    UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    length *= UNIT
    program = tl.program_id(0)
    row = (program // strips).to(length.dtype) * ROWS + tl.arange(0, ROWS)
    column = program % strips * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row[:, None] < rows) & (column[None, :] < length)
    at = row[:, None] * length + column[None, :]
    logit = widened(tl.load(logits + at, mask, 0.0))
    label = widened(tl.load(x + (row % x_rows)[:, None] * length + column[None, :], mask, 0.0))
    factor = widened(tl.load(g + row, row < rows, 0.0))
    z = tl.exp(-tl.abs(logit))
    slope = tl.where(logit > 0, label * z - (1 - label), label - (1 - label) * z) / (1 + z)
    tl.store(d_logits + at, (factor[:, None] * slope).to(d_logits.dtype.element_ty), mask)


def _sizes(logits: Any, x: Any) -> tuple[int, int, int, int]:
    """Rows of the logits and of x, their length, and the elements of a 128-bit access that rows start at."""
    length = logits.shape[-1]
    return logits.size // length, x.size // length, length, math.gcd(length, 16 // logits.itemsize)


def bernoulli_log_prob(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    logits, x = inputs
    (log_prob,) = outputs
    if log_prob.size == 0:
        return
    if logits.size == 0:
        log_prob.fill(0)  # sums of nothing
        return
    rows, x_rows, length, unit = _sizes(logits, x)
    parts = chunks(length, GPU_CHUNK)
    columns = min(triton.next_power_of_2(length), _TILE if rows < _FEW_ROWS else 128)
    per_program = _TILE // columns
    sums = workspace[0] if parts > 1 else log_prob
    launch.triton(
        _log_prob,
        (triton.cdiv(rows, per_program) * parts,),
        (logits, x, sums, rows, x_rows, length // unit, parts),
        {"UNIT": unit, "CHUNK": GPU_CHUNK, "ROWS": per_program, "COLUMNS": columns},
    )
    if parts > 1:
        add_up(sums, rows, parts, 1, log_prob)


def bernoulli_log_prob_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    g, logits, x = inputs
    if logits.size == 0:
        return
    rows, x_rows, length, unit = _sizes(logits, x)
    choice = _CHOICES.at(logits.size)
    columns = min(triton.next_power_of_2(length), choice["columns"])
    per_program = choice["rows"] * choice["columns"] // columns
    strips = triton.cdiv(length, columns)
    launch.triton(
        _log_prob_backward,
        (triton.cdiv(rows, per_program) * strips,),
        (g, logits, x, outputs[0], rows, x_rows, length // unit, strips),
        {"UNIT": unit, "ROWS": per_program, "COLUMNS": columns},
        warps=choice["warps"],
    )
