"""The formulas of `spec`, in NumPy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.registry import Array

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]


def matmul(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    a, b = inputs
    np.matmul(a, b, out=outputs[0])


def _activate(y: Array, activation: str) -> None:
    """y = activation(y), in place."""
    if activation == "tanh":
        np.tanh(y, out=y)
    elif activation == "sigmoid":  # 1 / (1 + exp(-y)) = exp(-log(1 + exp(-y))), which cannot overflow
        np.negative(y, out=y)
        np.logaddexp(0, y, out=y)
        np.negative(y, out=y)
        np.exp(y, out=y)
    elif activation == "relu":
        np.maximum(y, 0, out=y)
    elif activation == "softplus":
        np.logaddexp(0, y, out=y)


def linear(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    x, weight, *bias = inputs
    (y,) = outputs
    rows = math.prod(x.shape[:-1])
    np.matmul(x.reshape(rows, x.shape[-1]), weight.T, out=y.reshape(rows, y.shape[-1]))
    if bias:
        y += bias[0]
    with np.errstate(invalid="ignore"):  # logaddexp warns of NaN
        _activate(y, attrs.get("activation", "identity"))


def activation_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g, y = inputs
    d_pre, d_bias = outputs
    activation = attrs["activation"]
    if activation == "tanh":
        slope = 1 - y * y
    elif activation == "sigmoid":
        slope = y * (1 - y)
    elif activation == "softplus":
        slope = -np.expm1(-y)
    elif activation == "relu":
        slope = np.where(y <= 0, y.dtype.type(0), y.dtype.type(1))  # a NaN output passes the gradient on
    else:
        slope = y.dtype.type(1)
    np.multiply(g, slope, out=d_pre)
    d_bias[...] = np.sum(d_pre, axis=tuple(range(d_pre.ndim - 1)), dtype=np.float64)
