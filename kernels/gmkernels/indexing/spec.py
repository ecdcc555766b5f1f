"""Contracts of the look-up of rows by number, and of its adjoint, the sum of rows by number.

A row is what lies behind the first axis: of any shape. Numbers are NumPy's: -1 is the last row. Kernels of a GPU, which
cannot raise, read NaN for a number of no row, and add nothing; half types, which they store, are summed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gmkernels.arrays import on_gpu
from gmkernels.cost import Cost
from gmkernels.registry import FLOATS, HALVES, Array, Example, KernelError, KernelSpec, Layout, is_float


def check_index(op: str, index: np.ndarray, rows: int) -> None:
    """Raise `KernelError` for a number that is none of a row. Kernels call it, since specs see shapes only.

    On a GPU nobody looks: the host would have to wait for it.
    """
    if index.size and not on_gpu(index) and not (index.min() >= -rows and index.max() < rows):
        raise KernelError(f"{op}: expected numbers from {-rows} to {rows - 1}, got {index.min()} to {index.max()}")


# -- reading ----------------------------------------------------------------------------------------------------
def _gather_infer(table: Array, index: Array) -> Layout:
    if table.ndim < 1 or not is_float(table.dtype.name) or index.dtype != np.int64:
        raise KernelError(
            f"gather_rows: expected a floating table (rows, ...) and an int64 index, got table {table.dtype}"
            f"{list(table.shape)}, index {index.dtype}{list(index.shape)}"
        )
    return [((*index.shape, *table.shape[1:]), table.dtype)]


def _gather_cost(table: Array, index: Array) -> Cost:
    size = index.size * math.prod(table.shape[1:])
    return Cost(bytes=table.itemsize * (size + min(size, table.size)) + 8 * index.size, slots=index.size)


_SHAPES: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = [
    (4, (5,), (3,)), (2, (0,), (3,)), (3, (4,), (0,)), (1, (1,), (1,)), (7, (127,), (129,)), (65, (211,), (1023,)),
    (1009, (3,), (2,)), (5, (2, 3), ()), (3, (), (2, 5)), (6, (3, 1, 7), (2, 3)),
]  # fmt: skip
"""The number of rows, the shape of the index, that of a row."""


def _numbers(rng: np.random.Generator, rows: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(rng.integers(-rows, rows, shape))


def _gather_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for rows, shape, row in _SHAPES:
        yield Example((rng.standard_normal((rows, *row)).astype(dtype), _numbers(rng, rows, shape)), {})


GATHER_ROWS = KernelSpec(
    name="gather_rows",
    family="indexing",
    inputs=("table", "index"),
    outputs=("out",),
    infer=_gather_infer,
    cost=_gather_cost,
    examples=_gather_examples,
    formula="out[i] = table[index[i]]",
    source="numpy.take along the first axis",
    tolerance=dict.fromkeys(FLOATS + HALVES, (0.0, 0.0)),
    size=lambda table, index: index.size * math.prod(table.shape[1:]),
)


# -- adding -----------------------------------------------------------------------------------------------------
def _scatter_infer(x: Array, index: Array, *, rows: int) -> Layout:
    if x.shape[: index.ndim] != index.shape or not is_float(x.dtype.name) or index.dtype != np.int64:
        raise KernelError(
            f"scatter_add_rows: expected floating x (n, ...) and int64 index (n,), or more axes in place of n, got "
            f"x {x.dtype}{list(x.shape)}, index {index.dtype}{list(index.shape)}"
        )
    return [((rows, *x.shape[index.ndim :]), x.dtype)]


def _scatter_cost(x: Array, index: Array, *, rows: int) -> Cost:
    out = rows * math.prod(x.shape[index.ndim :])
    return Cost(bytes=x.itemsize * (x.size + out) + 8 * index.size, slots=x.size)


def _scatter_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for rows, shape, row in _SHAPES:
        x = np.asarray(rng.standard_normal((*shape, *row)), dtype)
        yield Example((x, _numbers(rng, rows, shape)), {"rows": rows})


SCATTER_ADD_ROWS = KernelSpec(
    name="scatter_add_rows",
    family="indexing",
    inputs=("x", "index"),
    outputs=("out",),
    infer=_scatter_infer,
    cost=_scatter_cost,
    examples=_scatter_examples,
    formula="out[j] = sum of x[i] over all i with index[i] = j, in the order of i",
    source="the derivative of out[i] = table[index[i]]",
    # The same additions in the same order; of half types one rounding, and float32's of sums of up to 20 numbers.
    tolerance={"float32": (0.0, 0.0), "float64": (0.0, 0.0), "float16": (5e-4, 2e-6), "bfloat16": (4e-3, 2e-6)},
)
