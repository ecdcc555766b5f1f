"""Triangular systems, one or a stack of them."""

from __future__ import annotations

from gmkernels import blas
from gmkernels.linalg import reference, spec
from gmkernels.registry import Array, Signature, register, run

__all__ = ["solve_triangular"]


def _needs_blas(signature: Signature) -> str | None:
    return blas.available()


# The reference pays for each row of a system some 10 us of NumPy's calls; the size class of the call does not say
# how many there are, so it stands back unless there is no BLAS.
register(spec.SOLVE_TRIANGULAR, "reference", reference.solve_triangular, strided=True, overhead=1e-4, efficiency=0.05)
register(
    spec.SOLVE_TRIANGULAR, "cpu", "gmkernels.linalg.cpu:solve_triangular",
    overhead=1e-5, efficiency=0.4, accepts=_needs_blas,
)  # fmt: skip


def solve_triangular(
    a: Array, b: Array, *, upper: bool, unitriangular: bool = False, backend: str | None = None
) -> Array:
    """Solution x of the triangular systems ``a @ x = b``.

    Parameters
    ----------
    a : (..., n, n) float32 or float64; only its lower (`upper`: upper) triangle is read.
    b : (..., n, k) of the same dtype and leading axes
    unitriangular : take the diagonal of `a` for ones, without reading it
    upper : whether `a` is upper triangular

    Returns
    -------
    (..., n, k); infinite or NaN where the diagonal has a zero

    Raises
    ------
    KernelError : shapes or dtypes that do not fit.
    """
    return run(spec.SOLVE_TRIANGULAR, (a, b), {"upper": upper, "unitriangular": unitriangular}, backend=backend)[0]
