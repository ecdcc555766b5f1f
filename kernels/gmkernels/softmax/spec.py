"""Contracts of softmax over rows: the cross-entropy of classes, and its gradient.

A logit of minus infinity has probability 0. In a row in which all are, every probability is 0, every loss infinite;
plus infinity and NaN give NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gmkernels.arrays import on_gpu
from gmkernels.cost import Cost
from gmkernels.registry import Array, Example, KernelError, KernelSpec, Layout, is_float


def check_target(op: str, target: np.ndarray, classes: int) -> None:
    """Raise `KernelError` for a number that is no class. Kernels call it, since specs see shapes only.

    On a GPU nobody looks: the host would have to wait for it.
    """
    if target.size and not on_gpu(target) and not (target.min() >= 0 and target.max() < classes):
        raise KernelError(f"{op}: expected classes from 0 to {classes - 1}, got {target.min()} to {target.max()}")


_GPU_HELD = 8192  # most classes of a row that the registers of a block hold
_GPU_PIECE = 4096  # elements of a piece, at least


def gpu_pieces(rows: int, classes: int) -> tuple[int, int]:
    """Into how many pieces a GPU kernel cuts rows that it does not hold, and the length of one, a multiple of 16."""
    pieces = max(1, min(1024 // max(1, rows), classes // _GPU_PIECE))
    piece = -(-classes // (16 * pieces)) * 16
    return -(-classes // max(1, piece)), piece


def _require(fits: bool, op: str, expected: str, **arrays: Array) -> None:
    floating = {a.dtype for name, a in arrays.items() if name != "target"}
    if not fits or len(floating) > 1 or not is_float(floating.pop().name) or arrays["target"].dtype != np.int64:
        given = ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in arrays.items())
        raise KernelError(f"{op}: expected {expected} of one floating dtype and int64 target (rows,), got {given}")


_SHAPES = ((3, 5), (1, 1), (0, 3), (0, 0), (127, 65), (67, 1), (3, 1023), (2, 20011), (5003, 3))


# -- forward ----------------------------------------------------------------------------------------------------
def _infer(logits: Array, target: Array) -> Layout:
    fits = logits.ndim == 2 and target.shape == logits.shape[:1]
    _require(fits, "softmax_cross_entropy", "logits (rows, classes)", logits=logits, target=target)
    return [(target.shape, logits.dtype), (logits.shape, logits.dtype)]


def _workspace(logits: Array, target: Array) -> Layout:
    """The largest logit of each piece of a long row, and the sum of exponentials relative to it."""
    rows, classes = logits.shape
    if not on_gpu(logits) or classes <= _GPU_HELD:
        return []
    shape = (rows, gpu_pieces(rows, classes)[0])
    return [(shape, np.promote_types(np.float32, logits.dtype)), (shape, np.dtype(np.float64))]


def _examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for i, (rows, classes) in enumerate(_SHAPES):
        logits = (1.0, 5.0)[i % 2] * rng.standard_normal((rows, classes))
        yield Example((logits.astype(dtype), rng.integers(0, max(classes, 1), rows)), {})
    inf, nan = np.inf, np.nan
    extremes = [[-inf, 0, 0], [-inf] * 3, [inf, 0, 0], [0, inf, inf], [nan, 0, 0], [1e30, -1e30, 1e30], [-80, 9, 9]]
    yield Example((np.array(extremes, dtype), np.array([1, 0, 0, 0, 1, 0, 0])), {})


SOFTMAX_CROSS_ENTROPY = KernelSpec(
    name="softmax_cross_entropy",
    family="softmax",
    inputs=("logits", "target"),
    outputs=("loss", "probabilities"),
    infer=_infer,
    cost=lambda logits, target: Cost(
        bytes=logits.itemsize * 2 * logits.size + 16 * target.size, slots=26 * logits.size
    ),
    examples=_examples,
    formula="p_c = exp(l_c) / sum_j exp(l_j), loss = -log p_target, in each row",
    source="Bridle, Training stochastic model recognition algorithms as networks, NIPS 1989",
    # The difference of a logit and the largest, below 60 in the examples, rounds by 30 u of a unit in the exponent,
    # which is the relative error of its probability; sums and the exponential add 4 u. u = 6e-8 (1.1e-16).
    tolerance={"float32": (3e-6, 3e-7), "float64": (6e-15, 6e-16)},
    workspace=_workspace,
)


# -- backward ---------------------------------------------------------------------------------------------------
def _backward_infer(g: Array, probabilities: Array, target: Array) -> Layout:
    fits = probabilities.ndim == 2 and g.shape == target.shape == probabilities.shape[:1]
    expected = "g (rows,) and probabilities (rows, classes)"
    _require(fits, "softmax_cross_entropy_backward", expected, g=g, probabilities=probabilities, target=target)
    return [(probabilities.shape, g.dtype)]


def _backward_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for rows, classes in _SHAPES:
        p = rng.dirichlet(np.ones(max(classes, 1)), rows)[:, :classes]
        target = rng.integers(0, max(classes, 1), rows)
        yield Example((rng.standard_normal(rows).astype(dtype), p.astype(dtype), target), {})


SOFTMAX_CROSS_ENTROPY_BACKWARD = KernelSpec(
    name="softmax_cross_entropy_backward",
    family="softmax",
    inputs=("g", "probabilities", "target"),
    outputs=("d_logits",),
    infer=_backward_infer,
    cost=lambda g, probabilities, target: Cost(
        bytes=probabilities.itemsize * 2 * probabilities.size + 16 * target.size, slots=probabilities.size
    ),
    examples=_backward_examples,
    formula="d_logits = g (p - e), where e is 1 at the target and 0 elsewhere",
    source="the derivative of softmax_cross_entropy",
    tolerance={"float32": (2e-7, 1e-7), "float64": (4e-16, 2e-16)},  # a product and a difference of numbers below 4
)
