"""Contracts of elementwise activations that stand between layers, and of their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gmkernels.cost import Cost
from gmkernels.registry import Array, Example, KernelError, KernelSpec, Layout, is_float


def _leaky_infer(x: Array, *, negative_slope: float) -> Layout:
    if not is_float(x.dtype.name):
        raise KernelError(f"leaky_relu: expected a floating x, got {x.dtype}{list(x.shape)}")
    return [(x.shape, x.dtype)]


def _backward_infer(g: Array, x: Array, *, negative_slope: float) -> Layout:
    if not is_float(x.dtype.name) or g.dtype != x.dtype or g.shape != x.shape:
        raise KernelError(
            f"leaky_relu_backward: expected floating g and x of one shape and dtype, got g {g.dtype}{list(g.shape)}, "
            f"x {x.dtype}{list(x.shape)}"
        )
    return [(x.shape, x.dtype)]


def _leaky_cost(x: Array, *, negative_slope: float) -> Cost:
    return Cost(2 * x.nbytes, 0, 2 * x.size)


def _backward_cost(g: Array, x: Array, *, negative_slope: float) -> Cost:
    return Cost(3 * x.nbytes, 0, 2 * x.size)


def _leaky_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for shape in ((), (1,), (0, 3), (7,), (127, 129), (3, 20011)):
        yield Example((np.asarray(rng.standard_normal(shape), dtype),), {"negative_slope": 0.2})
    special = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], dtype)
    yield Example((special,), {"negative_slope": 0.01})
    yield Example((special[1:],), {"negative_slope": -3.0})


def _backward_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for example in _leaky_examples(rng, dtype):
        (x,) = example.inputs
        yield Example((np.asarray(rng.standard_normal(x.shape), dtype), x), example.attrs)


_SOURCE = "Maas, Hannun & Ng, Rectifier nonlinearities improve neural network acoustic models, ICML 2013, equation 2"
# One product in the dtype of x, whose slope is rounded to that dtype too: relative, 2 u.
_TOLERANCE = {"float32": (1.2e-7, 1e-37), "float64": (0.0, 1e-307)}  # denormals are flushed

LEAKY_RELU = KernelSpec(
    name="leaky_relu",
    family="activation",
    inputs=("x",),
    outputs=("y",),
    infer=_leaky_infer,
    cost=_leaky_cost,
    examples=_leaky_examples,
    formula="y = x where x > 0, else negative_slope x",
    source=_SOURCE,
    tolerance=_TOLERANCE,
)

LEAKY_RELU_BACKWARD = KernelSpec(
    name="leaky_relu_backward",
    family="activation",
    inputs=("g", "x"),
    outputs=("d_x",),
    infer=_backward_infer,
    cost=_backward_cost,
    examples=_backward_examples,
    formula="d_x = g where x > 0, else negative_slope g",
    source="the derivative of leaky_relu, on the side of negative_slope at 0",
    tolerance=_TOLERANCE,
)
