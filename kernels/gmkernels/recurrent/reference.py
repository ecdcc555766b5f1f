"""Recurrent nets in NumPy, step by step: the definition, and the version to teach from.

The state of all sequences is one array of B rows. A step changes the rows of the sequences that it belongs to, which
are the first ones; in either direction the others wait, before their first step or after their last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.recurrent.spec import check_batch_sizes

Arrays = Sequence[np.ndarray]
Attrs = Mapping[str, Any]


def _steps(batch_sizes: np.ndarray, like: np.ndarray, h0: np.ndarray, reverse: bool) -> Iterator[tuple[slice, int]]:
    """The rows of each step, and how many they are, in the order in which a sequence is read."""
    check_batch_sizes(batch_sizes, len(like), len(h0))
    steps = [(slice(end - n, end), n) for end, n in zip(np.cumsum(batch_sizes).tolist(), batch_sizes.tolist())]
    return reversed(steps) if reverse else iter(steps)


def previous(h: np.ndarray, h0: np.ndarray, batch_sizes: np.ndarray, reverse: bool) -> np.ndarray:
    """The state before each row, in the layout of the states h: that of the sequence's step before, or its first."""
    state, found = h0.copy(), np.empty_like(h)
    for rows, n in _steps(batch_sizes, h, h0, reverse):
        found[rows] = state[:n]
        state[:n] = h[rows]
    return found


def _sigmoid(a: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -a))  # which does not overflow


def rnn(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    x, h0, weight, batch_sizes = inputs
    h, state = outputs
    state[...] = h0
    for rows, n in _steps(batch_sizes, x, h0, attrs["reverse"]):
        a = x[rows] + state[:n] @ weight.T
        h[rows] = state[:n] = np.tanh(a) if attrs["nonlinearity"] == "tanh" else np.maximum(a, 0)


def rnn_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g_h, g_hn, weight, h0, h, batch_sizes = inputs
    d_x, d_state, d_weight = outputs
    d_state[...] = g_hn
    slope = 1 - h * h if attrs["nonlinearity"] == "tanh" else np.where(h <= 0, h.dtype.type(0), h.dtype.type(1))
    for rows, n in _steps(batch_sizes, h, h0, not attrs["reverse"]):
        d_x[rows] = (g_h[rows] + d_state[:n]) * slope[rows]
        d_state[:n] = d_x[rows] @ weight
    d_weight[...] = d_x.T @ previous(h, h0, batch_sizes, attrs["reverse"])


def lstm(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    x, h0, c0, weight, batch_sizes = inputs
    h, state, cell, c, gates = outputs
    state[...], cell[...] = h0, c0
    for rows, n in _steps(batch_sizes, x, h0, attrs["reverse"]):
        i, f, g, o = np.split(x[rows] + state[:n] @ weight.T, 4, axis=1)
        i, f, g, o = _sigmoid(i), _sigmoid(f), np.tanh(g), _sigmoid(o)
        c[rows] = cell[:n] = f * cell[:n] + i * g
        h[rows] = state[:n] = o * np.tanh(cell[:n])
        gates[rows] = np.concatenate([i, f, g, o], axis=1)


def lstm_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g_h, g_hn, g_cn, weight, h0, c0, h, c, gates, batch_sizes = inputs
    d_x, d_state, d_cell, d_weight = outputs
    d_state[...], d_cell[...] = g_hn, g_cn
    c_before, tanh_c = previous(c, c0, batch_sizes, attrs["reverse"]), np.tanh(c)
    i, f, g, o = np.split(gates, 4, axis=1)
    for rows, n in _steps(batch_sizes, h, h0, not attrs["reverse"]):
        dh = g_h[rows] + d_state[:n]
        dc = d_cell[:n] + dh * o[rows] * (1 - tanh_c[rows] ** 2)
        d_i = dc * g[rows] * i[rows] * (1 - i[rows])
        d_f = dc * c_before[rows] * f[rows] * (1 - f[rows])
        d_g = dc * i[rows] * (1 - g[rows] ** 2)
        d_o = dh * tanh_c[rows] * o[rows] * (1 - o[rows])
        d_x[rows] = np.concatenate([d_i, d_f, d_g, d_o], axis=1)
        d_state[:n] = d_x[rows] @ weight
        d_cell[:n] = dc * f[rows]
    d_weight[...] = d_x.T @ previous(h, h0, batch_sizes, attrs["reverse"])


def gru(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    x, h0, weight, bias_n, batch_sizes = inputs
    h, state, gates, reset = outputs
    size = h0.shape[1]
    weight_rz, weight_n = weight[: 2 * size], weight[2 * size :]
    state[...] = h0
    for rows, n in _steps(batch_sizes, x, h0, attrs["reverse"]):
        r, z = np.split(_sigmoid(x[rows, : 2 * size] + state[:n] @ weight_rz.T), 2, axis=1)
        if attrs["reset_after"]:
            reset[rows] = state[:n] @ weight_n.T + bias_n
            candidate = np.tanh(x[rows, 2 * size :] + r * reset[rows])
        else:
            reset[rows] = r * state[:n]
            candidate = np.tanh(x[rows, 2 * size :] + reset[rows] @ weight_n.T + bias_n)
        h[rows] = state[:n] = (1 - z) * candidate + z * state[:n]
        gates[rows] = np.concatenate([r, z, candidate], axis=1)


def gru_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g_h, g_hn, weight, h0, h, gates, reset, batch_sizes = inputs
    d_x, d_state, d_weight, d_bias_n = outputs
    size = h0.shape[1]
    weight_rz, weight_n = weight[: 2 * size], weight[2 * size :]
    before = previous(h, h0, batch_sizes, attrs["reverse"])
    r, z, candidate = np.split(gates, 3, axis=1)
    d_product = np.empty_like(h)  # the gradient of weight_n's product
    d_state[...] = g_hn
    for rows, n in _steps(batch_sizes, h, h0, not attrs["reverse"]):
        dh = g_h[rows] + d_state[:n]
        d_n = dh * (1 - z[rows]) * (1 - candidate[rows] ** 2)
        d_z = dh * (before[rows] - candidate[rows]) * z[rows] * (1 - z[rows])
        if attrs["reset_after"]:
            d_product[rows] = d_n * r[rows]
            d_r = d_n * reset[rows]
            through_n = d_product[rows] @ weight_n
        else:
            d_product[rows] = d_n
            d_reset = d_n @ weight_n
            d_r = d_reset * before[rows]
            through_n = d_reset * r[rows]
        d_r = d_r * r[rows] * (1 - r[rows])
        d_x[rows] = np.concatenate([d_r, d_z, d_n], axis=1)
        d_state[:n] = dh * z[rows] + d_x[rows, : 2 * size] @ weight_rz + through_n
    d_weight[: 2 * size] = d_x[:, : 2 * size].T @ before
    d_weight[2 * size :] = d_product.T @ (before if attrs["reset_after"] else reset)
    d_bias_n[...] = d_product.sum(0)
