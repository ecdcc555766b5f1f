"""Matrix products, and the fully connected layer fused with its activation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gmcore.errors import ArgumentError, ShapeError
from gmcore.op import Example, Op, by_decomposition, kernel, user_line
from gmcore.ops.elementwise import exp, greater, real, where
from gmcore.ops.reduce import sum
from gmcore.ops.shape import reshape, transpose
from gmcore.tensor import Tensor, as_tensor
from gmkernels.dense import spec


def _swap(x: Tensor) -> Tensor:
    """The last two axes exchanged."""
    return transpose(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


_product = kernel(spec.MATMUL)


def _matmul_forward(x: Any, y: Any) -> Any:
    # Stacks of matrices and mixed dtypes are the array library's.
    return _product(x, y) if x.ndim == y.ndim == 2 and x.dtype == y.dtype else np.matmul(x, y)


def _matmul_examples(rng: np.random.Generator) -> Iterator[Example]:
    shapes = (((2, 3), (3, 4)), ((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((0, 3), (3, 2)), ((2, 0), (0, 3)))
    for a, b in (*shapes, ((2, 2, 3), (3, 2)), ((2, 1, 2, 3), (4, 3, 2))):
        yield (real(rng, a), real(rng, b)), {}


_matmul: Op = Op(
    "matmul",
    "x y",
    forward=_matmul_forward,
    vjp=[lambda g, y: _matmul(g, _swap(y)), lambda g, x: _matmul(_swap(x), g)],
    formula="x @ y over the last two axes",
    broadcast=True,
    examples=_matmul_examples,
)


def matmul(x: Any, y: Any) -> Tensor:
    """Matrix product with NumPy's rules for vectors and for stacks of matrices.

    Raises
    ------
    ShapeError : a number, or inner lengths that differ.
    """
    x, y = as_tensor(x), as_tensor(y)
    if not x.ndim or not y.ndim or x.shape[-1] != y.shape[-2 if y.ndim > 1 else 0]:
        raise ShapeError(
            f"matmul: shapes {x.shape} and {y.shape} do not fit: the last axis of the first must be as long as the "
            f"last but one of the second (called at {user_line()})"
        )
    rows = x if x.ndim > 1 else reshape(x, (1, -1))
    columns = y if y.ndim > 1 else reshape(y, (-1, 1))
    out = _matmul(rows, columns)
    if x.ndim == 1:
        out = reshape(out, (*out.shape[:-2], out.shape[-1]))
    return out if y.ndim > 1 else reshape(out, out.shape[:-1])


_matmul.public = matmul

# -- linear + bias + activation ------------------------------------------------------------------------------
ACTIVATIONS = ("identity", "tanh", "sigmoid", "relu", "softplus")
"""Activations that the linear kernel applies while its product is still in cache."""


def _slope(y: Tensor, activation: str) -> Tensor | float:
    """f'(a) in terms of y = f(a)."""
    return {
        "identity": lambda: 1.0,
        "tanh": lambda: 1.0 - y * y,
        "sigmoid": lambda: y * (1.0 - y),
        "relu": lambda: where(greater(y, 0.0), Tensor(np.ones((), y.dtype)), 0.0),
        "softplus": lambda: 1.0 - exp(-y),
    }[activation]()


def _activation_backward_plain(g: Tensor, y: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    d_pre = g * _slope(y, activation)
    return d_pre, sum(d_pre, axis=tuple(range(g.ndim - 1)))


def _activation_backward_examples(rng: np.random.Generator) -> Iterator[Example]:
    for activation in ACTIVATIONS:
        y = {"sigmoid": rng.uniform(0.1, 0.9, (4, 3)), "tanh": rng.uniform(-0.9, 0.9, (4, 3))}
        yield (real(rng, (4, 3)), y.get(activation, rng.uniform(0.2, 2.0, (4, 3)))), {"activation": activation}
    yield (real(rng, (0, 3)), real(rng, (0, 3))), {"activation": "identity"}


_activation_backward = Op(
    "activation_backward",
    "g_out y",
    "d_pre d_bias",
    forward=kernel(spec.ACTIVATION_BACKWARD),
    vjp=by_decomposition("g_out y", _activation_backward_plain, "activation"),
    formula="d_pre = g_out f'(a) with f' from y = f(a); d_bias = its sum over all axes but the last",
    examples=_activation_backward_examples,
)


def _linear_rule(
    g: Tensor, x: Tensor, weight: Tensor, out: Tensor, activation: str, needs: tuple[bool, ...]
) -> list[Tensor | None]:
    if activation == "identity":
        d_pre, d_bias = g, sum(g, axis=tuple(range(g.ndim - 1))) if needs[2] else None
    else:
        d_pre, d_bias = _activation_backward(g, out, activation=activation)
    rows = reshape(d_pre, (-1, weight.shape[0])) if d_pre.size else reshape(d_pre, (0, weight.shape[0]))
    d_x = reshape(_matmul(rows, weight), x.shape) if needs[0] else None
    d_weight = _matmul(transpose(rows), reshape(x, (rows.shape[0], weight.shape[1]))) if needs[1] else None
    return [d_x, d_weight, d_bias]


def _linear_examples(rng: np.random.Generator) -> Iterator[Example]:
    for activation in ACTIVATIONS:
        yield (real(rng, (4, 3)), real(rng, (2, 3)), real(rng, (2,))), {"activation": activation}
    yield (real(rng, (2, 3, 5)), real(rng, (4, 5)), real(rng, (4,))), {"activation": "tanh"}
    yield (real(rng, (3,)), real(rng, (2, 3)), None), {}
    yield (real(rng, (0, 3)), real(rng, (2, 3)), real(rng, (2,))), {}


_linear = Op(
    "linear",
    "x weight bias",
    forward=kernel(spec.LINEAR),
    vjp=_linear_rule,
    formula="f(x weight^T + bias)",
    examples=_linear_examples,
)


def linear(x: Any, weight: Any, bias: Any = None, *, activation: str = "identity") -> Tensor:
    """Fully connected layer with its activation in one pass: f(x weight^T + bias).

    Parameters
    ----------
    x : (..., in_features).
    weight : (out_features, in_features), PyTorch's layout.
    bias : (out_features,), or None.
    activation : one of `ACTIVATIONS`.

    Returns
    -------
    (..., out_features)

    Raises
    ------
    ShapeError : lengths that do not fit.  ArgumentError : an unknown activation.
    """
    if activation not in ACTIVATIONS:
        raise ArgumentError(f"linear: activation {activation!r}; expected one of {', '.join(ACTIVATIONS)}")
    x, weight = as_tensor(x), as_tensor(weight)
    if bias is None:
        bias = Tensor(np.zeros(weight.shape[:1], weight.dtype))
    return _linear(x, weight, bias, activation=activation)


_linear.public = linear
