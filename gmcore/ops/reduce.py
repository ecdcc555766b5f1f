"""Reductions: NumPy's names, with `axis` (None, an int or a tuple) and `keepdims`."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

from gmcore.errors import ArgumentError
from gmcore.op import Example, Op, user_line
from gmcore.ops.elementwise import _where, equal, exp, isfinite, real
from gmcore.ops.shape import broadcast_to, reshape
from gmcore.tensor import Tensor, as_tensor

Axis = int | tuple[int, ...] | None


def normalize_axis(x: Tensor, axis: Axis, name: str) -> tuple[int, ...]:
    """`axis` as a sorted tuple of non-negative ints. Raises `ArgumentError` if out of range or repeated."""
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, (tuple, list)) else (axis,)
    found = sorted(operator.index(a) + (x.ndim if a < 0 else 0) for a in axes)
    if any(not 0 <= a < x.ndim for a in found) or len(set(found)) != len(found):
        raise ArgumentError(
            f"{name}: axis {axis} does not fit shape {x.shape}; expected distinct axes in "
            f"{-x.ndim}..{x.ndim - 1} (called at {user_line()})"
        )
    return tuple(found)


def _kept(shape: tuple[int, ...], axis: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with the reduced axes kept as 1."""
    return tuple(1 if i in axis else n for i, n in enumerate(shape))


def _spread(g: Tensor, shape: tuple[int, ...], axis: tuple[int, ...]) -> Tensor:
    """A reduction's result or gradient, broadcast back over the reduced axes."""
    return broadcast_to(reshape(g, _kept(shape, axis)), shape)


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
    forward=lambda x, axis, keepdims: np.sum(x, axis=axis, keepdims=keepdims),
    vjp=[lambda g, x_shape, axis: _spread(g, x_shape, axis)],
    formula="sum of x over axis",
    examples=_examples(empty=True),
)


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Sum over `axis` (all axes by default); float32 stays float32."""
    x = as_tensor(x)
    return _sum(x, axis=normalize_axis(x, axis, "sum"), keepdims=keepdims)


_sum.public = sum


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Mean over `axis` (all axes by default). Raises `ArgumentError` for no elements."""
    x = as_tensor(x)
    axes = normalize_axis(x, axis, "mean")
    count = math.prod(x.shape[a] for a in axes)
    if count == 0:
        raise ArgumentError(f"mean: no elements along axis {axis} of shape {x.shape} (called at {user_line()})")
    return _sum(x, axis=axes, keepdims=keepdims) * (1.0 / count)


def _max_rule(g: Tensor, x: Tensor, out: Tensor, axis: tuple[int, ...]) -> Tensor:
    at_max = equal(x, _spread(out, x.shape, axis))
    share = _where(at_max, Tensor(np.ones((), g.dtype)), 0.0)
    return _spread(g, x.shape, axis) * share / _spread(_sum(share, axis=axis, keepdims=False), x.shape, axis)


_max = Op(
    "max",
    "x",
    forward=lambda x, axis, keepdims: np.max(x, axis=axis, keepdims=keepdims),
    vjp=[_max_rule],
    formula="largest of x over axis; ties split their gradient evenly",
    examples=_examples(empty=False),
)


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Largest element over `axis` (all axes by default); equal ones share the gradient evenly."""
    x = as_tensor(x)
    return _max(x, axis=normalize_axis(x, axis, "max"), keepdims=keepdims)


_max.public = max


def _logsumexp_forward(x: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    top = np.max(x, axis=axis, keepdims=True)
    shift = np.where(np.isfinite(top), top, x.dtype.type(0))
    with np.errstate(divide="ignore"):
        total = np.log(np.sum(np.exp(x - shift), axis=axis, keepdims=True)) + shift
    return total if keepdims else total.reshape([n for i, n in enumerate(x.shape) if i not in axis])


def _logsumexp_rule(g: Tensor, x: Tensor, axis: tuple[int, ...]) -> Tensor:
    # Softmax by its own shift: exp(x - out) would lose the digits of out. A row of minus infinity has no defined
    # weights; its gradient is 0.
    top = _max(x.detach(), axis=axis, keepdims=True)
    e = exp(x - _where(isfinite(top), top, 0.0))
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
    """log of the sum of exponentials over `axis`, without overflow; minus infinity where all are."""
    x = as_tensor(x)
    return _logsumexp(x, axis=normalize_axis(x, axis, "logsumexp"), keepdims=keepdims)


_logsumexp.public = logsumexp
