"""The look-up of rows by number and their sum by number, in NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.indexing.spec import check_index

Arrays = Sequence[np.ndarray]


def gather_rows(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    table, index = inputs
    check_index("gather_rows", index, len(table))
    outputs[0][...] = table[index]


def scatter_add_rows(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    x, index = inputs
    check_index("scatter_add_rows", index, attrs["rows"])
    outputs[0].fill(0)
    np.add.at(outputs[0], index, x)
