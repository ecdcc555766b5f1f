"""Log-likelihoods in Numba.

A block is a range of elements in C order: whole short rows, or a part of a long one. It goes through tiles
that stay in the cache, first element by element without regard to rows, then row by row: so short rows
vectorise too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.elementary import exp, log1p_unit, select
from gmkernels.likelihood.spec import CHUNK, chunks
from gmkernels.pool import block_kernel, jitable, long_loop, reduction, scratch

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


@reduction
def _sum(x):
    total = x.dtype.type(0)
    for i in range(x.size):
        total += x[i]
    return total


@jitable
def _scale(x, factor):
    for i in range(x.size):
        x[i] *= factor


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
            total += _sum(cost[done : done + take])
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
        for part in range(per_row):
            total += parts[row * per_row + part]
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
            _scale(slope[done : done + take], g[row])
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
