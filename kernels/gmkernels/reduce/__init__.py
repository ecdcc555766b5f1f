"""Sums over axes."""

from __future__ import annotations

from gmkernels.reduce import reference, spec
from gmkernels.registry import FLOATS, HALVES, Array, register, run

__all__ = ["sum", "sum_to"]

for _spec in (spec.SUM, spec.SUM_TO):
    register(_spec, "reference", getattr(reference, _spec.name), strided=True, overhead=5e-6, efficiency=0.1)
    # Either takes some microseconds for a few numbers. The difference leaves fewer than 8 of float32 to NumPy, so that
    # a small script needs no compiler.
    register(
        _spec, "cpu", f"gmkernels.reduce.cpu:{_spec.name}", strided=True, overhead=5.02e-6, efficiency=0.6, replays=True
    )
    register(
        _spec, "triton", f"gmkernels.reduce.triton:{_spec.name}", dtypes=FLOATS + HALVES, overhead=1e-5, efficiency=0.8
    )
    register(_spec, "cuda", f"gmkernels.reduce.cuda:{_spec.name}", dtypes=FLOATS + HALVES, efficiency=0.9)


def sum(
    x: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False, *, backend: str | None = None
) -> Array:
    """Sum over axes, of float32 numbers in float64; 0 over no elements.

    Parameters
    ----------
    x : float32 or float64, any shape and strides
    axis : axis or axes to sum over; None, the default, for all
    keepdims : whether summed axes stay, with length 1

    Returns
    -------
    x.shape without the axes, in the dtype of x

    Raises
    ------
    KernelError : another dtype, or axes that x does not have or that repeat.
    """
    given = tuple(range(x.ndim)) if axis is None else (axis,) if isinstance(axis, int) else axis
    axes = tuple(sorted([a + x.ndim if a < 0 else a for a in given]))
    return run(spec.SUM, (x,), {"axis": axes, "keepdims": keepdims}, backend=backend)[0]


def sum_to(x: Array, shape: tuple[int, ...], *, backend: str | None = None) -> Array:
    """Sum over the axes along which a shape broadcasts to that of `x`: the adjoint of broadcasting.

    Parameters
    ----------
    x : float32 or float64, any shape and strides
    shape : broadcasts to x.shape

    Returns
    -------
    `shape`, in the dtype of x

    Raises
    ------
    KernelError : another dtype, or a shape that does not fit.
    """
    return run(spec.SUM_TO, (x,), {"shape": tuple(shape)}, backend=backend)[0]
