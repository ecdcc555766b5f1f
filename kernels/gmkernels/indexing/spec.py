"""Contract of the sum of rows by number, the gradient of a look-up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gmkernels.cost import Cost
from gmkernels.registry import Array, Example, KernelError, KernelSpec, Layout


def _infer(x: Array, index: Array, *, rows: int) -> Layout:
    if x.ndim != 2 or index.shape != x.shape[:1] or x.dtype.kind != "f" or index.dtype != np.int64:
        raise KernelError(
            f"scatter_add_rows: expected floating x (n, width) and int64 index (n,), got x {x.dtype}{list(x.shape)}, "
            f"index {index.dtype}{list(index.shape)}"
        )
    return [((rows, x.shape[1]), x.dtype)]


def _cost(x: Array, index: Array, *, rows: int) -> Cost:
    return Cost(bytes=x.itemsize * (x.size + rows * x.shape[1]), slots=x.size)


def _examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for n, width, rows in [(5, 3, 4), (0, 3, 2), (4, 0, 3), (1, 1, 1), (127, 129, 7), (211, 1023, 65), (3, 2, 1009)]:
        index = rng.integers(0, rows, n)
        yield Example((rng.standard_normal((n, width)).astype(dtype), index), {"rows": rows})


SCATTER_ADD_ROWS = KernelSpec(
    name="scatter_add_rows",
    family="indexing",
    inputs=("x", "index"),
    outputs=("out",),
    infer=_infer,
    cost=_cost,
    examples=_examples,
    formula="out[j] = sum of x[i] over all i with index[i] = j, in the order of i",
    source="the derivative of out[i] = table[index[i]]",
    tolerance={"float32": (0.0, 0.0), "float64": (0.0, 0.0)},  # the same additions in the same order
)
