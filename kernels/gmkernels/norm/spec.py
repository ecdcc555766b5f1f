"""Contracts of batch normalisation, in training: forward with the batch's statistics, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gmkernels.cost import Cost
from gmkernels.registry import FLOATS, Array, Example, KernelError, KernelSpec, Layout


def split(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(N, C, ...) as (batch, channels, elements of a channel of one member)."""
    return shape[0], shape[1], math.prod(shape[2:])


def _check(op: str, x: Array, **arrays: Array) -> None:
    channels = x.shape[1:2]
    fits = x.ndim >= 2 and all(a.shape == (x.shape if name == "g" else channels) for name, a in arrays.items())
    if not fits or {a.dtype for a in (x, *arrays.values())} != {x.dtype} or x.dtype.name not in FLOATS:
        given = ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in {"x": x, **arrays}.items())
        raise KernelError(f"{op}: expected x (N, C, ...) and {', '.join(arrays)} that fit, of one dtype; got {given}")
    if math.prod(split(x.shape)[::2]) == 0 and x.shape[1]:
        raise KernelError(f"{op}: expected an element in each channel, got x {x.dtype}{list(x.shape)}")


_SHAPES = (
    (5, 3),
    (1, 1),
    (3, 0),
    (2, 0, 4),
    (2, 1, 1),
    (129, 67),
    (7, 5, 3),
    (3, 2, 4, 5),
    (11, 3, 37, 31),
    (1023, 300),
)


def _inputs(rng: np.random.Generator, dtype: Any) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    for shape in _SHAPES:
        x = rng.standard_normal(shape) + rng.uniform(-3, 3, (shape[1], *(1,) * (len(shape) - 2)))
        weight, bias = rng.uniform(0.5, 1.5, shape[1]), rng.standard_normal(shape[1])
        yield x.astype(dtype), weight.astype(dtype), bias.astype(dtype)


# ---------------------------------------------------------------------------------------------------------
# Forward
# ---------------------------------------------------------------------------------------------------------


def _infer(x: Array, weight: Array, bias: Array, *, eps: float) -> Layout:
    _check("batch_norm", x, weight=weight, bias=bias)
    return [(x.shape, x.dtype), (x.shape[1:2], x.dtype), (x.shape[1:2], x.dtype)]


def _examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for inputs in _inputs(rng, dtype):
        yield Example(inputs, {"eps": 0.1 if inputs[0].size < 10 else 1e-5})


BATCH_NORM = KernelSpec(
    name="batch_norm",
    family="norm",
    inputs=("x", "weight", "bias"),
    outputs=("y", "mean", "var"),
    infer=_infer,
    cost=lambda x, weight, bias, *, eps: Cost(x.itemsize * 2 * x.size, slots=8.0 * x.size),
    examples=_examples,
    formula=(
        "y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and var = mean of (x - mean)^2 of each channel "
        "over the batch and the axes after the channels"
    ),
    source="Ioffe & Szegedy, Batch normalization, ICML 2015, algorithm 1",
    # The mean and the variance have a few roundings of 6e-8 each, an element four more, of numbers up to 20.
    tolerance={"float32": (2e-6, 8e-6), "float64": (4e-15, 2e-14)},
)


# ---------------------------------------------------------------------------------------------------------
# Backward
# ---------------------------------------------------------------------------------------------------------


def _back_infer(g: Array, x: Array, weight: Array, mean: Array, var: Array, *, eps: float) -> Layout:
    _check("batch_norm_backward", x, g=g, weight=weight, mean=mean, var=var)
    return [(x.shape, x.dtype), (weight.shape, x.dtype), (weight.shape, x.dtype)]


def _back_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for x, weight, _ in _inputs(rng, dtype):
        axes = (0, *range(2, x.ndim))
        g, mean, var = rng.standard_normal(x.shape), x.mean(axes), x.var(axes)
        inputs = (g.astype(dtype), x, weight, mean.astype(dtype), var.astype(dtype))
        yield Example(inputs, {"eps": 0.1 if x.size < 10 else 1e-5})


BATCH_NORM_BACKWARD = KernelSpec(
    name="batch_norm_backward",
    family="norm",
    inputs=("g", "x", "weight", "mean", "var"),
    outputs=("d_x", "d_weight", "d_bias"),
    infer=_back_infer,
    cost=lambda g, *inputs, eps: Cost(g.itemsize * 3 * g.size, slots=12.0 * g.size),
    examples=_back_examples,
    formula=(
        "with n elements of each channel, h = (x - E x) / sqrt(var + eps): d_bias = sum g; d_weight = sum g h; "
        "d_x = weight / sqrt(var + eps) (g - d_bias / n - h d_weight / n). E x is computed as mean + E (x - mean), "
        "which does not depend on mean but for rounding"
    ),
    source="Ioffe & Szegedy, Batch normalization, ICML 2015, section 3",
    # A running sum of n terms of order 1 stays below 4 sqrt(n) and rounds like a random walk: 4 n u. In float64 that
    # is 4.6e-13 for the 1023 of a column, and so much again in the reference; in float32 no more than 64 numbers are
    # added before their sum ends in float64: 4 64 u = 1.5e-5 each, for up to 11 of them 5e-5.
    tolerance={"float32": (2e-6, 6e-5), "float64": (4e-15, 1e-12)},
)
