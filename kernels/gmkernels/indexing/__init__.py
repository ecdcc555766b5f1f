"""Rows by number: their look-up, and their sums."""

from __future__ import annotations

from gmkernels.indexing import reference, spec
from gmkernels.registry import FLOATS, HALVES, Array, register, run

for _spec in (spec.GATHER_ROWS, spec.SCATTER_ADD_ROWS):
    register(_spec, "reference", getattr(reference, _spec.name), overhead=8e-6, efficiency=0.1)
    register(_spec, "cpu", f"gmkernels.indexing.cpu:{_spec.name}", overhead=1.5e-5, efficiency=0.5)
    register(_spec, "cuda", f"gmkernels.indexing.cuda:{_spec.name}", dtypes=FLOATS + HALVES, efficiency=0.8)


def gather_rows(table: Array, index: Array, *, backend: str | None = None) -> Array:
    """The rows of a table that have the given numbers: ``table[index]``.

    Parameters
    ----------
    table : (rows, ...) float32 or float64; float16 or bfloat16 too on a GPU
    index : int64 of any shape, from -rows to rows - 1; -1 is the last row

    Returns
    -------
    index.shape + table.shape[1:]

    Raises
    ------
    KernelError : dtypes that do not fit, or a number out of range.
    """
    return run(spec.GATHER_ROWS, (table, index), backend=backend)[0]


def scatter_add_rows(x: Array, index: Array, *, rows: int, backend: str | None = None) -> Array:
    """Sums of the rows of x that have the same number: the gradient of ``table[index]``.

    Parameters
    ----------
    x : index.shape + (...) float32 or float64; float16 or bfloat16 too on a GPU
    index : int64, from -rows to rows - 1; -1 is the last row
    rows : of the result

    Returns
    -------
    (rows, ...), whose row j is the sum of the x[i] with index[i] = j, added in the order of i; 0 where there is none

    Raises
    ------
    KernelError : shapes or dtypes that do not fit, or a number out of range.
    """
    return run(spec.SCATTER_ADD_ROWS, (x, index), {"rows": rows}, backend=backend)[0]
