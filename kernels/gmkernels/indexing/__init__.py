"""Sums of rows by number."""

from __future__ import annotations

from gmkernels.indexing import reference, spec
from gmkernels.registry import Array, register, run

register(spec.SCATTER_ADD_ROWS, "reference", reference.scatter_add_rows, overhead=8e-6, efficiency=0.1)
register(
    spec.SCATTER_ADD_ROWS, "cpu", "gmkernels.indexing.cpu:scatter_add_rows", overhead=1.5e-5, efficiency=0.5
)  # fmt: skip


def scatter_add_rows(x: Array, index: Array, *, rows: int, backend: str | None = None) -> Array:
    """Sums of the rows of x that have the same number: the gradient of ``table[index]``.

    Parameters
    ----------
    x : (n, width) float32 or float64
    index : (n,) int64, from 0 to rows - 1
    rows : of the result

    Returns
    -------
    (rows, width), whose row j is the sum of the x[i] with index[i] = j, added in the order of i; 0 where there is none

    Raises
    ------
    KernelError : shapes or dtypes that do not fit, or a number out of range.
    """
    return run(spec.SCATTER_ADD_ROWS, (x, index), {"rows": rows}, backend=backend)[0]
