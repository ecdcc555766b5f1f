"""Running sums and products, and the linear recurrence that their derivatives are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gmcore.op import Example, Op
from gmcore.ops.arrange import _part, concatenate, flip
from gmcore.ops.elementwise import real
from gmcore.ops.shape import one_axis, ravel
from gmcore.tensor import Tensor, as_tensor
from gmkernels.arrays import namespace


def with_zeros(rng: np.random.Generator) -> np.ndarray:
    """An example with no, one and two zeros along the last axis: what tells a right product rule from x / x_i."""
    x = real(rng, (2, 4))
    x[0, 1] = x[1, 0] = x[1, 2] = 0.0
    return x


def _running_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, axis in (((4,), 0), ((2, 3), -1), ((3, 2), 0), ((2, 2), None), ((0, 2), 0)):
        yield (real(rng, shape),), {"axis": axis}
    yield (with_zeros(rng),), {"axis": 1}


_cumsum: Op = Op(
    "cumsum",
    "x",
    forward=lambda x, axis: np.cumsum(x, axis=axis),
    vjp=[lambda g, axis: flip(_cumsum(flip(g, axis), axis=axis), axis)],
    formula="out_i = x_0 + ... + x_i along axis",
    examples=_running_examples,
)


def _recurrence_forward(a: Any, b: Any, axis: int) -> Any:
    if a.shape != b.shape:
        raise ValueError("expected a and b of one shape")
    out = namespace(a).empty(a.shape, np.result_type(a, b))
    rows, factors, terms = (np.moveaxis(v, axis, 0) for v in (out, a, b))
    for i in range(len(rows)):
        rows[i] = factors[i] * rows[i - 1] + terms[i] if i else terms[0]
    return out


def _edge(value: float, x: Tensor, axis: int) -> Tensor:
    """`value` where x begins along axis."""
    return x.new_full(_part(x, axis, slice(0, 1)).shape, value)


def _backwards(a: Tensor, g: Tensor, axis: int) -> Tensor:
    """s_i = g_i + a_(i+1) s_(i+1): the recurrence from the end of axis."""
    after = concatenate([_part(a, axis, slice(1, None)), _edge(0.0, a, axis)], axis)
    return flip(_recurrence(flip(after, axis), flip(g, axis), axis=axis), axis)


def _recurrence_rule(g: Tensor, a: Tensor, out: Tensor, axis: int) -> list[Tensor]:
    # s, the gradient of all that b_i reaches, is that of b_i itself; a_i is multiplied by out_(i-1).
    s = _backwards(a, g, axis)
    before = concatenate([_edge(0.0, out, axis), _part(out, axis, slice(0, -1))], axis)
    return [s * before, s]


def _recurrence_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, axis in (((4,), 0), ((2, 3), 1), ((3, 2), 0), ((0, 2), 0)):
        yield (real(rng, shape), real(rng, shape)), {"axis": axis}


_recurrence: Op = Op(
    "linear_recurrence",
    "a b",
    forward=_recurrence_forward,
    vjp=_recurrence_rule,
    formula="out_i = a_i out_(i-1) + b_i along axis, with out_(-1) = 0",
    examples=_recurrence_examples,
)


def product_before(x: Tensor, axis: int) -> Tensor:
    """x_0 ... x_(i-1) along axis."""
    return concatenate([_edge(1.0, x, axis), _part(_cumprod(x, axis=axis), axis, slice(0, -1))], axis)


_cumprod: Op = Op(
    "cumprod",
    "x",
    forward=lambda x, axis: np.cumprod(x, axis=axis),
    # d/dx_i = (x_0 ... x_(i-1)) (g_i + x_(i+1) g_(i+1) + x_(i+1) x_(i+2) g_(i+2) + ...): no division by x_i, which
    # may be 0.
    vjp=[lambda g, x, axis: product_before(x, axis) * _backwards(x, g, axis)],
    formula="out_i = x_0 ... x_i along axis",
    examples=_running_examples,
)


def cumsum(x: Any, axis: int | None = None) -> Tensor:
    """Sums of the elements up to each one: out_i = x_0 + ... + x_i.

    Parameters
    ----------
    x : any shape.
    axis : along which; None, the default, goes through the elements in C order.

    Returns
    -------
    x.shape, or (x.size,) without `axis`; in the dtype of `x` (small integers as NumPy sums them).

    Raises
    ------
    ArgumentError : `axis` out of range.
    """
    x = as_tensor(x)
    if axis is None:
        return _cumsum(ravel(x), axis=0)
    return _cumsum(x, axis=one_axis(x.ndim, axis, "cumsum", x.shape))


def cumprod(x: Any, axis: int | None = None) -> Tensor:
    """Products of the elements up to each one: out_i = x_0 ... x_i. Derivatives of any order hold where elements are 0.

    Parameters
    ----------
    x : any shape.
    axis : along which; None, the default, goes through the elements in C order.

    Returns
    -------
    x.shape, or (x.size,) without `axis`; in the dtype of `x` (small integers as NumPy multiplies them).

    Raises
    ------
    ArgumentError : `axis` out of range.
    """
    x = as_tensor(x)
    if axis is None:
        return _cumprod(ravel(x), axis=0)
    return _cumprod(x, axis=one_axis(x.ndim, axis, "cumprod", x.shape))


_cumsum.public, _cumprod.public = cumsum, cumprod
