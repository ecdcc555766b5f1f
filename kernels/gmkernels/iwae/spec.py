"""Contracts of the importance-weighted bound on log p(x) and of its gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gmkernels.arrays import on_gpu
from gmkernels.cost import Cost
from gmkernels.registry import Array, Example, KernelError, KernelSpec, Layout, is_float


def split(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """(outer, K, inner): an array of that shape seen with three axes, the samples on the middle one."""
    axis %= len(shape)
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


_GPU_TILES = 1024  # eight blocks for each multiprocessor of the largest


def gpu_pieces(outer: int, samples: int, inner: int) -> tuple[int, int]:
    """Into how many pieces a GPU kernel cuts the samples, and how many samples a piece has, a multiple of 16.

    More than one where there are few columns of many samples; the sums of the pieces are added by a second launch.
    """
    tiles, shortest = (outer, 4096) if inner == 1 else (-(-outer * inner // 64), 512)
    pieces = max(1, min(_GPU_TILES // max(1, tiles), samples // shortest))
    piece = -(-samples // (16 * pieces)) * 16
    return -(-samples // piece), piece


def _reduced(op: str, name: str, a: Array, axis: int) -> tuple[int, ...]:
    """Shape of `a` without the axis of the samples."""
    if not is_float(a.dtype.name):
        raise KernelError(f"{op}: expected a floating {name}, got {a.dtype}{list(a.shape)}")
    if not -a.ndim <= axis < a.ndim:
        raise KernelError(f"{op}: {name} of shape {a.shape} has no axis {axis}")
    axis %= a.ndim
    if a.shape[axis] == 0:
        raise KernelError(f"{op}: {name} of shape {a.shape} has no samples along axis {axis}")
    return a.shape[:axis] + a.shape[axis + 1 :]


def _bound_infer(log_w: Array, *, axis: int) -> Layout:
    reduced = _reduced("iwae_bound", "log_w", log_w, axis)
    return [(reduced, log_w.dtype)] * 3


def _bound_workspace(log_w: Array, *, axis: int) -> Layout:
    """The highest sample of each piece, and the sum of exponentials relative to it."""
    outer, samples, inner = split(log_w.shape, axis)
    pieces = gpu_pieces(outer, samples, inner)[0] if on_gpu(log_w) else 1
    if pieces == 1:
        return []
    shape = (pieces, outer * inner)
    return [(shape, np.promote_types(np.float32, log_w.dtype)), (shape, np.dtype(np.float64))]


def _bound_cost(log_w: Array, *, axis: int) -> Cost:
    columns = log_w.size // log_w.shape[axis]
    return Cost(bytes=log_w.itemsize * (log_w.size + 3 * columns), slots=17 * log_w.size + 80 * columns)


SHAPES: list[tuple[tuple[int, ...], int]] = [
    ((5, 3), 0), ((5, 3), -1), ((1,), 0), ((7,), 0), ((3, 0), 0), ((0, 3), 1), ((1, 4), 0), ((4, 1), 1),
    ((50, 1023), 0), ((127, 129), -1), ((2, 3, 4), 1), ((129, 5, 1), 1), ((3, 211, 2), -2),
    ((2, 5003), 1), ((5003,), -1),
    ((3, 20011), 0), ((2, 1031, 3), 1), ((8209,), 0),
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
    outputs=("bound", "highest", "scale"),
    infer=_bound_infer,
    cost=_bound_cost,
    examples=_bound_examples,
    formula="bound = log(1/K sum_k w_k); highest = max_k log w_k; scale = 1 / sum_k exp(log w_k - highest)",
    source="Burda, Grosse & Salakhutdinov, ICLR 2016, eq. 8",
    # Rounding of log_w - highest in an exponential, d u / 2 of e^-d, is at most 0.2 u of the highest, 1. The sums:
    # 64 u within a run of 64 terms, and as much for the scales they are brought to. u = 6e-8 (1.1e-16).
    tolerance={"float32": (8e-6, 4e-6), "float64": (1.5e-14, 8e-15)},
    workspace=_bound_workspace,
)


def _backward_infer(g_bound: Array, log_w: Array, highest: Array, scale: Array, *, axis: int) -> Layout:
    reduced = _reduced("iwae_bound_backward", "log_w", log_w, axis)
    for name, a in (("g_bound", g_bound), ("highest", highest), ("scale", scale)):
        if a.shape != reduced or a.dtype != log_w.dtype:
            raise KernelError(
                f"iwae_bound_backward: expected {name} {log_w.dtype}{list(reduced)} for log_w "
                f"{log_w.dtype}{list(log_w.shape)} and axis {axis}, got {a.dtype}{list(a.shape)}"
            )
    return [(log_w.shape, log_w.dtype)]


def _backward_cost(g_bound: Array, log_w: Array, highest: Array, scale: Array, *, axis: int) -> Cost:
    return Cost(bytes=log_w.itemsize * (2 * log_w.size + 3 * g_bound.size), slots=15 * log_w.size)


def _backward_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for example in _bound_examples(rng, dtype):
        (log_w,), axis = example.inputs, example.attrs["axis"]
        highest = np.asarray(np.max(log_w, axis))
        g_bound, scale = rng.standard_normal(highest.shape), rng.random(highest.shape)
        yield Example((np.asarray(g_bound, dtype), log_w, highest, np.asarray(scale, dtype)), {"axis": axis})


IWAE_BOUND_BACKWARD = KernelSpec(
    name="iwae_bound_backward",
    family="iwae",
    inputs=("g_bound", "log_w", "highest", "scale"),
    outputs=("d_log_w",),
    infer=_backward_infer,
    cost=_backward_cost,
    examples=_backward_examples,
    formula="d_log_w_k = g_bound weights_k, where weights_k = scale exp(log w_k - highest)",
    source="Burda, Grosse & Salakhutdinov, ICLR 2016, eq. 13 and 14",
    # Rounding of log_w - highest in the exponent: u times 88 (708 in float64), beyond which a weight is zero. That of
    # ln 2 is less, or as much where multiply-adds are not fused.
    tolerance={"float32": (1.1e-5, 1e-37), "float64": (2e-13, 1e-307)},
)
