"""Log-likelihoods in Triton: a program sums some rows, or a part of a long one; the gradient is cut into tiles.

A linear layer's logits are made in tiles that stay on chip (see `gmkernels.dense.triton` for the precision of their
products). The forward pass leaves the sums of a tile's rows. The backward pass makes the tiles again, twice: a program
goes along some rows of h, or along some of the weight, multiplies each tile of residuals with what it has come along,
and so makes the gradient of its rows. Both are one kernel, as are their formulas with h and weight in each other's
place. Residuals of float16 and bfloat16 are multiplied in two parts, r = r1 + r2: what that leaves out is 2^-16 r.

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
from gmkernels.dense.triton import precision
from gmkernels.elementary_triton import log1p_unit, widened
from gmkernels.likelihood.spec import GPU_CHUNK, GPU_COLUMNS, chunks, gpu_backward_workspace
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


@triton.jit
def _cost(logit, label):
    """-log p of an element. An infinite logit that is right costs nothing; NaN stays in the logarithm."""
    size = tl.abs(logit)
    missed = tl.where(logit > 0, 1 - label, label)
    return tl.where(missed == 0, 0.0, missed * size) + log1p_unit(tl.exp(-size))


@triton.jit
def _slope(logit, label):
    """x - sigmoid(l)."""
    z = tl.exp(-tl.abs(logit))
    return tl.where(logit > 0, label * z - (1 - label), label - (1 - label) * z) / (1 + z)


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
        total += tl.where(mask, _cost(logit, label), 0.0)
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
    tl.store(d_logits + at, (factor[:, None] * _slope(logit, label)).to(d_logits.dtype.element_ty), mask)


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


# ---------------------------------------------------------------------------------------------------------
# Of a linear layer whose output is not stored
# ---------------------------------------------------------------------------------------------------------


@triton.jit
def _products(
    a, b, i, j, m, n, k, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr
):
    """The products of rows i of a (m, k) and rows j of b (n, k)."""
    inner = tl.arange(0, DEPTH)
    total = widened(tl.zeros((ROWS, COLUMNS), a.dtype.element_ty))
    a += i[:, None] * k + inner[None, :]
    b += j[None, :] * k + inner[:, None]
    for at in range(0, k, DEPTH):
        left = k - at
        p = tl.load(a, (i[:, None] < m) & (inner[None, :] < left), 0.0)
        q = tl.load(b, (j[None, :] < n) & (inner[:, None] < left), 0.0)
        total = tl.dot(p, q, total, input_precision=PRECISION, out_dtype=total.dtype)
        a += DEPTH
        b += DEPTH
    return total


@triton.jit(do_not_specialize=["rows", "x_rows", "n", "k", "strips"])
def _linear_log_prob(
    h, weight, bias, x, sums, rows, x_rows, n, k, strips,
    N_UNIT: tl.constexpr, K_UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """sums[row, strip] = log p of COLUMNS elements of a row; n and k are in units."""
    n *= N_UNIT
    k *= K_UNIT
    program = tl.program_id(0)
    strip = program % strips
    row = (program // strips).to(k.dtype) * ROWS + tl.arange(0, ROWS)
    column = strip * COLUMNS + tl.arange(0, COLUMNS).to(k.dtype)
    mask = (row[:, None] < rows) & (column[None, :] < n)
    logit = _products(h, weight, row, column, rows, n, k, ROWS, COLUMNS, DEPTH, PRECISION)
    logit += widened(tl.load(bias + column, column < n, 0.0))[None, :]
    label = widened(tl.load(x + (row % x_rows)[:, None] * n + column[None, :], mask, 0.0))
    total = tl.sum(tl.where(mask, _cost(logit, label), 0.0), axis=1)
    tl.store(sums + row * strips + strip, (0 - total).to(sums.dtype.element_ty), row < rows)


@triton.jit(do_not_specialize=["m", "n", "k", "x_rows", "blocks", "slices"])
def _linear_gradient(
    own, other, bias, x, g, out, sums, m, n, k, x_rows, blocks, slices,
    IS_ROWS: tl.constexpr, X_UNIT: tl.constexpr, K_UNIT: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
    DEPTH: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[i] = sum_j r_ij other[j], of some rows i and WIDTH columns, with r = g (x - sigmoid(own other^T + bias)).

    `own` (m, k) is h and `other` (n, k) the weight if IS_ROWS; otherwise they are the weight and h, and sums[i] is
    sum_j r_ij. A part of the sum has `blocks` blocks of OTHER terms. The rows of x, of which there are x_rows, and k
    are in units.
    """
    k *= K_UNIT
    if IS_ROWS:
        n *= X_UNIT
    else:
        m *= X_UNIT
    program, part = tl.program_id(0), tl.program_id(1).to(k.dtype)
    slice = program % slices
    i = (program // slices).to(k.dtype) * OWN + tl.arange(0, OWN)
    column = slice * WIDTH + tl.arange(0, WIDTH)
    if IS_ROWS:
        own_factor = widened(tl.load(g + i, i < m, 0.0))[:, None]
    else:
        own_shift = widened(tl.load(bias + i, i < m, 0.0))[:, None]
    total = widened(tl.zeros((OWN, WIDTH), out.dtype.element_ty))
    found = widened(tl.zeros((OWN,), out.dtype.element_ty))
    first = part * blocks * OTHER
    for at in range(first, tl.minimum(n, first + blocks * OTHER), OTHER):
        j = at + tl.arange(0, OTHER)
        logit = _products(own, other, i, j, m, n, k, OWN, OTHER, DEPTH, PRECISION)
        mask = (i[:, None] < m) & (j[None, :] < n)
        if IS_ROWS:
            logit += widened(tl.load(bias + j, j < n, 0.0))[None, :]
            label = widened(tl.load(x + (i % x_rows)[:, None] * n + j[None, :], mask, 0.0))
            factor = own_factor
        else:
            logit += own_shift
            label = widened(tl.load(x + (j % x_rows)[None, :] * m + i[:, None], mask, 0.0))
            factor = widened(tl.load(g + j, j < n, 0.0))[None, :]
        r = tl.where(mask, factor * _slope(logit, label), 0.0)
        y = tl.load(other + j[:, None] * k + column[None, :], (j[:, None] < n) & (column[None, :] < k), 0.0)
        if y.dtype.primitive_bitwidth == 16:
            high = r.to(y.dtype)
            low = (r - high.to(tl.float32)).to(y.dtype)
            total = tl.dot(high, y, total)
            total = tl.dot(low, y, total)
        else:
            total = tl.dot(r, y, total, input_precision=PRECISION, out_dtype=total.dtype)
        if not IS_ROWS:
            found += tl.sum(r, axis=1)
    mask = (i[:, None] < m) & (column[None, :] < k)
    to = out + (part * m + i)[:, None] * k + column[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask)
    if not IS_ROWS:
        if slice == 0:
            tl.store(sums + part * m + i, found.to(sums.dtype.element_ty), i < m)


def _tile(own: int, other: int, depth: int, width: int, warps: int, stages: int) -> dict[str, int]:
    return {"own": own, "other": other, "depth": depth, "width": width, "warps": warps, "stages": stages}


_FORWARD = {
    itemsize: launch.Choices(
        f"linear_bernoulli_log_prob.{itemsize}.triton",
        tuple(dict(zip(("rows", "depth", "warps", "stages"), values, strict=True)) for values in candidates),
        (1 << 23,),
    )
    for itemsize, candidates in (
        (2, ((64, 64, 4, 3), (128, 64, 4, 3), (128, 32, 4, 4))),
        (4, ((64, 32, 4, 3), (128, 32, 4, 3), (64, 64, 4, 2))),
        (8, ((64, 16, 8, 3), (32, 32, 4, 3))),
    )
}
"""By bytes of an element, and by the number of logits."""
_BACKWARD = {
    itemsize: launch.Choices(f"linear_bernoulli_log_prob_backward.{itemsize}.triton", candidates, (1 << 20,))
    for itemsize, candidates in (
        (2, (_tile(32, 32, 64, 256, 4, 3), _tile(32, 64, 64, 256, 4, 3), _tile(64, 64, 64, 256, 8, 2))),
        (4, (_tile(32, 32, 32, 256, 8, 2), _tile(64, 32, 32, 256, 8, 2), _tile(64, 32, 32, 128, 8, 2))),
        (8, (_tile(32, 32, 16, 128, 8, 2), _tile(32, 32, 16, 128, 4, 2))),
    )
}
"""By bytes of an element, and by the elements of the gradient. The first keep all of their sums in registers."""


def linear_bernoulli_log_prob(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    h, weight, bias, x = inputs
    (log_prob,) = outputs
    n, k = weight.shape
    rows = log_prob.size
    if rows == 0:
        return
    if n == 0:
        log_prob.fill(0)  # sums of nothing
        return
    strips, choice, vector = chunks(n, GPU_COLUMNS), _FORWARD[h.itemsize].at(rows * n), 16 // h.itemsize
    n_unit, k_unit = math.gcd(n, vector), math.gcd(k, vector)
    launch.triton(
        _linear_log_prob,
        (triton.cdiv(rows, choice["rows"]) * strips,),
        (
            h, weight, bias, x, workspace[0] if strips > 1 else log_prob,
            rows, x.size // n, n // n_unit, k // k_unit, strips,
        ),
        {
            "N_UNIT": n_unit, "K_UNIT": k_unit, "ROWS": choice["rows"], "COLUMNS": GPU_COLUMNS,
            "DEPTH": choice["depth"], "PRECISION": precision(h.itemsize),
        },
        warps=choice["warps"],
        stages=choice["stages"],
    )  # fmt: skip
    if strips > 1:
        add_up(workspace[0], rows, strips, 1, log_prob)


def _gradient(
    own: Any, other: Any, bias: Any, x: Any, g: Any, out: Any, sums: Any, x_rows: int, parts: int, is_rows: bool
) -> None:
    (n, k), m = other.shape, len(own)
    choice, vector = _BACKWARD[own.itemsize].at(m * k), 16 // own.itemsize
    x_unit, k_unit = math.gcd(n if is_rows else m, vector), math.gcd(k, vector)
    width = max(16, min(triton.next_power_of_2(k), choice["width"]))
    slices = max(1, triton.cdiv(k, width))  # of no columns there is the sum of r
    m, n = (m, n // x_unit) if is_rows else (m // x_unit, n)
    launch.triton(
        _linear_gradient,
        (triton.cdiv(len(own), choice["own"]) * slices, parts),
        (
            own, other, bias, x, g, out, sums, m, n, k // k_unit, x_rows,
            triton.cdiv(triton.cdiv(len(other), choice["other"]), parts), slices,
        ),
        {
            "IS_ROWS": is_rows, "X_UNIT": x_unit, "K_UNIT": k_unit, "OWN": choice["own"], "OTHER": choice["other"],
            "DEPTH": choice["depth"], "WIDTH": width, "PRECISION": precision(own.itemsize),
        },
        warps=choice["warps"],
        stages=choice["stages"],
    )  # fmt: skip


def linear_bernoulli_log_prob_backward(
    inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]
) -> None:
    """Where the sums over rows are cut into parts, further launches add these."""
    g, h, weight, bias, x = inputs
    d_h, d_weight, d_bias = outputs
    rows, (n, k) = g.size, weight.shape
    if rows * n == 0:
        for empty in outputs:
            empty.fill(0)  # sums of nothing, if there are any
        return
    by_row, x_rows = h.reshape(rows, k), x.size // n
    of_h = len(gpu_backward_workspace(h, weight)[0])
    parts_of_h, parts_of_weight = workspace[:of_h], workspace[of_h:]
    if k > 0:
        parts = len(parts_of_h[0]) if parts_of_h else 1
        _gradient(by_row, weight, bias, x, g, (*parts_of_h, d_h)[0], None, x_rows, parts, True)
    parts = len(parts_of_weight[0]) if parts_of_weight else 1
    made, sums = parts_of_weight or (d_weight, d_bias)
    _gradient(weight, by_row, bias, x, g, made, sums, x_rows, parts, False)
    for found, totals in ((parts_of_h, (d_h,)), (parts_of_weight, (d_weight, d_bias))):
        for part, total in zip(found, totals, strict=False):  # none where there is one
            add_up(part, 1, len(part), total.size, total)
