"""The sum of rows by number, in NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.registry import KernelError

Arrays = Sequence[np.ndarray]


def check_index(index: np.ndarray, rows: int) -> None:
    """Raise `KernelError` for a number outside 0 .. rows - 1. Kernels call it, since specs see shapes only."""
    if index.size and not (index.min() >= 0 and index.max() < rows):
        raise KernelError(
            f"scatter_add_rows: expected numbers from 0 to {rows - 1}, got {index.min()} to {index.max()}"
        )


def scatter_add_rows(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    x, index = inputs
    check_index(index, attrs["rows"])
    outputs[0].fill(0)
    np.add.at(outputs[0], index, x)
