"""Pooling over one axis or two: the largest element or the mean of each window, and unpooling.

A maximum is an element of its plane at a place that is kept, so its derivatives gather from planes and scatter into
them, and each is the other's derivative; so are the mean of windows and the sharing out to windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gmcore.device import put_beside
from gmcore.errors import ArgumentError, DtypeError, ShapeError
from gmcore.op import Example, Op, kernel, user_line
from gmcore.ops.elementwise import cast, real, where
from gmcore.ops.indexing import is_last
from gmcore.ops.product import matmul
from gmcore.ops.windows import Size, as_planes, flat, from_planes, per_axis
from gmcore.tensor import Array, Tensor, as_tensor
from gmcore.watch import computed, is_watched
from gmkernels import KernelError
from gmkernels.pooling import spec
from gmkernels.pooling.spec import Windows

_NO_DERIVATIVE = "indices are integers"


# -- the operations -------------------------------------------------------------------------------------------
def _max_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, options in (
        ((2, 1, 4, 4), {"kernel_size": 2}),
        ((1, 2, 4, 5), {"kernel_size": (2, 3), "stride": (1, 2), "padding": 1, "ceil_mode": True}),
        ((2, 5, 4), {"kernel_size": 2, "stride": 1, "dilation": (2, 1)}),
        ((0, 1, 2, 2), {"kernel_size": 1}),
    ):
        # Apart, so that a small step changes no order; and no element is above its neighbour in all rows.
        size = int(np.prod(shape))
        x = np.asarray(rng.permutation(size) * 0.3 + real(rng, (size,)) * 0.05).reshape(shape)
        yield (x,), {**options, "return_indices": True}


_PLACES = (((2, 1, 2, 2), (3, 2)), ((1, 2, 1, 4), (2, 2)), ((0, 1, 1, 1), (1, 1)))
"""Shapes of places, and sizes of planes."""


def _gather_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, size in _PLACES:
        yield (real(rng, (*shape[:2], *size)), rng.integers(0, np.prod(size), shape)), {}


def _scatter_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, size in _PLACES:
        yield (real(rng, shape), rng.integers(0, np.prod(size), shape)), {"size": size}


def _mean_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, options in (
        ((2, 1, 4, 5), {"kernel_size": 2}),
        ((1, 2, 4, 5), {"kernel_size": (2, 3), "stride": (1, 3), "padding": 1, "ceil_mode": True}),
        ((2, 5, 4), {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
        ((1, 1, 3, 3), {"kernel_size": 2, "stride": 1, "divisor_override": 3}),
        ((0, 1, 2, 2), {"kernel_size": 1}),
    ):
        yield (real(rng, shape),), options


def _shares_examples(rng: np.random.Generator) -> Iterator[Example]:
    for g, size, kernel_size, divisor in (((2, 1, 2, 2), (4, 5), (2, 2), None), ((1, 2, 1, 3), (2, 7), (2, 3), 4)):
        options = {"kernel": kernel_size, "stride": (2, 2), "padding": (0, 0), "ceil_mode": False}
        yield (real(rng, g),), {"size": size, **options, "count_include_pad": True, "divisor": divisor}


_plane_gather: Op = Op(
    "plane_gather",
    "x indices",
    forward=kernel(spec.PLANE_GATHER),
    vjp=[lambda g, indices, x_shape: _plane_scatter(g, indices, size=x_shape[2:]), _NO_DERIVATIVE],
    formula=spec.PLANE_GATHER.formula,
    examples=_gather_examples,
)
_plane_scatter: Op = Op(
    "plane_scatter",
    "x indices",
    forward=kernel(spec.PLANE_SCATTER),
    vjp=[lambda g, indices: _plane_gather(g, indices), _NO_DERIVATIVE],
    formula=spec.PLANE_SCATTER.formula,
    source=spec.PLANE_SCATTER.source,
    examples=_scatter_examples,
)
_max_pool2d = Op(
    "max_pool2d",
    "x",
    "out indices",
    forward=kernel(spec.MAX_POOL2D),
    vjp=[lambda g_out, indices, x_shape: _plane_scatter(g_out, indices.detach(), size=x_shape[2:])],
    partial=True,
    formula=spec.MAX_POOL2D.formula,
    source=spec.MAX_POOL2D.source,
    examples=_max_examples,
)


_avg_pool2d_backward: Op = Op(
    "avg_pool2d_backward",
    "g_y",
    forward=kernel(spec.AVG_POOL2D_BACKWARD),
    vjp=[
        lambda g, kernel, stride, padding, ceil_mode, count_include_pad, divisor: _avg_pool2d(
            g, kernel=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode,
            count_include_pad=count_include_pad, divisor=divisor,
        )
    ],
    formula=spec.AVG_POOL2D_BACKWARD.formula,
    source=spec.AVG_POOL2D.source,
    examples=_shares_examples,
)  # fmt: skip
_avg_pool2d: Op = Op(
    "avg_pool2d",
    "x",
    forward=kernel(spec.AVG_POOL2D),
    vjp=[
        lambda g, x_shape, kernel, stride, padding, ceil_mode, count_include_pad, divisor: _avg_pool2d_backward(
            g, size=x_shape[2:], kernel=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode,
            count_include_pad=count_include_pad, divisor=divisor,
        )
    ],
    formula=spec.AVG_POOL2D.formula,
    source=spec.AVG_POOL2D.source,
    examples=_mean_examples,
)  # fmt: skip


# -- arguments ------------------------------------------------------------------------------------------------
def _windows(
    name: str, axes: int, input: Any, kernel_size: Size, stride: Size | None, padding: Size, dilation: Size = 1,
    ceil_mode: bool = False,
) -> tuple[Tensor, Windows]:  # fmt: skip
    """The input as planes, and the windows on them, which fit."""
    x = as_planes(name, axes, input)
    lengths = per_axis(name, "kernel_size", kernel_size, axes)
    windows = Windows(
        flat(axes, lengths, 1),
        flat(axes, lengths if stride is None else per_axis(name, "stride", stride, axes), 1),
        flat(axes, per_axis(name, "padding", padding, axes, 0), 0),
        flat(axes, per_axis(name, "dilation", dilation, axes), 1),
        bool(ceil_mode),
    )
    try:
        spec.check(name, (x.shape[2], x.shape[3]), windows._asdict(), input=as_tensor(input)._data)
    except KernelError as error:
        raise ShapeError(f"{error} (called at {user_line()})") from None
    return x, windows


# -- maxima ---------------------------------------------------------------------------------------------------
def _largest(name: str, axes: int, input: Any, return_indices: bool, *arguments: Any) -> Any:
    x, windows = _windows(name, axes, input, *arguments)
    y, indices = (from_planes(t, axes, as_tensor(input).ndim) for t in _max_pool2d(x, **windows._asdict()))
    return (y, indices) if return_indices else y


def max_pool1d(
    input: Any,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of each window along the last axis.

    Parameters
    ----------
    input : (N, C, L), or (C, L).
    kernel_size, stride, padding, dilation, ceil_mode, return_indices : as in `max_pool2d`; integers, or tuples of one.

    Returns
    -------
    (N, C, L'), and with `return_indices` the places of the elements along the axis.

    Raises
    ------
    ShapeError, ArgumentError, DtypeError : as `max_pool2d`.
    """
    return _largest("max_pool1d", 1, input, return_indices, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool2d(
    input: Any,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of each window of a plane. A NaN counts as the largest.

    Parameters
    ----------
    input : (N, C, H, W), or (C, H, W), floating.
    kernel_size : of a window; like the following an integer, or a pair for (height, width).
    stride : from one window to the next; by default the kernel size.
    padding : how far windows reach beyond each side, at most half the kernel size. What is there is never the largest.
    dilation : distance between the elements of a window.
    ceil_mode : whether a last window counts that overhangs, but begins inside the input or the padding before it.
    return_indices : whether to give the places of the elements as well, as `max_unpool2d` takes them.

    Returns
    -------
    out : (N, C, H', W') with H' = floor((H + 2 padding - dilation (kernel_size - 1) - 1) / stride) + 1, with ceil in
        place of floor if `ceil_mode`.
    indices : with `return_indices`; int64, h W + w; of elements as large the first, which has the gradient.

    Raises
    ------
    ShapeError : another number of axes, a (dilated) kernel larger than the padded input, a padding above half of it.
    ArgumentError : a size, stride or dilation below 1, a negative padding.
    DtypeError : an input that is not floating.
    """
    return _largest("max_pool2d", 2, input, return_indices, kernel_size, stride, padding, dilation, ceil_mode)


_max_pool2d.public = max_pool2d


# -- unpooling ------------------------------------------------------------------------------------------------
def _unpool(
    name: str, axes: int, input: Any, indices: Any, kernel_size: Size, stride: Size | None, padding: Size,
    output_size: Sequence[int] | None,
) -> Tensor:  # fmt: skip
    given, places = as_tensor(input), as_tensor(indices)
    x = as_planes(name, axes, given)
    if places.shape != given.shape or places.dtype.kind != "i":
        kind = ShapeError if places.dtype.kind == "i" else DtypeError
        raise kind(
            f"{name}: expected integer indices of the input's shape {given.shape}, got {places.dtype}"
            f"{list(places.shape)} (called at {user_line()})"
        )
    lengths = per_axis(name, "kernel_size", kernel_size, axes)
    strides = lengths if stride is None else per_axis(name, "stride", stride, axes)
    pads = per_axis(name, "padding", padding, axes, 0)
    usual = [(n - 1) * s - 2 * p + k for n, k, s, p in zip(given.shape[-axes:], lengths, strides, pads)]
    size = usual if output_size is None else list(output_size)[-axes:]
    if len(size) != axes or any(not u - s < n < u + s for n, u, s in zip(size, usual, strides)) or min(size) < 1:
        raise ArgumentError(
            f"{name}: output_size={output_size!r}; expected {tuple(usual)}, give or take less than the stride "
            f"{strides}, for an input of shape {given.shape} (called at {user_line()})"
        )
    height, width = flat(axes, tuple(size), 1)
    computed(_check_places, places._data, name=name, size=tuple(size))
    shown = computed(_is_shown, places._data, shape=x.shape, size=height * width)
    if is_watched() or not shown.all():  # a captured step must not look at numbers and choose
        x = where(Tensor(shown), x, 0.0)
    y = _plane_scatter(x, cast(places, np.int64).reshape(x.shape), size=(height, width))
    return from_planes(y, axes, given.ndim)


def _check_places(places: Array, name: str, size: tuple[int, ...]) -> None:
    if places.size and not 0 <= places.min() <= places.max() < math.prod(size):
        raise ArgumentError(
            f"{name}: indices from {places.min()} to {places.max()} do not fit an output of size {size} "
            f"(called at {user_line()})"
        )


def _is_shown(places: Array, shape: tuple[int, ...], size: int) -> Array:
    """Whether each of some elements of planes of `size` is the last of those that go to one place."""
    planes = np.arange(math.prod(shape[:2])).reshape(*shape[:2], 1, 1) * size
    return is_last(places.reshape(shape) + put_beside(planes, places), math.prod(shape[:2]) * size)


def max_unpool1d(
    input: Any,
    indices: Any,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Zeros with the elements of the input at given places along the last axis: the inverse of `max_pool1d` in part.

    Parameters
    ----------
    input : (N, C, L'), or (C, L').
    indices : the places, as `max_pool1d` gives them.
    kernel_size, stride, padding, output_size : as in `max_unpool2d`; integers, or tuples of one.

    Returns
    -------
    (N, C, L)

    Raises
    ------
    ShapeError, ArgumentError, DtypeError : as `max_unpool2d`.
    """
    return _unpool("max_unpool1d", 1, input, indices, kernel_size, stride, padding, output_size)


def max_unpool2d(
    input: Any,
    indices: Any,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Planes of zeros with the elements of the input at given places: the inverse of `max_pool2d` in part.

    Parameters
    ----------
    input : (N, C, H', W'), or (C, H', W'), floating.
    indices : the places, as `max_pool2d` gives them; where one is there twice, the later element counts.
    kernel_size, stride, padding : those of the pooling.
    output_size : (..., H, W), where it is not (H' - 1) stride - 2 padding + kernel_size.

    Returns
    -------
    (N, C, H, W)

    Raises
    ------
    ShapeError : another number of axes, or indices of another shape.
    ArgumentError : an output size as far from the usual one as the stride, indices outside it; sizes as `max_pool2d`.
    DtypeError : an input that is not floating, or indices that are no integers.

    References
    ----------
    Zeiler, Taylor & Fergus, Adaptive deconvolutional networks for mid and high level feature learning, ICCV 2011.
    """
    return _unpool("max_unpool2d", 2, input, indices, kernel_size, stride, padding, output_size)


# -- means ----------------------------------------------------------------------------------------------------
def _means(name: str, axes: int, input: Any, count_include_pad: bool, divisor: int | None, *arguments: Any) -> Tensor:
    if divisor is not None and (not isinstance(divisor, (int, np.integer)) or divisor == 0):
        raise ArgumentError(
            f"{name}: divisor_override={divisor!r}; expected an integer other than 0 (called at {user_line()})"
        )
    x, windows = _windows(name, axes, input, *arguments)
    options = {key: value for key, value in windows._asdict().items() if key != "dilation"}
    y = _avg_pool2d(x, **options, count_include_pad=bool(count_include_pad), divisor=divisor)
    return from_planes(y, axes, as_tensor(input).ndim)


def avg_pool1d(
    input: Any,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window along the last axis.

    Parameters
    ----------
    input : (N, C, L), or (C, L).
    kernel_size, stride, padding, ceil_mode, count_include_pad : as in `avg_pool2d`; integers, or tuples of one.

    Returns
    -------
    (N, C, L')

    Raises
    ------
    ShapeError, ArgumentError, DtypeError : as `avg_pool2d`.
    """
    arguments = (kernel_size, stride, padding, 1, ceil_mode)
    return _means("avg_pool1d", 1, input, count_include_pad, None, *arguments)


def avg_pool2d(
    input: Any,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window of a plane.

    Parameters
    ----------
    input : (N, C, H, W), or (C, H, W), floating.
    kernel_size, stride, padding, ceil_mode : as in `max_pool2d`.
    count_include_pad : whether the zeros of the padding count as elements.
    divisor_override : divides the sum of a window in place of the number of its elements.

    Returns
    -------
    (N, C, H', W'), the size as in `max_pool2d`.

    Raises
    ------
    ShapeError, ArgumentError, DtypeError : as `max_pool2d`; ArgumentError too for a divisor of 0.
    """
    arguments = (kernel_size, stride, padding, 1, ceil_mode)
    return _means("avg_pool2d", 2, input, count_include_pad, divisor_override, *arguments)


_avg_pool2d.public = avg_pool2d


def _averages(length: int, count: int, dtype: Any) -> np.ndarray:
    """The matrix (length, count) whose column i averages the elements floor(i n / m) to ceil((i + 1) n / m) of n."""
    edges = np.arange(count + 1) * length
    starts, stops = edges[:-1] // count, -(-edges[1:] // count)
    at = np.arange(length)[:, None]
    return ((at >= starts) & (at < stops)) / (stops - starts).astype(dtype)


def _adaptive(name: str, axes: int, input: Any, output_size: Any) -> Tensor:
    x = as_planes(name, axes, input)
    given = as_tensor(input)
    wanted = list(output_size) if isinstance(output_size, Sequence) else [output_size] * axes
    lengths = given.shape[-axes:]
    full = [n if m is None else m for n, m in zip(lengths, wanted)]
    size = flat(axes, per_axis(name, "output_size", full if len(wanted) == axes else wanted, axes), 1)
    if min(x.shape[2:]) < 1:
        raise ShapeError(
            f"{name}: expected planes of at least one element, got {given.shape} (called at {user_line()})"
        )
    height, width = (x.beside(_averages(n, m, x.dtype)) for n, m in zip(x.shape[2:], size))
    y = matmul(x, width)
    return from_planes(matmul(height.T, y), axes, given.ndim)


def adaptive_avg_pool1d(input: Any, output_size: Size) -> Tensor:
    """The means of `output_size` windows that cover the last axis as evenly as they can; see `adaptive_avg_pool2d`.

    Parameters
    ----------
    input : (N, C, L), or (C, L).
    output_size : the number of windows.

    Returns
    -------
    (N, C, output_size)

    Raises
    ------
    ShapeError, ArgumentError, DtypeError : as `adaptive_avg_pool2d`.
    """
    return _adaptive("adaptive_avg_pool1d", 1, input, output_size)


def adaptive_avg_pool2d(input: Any, output_size: Size | tuple[int | None, int | None]) -> Tensor:
    """The means of windows that cover each plane as evenly as they can: two products with averaging matrices.

    Window i of m along an axis of n elements is from floor(i n / m) to ceil((i + 1) n / m); windows may overlap by one.

    Parameters
    ----------
    input : (N, C, H, W), or (C, H, W), floating.
    output_size : the numbers of windows, an integer or (rows, columns); None keeps the size of an axis.

    Returns
    -------
    (N, C, rows, columns)

    Raises
    ------
    ShapeError : another number of axes, or empty planes.
    ArgumentError : numbers below 1.
    DtypeError : an input that is not floating.
    """
    return _adaptive("adaptive_avg_pool2d", 2, input, output_size)
