"""Contracts of the importance-weighted bound on log p(x) and of its gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gmkernels.cost import Cost
from gmkernels.registry import Array, Example, KernelError, KernelSpec, Layout


def split(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """(outer, K, inner): an array of that shape seen with three axes, the samples on the middle one."""
    axis %= len(shape)
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _reduced(op: str, name: str, a: Array, axis: int) -> tuple[int, ...]:
    """Shape of `a` without the axis of the samples."""
    if a.dtype.kind != "f":
        raise KernelError(f"{op}: expected a floating {name}, got {a.dtype}{list(a.shape)}")
    if not -a.ndim <= axis < a.ndim:
        raise KernelError(f"{op}: {name} of shape {a.shape} has no axis {axis}")
    axis %= a.ndim
    if a.shape[axis] == 0:
        raise KernelError(f"{op}: {name} of shape {a.shape} has no samples along axis {axis}")
    return a.shape[:axis] + a.shape[axis + 1 :]


def _bound_infer(log_w: Array, *, axis: int) -> Layout:
    reduced = _reduced("iwae_bound", "log_w", log_w, axis)
    return [(reduced, log_w.dtype), (log_w.shape, log_w.dtype), (reduced, log_w.dtype)]


def _bound_cost(log_w: Array, *, axis: int) -> Cost:
    columns = log_w.size // log_w.shape[axis]
    return Cost(bytes=log_w.itemsize * (2 * log_w.size + 2 * columns), slots=24 * log_w.size + 30 * columns)


SHAPES: list[tuple[tuple[int, ...], int]] = [
    ((5, 3), 0), ((5, 3), -1), ((1,), 0), ((7,), 0), ((3, 0), 0), ((0, 3), 1), ((1, 4), 0), ((4, 1), 1),
    ((50, 1023), 0), ((127, 129), -1), ((2, 3, 4), 1), ((129, 5, 1), 1), ((3, 211, 2), -2),
    ((2, 5003), 1), ((5003,), -1),
    ((3, 20011), 0),
]  # fmt: skip


def _bound_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for i, (shape, axis) in enumerate(SHAPES):
        scale, shift = [(1.0, 0.0), (5.0, -90.0), (30.0, 40.0)][i % 3]
        yield Example(((scale * rng.standard_normal(shape) + shift).astype(dtype),), {"axis": axis})
    inf, nan = np.inf, np.nan
    rows = [[0.5, -inf, 2], [-inf, -inf, -inf], [inf, 1, inf], [nan, 1, inf], [-inf, nan, -inf]]
    special = np.array(rows, dtype)
    yield Example((special,), {"axis": 1})
    yield Example((np.repeat(special.T, 9, axis=1),), {"axis": 0})


IWAE_BOUND = KernelSpec(
    name="iwae_bound",
    family="iwae",
    inputs=("log_w",),
    outputs=("bound", "weights", "ess"),
    infer=_bound_infer,
    cost=_bound_cost,
    examples=_bound_examples,
    formula="bound = log(1/K sum_k w_k); weights_k = w_k / sum_j w_j; ess = 1 / sum_k weights_k^2",
    source="Burda, Grosse & Salakhutdinov, ICLR 2016, eq. 8 (bound) and 14 (weights); ess: Kong, 1992",
    # Rounding of log_w - max in the exponent: u times 88 (708 in float64), beyond which a weight is zero.
    # The sums: 64 u within a run of 64 terms. u = 6e-8 (1.1e-16).
    tolerance={"float32": (1e-5, 4e-6), "float64": (1e-13, 8e-15)},
)


def _backward_infer(g_bound: Array, weights: Array, *, axis: int) -> Layout:
    reduced = _reduced("iwae_bound_backward", "weights", weights, axis)
    if g_bound.shape != reduced or g_bound.dtype != weights.dtype:
        raise KernelError(
            f"iwae_bound_backward: expected g_bound {weights.dtype}{list(reduced)} for weights "
            f"{weights.dtype}{list(weights.shape)} and axis {axis}, got {g_bound.dtype}{list(g_bound.shape)}"
        )
    return [(weights.shape, weights.dtype)]


def _backward_cost(g_bound: Array, weights: Array, *, axis: int) -> Cost:
    return Cost(bytes=weights.itemsize * (2 * weights.size + g_bound.size), slots=weights.size)


def _backward_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for shape, axis in SHAPES:
        weights = rng.random(shape)
        weights /= weights.sum(axis, keepdims=True)
        g_bound = rng.standard_normal(np.delete(shape, axis))
        yield Example((np.asarray(g_bound, dtype), weights.astype(dtype)), {"axis": axis})


IWAE_BOUND_BACKWARD = KernelSpec(
    name="iwae_bound_backward",
    family="iwae",
    inputs=("g_bound", "weights"),
    outputs=("d_log_w",),
    infer=_backward_infer,
    cost=_backward_cost,
    examples=_backward_examples,
    formula="d_log_w_k = g_bound weights_k",
    source="Burda, Grosse & Salakhutdinov, ICLR 2016, eq. 13",
    tolerance={"float32": (1e-7, 0.0), "float64": (0.0, 0.0)},  # one product, correctly rounded
)
