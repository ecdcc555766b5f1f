"""Rows by number on the CPU. Whoever adds goes through all numbers and adds the rows of those that are its own.

So nobody else adds to them, sums are in the order of the numbers, and rows are read whole: strips of columns, which
would need no look at other numbers, are read at a third of the speed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.indexing.spec import check_index
from gmkernels.pool import block_kernel, part
from gmkernels.rows import add_row, copy_row

Arrays = Sequence[np.ndarray]

_BLOCK = 1 << 15
"""Elements that a block copies."""
_OWNERS = 8
"""Blocks that share the rows of a sum: a power of 2, and more than cores, for numbers are not spread evenly."""
_WIDE = 16
"""Elements of the shortest rows whose addition takes longer than a look at all numbers."""


@block_kernel
def _gather_rows(block, table, index, out, rows, width, per_block):
    for i in range(block * per_block, min(index.size, (block + 1) * per_block)):
        number = index[i] + rows if index[i] < 0 else index[i]
        copy_row(part(table, number * width, width), part(out, i * width, width))


def gather_rows(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    table, index = inputs
    (out,) = outputs
    check_index("gather_rows", index, len(table))
    if out.size:
        width = out.size // index.size
        per_block = max(1, _BLOCK // width)
        _gather_rows(-(-index.size // per_block), table, index, out, len(table), width, per_block)


@block_kernel
def _scatter_add_rows(block, x, index, out, rows, width, owners):
    for row in range(block, rows, owners):
        out[row * width : (row + 1) * width] = 0
    for i in range(index.size):
        number = index[i] + rows if index[i] < 0 else index[i]
        if number & (owners - 1) == block:
            add_row(part(x, i * width, width), part(out, number * width, width))


def scatter_add_rows(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    x, index = inputs
    (out,) = outputs
    check_index("scatter_add_rows", index, attrs["rows"])
    if out.size:
        width = out.size // len(out)
        owners = _OWNERS if width >= _WIDE and max(x.size, out.size) > _BLOCK else 1
        _scatter_add_rows(owners, x, index, out, len(out), width, owners)
