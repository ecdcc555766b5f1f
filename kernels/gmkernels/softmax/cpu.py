"""Softmax of rows in Numba: a block is some rows, or one long one.

The exponentials, which cost most, are taken of whole tiles of rows at once: rows of 65 would each end in a piece that
fills no vector. A tile is read and written once and stays in the cache between its passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.elementary import exp, log, select
from gmkernels.pool import block_kernel, jitable, long_loop, part, scratch
from gmkernels.rows import largest_of, scale_row, sum_of
from gmkernels.softmax.spec import check_target

Arrays = Sequence[np.ndarray]

_BLOCK = 1 << 14
"""Elements of a block, if it is more than one row."""
_TILE = 1 << 12
"""The same of a tile."""
_ROWS = 256
"""Most rows of a tile."""
_RUN = 1024  # terms that are added in the arrays' dtype, in several lanes, before they go to a float64 sum


@jitable
def _subtract(x, shift, y):
    for j in range(y.size):
        y[j] = x[j] - shift


@jitable
def _exp(x):
    long_loop()
    for j in range(x.size):
        x[j] = exp(x[j])


@jitable
def _scale(x, factor, y):
    for j in range(y.size):
        y[j] = x[j] * factor


@jitable
def _add_log(x, y):
    """y += log x."""
    long_loop()
    for j in range(y.size):
        y[j] = log(x[j]) + y[j]


@block_kernel
def _cross_entropy(block, logits, target, loss, probabilities, classes, per_block, per_tile):
    totals = scratch(_ROWS, np.float64)
    zero, last = logits.dtype.type(0), min(target.size, (block + 1) * per_block)
    for first in range(block * per_block, last, per_tile):
        end = min(last, first + per_tile)
        for r in range(first, end):
            x = part(logits, r * classes, classes)
            top = largest_of(x)
            shift = select(top == -np.inf, zero, top)
            _subtract(x, shift, part(probabilities, r * classes, classes))
            loss[r] = shift - x[target[r]]
        _exp(part(probabilities, first * classes, (end - first) * classes))
        for r in range(first, end):
            total = 0.0
            for at in range(0, classes, _RUN):
                total += sum_of(part(probabilities, r * classes + at, min(_RUN, classes - at)))
            total = select(total == 0.0, 1.0, total)
            scale_row(part(probabilities, r * classes, classes), logits.dtype.type(1.0 / total))
            totals[r - first] = total
        _add_log(part(totals, 0, end - first), part(loss, first, end - first))


def softmax_cross_entropy(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    logits, target = inputs
    loss, probabilities = outputs
    classes = logits.shape[1]
    check_target("softmax_cross_entropy", target, classes)
    if target.size:
        per_block, per_tile = max(1, _BLOCK // classes), min(_ROWS, max(1, _TILE // classes))
        blocks = -(-target.size // per_block)
        _cross_entropy(blocks, logits, target, loss, probabilities, classes, per_block, per_tile)


@block_kernel
def _cross_entropy_backward(block, g, probabilities, target, d_logits, classes, per_block):
    for r in range(block * per_block, min(target.size, (block + 1) * per_block)):
        _scale(part(probabilities, r * classes, classes), g[r], part(d_logits, r * classes, classes))
        d_logits[r * classes + target[r]] -= g[r]


def softmax_cross_entropy_backward(
    inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]
) -> None:
    g, probabilities, target = inputs
    classes = probabilities.shape[1]
    check_target("softmax_cross_entropy_backward", target, classes)
    if target.size:
        per_block = max(1, _BLOCK // classes)
        _cross_entropy_backward(-(-target.size // per_block), g, probabilities, target, outputs[0], classes, per_block)
