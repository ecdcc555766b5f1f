"""Softmax of rows in Numba: a block is some rows, or one long one.

A row is read for its highest and again for its exponentials, whose sum stays in a register; the logarithms of the sums
are taken of many rows at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.elementary import exp, log, select
from gmkernels.lanes import filled, lanes_of, largest_of_lanes, load_some, store_some, sum_of_lanes
from gmkernels.pool import block_kernel, jitable, long_loop, part, scratch
from gmkernels.rows import scale_row
from gmkernels.softmax.spec import check_target

Arrays = Sequence[np.ndarray]

_BLOCK = 1 << 14
"""Elements of a block, if it is more than one row."""
_ROWS = 256
"""Rows whose logarithms are taken at once."""
_RUN = 1024  # terms that are added in the arrays' dtype, in several lanes, before they go to a float64 sum


@jitable
def _add_log(x, y):
    """y += log x."""
    long_loop()
    for j in range(y.size):
        y[j] = log(x[j]) + y[j]


@jitable
def _highest(x, at, count):
    """The largest that is not NaN; -inf of none."""
    top = filled(x, -np.inf)
    for j in range(0, count, lanes_of(x)):
        more = load_some(x, at + j, count - j, -np.inf)
        top = select(more > top, more, top)
    return largest_of_lanes(top)


@jitable
def _exponentials(x, y, at, count, shift):
    """y = e^(x - shift); returns its sum."""
    total = 0.0
    for run in range(0, count, _RUN):
        sums = filled(x, 0)
        for j in range(run, min(count, run + _RUN), lanes_of(x)):
            e = exp(load_some(x, at + j, count - j, -np.inf) - shift)
            store_some(y, at + j, count - j, e)
            sums += e
        total += sum_of_lanes(sums)
    return total


@jitable
def _scale(x, factor, y):
    for j in range(y.size):
        y[j] = x[j] * factor


@block_kernel
def _cross_entropy(block, logits, target, loss, probabilities, classes, per_block):
    totals = scratch(_ROWS, np.float64)
    zero, last = logits.dtype.type(0), min(target.size, (block + 1) * per_block)
    for first in range(block * per_block, last, _ROWS):
        end = min(last, first + _ROWS)
        for r in range(first, end):
            top = _highest(logits, r * classes, classes)
            shift = select(top == -np.inf, zero, top)
            total = _exponentials(logits, probabilities, r * classes, classes, shift)
            total = select(total == 0.0, 1.0, total)
            totals[r - first] = total
            loss[r] = shift - logits[r * classes + target[r]]
        for r in range(first, end):
            scale_row(part(probabilities, r * classes, classes), logits.dtype.type(1.0 / totals[r - first]))
        _add_log(part(totals, 0, end - first), part(loss, first, end - first))


def softmax_cross_entropy(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    logits, target = inputs
    loss, probabilities = outputs
    classes = logits.shape[1]
    check_target("softmax_cross_entropy", target, classes)
    if target.size:
        per_block = max(1, _BLOCK // classes)
        _cross_entropy(-(-target.size // per_block), logits, target, loss, probabilities, classes, per_block)


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
