"""Log-likelihoods and bounds."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gmcore.engine import by_decomposition
from gmcore.errors import ArgumentError
from gmcore.op import Example, Op, kernel, user_line
from gmcore.ops.elementwise import equal, real, sigmoid, where
from gmcore.ops.product import linear, matmul
from gmcore.ops.reduce import sum
from gmcore.ops.shape import expand_dims, reshape, sum_to, transpose
from gmcore.tensor import Tensor, as_tensor
from gmkernels.arrays import on_gpu
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


# -- last layer of a decoder, with its Bernoulli log-probability ---------------------------------------------
def _linear_gradients(
    d_logits: Tensor, h: Tensor, weight: Tensor, needs: Sequence[bool] = (True, True, True)
) -> list[Tensor | None]:
    """Gradients of h, weight and bias from that of logits = h weight^T + bias."""
    by_row = reshape(d_logits, (math.prod(h.shape[:-1]), weight.shape[0]))
    return [
        matmul(d_logits, weight) if needs[0] else None,
        matmul(transpose(by_row), reshape(h, (by_row.shape[0], weight.shape[1]))) if needs[1] else None,
        sum(by_row, axis=0) if needs[2] else None,
    ]


def _logit_gradient(g: Tensor, h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return expand_dims(g, -1) * (x - sigmoid(linear(h, weight, bias)))


def _linear_bernoulli_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, data in (((5,), (2,)), ((2, 3), (2, 4)), ((3, 2, 2), (2, 3)), ((0, 3), (2,)), ((2, 3), (2, 0))):
        n, k = data[-1], shape[-1]
        yield (real(rng, shape), real(rng, (n, k)), real(rng, (n,)), rng.uniform(0.0, 1.0, data)), {}


def _linear_bernoulli_backward_examples(rng: np.random.Generator) -> Iterator[Example]:
    for layer, _ in _linear_bernoulli_examples(rng):
        yield (real(rng, layer[0].shape[:-1]), *layer), {}


_linear_bernoulli_log_prob_backward = Op(
    "linear_bernoulli_log_prob_backward",
    "g_out h weight bias x",
    "d_h d_weight d_bias",
    forward=kernel(likelihood.LINEAR_BERNOULLI_LOG_PROB_BACKWARD),
    vjp=by_decomposition(
        "g_out h weight bias x",
        lambda g, h, weight, bias, x: tuple(_linear_gradients(_logit_gradient(g, h, weight, bias, x), h, weight)),
    ),
    formula="of logits = h weight^T + bias with the gradient g_out (x - sigmoid(logits)): those of h, weight and bias",
    examples=_linear_bernoulli_backward_examples,
)


def _linear_bernoulli_rule(
    g: Tensor, h: Tensor, weight: Tensor, bias: Tensor, x: Tensor, needs: tuple[bool, ...]
) -> list[Tensor | None]:
    gradients: list[Tensor | None] = [None, None, None]
    if any(needs[:3]):
        gradients = list(_linear_bernoulli_log_prob_backward(g, h, weight, bias, x))
    d_x = None
    if needs[3]:  # the sum of g l over the rows that share a row of x, which is a layer of the sum of g h
        shared = x.shape[:-1]
        d_x = linear(sum_to(expand_dims(g, -1) * h, (*shared, h.shape[-1])), weight)
        d_x = d_x + expand_dims(sum_to(g, shared), -1) * bias
    return [*gradients, d_x]


_linear_bernoulli_log_prob = Op(
    "linear_bernoulli_log_prob",
    "h weight bias x",
    forward=kernel(likelihood.LINEAR_BERNOULLI_LOG_PROB),
    vjp=_linear_bernoulli_rule,
    formula="bernoulli_log_prob(h weight^T + bias, x), of logits that are not stored",
    examples=lambda rng: ((layer, {"recompute": True}) for layer, _ in _linear_bernoulli_examples(rng)),
)


# The same with the residual stored: what a training step on the CPU is quicker with.
def _residual_backward_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, n in (((3,), 2), ((4, 3), 2), ((3, 2, 2), 3), ((0, 3), 2), ((2, 3), 0)):
        yield (real(rng, shape[:-1]), real(rng, (*shape[:-1], n)), real(rng, shape), real(rng, (n, shape[-1]))), {}


_linear_bernoulli_residual_backward = Op(
    "linear_bernoulli_residual_backward",
    "g_out residual h weight",
    "d_h d_weight d_bias",
    forward=kernel(likelihood.LINEAR_BERNOULLI_RESIDUAL_BACKWARD),
    vjp=by_decomposition(
        "g_out residual h weight",
        lambda g, residual, h, weight: tuple(_linear_gradients(expand_dims(g, -1) * residual, h, weight)),
    ),
    formula="of logits = h weight^T + bias with the gradient g_out residual: those of h, weight and bias",
    examples=_residual_backward_examples,
)


def _residual_rule(
    g_log_prob: Tensor | None,
    g_residual: Tensor | None,
    h: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    x_shape: tuple[int, ...],
    needs: tuple[bool, ...],
) -> list[Tensor | None]:
    if g_residual is None and all(needs[:3]) and not needs[3]:  # training
        return [*_linear_bernoulli_residual_backward(g_log_prob, residual, h, weight), None]
    d_logits, d_x = None, None
    if g_log_prob is not None:
        d_logits = expand_dims(g_log_prob, -1) * residual
        d_x = expand_dims(g_log_prob, -1) * linear(h, weight, bias) if needs[3] else None
    if g_residual is not None:  # x - sigmoid(logits)
        p = sigmoid(linear(h, weight, bias))
        through = -(g_residual * p * (1.0 - p))
        d_logits = through if d_logits is None else d_logits + through
        d_x = g_residual if d_x is None else d_x + g_residual
    assert d_logits is not None
    return [*_linear_gradients(d_logits, h, weight, needs), sum_to(d_x, x_shape) if needs[3] else None]


_linear_bernoulli_residual = Op(
    "linear_bernoulli_residual",
    "h weight bias x",
    "log_prob residual",
    forward=kernel(likelihood.LINEAR_BERNOULLI_RESIDUAL),
    vjp=_residual_rule,
    partial=True,
    formula="log_prob = bernoulli_log_prob(l, x) with l = h weight^T + bias; residual = x - sigmoid(l)",
    examples=_linear_bernoulli_examples,
)


def linear_bernoulli_log_prob(h: Any, weight: Any, bias: Any, x: Any, recompute: bool | None = None) -> Tensor:
    """Bernoulli log-probability of x whose logits are a fully connected layer's output, in one pass.

        log p(x | h) = sum_i x_i l_i - log(1 + e^l_i),   l = h weight^T + bias

    The same as ``bernoulli_log_prob(linear(h, weight, bias), x)``, up to rounding, without its memory: the logits
    are not stored, and the backward pass makes them again, or uses residuals if they are small (`recompute`).

    Parameters
    ----------
    h : (..., in_features).
    weight : (out_features, in_features), as for `linear`.
    bias : (out_features,), or None.
    x : (..., out_features), or of the last axes of that, in [0, 1]; h (k, batch, in) goes with x (batch, out).
    recompute : whether a backward pass makes the logits again; if not, x - sigmoid(l) is stored. By default that is
        so on the CPU, where it is quicker, if it takes 32 MB or less, also where no gradient is recorded: training
        and evaluation then compile one kernel. On a GPU it cannot be.

    Returns
    -------
    (...), the shape of h without its last axis.

    Raises
    ------
    ShapeError, DtypeError : arguments that do not fit.  ArgumentError : recompute=False on a GPU.

    References
    ----------
    Kingma & Welling, Auto-encoding variational Bayes, ICLR 2014, appendix C.1.
    """
    h, weight = as_tensor(h), as_tensor(weight)
    if recompute is False and on_gpu(h._data):
        raise ArgumentError("linear_bernoulli_log_prob: recompute=False keeps residuals, on the CPU only; leave it out")
    bias = weight.new_zeros(weight.shape[:1]) if bias is None else as_tensor(bias)
    x = as_tensor(x)
    if recompute is None:
        residual_bytes = math.prod(h.shape[:-1]) * math.prod(weight.shape[:1]) * h.dtype.itemsize
        recompute = on_gpu(h._data) or residual_bytes > likelihood.RESIDUAL_BYTES
    if recompute:
        return _linear_bernoulli_log_prob(h, weight, bias, x)
    return _linear_bernoulli_residual(h, weight, bias, x)[0]


_linear_bernoulli_log_prob.public = linear_bernoulli_log_prob


# -- importance-weighted bound -------------------------------------------------------------------------------
def _iwae_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, axis in (((4,), 0), ((3, 2), 0), ((3, 2), -1), ((2, 3, 2), 1), ((1, 3), 0), ((3, 0), 0)):
        yield (real(rng, shape),), {"axis": axis}


def _iwae_rule(
    g_bound: Tensor | None,
    g_highest: Tensor | None,
    g_scale: Tensor | None,
    log_w: Tensor,
    highest: Tensor,
    scale: Tensor,
    axis: int,
) -> list[Tensor]:
    # highest is a constant here: it shifts the exponentials, and what is made of it and of scale has no trace of it.
    # bound: d log_w = g w.  scale = 1 / sum exp(log_w - highest): d log_w = -g scale w.
    total = g_bound
    if g_scale is not None:
        through = -g_scale * scale
        total = through if total is None else total + through
    assert total is not None
    return [_iwae_bound_backward(total, log_w, highest, scale, axis=axis)]


def _iwae_backward_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, axis in (((3, 2), 0), ((2, 3, 2), 1)):
        reduced = (*shape[:axis], *shape[axis + 1 :])
        highest, scale = real(rng, reduced), rng.uniform(0.2, 1.0, reduced)
        yield (
            (real(rng, reduced), np.expand_dims(highest, axis) - abs(real(rng, shape)), highest, scale),
            {"axis": axis},
        )


def _iwae_backward_rule(
    g: Tensor, g_bound: Tensor, log_w: Tensor, highest: Tensor, scale: Tensor, out: Tensor, axis: int
) -> list[Tensor]:
    ones = scale.new_ones(scale.shape)
    of_g_bound = g * _iwae_bound_backward(ones, log_w, highest, scale, axis=axis)
    of_scale = g * _iwae_bound_backward(g_bound, log_w, highest, ones, axis=axis)
    of_log_w = g * out
    return [sum(of_g_bound, axis=axis), of_log_w, -sum(of_log_w, axis=axis), sum(of_scale, axis=axis)]


_iwae_bound_backward = Op(
    "iwae_bound_backward",
    "g_bound log_w highest scale",
    forward=kernel(iwae.IWAE_BOUND_BACKWARD),
    vjp=_iwae_backward_rule,
    formula="g_bound w, where w = scale exp(log_w - highest)",
    examples=_iwae_backward_examples,
)
_iwae_bound = Op(
    "iwae_bound",
    "log_w",
    "bound highest scale",
    forward=kernel(iwae.IWAE_BOUND),
    vjp=_iwae_rule,
    partial=True,
    formula="bound = log(1/k sum_i w_i); highest = max_i log w_i; scale = 1 / sum_i exp(log w_i - highest)",
    source="Burda, Grosse & Salakhutdinov 2016, equation 8",
    examples=_iwae_examples,
)


def _samples_axis(function: str, log_w: Tensor, axis: int) -> int:
    at = operator.index(axis) + (log_w.ndim if axis < 0 else 0)
    if not 0 <= at < log_w.ndim:
        raise ArgumentError(f"{function}: axis {axis} does not fit shape {log_w.shape} (called at {user_line()})")
    return at


def iwae_bound(log_w: Any, axis: int = 0) -> Tensor:
    """The importance-weighted bound of log weights, log 1/k sum_i w_i. Its gradient is `importance_weights`.

    Parameters
    ----------
    log_w : log p(x, z_i) - log q(z_i | x), with the k samples along `axis`.
    axis : of the samples; the first by default.

    Returns
    -------
    The shape of log_w without `axis`. A row of minus infinity has bound minus infinity and gradient 0; a NaN gives NaN.

    Raises
    ------
    ArgumentError : `axis` out of range.  ShapeError : k = 0.

    References
    ----------
    Burda, Grosse & Salakhutdinov, Importance weighted autoencoders, ICLR 2016, eq. 8, 13 and 14.
    """
    log_w = as_tensor(log_w)
    bound, _, _ = _iwae_bound(log_w, axis=_samples_axis("iwae_bound", log_w, axis))
    return bound


def importance_weights(log_w: Any, axis: int = 0) -> tuple[Tensor, Tensor]:
    """The normalised weights of importance samples, and the effective sample size.

        weights = w_i / sum_j w_j,    ess = 1 / sum_i weights_i^2

    Parameters
    ----------
    log_w : log w_i, such as log p(x, z_i) - log q(z_i | x), with the k samples along `axis`.
    axis : of the samples; the first by default.

    Returns
    -------
    weights : of log_w's shape;  ess : that without `axis`, from 1 to k. A row of minus infinity has weights 0 and ess
    0; where some are plus infinity, these share the weight evenly; a NaN gives NaN.

    Raises
    ------
    ArgumentError : `axis` out of range.  ShapeError : k = 0.

    References
    ----------
    Burda, Grosse & Salakhutdinov, Importance weighted autoencoders, ICLR 2016, eq. 14; ess: Kong, A note on importance
    sampling using standardized weights, University of Chicago 1992.
    """
    log_w = as_tensor(log_w)
    axis = _samples_axis("importance_weights", log_w, axis)
    _, highest, scale = _iwae_bound(log_w, axis=axis)
    weights = _iwae_bound_backward(scale.new_ones(scale.shape), log_w, highest, scale, axis=axis)
    squares = sum(weights * weights, axis=axis)
    empty = equal(squares, 0.0)
    return weights, where(empty, 0.0, 1.0 / where(empty, 1.0, squares))


_iwae_bound.public = iwae_bound
