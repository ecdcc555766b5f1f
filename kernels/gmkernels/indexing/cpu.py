"""The sum of rows by number, on the CPU: a block owns some columns, so that nobody else adds to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.indexing.reference import check_index
from gmkernels.pool import block_kernel, jitable

Arrays = Sequence[np.ndarray]

_STRIP = 256  # columns of a block


@jitable
def _add(x, y):
    for j in range(y.size):
        y[j] += x[j]


@block_kernel
def _scatter_add_rows(block, x, index, out, width, strip):
    left = block * strip
    columns = min(strip, width - left)
    for at in range(left, out.size, width):
        out[at : at + columns] = 0
    for i in range(index.size):
        source, target = i * width + left, index[i] * width + left
        _add(x[source : source + columns], out[target : target + columns])


def scatter_add_rows(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    x, index = inputs
    check_index(index, attrs["rows"])
    if outputs[0].size:
        _scatter_add_rows(-(-x.shape[1] // _STRIP), x, index, outputs[0], x.shape[1], _STRIP)
