"""Activations that are made of other operations: the names and defaults of torch.nn.functional.

`sigmoid`, `tanh`, `relu` and `softplus`, which kernels fuse with products, are in `elementwise`.
"""

from __future__ import annotations

import math
from typing import Any

from gmcore.errors import ArgumentError
from gmcore.op import user_line
from gmcore.ops.elementwise import absolute, clip, expm1, greater, sigmoid, softplus, tanh, where
from gmcore.ops.special import erfc
from gmcore.tensor import Tensor, as_tensor

# Klambauer, Unterthiner, Mayr & Hochreiter, Self-Normalizing Neural Networks, NIPS 2017, equation 14
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def elu(x: Any, alpha: float = 1.0) -> Tensor:
    """x where x > 0, else alpha (e^x - 1).

    Parameters
    ----------
    x : any shape.
    alpha : minus the limit at minus infinity; at 0 the derivative is alpha.

    Returns
    -------
    x.shape; float32 stays float32.

    References
    ----------
    Clevert, Unterthiner & Hochreiter, Fast and accurate deep network learning by exponential linear units, ICLR 2016.
    """
    x = as_tensor(x)
    positive = greater(x, 0.0)
    # The exponential never sees a positive x, which could overflow.
    return where(positive, x, alpha * expm1(where(positive, 0.0, x)))


def selu(x: Any) -> Tensor:
    """1.0507 elu(x, alpha=1.6733), of whose constants mean 0 and variance 1 are a fixed point.

    Returns
    -------
    x.shape; float32 stays float32.

    References
    ----------
    Klambauer, Unterthiner, Mayr & Hochreiter, Self-normalizing neural networks, NIPS 2017, equations 2 and 14.
    """
    return _SELU_SCALE * elu(x, _SELU_ALPHA)


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, else negative_slope x, which is also the side of the derivative at 0.

    Parameters
    ----------
    x : any shape.
    negative_slope : the slope below 0.

    Returns
    -------
    x.shape; float32 stays float32.
    """
    x = as_tensor(x)
    return where(greater(x, 0.0), x, negative_slope * x)


def silu(x: Any) -> Tensor:
    """x sigmoid(x), also called swish.

    Returns
    -------
    x.shape; float32 stays float32.
    """
    x = as_tensor(x)
    return x * sigmoid(x)


def gelu(x: Any, approximate: str = "none") -> Tensor:
    """x Phi(x), with Phi the normal distribution function.

    Parameters
    ----------
    x : any shape.
    approximate : ``"none"``, or ``"tanh"`` for 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).

    Returns
    -------
    x.shape; float32 stays float32.

    Raises
    ------
    ArgumentError : another `approximate`.

    References
    ----------
    Hendrycks & Gimpel, Gaussian error linear units, arXiv:1606.08415.
    """
    x = as_tensor(x)
    if approximate == "none":
        return 0.5 * x * erfc(-math.sqrt(0.5) * x)
    if approximate == "tanh":
        return 0.5 * x * (1.0 + tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))
    raise ArgumentError(f"gelu: approximate={approximate!r}; expected 'none' or 'tanh' (called at {user_line()})")


def hardtanh(x: Any, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """min(max(x, min_val), max_val); the gradient at a limit is a half, as for `clip`.

    Parameters
    ----------
    x : any shape.
    min_val, max_val : the limits.

    Returns
    -------
    x.shape; float32 stays float32.
    """
    return clip(x, min_val, max_val)


def logsigmoid(x: Any) -> Tensor:
    """log sigmoid(x) = -softplus(-x), without overflow or loss of digits.

    Returns
    -------
    x.shape; float32 stays float32.
    """
    return -softplus(-as_tensor(x))


def softsign(x: Any) -> Tensor:
    """x / (1 + |x|).

    Returns
    -------
    x.shape; float32 stays float32.
    """
    x = as_tensor(x)
    return x / (1.0 + absolute(x))
