"""Pooling of planes: maxima with their places, means, and what takes gradients and maxima back to the planes."""

from __future__ import annotations

from gmkernels.pooling import reference, spec
from gmkernels.pooling.spec import Pair
from gmkernels.registry import Array, register, run

__all__ = ["avg_pool2d", "avg_pool2d_backward", "max_pool2d", "plane_gather", "plane_scatter"]

for _spec in (
    spec.MAX_POOL2D,
    spec.PLANE_GATHER,
    spec.PLANE_SCATTER,
    spec.AVG_POOL2D,
    spec.AVG_POOL2D_BACKWARD,
):
    register(_spec, "reference", getattr(reference, _spec.name), overhead=1e-4, efficiency=0.02)
    register(_spec, "cpu", f"gmkernels.pooling.cpu:{_spec.name}", overhead=1e-5, efficiency=0.3, replays=True)


def max_pool2d(
    x: Array,
    kernel: Pair,
    *,
    stride: Pair | None = None,
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
    backend: str | None = None,
) -> tuple[Array, Array]:
    """The largest element of each window of a plane, and its place.

    Parameters
    ----------
    x : (N, C, H, W) float32 or float64
    kernel : height and width of a window
    stride : from one window to the next; by default the kernel, so that they tile the plane
    padding : how far windows reach beyond the plane on each side, at most half the kernel; nothing is there to find
    dilation : distances between the elements of a window
    ceil_mode : a last window that overhangs counts, if it begins inside the plane or the padding before it

    Returns
    -------
    y : (N, C, H', W') with H' = (H + 2 padding - dilation (kernel - 1) - 1) / stride + 1, rounded down (or up)
    indices : (N, C, H', W') int64, h W + w of the element; the first one where several are as large

    Raises
    ------
    KernelError : another shape or dtype, or windows that do not fit or hold no element.
    """
    attrs = spec.Windows(kernel, kernel if stride is None else stride, padding, dilation, ceil_mode)._asdict()
    y, indices = run(spec.MAX_POOL2D, (x,), attrs, backend=backend)
    return y, indices


def plane_gather(x: Array, indices: Array, *, backend: str | None = None) -> Array:
    """The elements of planes at given places.

    Parameters
    ----------
    x : (N, C, H, W) float32 or float64
    indices : (N, C, H', W') int64, numbers of elements of the plane in C order

    Returns
    -------
    (N, C, H', W'); NaN for an index outside the plane

    Raises
    ------
    KernelError : shapes or dtypes that do not fit.
    """
    return run(spec.PLANE_GATHER, (x, indices), backend=backend)[0]


def plane_scatter(x: Array, indices: Array, *, size: Pair, backend: str | None = None) -> Array:
    """Planes of zeros to which elements are added at given places: the gradient of `max_pool2d`, and unpooling.

    Parameters
    ----------
    x : (N, C, H', W') float32 or float64
    indices : of the shape of x, int64, numbers of elements of the plane in C order; others are left out
    size : (H, W) of the planes

    Returns
    -------
    (N, C, H, W)

    Raises
    ------
    KernelError : shapes or dtypes that do not fit.
    """
    return run(spec.PLANE_SCATTER, (x, indices), {"size": size}, backend=backend)[0]


def avg_pool2d(
    x: Array,
    kernel: Pair,
    *,
    stride: Pair | None = None,
    padding: Pair = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
    backend: str | None = None,
) -> Array:
    """The mean of each window of a plane.

    Parameters
    ----------
    x : (N, C, H, W) float32 or float64
    kernel, stride, padding, ceil_mode : as in `max_pool2d`
    count_include_pad : elements in the padding are zeros that count; otherwise they do not
    divisor : divides the sum in place of the number of elements

    Returns
    -------
    (N, C, H', W'), as in `max_pool2d`

    Raises
    ------
    KernelError : as `max_pool2d`; a divisor of 0.
    """
    attrs = {
        "kernel": kernel, "stride": kernel if stride is None else stride, "padding": padding, "ceil_mode": ceil_mode,
        "count_include_pad": count_include_pad, "divisor": divisor,
    }  # fmt: skip
    return run(spec.AVG_POOL2D, (x,), attrs, backend=backend)[0]


def avg_pool2d_backward(
    g: Array,
    kernel: Pair,
    *,
    size: Pair,
    stride: Pair | None = None,
    padding: Pair = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
    backend: str | None = None,
) -> Array:
    """Gradient of `avg_pool2d`: each element of g in equal shares to its window.

    Parameters
    ----------
    g : (N, C, H', W'), the gradient of the means
    size : (H, W) of the planes
    kernel, stride, padding, ceil_mode, count_include_pad, divisor : as in `avg_pool2d`

    Returns
    -------
    (N, C, H, W)

    Raises
    ------
    KernelError : as `avg_pool2d`; a g of another size.
    """
    attrs = {
        "size": size, "kernel": kernel, "stride": kernel if stride is None else stride, "padding": padding,
        "ceil_mode": ceil_mode, "count_include_pad": count_include_pad, "divisor": divisor,
    }  # fmt: skip
    return run(spec.AVG_POOL2D_BACKWARD, (g,), attrs, backend=backend)[0]
