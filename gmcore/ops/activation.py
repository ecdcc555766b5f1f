"""Activations with the names and defaults of torch.nn.functional, most of them made of other operations.

Those that take several passes over memory are one loop where the array is large (`fuse_large`).

`sigmoid`, `tanh`, `relu` and `softplus`, which kernels fuse with products, are in `elementwise`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator
from typing import Any

import numpy as np

from gmcore.errors import ArgumentError, ShapeError
from gmcore.fuse import fuse_large
from gmcore.op import Example, Op, kernel, user_line
from gmcore.ops.arrange import split
from gmcore.ops.elementwise import (
    absolute,
    clip,
    expm1,
    greater,
    less_equal,
    real,
    sigmoid,
    sign,
    softplus,
    tanh,
    where,
)
from gmcore.ops.shape import reshape
from gmcore.ops.special import erfc
from gmcore.tensor import Tensor, as_tensor
from gmkernels.activation import spec

# Klambauer, Unterthiner, Mayr & Hochreiter, Self-Normalizing Neural Networks, NIPS 2017, equation 14
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


@fuse_large
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


@fuse_large
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


def _leaky_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape in ((), (0,), (7,), (2, 1, 3)):
        yield (real(rng, shape),), {"negative_slope": 0.2}


def _leaky_backward_examples(rng: np.random.Generator) -> Iterator[Example]:
    for (x,), slope in _leaky_examples(rng):
        yield (real(rng, x.shape), x), slope


_leaky_relu_backward: Op = Op(
    "leaky_relu_backward",
    "g_out x",
    forward=kernel(spec.LEAKY_RELU_BACKWARD),
    vjp=[
        lambda g, x, negative_slope: _leaky_relu_backward(g, x, negative_slope=negative_slope),
        lambda g: g * 0.0,
    ],
    formula=spec.LEAKY_RELU_BACKWARD.formula,
    source=spec.LEAKY_RELU_BACKWARD.source,
    examples=_leaky_backward_examples,
)
_leaky_relu = Op(
    "leaky_relu",
    "x",
    forward=kernel(spec.LEAKY_RELU),
    vjp=[lambda g, x, negative_slope: _leaky_relu_backward(g, x, negative_slope=negative_slope)],
    formula=spec.LEAKY_RELU.formula,
    source=spec.LEAKY_RELU.source,
    examples=_leaky_examples,
)


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, else negative_slope x, which is also the side of the derivative at 0.

    Parameters
    ----------
    x : any shape.
    negative_slope : the slope below 0, a number; `prelu` has slopes with a gradient.

    Returns
    -------
    x.shape; float32 stays float32.

    Raises
    ------
    ArgumentError : a `negative_slope` that is not a number.

    References
    ----------
    Maas, Hannun & Ng, Rectifier nonlinearities improve neural network acoustic models, ICML 2013, equation 2.
    """
    if not isinstance(negative_slope, numbers.Real):
        raise ArgumentError(
            f"leaky_relu: negative_slope must be a number, got {negative_slope!r} (called at {user_line()}); "
            "prelu takes slopes that are tensors"
        )
    return _leaky_relu(x, negative_slope=float(negative_slope))


_leaky_relu.public = leaky_relu


@fuse_large
def silu(x: Any) -> Tensor:
    """x sigmoid(x), also called swish.

    Returns
    -------
    x.shape; float32 stays float32.
    """
    x = as_tensor(x)
    return x * sigmoid(x)


@fuse_large
def _gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


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
        return _gelu_tanh(x)
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
    return -softplus(-1.0 * as_tensor(x))


@fuse_large
def softsign(x: Any) -> Tensor:
    """x / (1 + |x|).

    Returns
    -------
    x.shape; float32 stays float32.
    """
    x = as_tensor(x)
    return x / (1.0 + absolute(x))


@fuse_large
def celu(x: Any, alpha: float = 1.0) -> Tensor:
    """x where x > 0, else alpha (e^(x / alpha) - 1), whose derivative is continuous for every alpha.

    Parameters
    ----------
    x : any shape.
    alpha : positive; minus the limit at minus infinity.

    Returns
    -------
    x.shape; float32 stays float32.

    Raises
    ------
    ArgumentError : an alpha that is not positive.

    References
    ----------
    Barron, Continuously differentiable exponential linear units, arXiv:1704.07483.
    """
    if not alpha > 0:
        raise ArgumentError(f"celu: alpha must be positive, got {alpha!r} (called at {user_line()})")
    x = as_tensor(x)
    above = greater(x, 0.0)
    return where(above, x, alpha * expm1(where(above, 0.0, x) / alpha))


@fuse_large
def mish(x: Any) -> Tensor:
    """x tanh(softplus(x)).

    Returns
    -------
    x.shape; float32 stays float32.

    References
    ----------
    Misra, Mish: a self regularized non-monotonic activation function, BMVC 2020.
    """
    x = as_tensor(x)
    return x * tanh(softplus(x))


def relu6(x: Any) -> Tensor:
    """min(max(x, 0), 6); the gradient at a limit is a half, as for `clip`.

    Returns
    -------
    x.shape; float32 stays float32.
    """
    return clip(x, 0.0, 6.0)


@fuse_large
def hardsigmoid(x: Any) -> Tensor:
    """min(max(x / 6 + 1 / 2, 0), 1): sigmoid's three straight pieces.

    Returns
    -------
    x.shape; float32 stays float32.
    """
    return relu6(as_tensor(x) + 3.0) / 6.0


@fuse_large
def hardswish(x: Any) -> Tensor:
    """x hardsigmoid(x).

    Returns
    -------
    x.shape; float32 stays float32.

    References
    ----------
    Howard et al., Searching for MobileNetV3, ICCV 2019.
    """
    x = as_tensor(x)
    return x * hardsigmoid(x)


@fuse_large
def hardshrink(x: Any, lambd: float = 0.5) -> Tensor:
    """x where |x| > lambd, else 0.

    Parameters
    ----------
    x : any shape.
    lambd : the threshold, at least 0.

    Returns
    -------
    x.shape; float32 stays float32.
    """
    x = as_tensor(x)
    return where(less_equal(absolute(x), lambd), 0.0, x)  # NaN stays


@fuse_large
def softshrink(x: Any, lambd: float = 0.5) -> Tensor:
    """x moved towards 0 by lambd, or to it: sign(x) max(|x| - lambd, 0), the proximal operator of lambd |x|.

    Parameters
    ----------
    x : any shape.
    lambd : how far, at least 0.

    Returns
    -------
    x.shape; float32 stays float32.

    Raises
    ------
    ArgumentError : a negative lambd.
    """
    if not lambd >= 0:
        raise ArgumentError(f"softshrink: lambd must be at least 0, got {lambd!r} (called at {user_line()})")
    x = as_tensor(x)
    return where(less_equal(absolute(x), lambd), 0.0, x - lambd * sign(x))  # NaN stays


def tanhshrink(x: Any) -> Tensor:
    """x - tanh x.

    Returns
    -------
    x.shape; float32 stays float32.
    """
    x = as_tensor(x)
    return x - tanh(x)


def threshold(x: Any, threshold: float, value: float) -> Tensor:
    """x where x > threshold, else value.

    Parameters
    ----------
    x : any shape.
    threshold : what x has to exceed.
    value : in place of the others.

    Returns
    -------
    x.shape; float32 stays float32.
    """
    x = as_tensor(x)
    return where(less_equal(x, threshold), value, x)  # NaN stays


def prelu(x: Any, weight: Any) -> Tensor:
    """x where x > 0, else weight x, with a slope for each channel.

    Parameters
    ----------
    x : (N, C, ...), or any shape if there is one slope.
    weight : (C,) or (1,), the slopes below 0.

    Returns
    -------
    x.shape, in the dtype to which both promote.

    Raises
    ------
    ShapeError : another number of slopes than one or the channels.

    References
    ----------
    He, Zhang, Ren & Sun, Delving deep into rectifiers, ICCV 2015.
    """
    x, weight = as_tensor(x), as_tensor(weight)
    if weight.size != 1 and (weight.ndim != 1 or x.ndim < 2 or weight.size != x.shape[1]):
        raise ShapeError(
            f"prelu: expected a slope, or one for each channel (axis 1), got x {x.shape} and weight {weight.shape} "
            f"(called at {user_line()})"
        )
    slope = reshape(weight, () if weight.size == 1 else (-1,) + (1,) * (x.ndim - 2))
    return where(greater(x, 0.0), x, slope * x)


def glu(x: Any, axis: int = -1) -> Tensor:
    """The first half of an axis, gated by the second: a sigmoid(b).

    Parameters
    ----------
    x : any shape with an even number along `axis`.
    axis : the one to halve.

    Returns
    -------
    x.shape with half of `axis`; float32 stays float32.

    Raises
    ------
    ShapeError : an odd number along the axis, or no such axis.

    References
    ----------
    Dauphin, Fan, Auli & Grangier, Language modeling with gated convolutional networks, ICML 2017.
    """
    x = as_tensor(x)
    if not -x.ndim <= axis < x.ndim or x.shape[axis] % 2:
        raise ShapeError(f"glu: expected an even number along axis {axis}, got {x.shape} (called at {user_line()})")
    a, b = split(x, 2, axis)
    return a * sigmoid(b)
