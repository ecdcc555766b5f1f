"""Contracts of log-likelihoods p(x | logits) summed over the last axis, and of their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gmkernels.cost import Cost
from gmkernels.registry import Array, Example, KernelError, KernelSpec, Layout

CHUNK = 16384
"""Longest part of a row that one block sums."""


def chunks(length: int) -> int:
    """Number of parts in which a row of that length is summed."""
    return -(-length // CHUNK)


def _check(op: str, logits: Array, x: Array) -> None:
    fits = 1 <= x.ndim <= logits.ndim and x.shape == logits.shape[logits.ndim - x.ndim :]
    if not fits or logits.dtype.kind != "f" or x.dtype != logits.dtype:
        raise KernelError(
            f"{op}: expected floating logits (..., n) and x of the same dtype and of the shape of logits "
            f"or of its trailing axes, got logits {logits.dtype}{list(logits.shape)} and x "
            f"{x.dtype}{list(x.shape)}"
        )


def _log_prob_infer(logits: Array, x: Array) -> Layout:
    _check("bernoulli_log_prob", logits, x)
    return [(logits.shape[:-1], logits.dtype)]


def _log_prob_workspace(logits: Array, x: Array) -> Layout:
    parts = chunks(logits.shape[-1])
    return [(logits.shape[:-1] + (parts,), np.float64)] if parts > 1 else []


def _log_prob_cost(logits: Array, x: Array) -> Cost:
    return Cost(bytes=logits.itemsize * (logits.size + x.size), slots=34 * logits.size)


SHAPES: list[tuple[tuple[int, ...], int]] = [
    ((3, 5), 2), ((1,), 1), ((7,), 1), ((0, 3), 2), ((3, 0), 2), ((127, 129), 2), ((5, 4, 3), 2),
    ((5, 4, 3), 1), ((2, 3, 1023), 2), ((50, 20, 211), 2), ((20011, 1), 2), ((3, 5003, 1), 2),
    ((2, 20011), 2), ((2, 40009), 1), ((100, 784), 2),
]  # fmt: skip
"""Shape of the logits, and number of axes of x."""


def _arguments(rng: np.random.Generator, dtype: Any) -> Iterator[tuple[Any, Any]]:
    for i, (shape, x_ndim) in enumerate(SHAPES):
        logits = rng.standard_normal(shape) * (1.0, 5.0, 40.0)[i % 3]
        x = rng.random(shape[len(shape) - x_ndim :])
        yield logits.astype(dtype), (np.round(x) if i % 2 else x).astype(dtype)
    inf, nan = np.inf, np.nan
    special = [[inf, -inf], [inf, inf], [-inf, -inf], [nan, 0.0], [0.0, nan], [80.0, -80.0], [1e30, -1e30]]
    yield np.array(special, dtype), np.array([1.0, 0.0], dtype)


def _log_prob_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for logits, x in _arguments(rng, dtype):
        yield Example((logits, x), {})


BERNOULLI_LOG_PROB = KernelSpec(
    name="bernoulli_log_prob",
    family="likelihood",
    inputs=("logits", "x"),
    outputs=("log_prob",),
    infer=_log_prob_infer,
    cost=_log_prob_cost,
    examples=_log_prob_examples,
    formula="log_prob = sum_i x_i l_i - log(1 + exp(l_i))",
    source="Kingma & Welling, Auto-Encoding Variational Bayes, ICLR 2014, appendix C.1, eq. 11",
    # Terms of one sign, so relative to the sum. A term is good to about 6 u; a tile of up to 1024 terms is
    # summed in eight lanes or more: 128 u at worst. u = 6e-8 (1.1e-16).
    tolerance={"float32": (8e-6, 1e-37), "float64": (1.5e-14, 1e-307)},  # denormals are flushed
    workspace=_log_prob_workspace,
)


def _backward_infer(g: Array, logits: Array, x: Array) -> Layout:
    _check("bernoulli_log_prob_backward", logits, x)
    if g.shape != logits.shape[:-1] or g.dtype != logits.dtype:
        raise KernelError(
            f"bernoulli_log_prob_backward: expected g {logits.dtype}{list(logits.shape[:-1])} for logits "
            f"{logits.dtype}{list(logits.shape)}, got {g.dtype}{list(g.shape)}"
        )
    return [(logits.shape, logits.dtype)]


def _backward_cost(g: Array, logits: Array, x: Array) -> Cost:
    return Cost(bytes=logits.itemsize * (2 * logits.size + x.size + g.size), slots=26 * logits.size)


def _backward_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for logits, x in _arguments(rng, dtype):
        yield Example((rng.standard_normal(logits.shape[:-1]).astype(dtype), logits, x), {})


BERNOULLI_LOG_PROB_BACKWARD = KernelSpec(
    name="bernoulli_log_prob_backward",
    family="likelihood",
    inputs=("g", "logits", "x"),
    outputs=("d_logits",),
    infer=_backward_infer,
    cost=_backward_cost,
    examples=_backward_examples,
    formula="d_logits_i = g (x_i - sigmoid(l_i))",
    source="the derivative of bernoulli_log_prob",
    # About 8 u relative where x is 0 or 1; between them x - sigmoid(l) may cancel: 4 u absolute,
    # times |g| < 5 in the examples.
    tolerance={"float32": (5e-7, 1.2e-6), "float64": (1e-15, 2.5e-15)},
)
