"""Log-likelihoods in NumPy: the definition, and the version to teach from.

With a = |l| and z = e^-a, log(1 + e^l) is max(l, 0) + log1p(z). What remains, x l - max(l, 0), is -m a, where
m is the share of the label that the sign of l speaks against: 1 - x where l > 0, and x elsewhere. Nothing
overflows or cancels, and an infinite logit that is right costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Arrays = Sequence[np.ndarray]


def bernoulli_log_prob(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    logits, x = inputs
    size = np.abs(logits)
    missed = np.where(logits > 0, 1 - x, x)
    with np.errstate(invalid="ignore"):  # 0 * inf, which is not taken
        cost = np.where((missed == 0) & ~np.isnan(logits), 0, missed * size) + np.log1p(np.exp(-size))
    np.negative(cost.sum(-1), out=outputs[0])


def bernoulli_log_prob_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    g, logits, x = inputs
    z = np.exp(-np.abs(logits))
    # sigmoid(l) is 1 / (1 + z) where l > 0 and z / (1 + z) elsewhere
    slope = np.where(logits > 0, x * z - (1 - x), x - (1 - x) * z) / (1 + z)
    np.multiply(g[..., None], slope, out=outputs[0])


def linear_bernoulli_log_prob(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    h, weight, bias, x = inputs
    bernoulli_log_prob((h @ weight.T + bias, x), outputs, workspace, attrs)


def linear_bernoulli_log_prob_backward(
    inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]
) -> None:
    g, h, weight, bias, x = inputs
    d_h, d_weight, d_bias = outputs
    logits = h @ weight.T + bias
    r = np.empty_like(logits)
    bernoulli_log_prob_backward((g, logits, x), (r,), workspace, attrs)
    by_row = r.reshape(g.size, bias.size)
    np.matmul(r, weight, out=d_h)
    np.matmul(by_row.T, h.reshape(g.size, weight.shape[1]), out=d_weight)
    by_row.sum(0, out=d_bias)


def linear_bernoulli_residual(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    h, weight, bias, x = inputs
    log_prob, residual = outputs
    logits = h @ weight.T + bias
    bernoulli_log_prob((logits, x), (log_prob,), workspace, attrs)
    bernoulli_log_prob_backward((np.ones_like(log_prob), logits, x), (residual,), workspace, attrs)


def linear_bernoulli_residual_backward(
    inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]
) -> None:
    g, residual, h, weight = inputs
    d_h, d_weight, d_bias = outputs
    rows, (n, k) = g.size, weight.shape
    by_row, column = residual.reshape(rows, n), g.reshape(rows, 1)
    np.multiply(column, by_row @ weight, out=d_h.reshape(rows, k))
    np.matmul(by_row.T, column * h.reshape(rows, k), out=d_weight)
    np.matmul(g.reshape(rows), by_row, out=d_bias)
