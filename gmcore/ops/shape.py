"""Operations on the shape: reshape, axes, broadcasting. Each one's derivative is another of them."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gmcore.errors import ArgumentError, ShapeError
from gmcore.op import Example, Op, kernel, user_line
from gmcore.ops.elementwise import real
from gmcore.tensor import Array, Tensor, as_tensor
from gmkernels.reduce import spec

Axis = int | tuple[int, ...] | None


def _reshape_examples(rng: np.random.Generator) -> Iterator[Example]:
    for a, b in (((), (1,)), ((6,), (2, 3)), ((2, 3), (-1,)), ((0, 3), (3, 0)), ((2, 3, 4), (4, -1))):
        yield (real(rng, a), b), {}


_reshape: Op = Op(
    "reshape",
    "x",
    forward=lambda x, shape: x.reshape(shape),
    vjp=[lambda g, x_shape: _reshape(g, shape=x_shape)],
    formula="the same elements in C order, in another shape",
    view=True,
    examples=_reshape_examples,
)


def as_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    """One length or several, integers of any kind, as a tuple of Python's."""
    lengths = (shape,) if isinstance(shape, (int, np.integer)) else shape
    try:
        return tuple([operator.index(n) for n in lengths])
    except TypeError:
        raise ShapeError(f"a shape is an integer or several, got {shape!r} (called at {user_line()})") from None


def reshape(x: Any, shape: int | Sequence[int]) -> Tensor:
    """The elements of `x` in C order in another shape, without a copy where the memory allows.

    Parameters
    ----------
    x : any shape.
    shape : lengths, or one length; one of them may be -1, which is then found.

    Returns
    -------
    `shape`, in the dtype of `x`.

    Raises
    ------
    ShapeError : a shape of another number of elements.
    """
    return _reshape(x, shape=as_shape(shape))


_reshape.public = reshape


def _transpose_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, axes in (((), None), ((3,), None), ((2, 3), None), ((2, 3, 4), (1, 2, 0)), ((0, 2), None)):
        yield (real(rng, shape), axes), {}


_transpose: Op = Op(
    "transpose",
    "x",
    forward=lambda x, axes: x.transpose(axes),
    vjp=[lambda g, axes: _transpose(g, axes=tuple(np.argsort(axes).tolist()))],
    formula="axes permuted",
    view=True,
    examples=_transpose_examples,
)


def transpose(x: Any, axes: Sequence[int] | None = None) -> Tensor:
    """`x` with its axes permuted, without a copy.

    Parameters
    ----------
    x : any shape.
    axes : the axes of `x` in their new order; None, the default, reverses them.

    Returns
    -------
    (x.shape[axes[0]], x.shape[axes[1]], ...), in the dtype of `x`.

    Raises
    ------
    ArgumentError : `axes` is no permutation.
    """
    x = as_tensor(x)
    if axes is None:
        return _transpose(x, axes=tuple(range(x.ndim))[::-1])
    order = tuple([operator.index(a) + (x.ndim if a < 0 else 0) for a in axes])
    if sorted(order) != list(range(x.ndim)):
        raise ArgumentError(f"transpose: axes {axes} are no permutation of those of shape {x.shape} "
                            f"(called at {user_line()})")  # fmt: skip
    return _transpose(x, axes=order)


_transpose.public = transpose


def _broadcast_examples(rng: np.random.Generator) -> Iterator[Example]:
    for a, b in (((), (3,)), ((3,), (2, 3)), ((2, 1), (4, 2, 3)), ((1,), (0,)), ((2, 3), (2, 3))):
        yield (real(rng, a), b), {}


def _broadcast(x: Array, shape: tuple[int, ...]) -> Array:
    is_number = type(x) is np.ndarray and x.size == 1 and x.dtype.char in "fd"
    if is_number and x.ndim <= len(shape) and min(shape, default=0) > 0:
        # As for the gradient of a sum: NumPy's function takes four times as long.
        y = np.ndarray(shape, x.dtype, x, 0, (0,) * len(shape))
        y.flags.writeable = False
        return y
    return np.broadcast_to(x, shape)


_broadcast_to = Op(
    "broadcast_to",
    "x",
    forward=_broadcast,
    vjp=[lambda g, x_shape: sum_to(g, x_shape)],
    formula="x repeated along new axes and axes of length 1",
    view=True,
    examples=_broadcast_examples,
)


def broadcast_to(x: Any, shape: Sequence[int]) -> Tensor:
    """`x` broadcast by NumPy's rules, without a copy; the gradient is summed back (`sum_to`).

    Parameters
    ----------
    x : any shape that broadcasts to `shape`.
    shape : lengths of the result.

    Returns
    -------
    `shape`, in the dtype of `x`.

    Raises
    ------
    ShapeError : `x` does not broadcast to `shape`.
    """
    x, shape = as_tensor(x), tuple(shape)
    return x if x.shape == shape else _broadcast_to(x, shape=shape)


_broadcast_to.public = broadcast_to


def _sum_to_of_any(x: Any, shape: tuple[int, ...]) -> Any:
    return np.sum(x, axis=spec.broadcast_axes(x.shape, shape), keepdims=True, dtype=x.dtype).reshape(shape)


def _sum_to_examples(rng: np.random.Generator) -> Iterator[Example]:
    for a, b in (((3,), ()), ((2, 3), (3,)), ((4, 2, 3), (2, 1)), ((0,), (1,)), ((2, 3), (2, 3))):
        yield (real(rng, a), b), {}


_sum_to = Op(
    "sum_to",
    "x",
    forward=kernel(spec.SUM_TO, otherwise=_sum_to_of_any),
    vjp=[lambda g, x_shape: broadcast_to(g, x_shape)],
    formula="sum over the axes along which `shape` was broadcast: the adjoint of broadcast_to",
    examples=_sum_to_examples,
)


def sum_to(x: Any, shape: Sequence[int]) -> Tensor:
    """Sum over the axes along which `shape` broadcasts to that of `x`: the adjoint of ``broadcast_to(_, x.shape)``.

    Parameters
    ----------
    x : any shape.
    shape : lengths of the result.

    Returns
    -------
    `shape`, in the dtype of `x`.

    Raises
    ------
    ShapeError : `shape` does not broadcast to x.shape.
    """
    x, shape = as_tensor(x), tuple(shape)
    if x.shape == shape:
        return x
    try:
        fits = np.broadcast_shapes(x.shape, shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(f"sum_to: shape {shape} does not broadcast to {x.shape} (called at {user_line()})")
    return _sum_to(x, shape=shape)


_sum_to.public = sum_to


def one_axis(ndim: int, axis: int, name: str, shape: Sequence[int]) -> int:
    """`axis` as a number in 0..ndim-1. Raises `ArgumentError` if it is not in -ndim..ndim-1."""
    at = operator.index(axis) + (ndim if axis < 0 else 0)
    if not 0 <= at < ndim:
        raise ArgumentError(f"{name}: axis {axis} does not fit shape {tuple(shape)} (called at {user_line()})")
    return at


def several_axes(ndim: int, axis: Axis, name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """`axis`, an int or several, as numbers in 0..ndim-1, in their order; None is all of them.

    Raises
    ------
    ArgumentError : one that is out of range, or repeated.
    """
    given = range(ndim) if axis is None else axis if isinstance(axis, (tuple, list)) else (axis,)
    found = tuple([one_axis(ndim, a, name, shape) for a in given])
    if len(set(found)) != len(found):
        raise ArgumentError(f"{name}: axis {axis} repeats an axis of shape {tuple(shape)} (called at {user_line()})")
    return found


# -- axes of length 1 -----------------------------------------------------------------------------------------
def expand_dims(x: Any, axis: int | tuple[int, ...]) -> Tensor:
    """New axes of length 1.

    Parameters
    ----------
    x : any shape.
    axis : position or positions of the new axes in the result.

    Returns
    -------
    x.shape with a 1 at each `axis`, in the dtype of `x`.

    Raises
    ------
    ArgumentError : a position out of range or repeated.
    """
    x = as_tensor(x)
    shape = list(x.shape)
    if isinstance(axis, (tuple, list)):
        for at in sorted(several_axes(x.ndim + len(axis), axis, "expand_dims", x.shape)):
            shape.insert(at, 1)
    else:
        shape.insert(one_axis(x.ndim + 1, axis, "expand_dims", x.shape), 1)
    return _reshape(x, shape=tuple(shape))


def squeeze(x: Any, axis: Axis = None) -> Tensor:
    """Without axes of length 1.

    Parameters
    ----------
    x : any shape.
    axis : the axis or axes to drop; None, the default, drops all of length 1.

    Returns
    -------
    x.shape without them, in the dtype of `x`.

    Raises
    ------
    ArgumentError : an axis out of range, repeated, or longer than 1.
    """
    x = as_tensor(x)
    dropped = [i for i, n in enumerate(x.shape) if n == 1]
    if axis is not None:
        asked = several_axes(x.ndim, axis, "squeeze", x.shape)
        if any(x.shape[i] != 1 for i in asked):
            raise ArgumentError(f"squeeze: axis {axis} of shape {x.shape} is not of length 1 "
                                f"(called at {user_line()})")  # fmt: skip
        dropped = list(asked)
    return _reshape(x, shape=tuple([n for i, n in enumerate(x.shape) if i not in dropped]))


def atleast_1d(x: Any) -> Tensor:
    """`x`, a number as one element.

    Returns
    -------
    x.shape, (1,) for (), in the dtype of `x`.
    """
    x = as_tensor(x)
    return x if x.ndim >= 1 else _reshape(x, shape=(1,))


def atleast_2d(x: Any) -> Tensor:
    """`x`, a vector as one row.

    Returns
    -------
    x.shape, (1, n) for (n,), (1, 1) for (), in the dtype of `x`.
    """
    x = atleast_1d(x)
    return x if x.ndim >= 2 else _reshape(x, shape=(1, *x.shape))


def atleast_3d(x: Any) -> Tensor:
    """`x`, a matrix with an axis of length 1 after its two, a vector with one on either side.

    Returns
    -------
    x.shape, (m, n, 1) for (m, n), (1, n, 1) for (n,), (1, 1, 1) for (), in the dtype of `x`.
    """
    x = atleast_2d(x)
    return x if x.ndim >= 3 else _reshape(x, shape=(*x.shape, 1))


# -- axes merged and moved ------------------------------------------------------------------------------------
def ravel(x: Any) -> Tensor:
    """The elements of `x` in C order along one axis.

    Returns
    -------
    (x.size,), in the dtype of `x`.
    """
    x = as_tensor(x)
    return _reshape(x, shape=(x.size,))


def flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """The axes from `start_dim` to `end_dim`, both included, merged into one.

    Parameters
    ----------
    x : any shape; a number is taken for one element.
    start_dim, end_dim : the first and the last axis merged; all by default.

    Returns
    -------
    (..., product of the merged lengths, ...), in the dtype of `x`.

    Raises
    ------
    ArgumentError : an axis out of range, or `start_dim` after `end_dim`.
    """
    x = atleast_1d(x)
    start, end = (one_axis(x.ndim, axis, "flatten", x.shape) for axis in (start_dim, end_dim))
    if start > end:
        raise ArgumentError(
            f"flatten: start_dim {start_dim} comes after end_dim {end_dim} in shape {x.shape} (called at {user_line()})"
        )
    merged = math.prod(x.shape[start : end + 1])
    return _reshape(x, shape=(*x.shape[:start], merged, *x.shape[end + 1 :]))


def moveaxis(x: Any, source: int | tuple[int, ...], destination: int | tuple[int, ...]) -> Tensor:
    """Axes moved to other positions; the others keep their order.

    Parameters
    ----------
    x : any shape.
    source : axis or axes of `x`.
    destination : the position of each in the result.

    Returns
    -------
    x.shape permuted, in the dtype of `x`.

    Raises
    ------
    ArgumentError : axes out of range or repeated, or not as many of one as of the other.
    """
    x = as_tensor(x)
    origin = several_axes(x.ndim, source, "moveaxis", x.shape)
    target = several_axes(x.ndim, destination, "moveaxis", x.shape)
    if len(origin) != len(target):
        raise ArgumentError(f"moveaxis: {len(origin)} axes cannot move to {len(target)} positions "
                            f"(called at {user_line()})")  # fmt: skip
    order = [i for i in range(x.ndim) if i not in origin]
    for to, axis in sorted(zip(target, origin)):
        order.insert(to, axis)
    return _transpose(x, axes=tuple(order))


def swapaxes(x: Any, axis1: int, axis2: int) -> Tensor:
    """`x` with two axes exchanged, without a copy.

    Parameters
    ----------
    x : any shape.
    axis1, axis2 : the axes.

    Returns
    -------
    x.shape with two lengths exchanged, in the dtype of `x`.

    Raises
    ------
    ArgumentError : an axis out of range.
    """
    x = as_tensor(x)
    i, j = (one_axis(x.ndim, axis, "swapaxes", x.shape) for axis in (axis1, axis2))
    order = list(range(x.ndim))
    order[i], order[j] = j, i
    return _transpose(x, axes=tuple(order))
