"""Batch normalisation in NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.norm.spec import split

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]


def batch_norm(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    x, weight, bias = inputs
    y, mean, var = outputs
    shape = split(x.shape)
    x, y = x.reshape(shape), y.reshape(shape)
    with np.errstate(invalid="ignore", over="ignore"):
        center: Any = np.mean(x, (0, 2), np.float64, keepdims=True)
        deviation = x - center
        var[...] = np.mean(np.square(deviation), (0, 2))
        mean[...] = center[0, :, 0]
        scale = weight / np.sqrt(var + var.dtype.type(attrs["eps"]))
        y[...] = deviation * scale[:, None] + bias[:, None]


def batch_norm_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g, x, weight, _, var = inputs
    d_x, d_weight, d_bias = outputs
    batch, channels, each = shape = split(x.shape)
    g, x, d_x, n = g.reshape(shape), x.reshape(shape), d_x.reshape(shape), batch * each
    with np.errstate(invalid="ignore", over="ignore"):
        rstd = 1 / np.sqrt(var + var.dtype.type(attrs["eps"]))
        h = (x - np.mean(x, (0, 2), np.float64, keepdims=True)) * rstd[:, None]
        d_bias[...] = np.sum(g, (0, 2), np.float64)
        d_weight[...] = np.sum(g * h, (0, 2))
        if n:
            d_x[...] = (weight * rstd)[:, None] * (g - d_bias[:, None] / n - h * (d_weight[:, None] / n))
