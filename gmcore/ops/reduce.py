"""Reductions: NumPy's names, with `axis` (None, an int or a tuple) and `keepdims`."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator
from typing import Any

import numpy as np

from gmcore.errors import ArgumentError
from gmcore.op import Example, Op, kernel, user_line
from gmcore.ops.arrange import flip
from gmcore.ops.elementwise import (
    _where,
    absolute,
    as_floating,
    cast,
    equal,
    exp,
    isinf,
    isnan,
    logical_or,
    power,
    real,
    sqrt,
    square,
)
from gmcore.ops.scan import product_before, with_zeros
from gmcore.ops.shape import Axis, broadcast_to, moveaxis, one_axis, reshape, several_axes
from gmcore.tensor import Tensor, as_tensor, is_floating
from gmkernels.reduce import spec


def normalize_axis(x: Tensor, axis: Axis, name: str) -> tuple[int, ...]:
    """`axis` as a sorted tuple of non-negative ints. Raises `ArgumentError` if out of range or repeated."""
    return tuple(range(x._data.ndim)) if axis is None else tuple(sorted(several_axes(x.ndim, axis, name, x.shape)))


def _kept(shape: tuple[int, ...], axis: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with the reduced axes kept as 1."""
    return tuple([1 if i in axis else n for i, n in enumerate(shape)])


def _spread(g: Tensor, shape: tuple[int, ...], axis: tuple[int, ...]) -> Tensor:
    """A reduction's result or gradient, broadcast back over the reduced axes."""
    return broadcast_to(reshape(g, _kept(shape, axis)) if g.ndim else g, shape)


def _examples(empty: bool) -> Any:
    cases: list[tuple[tuple[int, ...], Any]] = [
        ((), None), ((5,), None), ((2, 3), None), ((2, 3), 0), ((2, 3), -1), ((2, 3, 2), (0, 2)), ((1, 4), 1),
    ]  # fmt: skip
    if empty:
        cases += [((0,), None), ((2, 0), 0), ((2, 0), 1)]

    def examples(rng: np.random.Generator) -> Iterator[Example]:
        for shape, axis in cases:
            yield (real(rng, shape),), {"axis": axis}
        yield (real(rng, (2, 3)),), {"axis": 1, "keepdims": True}

    return examples


_sum = Op(
    "sum",
    "x",
    forward=kernel(spec.SUM, otherwise=lambda x, axis, keepdims: np.sum(x, axis=axis, keepdims=keepdims)),
    vjp=[lambda g, x_shape, axis: _spread(g, x_shape, axis)],
    formula="sum of x over axis",
    examples=_examples(empty=True),
)


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Sum over `axis`, in the dtype of `x` (booleans and small integers as NumPy sums them); 0 over no elements.

    Parameters
    ----------
    x : any shape.
    axis : axis or axes to reduce; None, the default, for all.
    keepdims : whether reduced axes stay, with length 1.

    Returns
    -------
    x.shape without `axis`.

    Raises
    ------
    ArgumentError : `axis` out of range or repeated.
    """
    x = as_tensor(x)
    return _sum(x, axis=normalize_axis(x, axis, "sum"), keepdims=keepdims)


_sum.public = sum


def wide(x: Tensor) -> Tensor:
    """`x`, of a half type as float32: what is summed or squared on the way to a result may be beyond that type."""
    return cast(x, np.float32) if x._data.itemsize == 2 and is_floating(x._data.dtype) else x


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Mean over `axis`: sum x / n.

    Parameters
    ----------
    x : any shape.
    axis : axis or axes to reduce; None, the default, for all.
    keepdims : whether reduced axes stay, with length 1.

    Returns
    -------
    x.shape without `axis`; float32 stays float32.

    Raises
    ------
    ArgumentError : `axis` out of range or repeated, or no elements.
    """
    x = as_tensor(x)
    axes = normalize_axis(x, axis, "mean")
    count = _count(x, axes, 0, "mean")
    terms = wide(x)
    out = _sum(terms, axis=axes, keepdims=keepdims)
    if count != 1:
        out = out * (1.0 / count)
    return out if terms is x else cast(out, x.dtype)


def _count(x: Tensor, axes: tuple[int, ...], ddof: float, name: str) -> float:
    """Number of elements over `axes`, less `ddof`. Raises `ArgumentError` unless that is positive."""
    count = math.prod([x.shape[a] for a in axes]) - ddof
    if count <= 0:
        short = f"too few elements for ddof={ddof}" if ddof else "no elements"
        raise ArgumentError(f"{name}: {short} along axis {axes} of shape {x.shape} (called at {user_line()})")
    return count


def var(x: Any, axis: Axis = None, ddof: float = 0, keepdims: bool = False) -> Tensor:
    """Variance over `axis`: sum (x - mean)^2 / (n - ddof).

    Parameters
    ----------
    x : any shape.
    axis : axis or axes to reduce; None, the default, for all.
    ddof : what is taken off the number n of elements; 1 for the unbiased estimate.
    keepdims : whether reduced axes stay, with length 1.

    Returns
    -------
    x.shape without `axis`; float32 stays float32.

    Raises
    ------
    ArgumentError : `axis` out of range or repeated, or n - ddof not positive.
    """
    x = as_tensor(x)
    axes = normalize_axis(x, axis, "var")
    count = _count(x, axes, ddof, "var")
    terms = wide(x)
    squares = square(terms - mean(terms, axes, keepdims=True))
    out = _sum(squares, axis=axes, keepdims=keepdims) * (1.0 / count)
    return out if terms is x else cast(out, x.dtype)


def std(x: Any, axis: Axis = None, ddof: float = 0, keepdims: bool = False) -> Tensor:
    """Standard deviation over `axis`, sqrt(sum (x - mean)^2 / (n - ddof)); where it is 0, so is its gradient.

    Parameters
    ----------
    x : any shape.
    axis : axis or axes to reduce; None, the default, for all.
    ddof : what is taken off the number n of elements; 1 for the unbiased estimate.
    keepdims : whether reduced axes stay, with length 1.

    Returns
    -------
    x.shape without `axis`; float32 stays float32.

    Raises
    ------
    ArgumentError : `axis` out of range or repeated, or n - ddof not positive.
    """
    x = as_tensor(x)
    terms = wide(x)
    out = _root(var(terms, axis, ddof, keepdims))
    return out if terms is x else cast(out, x.dtype)


def _root(x: Tensor) -> Tensor:
    """sqrt(x) with derivative 0, not infinity, at 0."""
    zero = equal(x, 0.0)
    return _where(zero, 0.0, sqrt(_where(zero, 1.0, x)))


# -- largest and smallest -------------------------------------------------------------------------------------
def _extremum_rule(g: Tensor, x: Tensor, out: Tensor, axis: tuple[int, ...]) -> Tensor:
    # Where out is NaN, the NaNs among x are what it comes from.
    chosen = logical_or(equal(x, _spread(out, x.shape, axis)), isnan(x))
    share = _where(chosen, g.new_ones(()), 0.0)
    return _spread(g, x.shape, axis) * share / _spread(_sum(share, axis=axis, keepdims=False), x.shape, axis)


_max = Op(
    "max",
    "x",
    forward=lambda x, axis, keepdims: np.max(x, axis=axis, keepdims=keepdims),
    vjp=[_extremum_rule],
    formula="largest of x over axis; ties split their gradient evenly",
    examples=_examples(empty=False),
)
_min = Op(
    "min",
    "x",
    forward=lambda x, axis, keepdims: np.min(x, axis=axis, keepdims=keepdims),
    vjp=[_extremum_rule],
    formula="smallest of x over axis; ties split their gradient evenly",
    examples=_examples(empty=False),
)


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Largest element over `axis`; NaN where there is one. Equal ones, or the NaNs, share the gradient evenly.

    Parameters
    ----------
    x : any shape.
    axis : axis or axes to reduce; None, the default, for all.
    keepdims : whether reduced axes stay, with length 1.

    Returns
    -------
    x.shape without `axis`, in the dtype of `x`.

    Raises
    ------
    ArgumentError : `axis` out of range or repeated.  ShapeError : no elements.
    """
    x = as_tensor(x)
    return _max(x, axis=normalize_axis(x, axis, "max"), keepdims=keepdims)


def min(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Smallest element over `axis`; NaN where there is one. Equal ones, or the NaNs, share the gradient evenly.

    Parameters
    ----------
    x : any shape.
    axis : axis or axes to reduce; None, the default, for all.
    keepdims : whether reduced axes stay, with length 1.

    Returns
    -------
    x.shape without `axis`, in the dtype of `x`.

    Raises
    ------
    ArgumentError : `axis` out of range or repeated.  ShapeError : no elements.
    """
    x = as_tensor(x)
    return _min(x, axis=normalize_axis(x, axis, "min"), keepdims=keepdims)


_max.public, _min.public = max, min


def _arg_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, axis in (((), None), ((5,), 0), ((2, 3), None), ((2, 3), -1), ((3, 0, 2), 0)):
        yield (real(rng, shape),), {"axis": axis}
    yield (real(rng, (2, 3)),), {"axis": 1, "keepdims": True}


_argmax = Op(
    "argmax",
    "x",
    forward=lambda x, axis, keepdims: np.argmax(x, axis=axis, keepdims=keepdims),
    vjp=None,
    formula="the index of the (first) largest element",
    examples=_arg_examples,
)
_argmin = Op(
    "argmin",
    "x",
    forward=lambda x, axis, keepdims: np.argmin(x, axis=axis, keepdims=keepdims),
    vjp=None,
    formula="the index of the (first) smallest element",
    examples=_arg_examples,
)


def argmax(x: Any, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Index of the first largest element along `axis`, of the first NaN if there is one.

    Parameters
    ----------
    x : any shape.
    axis : one axis; None, the default, counts all elements in C order.
    keepdims : whether the reduced axis stays, with length 1.

    Returns
    -------
    int64, x.shape without `axis`.

    Raises
    ------
    ArgumentError : `axis` out of range.  ShapeError : no elements.
    """
    x = as_tensor(x)
    return _argmax(x, axis=None if axis is None else one_axis(x.ndim, axis, "argmax", x.shape), keepdims=keepdims)


def argmin(x: Any, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Index of the first smallest element along `axis`, of the first NaN if there is one.

    Parameters
    ----------
    x : any shape.
    axis : one axis; None, the default, counts all elements in C order.
    keepdims : whether the reduced axis stays, with length 1.

    Returns
    -------
    int64, x.shape without `axis`.

    Raises
    ------
    ArgumentError : `axis` out of range.  ShapeError : no elements.
    """
    x = as_tensor(x)
    return _argmin(x, axis=None if axis is None else one_axis(x.ndim, axis, "argmin", x.shape), keepdims=keepdims)


_argmax.public, _argmin.public = argmax, argmin


# -- truth ----------------------------------------------------------------------------------------------------
_any = Op(
    "any",
    "x",
    forward=lambda x, axis, keepdims: np.any(x, axis=axis, keepdims=keepdims),
    vjp=None,
    formula="whether any of x over axis is true (not 0)",
    examples=_examples(empty=True),
)
_all = Op(
    "all",
    "x",
    forward=lambda x, axis, keepdims: np.all(x, axis=axis, keepdims=keepdims),
    vjp=None,
    formula="whether all of x over axis are true (not 0)",
    examples=_examples(empty=True),
)


def any(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether any element over `axis` is true (not 0; NaN is true); false of no elements.

    Parameters
    ----------
    x : any shape.
    axis : axis or axes to reduce; None, the default, for all.
    keepdims : whether reduced axes stay, with length 1.

    Returns
    -------
    bool, x.shape without `axis`.

    Raises
    ------
    ArgumentError : `axis` out of range or repeated.
    """
    x = as_tensor(x)
    return _any(x, axis=normalize_axis(x, axis, "any"), keepdims=keepdims)


def all(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether all elements over `axis` are true (not 0; NaN is true); true of no elements.

    Parameters
    ----------
    x : any shape.
    axis : axis or axes to reduce; None, the default, for all.
    keepdims : whether reduced axes stay, with length 1.

    Returns
    -------
    bool, x.shape without `axis`.

    Raises
    ------
    ArgumentError : `axis` out of range or repeated.
    """
    x = as_tensor(x)
    return _all(x, axis=normalize_axis(x, axis, "all"), keepdims=keepdims)


_any.public, _all.public = any, all


# -- norms ----------------------------------------------------------------------------------------------------
def norm(x: Any, ord: float = 2, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The vector norm (sum |x|^ord)^(1/ord), as numpy.linalg.vector_norm; where it is 0, so is its gradient.

    Parameters
    ----------
    x : any shape.
    ord : a positive number; inf for the largest |x|. At elements that are 0 derivatives are taken as 0, also those
        that are infinite.
    axis : axis or axes to reduce; None, the default, for all.
    keepdims : whether reduced axes stay, with length 1.

    Returns
    -------
    x.shape without `axis`; float32 stays float32, integers become float64.

    Raises
    ------
    ArgumentError : `axis` out of range or repeated, or `ord` not a positive number (matrix norms are not here).
    ShapeError : no elements, for ord inf.
    """
    x = as_tensor(x)
    if not (isinstance(ord, numbers.Real) and float(ord) > 0):
        raise ArgumentError(f"norm: ord={ord!r}; expected a positive number or inf (called at {user_line()})")
    dtype = x.dtype if is_floating(x.dtype) else np.dtype(np.float64)  # small integers do not hold their squares
    x = wide(cast(x, dtype))
    if ord == math.inf:
        out = max(absolute(x), axis, keepdims)
    elif ord == 1:
        out = sum(absolute(x), axis, keepdims)
    elif ord == 2:
        out = _root(sum(square(x), axis, keepdims))
    else:
        out = _power(sum(_power(absolute(x), float(ord)), axis, keepdims), 1.0 / float(ord))
    return cast(out, dtype)


def _power(x: Tensor, exponent: float) -> Tensor:
    """x^exponent with derivatives 0, not infinite, at 0."""
    zero = equal(x, 0.0)
    return _where(zero, 0.0, power(_where(zero, 1.0, x), exponent))


# -- logsumexp ------------------------------------------------------------------------------------------------


def _logsumexp_forward(x: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # the result shows what is infinite or NaN
        top = np.max(x, axis=axis, keepdims=True)
        shift = np.where(np.isinf(top), x.dtype.type(0), top)
        total = np.log(np.sum(np.exp(x - shift), axis=axis, keepdims=True)) + shift
    return total if keepdims else total.reshape([n for i, n in enumerate(x.shape) if i not in axis])


def _logsumexp_rule(g: Tensor, x: Tensor, axis: tuple[int, ...]) -> Tensor:
    # Softmax by its own shift: exp(x - out) would lose the digits of out. A row of minus infinity has no defined
    # weights; its gradient is 0.
    top = _max(x.detach(), axis=axis, keepdims=True)
    e = exp(x - _where(isinf(top), 0.0, top))
    total = _sum(e, axis=axis, keepdims=True)
    return _spread(g, x.shape, axis) * (e / _where(equal(total, 0.0), 1.0, total))


_logsumexp = Op(
    "logsumexp",
    "x",
    forward=_logsumexp_forward,
    vjp=[_logsumexp_rule],
    formula="log sum exp x over axis, shifted by the largest",
    examples=_examples(empty=False),
)


def logsumexp(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """log sum e^x over `axis` without overflow; minus infinity, with gradient 0, where every x is minus infinity.

    Parameters
    ----------
    x : any shape, floating.
    axis : axis or axes to reduce; None, the default, for all.
    keepdims : whether reduced axes stay, with length 1.

    Returns
    -------
    x.shape without `axis`, in the dtype of `x`.

    Raises
    ------
    ArgumentError : `axis` out of range or repeated.  ShapeError : no elements.  DtypeError : `x` not floating.
    """
    x = as_floating(x, "logsumexp")
    return _logsumexp(x, axis=normalize_axis(x, axis, "logsumexp"), keepdims=keepdims)


_logsumexp.public = logsumexp


# -- products -------------------------------------------------------------------------------------------------
def _prod_rule(g: Tensor, x: Tensor, axis: tuple[int, ...]) -> Tensor:
    # The product of all elements but x_i is that of those before times that of those after it.
    last = tuple(range(x.ndim - len(axis), x.ndim))
    moved = moveaxis(x, axis, last)
    row = reshape(moved, (*moved.shape[: x.ndim - len(axis)], math.prod(moved.shape[i] for i in last)))
    end = row.ndim - 1
    others = product_before(row, end) * flip(product_before(flip(row, end), end), end)
    return _spread(g, x.shape, axis) * moveaxis(reshape(others, moved.shape), last, axis)


def _prod_examples(rng: np.random.Generator) -> Iterator[Example]:
    yield from _examples(empty=True)(rng)
    yield (with_zeros(rng),), {"axis": 1}


_prod = Op(
    "prod",
    "x",
    forward=lambda x, axis, keepdims: np.prod(x, axis=axis, keepdims=keepdims),
    vjp=[_prod_rule],
    formula="product of x over axis",
    examples=_prod_examples,
)


def prod(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Product over `axis`; 1 of no elements. Derivatives of any order hold where elements are 0.

    Parameters
    ----------
    x : any shape.
    axis : axis or axes to reduce; None, the default, for all.
    keepdims : whether reduced axes stay, with length 1.

    Returns
    -------
    x.shape without `axis`, in the dtype of `x` (small integers as NumPy multiplies them).

    Raises
    ------
    ArgumentError : `axis` out of range or repeated.
    """
    x = as_tensor(x)
    return _prod(x, axis=normalize_axis(x, axis, "prod"), keepdims=keepdims)


_prod.public = prod
