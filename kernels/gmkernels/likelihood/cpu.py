"""Log-likelihoods in Numba.

A block is a range of elements in C order: whole short rows, or a part of a long one. It goes through tiles
that stay in the cache, first element by element without regard to rows, then row by row: so short rows
vectorise too.

A linear layer's logits are made in tiles, whose likelihood is taken while they are in the cache. Where a gradient is
wanted of few rows, tiles are made by BLAS where the residuals x - sigmoid(l) then stay: the one exponential of an
element gives its term of the sum and, over the logit, the residual, so the gradients of the layer are products of the
residual and need no pass over its outputs any more. Otherwise nothing of a tile stays, and tiles are small: their
products take the weight in panels, which are packed once, as BLAS would pack it anew for each of them. The gradient of
many rows makes residuals again, of a part of the rows at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels import blas
from gmkernels.dense.cpu import edge, matmul, operands, product_tile
from gmkernels.dense.panel import pack, product
from gmkernels.dense.tiles import PANEL_BYTES
from gmkernels.elementary import exp, log1p_unit, select
from gmkernels.likelihood.spec import CHUNK, chunks, linear_tiles
from gmkernels.pool import block_kernel, jitable, long_loop, part, scratch
from gmkernels.reduce.cpu import add_up
from gmkernels.rows import scale_row, sum_of

Arrays = Sequence[np.ndarray]

_TILE = 1024


@jitable
def _range(block, size, length):
    """Elements start..stop of a block of rows of that length, the number of its first row, and how many
    elements are added up: those of a row, or all of the block if it is part of a row."""
    if length <= CHUNK:
        rows = CHUNK // length
        start = block * rows * length
        return start, min(start + rows * length, size), block * rows, length
    parts = -(-length // CHUNK)
    row = block // parts
    start = row * length + block % parts * CHUNK
    stop = min(start + CHUNK, (row + 1) * length)
    return start, stop, row, stop - start


def _blocks(size: int, length: int) -> int:
    rows = size // length
    return -(-rows // (CHUNK // length)) if length <= CHUNK else rows * chunks(length)


@jitable
def _costs(logits, x, cost):
    """-log p of each element (see reference.py for the formula)."""
    long_loop()
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for i in range(x.size):
        size = abs(logits[i])
        missed = select(logits[i] > zero, one - x[i], x[i])
        cost[i] = select(missed == zero, zero, missed * size) + log1p_unit(exp(-size))


@jitable
def _slopes(logits, x, slope):
    long_loop()
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for i in range(x.size):
        z = exp(-abs(logits[i]))
        not_x = one - x[i]
        slope[i] = select(logits[i] > zero, x[i] * z - not_x, x[i] - not_x * z) / (one + z)


@block_kernel
def _log_prob(block, logits, x, sums, length):
    start, stop, row, span = _range(block, logits.size, length)
    index = row if span == length else block  # of the row or the part of a row
    cost = scratch(_TILE, logits.dtype)
    total = 0.0
    left = span
    at = start
    while at < stop:
        x_at = at % x.size
        width = min(_TILE, stop - at, x.size - x_at)
        _costs(logits[at : at + width], x[x_at : x_at + width], cost[:width])
        done = 0
        while done < width:
            take = min(left, width - done)
            total += sum_of(cost[done : done + take])
            done += take
            left -= take
            if left == 0:
                sums[index] = -total
                index += 1
                total = 0.0
                left = span
        at += width


@block_kernel
def _add_parts(block, parts, log_prob, per_row):
    for row in range(log_prob.size):
        total = 0.0
        for i in range(per_row):
            total += parts[row * per_row + i]
        log_prob[row] = total


@block_kernel
def _log_prob_backward(block, g, logits, x, d_logits, length):
    start, stop, row, span = _range(block, logits.size, length)
    left = span
    at = start
    while at < stop:
        x_at = at % x.size
        width = min(_TILE, stop - at, x.size - x_at)
        slope = d_logits[at : at + width]
        _slopes(logits[at : at + width], x[x_at : x_at + width], slope)
        done = 0
        while done < width:
            take = min(left, width - done)
            scale_row(slope[done : done + take], g[row])
            done += take
            left -= take
            if left == 0:
                row += 1
                left = span
        at += width


def bernoulli_log_prob(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    logits, x = inputs
    log_prob = outputs[0].reshape(-1)
    length = logits.shape[-1]
    if logits.size == 0:
        log_prob[...] = 0  # sums of nothing, if there are any
    elif length <= CHUNK:
        _log_prob(_blocks(logits.size, length), logits.reshape(-1), x.reshape(-1), log_prob, length)
    else:
        parts = workspace[0].reshape(-1)
        _log_prob(_blocks(logits.size, length), logits.reshape(-1), x.reshape(-1), parts, length)
        _add_parts(1, parts, log_prob, chunks(length))


def bernoulli_log_prob_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    g, logits, x = (a.reshape(-1) for a in inputs)
    length = inputs[1].shape[-1]
    if logits.size:
        _log_prob_backward(_blocks(logits.size, length), g, logits, x, outputs[0].reshape(-1), length)


# ---------------------------------------------------------------------------------------------------------
# Of a linear layer whose output is not stored
# ---------------------------------------------------------------------------------------------------------

_ROWS, _COLUMNS = 80, 128
"""Of a tile of logits: eighty rows are whole tiles of the products, and what lies on the stack fits the L2 cache."""
_LOGITS = _ROWS * _COLUMNS


@block_kernel
def _pack_weight(block, weight, panels, n, k):
    """Columns of weight^T as a panel, where k is not 0."""
    left = block * (PANEL_BYTES // weight.itemsize)
    pack(weight, left * k, True, k, k, min(PANEL_BYTES // weight.itemsize, n - left), panels, left * k)


@jitable
def _add(y, x):
    for i in range(y.size):
        y[i] += x[i]


@block_kernel
def _log_prob_of_layer(block, h, panels, bias, x, log_prob, k):
    top, n = block * _ROWS, bias.size
    rows = min(_ROWS, log_prob.size - top)
    tile, cost, sums = scratch(_LOGITS, h.dtype), scratch(_COLUMNS, h.dtype), scratch(_ROWS, np.float64)
    for r in range(rows):
        sums[r] = 0.0
    for left in range(0, n, _COLUMNS):
        width = min(_COLUMNS, n - left)
        product(h, top * k, k, 1, panels, left * k, k, width, False, tile, 0, _COLUMNS, rows)
        for r in range(rows):
            logits, costs = part(tile, r * _COLUMNS, width), part(cost, 0, width)
            _add(logits, part(bias, left, width))
            _costs(logits, part(x, ((top + r) * n + left) % x.size, width), costs)
            sums[r] += sum_of(costs)
    for r in range(rows):
        log_prob[top + r] = -sums[r]


def linear_bernoulli_log_prob(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    h, weight, bias, x = inputs
    (log_prob,) = outputs
    (panels,) = workspace
    n, k = weight.shape
    if log_prob.size * n == 0:
        log_prob[...] = 0  # sums of nothing, if there are any
        return
    if k > 0:
        _pack_weight(panels.size // k // (PANEL_BYTES // h.itemsize), weight, panels, n, k)
    _log_prob_of_layer(-(-log_prob.size // _ROWS), h, panels, bias, x, log_prob, k)


@block_kernel
def _add_to(block, total, terms):
    left = block * CHUNK
    width = min(CHUNK, total.size - left)
    _add(part(total, left, width), part(terms, left, width))


def linear_bernoulli_log_prob_backward(
    inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]
) -> None:
    """Part of the rows by part: their residuals, and the gradients with these; those of weight and bias are added."""
    g, h, weight, bias, x = inputs
    d_h, *totals = outputs
    n, k = weight.shape
    rows = g.size
    g, by_row, d_by_row = g.reshape(rows), h.reshape(rows, k), d_h.reshape(rows, k)
    for first in range(0, max(rows, 1), len(workspace[0])):
        residual, log_prob, sums, scaled, *more = [a[: rows - first] for a in workspace[:4]] + list(workspace[4:])
        last = first + len(residual)
        found = totals if first == 0 else more
        _residual(by_row[first:last], weight, bias, x, first, log_prob, residual, sums)
        linear_bernoulli_residual_backward(
            (g[first:last], residual, by_row[first:last], weight), (d_by_row[first:last], *found), (scaled,), {}
        )
        if first > 0:
            for total, terms in zip(totals, found, strict=True):
                _add_to(-(-total.size // CHUNK), total, terms)


# ---------------------------------------------------------------------------------------------------------
# Of a linear layer whose residuals are stored
# ---------------------------------------------------------------------------------------------------------


@jitable
def _costs_and_slopes(logits, bias, x, cost):
    """-log p of each element; over the logit, less the bias yet, its slope x - sigmoid(logit)."""
    long_loop()
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for i in range(x.size):
        logit = logits[i] + bias[i]
        size = abs(logit)
        z = exp(-size)
        not_x = one - x[i]
        missed = select(logit > zero, not_x, x[i])
        cost[i] = select(missed == zero, zero, missed * size) + log1p_unit(z)
        logits[i] = select(logit > zero, x[i] * z - not_x, x[i] - not_x * z) / (one + z)


@block_kernel
def _residual_tile(
    block, function, wide, h, trans_h, ldh, w, trans_w, ldw, logits, bias, x, first, sums, m, k, n, row_tiles,
    column_tiles,
):  # fmt: skip
    row, column = block // column_tiles, block % column_tiles
    top, bottom = edge(row, row_tiles, m), edge(row + 1, row_tiles, m)
    left, right = edge(column, column_tiles, n), edge(column + 1, column_tiles, n)
    if k > 0:
        product_tile(function, wide, h, trans_h, ldh, w, trans_w, ldw, logits, k, top, bottom, left, right, n)
    else:
        logits[top * n : bottom * n] = 0  # there is one column tile
    cost = scratch(_TILE, logits.dtype)
    for r in range(top, bottom):
        total = 0.0
        for at in range(left, right, _TILE):
            width = min(_TILE, right - at)
            _costs_and_slopes(
                part(logits, r * n + at, width),
                part(bias, at, width),
                part(x, ((first + r) * n + at) % x.size, width),
                part(cost, 0, width),
            )
            total += sum_of(part(cost, 0, width))
        sums[r * column_tiles + column] = -total


def _residual(
    h: np.ndarray, weight: np.ndarray, bias: np.ndarray, x: np.ndarray, first: int,
    log_prob: np.ndarray, residual: np.ndarray, sums: np.ndarray,
) -> None:  # fmt: skip
    """Of rows h (m, in) that begin with row `first` of those that x goes with.

    The tiles are those of the product, in so many columns as `sums` (m, columns) has, which may be made for more rows;
    the sums over the columns of each are added in order.
    """
    n, k = weight.shape
    m, column_tiles = sums.shape
    if m * n == 0:
        log_prob[...] = 0
        return
    row_tiles, _ = linear_tiles(h, weight)
    arguments = operands(h, weight.T)
    with blas.single_threaded():
        _residual_tile(
            row_tiles * column_tiles, *arguments, residual, bias, x, first, sums, m, k, n, row_tiles, column_tiles
        )
    add_up(sums, 1, log_prob)


def linear_bernoulli_residual(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    h, weight, bias, x = inputs
    log_prob, residual = outputs
    (sums,) = workspace
    _residual(h.reshape(len(sums), weight.shape[1]), weight, bias, x, 0, log_prob, residual, sums)


@jitable
def _add_four_rows(total, rows, stride, g):
    """total += the sum of four rows, scaled, which loads and stores the total once."""
    long_loop()
    a, b = part(rows, 0, total.size), part(rows, stride, total.size)
    c, d = part(rows, 2 * stride, total.size), part(rows, 3 * stride, total.size)
    g0, g1, g2, g3 = g[0], g[1], g[2], g[3]
    for i in range(total.size):
        total[i] += np.float64(g0 * a[i] + g1 * b[i]) + np.float64(g2 * c[i] + g3 * d[i])


@block_kernel
def _scale_and_sum(block, residual, g, d_h, h, scaled_h, d_bias, rows_per_block):
    """Rows of d_h and h scaled, the former in place; in the last blocks, a strip of d_bias, the sum of scaled rows."""
    rows, n, k = g.size, d_bias.size, h.size // g.size
    strip = block + -rows // rows_per_block  # less the number of blocks of rows
    if strip < 0:
        for r in range(block * rows_per_block, min(rows, (block + 1) * rows_per_block)):
            for i in range(r * k, (r + 1) * k):
                d_h[i] *= g[r]
                scaled_h[i] = g[r] * h[i]
        return
    left, width = strip * _TILE, min(_TILE, n - strip * _TILE)
    sums = scratch(_TILE, np.float64)
    total = part(sums, 0, width)
    total[:] = 0
    fours = rows // 4 * 4
    for r in range(0, fours, 4):
        _add_four_rows(total, part(residual, r * n + left, 3 * n + width), n, part(g, r, 4))
    for r in range(fours, rows):
        for i in range(width):
            total[i] += np.float64(g[r] * residual[r * n + left + i])
    for i in range(width):
        d_bias[left + i] = total[i]


def linear_bernoulli_residual_backward(
    inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]
) -> None:
    """The rows of h and of its gradient are scaled, as they are narrower than those of the residual."""
    g, residual, h, weight = inputs
    d_h, d_weight, d_bias = outputs
    (scaled_h,) = workspace
    rows, (n, k) = g.size, weight.shape
    by_row = residual.reshape(rows, n)
    matmul((by_row, weight), (d_h.reshape(rows, k),), (), {})
    if rows:
        rows_per_block = max(1, CHUNK // max(1, k))
        blocks = -(-rows // rows_per_block) + -(-n // _TILE)
        _scale_and_sum(blocks, residual, g, d_h, h, scaled_h, d_bias, rows_per_block)
    else:
        d_bias[...] = 0
    matmul((by_row.T, scaled_h.reshape(rows, k)), (d_weight,), (), {})
