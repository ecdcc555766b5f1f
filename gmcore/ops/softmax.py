"""Softmax and its logarithm, each in one pass forward and one backward.

An element of minus infinity (a masked one) has weight 0 and logarithm minus infinity. A row in which every element
is masked has no softmax: its weights are 0, their logarithms minus infinity, and nothing is NaN, forward or
backward (PyTorch gives NaN). Plus infinity and NaN give NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gmcore.op import Example, Op
from gmcore.ops.elementwise import as_floating, exp, real
from gmcore.ops.reduce import normalize_axis, sum
from gmcore.tensor import Tensor, as_tensor


def _examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, axis in (((4,), 0), ((2, 3), -1), ((3, 2), 0), ((2, 3, 2), 1), ((1, 1), 1), ((0, 3), 1)):
        yield (real(rng, shape),), {"axis": axis}


def _shifted(x: Any, axis: int) -> Any:
    """x minus the largest of its row, so that exponentials cannot overflow; masked rows stay minus infinity."""
    if not x.shape[axis]:
        return x.copy()
    top = np.max(x, axis=axis, keepdims=True)
    return x - np.where(top == -np.inf, x.dtype.type(0), top)


def _softmax_forward(x: Any, axis: int) -> Any:
    with np.errstate(invalid="ignore"):
        e = np.exp(_shifted(x, axis))
    total = np.sum(e, axis=axis, keepdims=True)
    e /= np.where(total == 0, x.dtype.type(1), total)
    return e


def _log_softmax_forward(x: Any, axis: int) -> Any:
    with np.errstate(invalid="ignore"):
        shifted = _shifted(x, axis)
        total = np.sum(np.exp(shifted), axis=axis, keepdims=True)
    shifted -= np.log(np.where(total == 0, x.dtype.type(1), total))
    return shifted


_softmax = Op(
    "softmax",
    "x",
    forward=_softmax_forward,
    vjp=[lambda g, out, axis: out * (g - sum(g * out, axis=axis, keepdims=True))],
    formula="e^x_i / sum_j e^x_j over axis",
    examples=_examples,
)
_log_softmax = Op(
    "log_softmax",
    "x",
    forward=_log_softmax_forward,
    vjp=[lambda g, out, axis: g - exp(out) * sum(g, axis=axis, keepdims=True)],
    formula="x_i - log sum_j e^x_j over axis",
    examples=_examples,
)


def softmax(x: Any, axis: int = -1) -> Tensor:
    """Weights e^x_i / sum_j e^x_j; all 0 where every x is minus infinity, NaN where one is NaN or plus infinity.

    Parameters
    ----------
    x : any shape, floating.
    axis : along which; the last by default.

    Returns
    -------
    x.shape, in the dtype of `x`.

    Raises
    ------
    ArgumentError : `axis` out of range.
    """
    x = as_floating(x, "softmax")
    return _softmax(x, axis=normalize_axis(x, axis, "softmax")[0])


def log_softmax(x: Any, axis: int = -1) -> Tensor:
    """x_i - log sum_j e^x_j: the logarithm of `softmax`, exact also where that is tiny.

    Parameters
    ----------
    x : any shape, floating.
    axis : along which; the last by default.

    Returns
    -------
    x.shape, in the dtype of `x`; minus infinity where every x is.

    Raises
    ------
    ArgumentError : `axis` out of range.
    """
    x = as_floating(x, "log_softmax")
    return _log_softmax(x, axis=normalize_axis(x, axis, "log_softmax")[0])


def softmin(x: Any, axis: int = -1) -> Tensor:
    """e^-x_i / sum_j e^-x_j, which is softmax(-x).

    Parameters
    ----------
    x : any shape, floating.
    axis : along which; the last by default.

    Returns
    -------
    x.shape, in the dtype of `x`.

    Raises
    ------
    ArgumentError : `axis` out of range.
    """
    return softmax(-as_tensor(x), axis)


_softmax.public, _log_softmax.public = softmax, log_softmax
