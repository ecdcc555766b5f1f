"""Log-likelihoods and bounds."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

from gmcore.engine import by_decomposition
from gmcore.errors import ArgumentError
from gmcore.op import Example, Op, kernel, user_line
from gmcore.ops.elementwise import real, sigmoid
from gmcore.ops.reduce import sum
from gmcore.ops.shape import expand_dims, sum_to
from gmcore.tensor import Tensor, as_tensor
from gmkernels.iwae import spec as iwae
from gmkernels.likelihood import spec as likelihood


# -- Bernoulli log-probability -------------------------------------------------------------------------------
def _bernoulli_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, data in (((5,), (5,)), ((2, 3), (2, 3)), ((4, 2, 3), (2, 3)), ((3, 2), (2,)), ((0, 3), (0, 3))):
        yield (real(rng, shape), rng.uniform(0.0, 1.0, data)), {}


def _bernoulli_backward_examples(rng: np.random.Generator) -> Iterator[Example]:
    for (logits, x), _ in _bernoulli_examples(rng):
        yield (real(rng, logits.shape[:-1]), logits, x), {}


_bernoulli_log_prob_backward = Op(
    "bernoulli_log_prob_backward",
    "g_out logits x",
    forward=kernel(likelihood.BERNOULLI_LOG_PROB_BACKWARD),
    vjp=by_decomposition("g_out logits x", lambda g, logits, x: expand_dims(g, -1) * (x - sigmoid(logits))),
    formula="g_out (x - sigmoid(logits))",
    examples=_bernoulli_backward_examples,
)
bernoulli_log_prob = Op(
    "bernoulli_log_prob",
    "logits x",
    forward=kernel(likelihood.BERNOULLI_LOG_PROB),
    vjp=[
        lambda g, logits, x: _bernoulli_log_prob_backward(g, logits, x),
        lambda g, logits, x_shape: sum_to(expand_dims(g, -1) * logits, x_shape),
    ],
    formula="sum over the last axis of x logits - log(1 + e^logits)",
    source="logits (..., D); x of that shape or of its last axes, in [0, 1] -> (...)",
    examples=_bernoulli_examples,
)


# -- importance-weighted bound -------------------------------------------------------------------------------
def _iwae_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, axis in (((4,), 0), ((3, 2), 0), ((3, 2), -1), ((2, 3, 2), 1), ((1, 3), 0), ((3, 0), 0)):
        yield (real(rng, shape),), {"axis": axis}


def _iwae_rule(
    g_bound: Tensor | None, g_weights: Tensor | None, g_ess: Tensor | None, weights: Tensor, ess: Tensor, axis: int
) -> list[Tensor]:
    # bound: d log_w = g w.  weights: w (g - sum g w), softmax's.  ess = 1 / sum w^2: its part of weights' gradient
    # is -2 g ess^2 w.
    total = None if g_bound is None else _iwae_bound_backward(g_bound, weights, axis=axis)
    if g_ess is not None:
        through = expand_dims(-2.0 * g_ess * ess * ess, axis) * weights
        g_weights = through if g_weights is None else g_weights + through
    if g_weights is not None:
        softmax = weights * (g_weights - sum(g_weights * weights, axis=axis, keepdims=True))
        total = softmax if total is None else total + softmax
    assert total is not None
    return [total]


def _iwae_backward_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, axis in (((3, 2), 0), ((2, 3, 2), 1)):
        yield (real(rng, (*shape[:axis], *shape[axis + 1 :])), real(rng, shape)), {"axis": axis}


_iwae_bound_backward = Op(
    "iwae_bound_backward",
    "g_bound weights",
    forward=kernel(iwae.IWAE_BOUND_BACKWARD),
    vjp=[
        lambda g, weights, axis: sum(g * weights, axis=axis),
        lambda g, g_bound, axis: g * expand_dims(g_bound, axis),
    ],
    formula="g_bound * weights",
    examples=_iwae_backward_examples,
)
_iwae_bound = Op(
    "iwae_bound",
    "log_w",
    "bound weights ess",
    forward=kernel(iwae.IWAE_BOUND),
    vjp=_iwae_rule,
    partial=True,
    formula="bound = log(1/k sum_i w_i); weights = w_i / sum_j w_j, the bound's gradient; ess = 1 / sum weights^2",
    source="Burda, Grosse & Salakhutdinov 2016, equations 8 and 14",
    examples=_iwae_examples,
)


def iwae_bound(log_w: Any, axis: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The importance-weighted bound of log weights, their normalised weights and the effective sample size.

    Parameters
    ----------
    log_w : log p(x, z_i) - log q(z_i | x), with the k samples along `axis`.
    axis : of the samples; the first by default.

    Returns
    -------
    bound : log 1/k sum_i w_i, without `axis`;  weights : w_i / sum_j w_j, of log_w's shape;  ess : 1 / sum
    weights^2, from 1 to k. A row of minus infinity has bound minus infinity, weights 0 and ess 0; a NaN gives NaN.

    Raises
    ------
    ArgumentError : `axis` out of range.  ShapeError : k = 0.
    """
    log_w = as_tensor(log_w)
    at = operator.index(axis) + (log_w.ndim if axis < 0 else 0)
    if not 0 <= at < log_w.ndim:
        raise ArgumentError(f"iwae_bound: axis {axis} does not fit shape {log_w.shape} (called at {user_line()})")
    return _iwae_bound(log_w, axis=at)


_iwae_bound.public = iwae_bound
