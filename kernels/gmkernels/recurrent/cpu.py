"""Recurrent nets on the CPU: a block takes some of the sequences through all time steps by itself.

So there is no barrier between steps. A block multiplies the states of its sequences by the recurrent weight with
single-threaded BLAS, and passes once over the rows of the step for the gates, while they are in the cache. The
forward pass reads the weight transposed, which is twice as fast for so few rows; it is transposed once a call.

The state of each sequence is updated in the output that holds the last one, and in the backward pass its gradient
in that of the first state. A loop writes one or two arrays: with more, LLVM gives up on proving that they are apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels import blas
from gmkernels.blas import NO_TRANS
from gmkernels.dense.cpu import matmul
from gmkernels.elementary import sigmoid, tanh
from gmkernels.gemm import gemm
from gmkernels.pool import block_kernel, jitable
from gmkernels.recurrent.spec import starts as starts_of

Arrays = Sequence[np.ndarray]
Attrs = Mapping[str, Any]

_TANH, _RELU, _LSTM, _GRU_AFTER, _GRU_BEFORE = range(5)

_MOST_ROWS = 16  # sequences of a block: fewer waste the product's registers, more leave cores idle


def _blocks(batch: int) -> tuple[int, int]:
    """Number of blocks, and of sequences in each."""
    rows = max(1, min(_MOST_ROWS, -(-batch // 2)))
    return -(-batch // rows), rows


# ---------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------


@jitable
def _copy(x, y):
    for j in range(y.size):
        y[j] = x[j]


@jitable
def _add(x, y):
    for j in range(y.size):
        y[j] += x[j]


@jitable
def _sigmoid_of_sum(x, product, y):
    for j in range(y.size):
        y[j] = sigmoid(x[j] + product[j])


@jitable
def _tanh_of_sum(x, product, y):
    for j in range(y.size):
        y[j] = tanh(x[j] + product[j])


@jitable
def _relu_of_sum(x, product, y):
    for j in range(y.size):
        a = x[j] + product[j]
        y[j] = 0 if a <= 0 else a  # NaN stays


@jitable
def _times_slope(d, h, cell, d_x):
    """d_x = d f'(a), where h = f(a)."""
    one = h.dtype.type(1)
    if cell == _TANH:
        for j in range(d_x.size):
            d_x[j] = d[j] * (one - h[j] * h[j])
    else:
        for j in range(d_x.size):
            d_x[j] = d[j] * (0 if h[j] <= 0 else one)


@jitable
def _lstm_cell(i, f, g, state, c):
    for j in range(c.size):
        new = f[j] * state[j] + i[j] * g[j]
        c[j] = new
        state[j] = new


@jitable
def _lstm_output(o, c, state, h):
    for j in range(h.size):
        new = o[j] * tanh(c[j])
        h[j] = new
        state[j] = new


@jitable
def _lstm_output_backward(d, c, o, d_cell, d_o):
    """Of h = o tanh(c), whose gradient is d: adds to that of c."""
    one = c.dtype.type(1)
    for j in range(d_o.size):
        tanh_c = tanh(c[j])
        d_cell[j] += d[j] * o[j] * (one - tanh_c * tanh_c)
        d_o[j] = d[j] * tanh_c * (o[j] * (one - o[j]))


@jitable
def _lstm_input_backward(d_cell, i, g, d_i, d_g):
    """Of the part i g of c."""
    one = i.dtype.type(1)
    for j in range(d_i.size):
        d_i[j] = d_cell[j] * g[j] * (i[j] * (one - i[j]))
        d_g[j] = d_cell[j] * i[j] * (one - g[j] * g[j])


@jitable
def _lstm_forget_backward(before, f, d_cell, d_f):
    """Of the part f before of c: turns the gradient of c into that of the cell before."""
    one = f.dtype.type(1)
    for j in range(d_f.size):
        d_f[j] = d_cell[j] * before[j] * (f[j] * (one - f[j]))
        d_cell[j] = d_cell[j] * f[j]


@jitable
def _gru_candidate_after(x, r, reset, n):
    for j in range(n.size):
        n[j] = tanh(x[j] + r[j] * reset[j])


@jitable
def _gru_candidate_before(x, product, bias, n):
    for j in range(n.size):
        n[j] = tanh(x[j] + (product[j] + bias[j]))


@jitable
def _gru_mix(z, n, state, h):
    one = n.dtype.type(1)
    for j in range(h.size):
        new = (one - z[j]) * n[j] + z[j] * state[j]
        h[j] = new
        state[j] = new


@jitable
def _gru_mix_backward(d, z, n, before, d_n, d_z):
    one = n.dtype.type(1)
    for j in range(d_n.size):
        d_n[j] = d[j] * (one - z[j]) * (one - n[j] * n[j])
    for j in range(d_z.size):
        d_z[j] = d[j] * (before[j] - n[j]) * (z[j] * (one - z[j]))


@jitable
def _gru_reset_backward(d, factor, r, d_r):
    """Of r factor, whose gradient is d, with respect to the argument of r = sigmoid(...)."""
    one = r.dtype.type(1)
    for j in range(d_r.size):
        d_r[j] = d[j] * factor[j] * (r[j] * (one - r[j]))


@jitable
def _multiply(x, y, product):
    for j in range(product.size):
        product[j] = x[j] * y[j]


@jitable
def _multiply_add(x, y, d, z):
    for j in range(d.size):
        d[j] = d[j] * z[j] + x[j] * y[j]


# ---------------------------------------------------------------------------------------------------------
# Loops over time
# ---------------------------------------------------------------------------------------------------------


@jitable
def _product(function, wide, a, at_a, lda, b, at_b, ldb, beta, c, at_c, ldc, rows, inner, columns):
    """c = a b + beta c, on matrices that begin at elements at_a, at_b and at_c of arrays."""
    item = c.itemsize
    left, right, out = a.ctypes.data + item * at_a, b.ctypes.data + item * at_b, c.ctypes.data + item * at_c
    gemm(function, wide, c, NO_TRANS, NO_TRANS, rows, columns, inner, 1, left, lda, right, ldb, beta, out, ldc)


@block_kernel
def _forward(
    block, cell, reverse, function, wide, x, weight_t, bias_n, starts, h, state, state_c, c, gates, reset, product,
    size, width, per_block,
):  # fmt: skip
    low = block * per_block
    steps = starts.size - 1
    for step in range(steps):
        t = steps - 1 - step if reverse else step
        rows = min(per_block, starts[t + 1] - starts[t] - low)
        if rows <= 0:
            continue
        first = starts[t] + low
        columns = 2 * size if cell == _GRU_BEFORE else width
        _product(
            function, wide, state, low * size, size, weight_t, 0, width, 0, product, low * width, width,
            rows, size, columns,
        )  # fmt: skip
        for r in range(rows):
            b, at = low + r, first + r
            x_row = x[at * width : (at + 1) * width]
            sums = product[b * width : (b + 1) * width]
            h_row, state_row = h[at * size : (at + 1) * size], state[b * size : (b + 1) * size]
            if cell == _TANH:
                _tanh_of_sum(x_row, sums, h_row)
                _copy(h_row, state_row)
            elif cell == _RELU:
                _relu_of_sum(x_row, sums, h_row)
                _copy(h_row, state_row)
            elif cell == _LSTM:
                y = gates[at * width : (at + 1) * width]
                c_row, state_c_row = c[at * size : (at + 1) * size], state_c[b * size : (b + 1) * size]
                _sigmoid_of_sum(x_row[: 2 * size], sums[: 2 * size], y[: 2 * size])
                _tanh_of_sum(x_row[2 * size : 3 * size], sums[2 * size : 3 * size], y[2 * size : 3 * size])
                _sigmoid_of_sum(x_row[3 * size :], sums[3 * size :], y[3 * size :])
                _lstm_cell(y[:size], y[size : 2 * size], y[2 * size : 3 * size], state_c_row, c_row)
                _lstm_output(y[3 * size :], c_row, state_row, h_row)
            else:
                y = gates[at * width : (at + 1) * width]
                reset_row = reset[at * size : (at + 1) * size]
                _sigmoid_of_sum(x_row[: 2 * size], sums[: 2 * size], y[: 2 * size])
                if cell == _GRU_BEFORE:
                    _multiply(y[:size], state_row, reset_row)
                else:
                    _copy(sums[2 * size :], reset_row)
                    _add(bias_n, reset_row)
                    _gru_candidate_after(x_row[2 * size :], y[:size], reset_row, y[2 * size :])
                    _gru_mix(y[size : 2 * size], y[2 * size :], state_row, h_row)
        if cell == _GRU_BEFORE:
            _product(
                function, wide, reset, first * size, size, weight_t, 2 * size, width,
                0, product, low * width, width, rows, size, size,
            )  # fmt: skip
            for r in range(rows):
                b, at = low + r, first + r
                y = gates[at * width : (at + 1) * width]
                sums = product[b * width : b * width + size]
                _gru_candidate_before(x[at * width + 2 * size : (at + 1) * width], sums, bias_n, y[2 * size :])
                h_row, state_row = h[at * size : (at + 1) * size], state[b * size : (b + 1) * size]
                _gru_mix(y[size : 2 * size], y[2 * size :], state_row, h_row)


@jitable
def _row_before(starts, t, b, reverse):
    """The row of sequence b at the step that it reads before step t; -1 where t is its first."""
    other = t + 1 if reverse else t - 1
    if 0 <= other < starts.size - 1 and b < starts[other + 1] - starts[other]:
        return starts[other] + b
    return -1


@block_kernel
def _backward(
    block, cell, reverse, function, wide, g_h, weight, h0, c0, h, c, gates, reset, starts, d_x, d_state, d_cell,
    before, d_product, d_reset, sums, size, width, per_block,
):  # fmt: skip
    low = block * per_block
    steps = starts.size - 1
    for step in range(steps):
        t = step if reverse else steps - 1 - step
        rows = min(per_block, starts[t + 1] - starts[t] - low)
        if rows <= 0:
            continue
        first = starts[t] + low
        for r in range(rows):
            b, at = low + r, first + r
            here, there = slice(at * size, (at + 1) * size), slice(b * size, (b + 1) * size)
            d_row, d_state_row, before_row = d_x[at * width : (at + 1) * width], d_state[there], before[here]
            at_before = _row_before(starts, t, b, reverse)
            if at_before < 0:
                _copy(h0[there], before_row)
            else:
                _copy(h[at_before * size : (at_before + 1) * size], before_row)
            _add(g_h[here], d_state_row)
            if cell == _TANH or cell == _RELU:
                _times_slope(d_state_row, h[here], cell, d_row)
            elif cell == _LSTM:
                y = gates[at * width : (at + 1) * width]
                d_cell_row = d_cell[there]
                c_before = c0[there]
                if at_before >= 0:
                    c_before = c[at_before * size : (at_before + 1) * size]
                i, f, g, o = y[:size], y[size : 2 * size], y[2 * size : 3 * size], y[3 * size :]
                _lstm_output_backward(d_state_row, c[here], o, d_cell_row, d_row[3 * size :])
                _lstm_input_backward(d_cell_row, i, g, d_row[:size], d_row[2 * size : 3 * size])
                _lstm_forget_backward(c_before, f, d_cell_row, d_row[size : 2 * size])
            else:
                y = gates[at * width : (at + 1) * width]
                z, n, d_n = y[size : 2 * size], y[2 * size :], d_row[2 * size :]
                _gru_mix_backward(d_state_row, z, n, before_row, d_n, d_row[size : 2 * size])
                if cell == _GRU_AFTER:
                    _multiply(d_n, y[:size], d_product[here])
                    _gru_reset_backward(d_n, reset[here], y[:size], d_row[:size])
                    _multiply(d_state_row, z, d_state_row)
                else:
                    _copy(d_n, d_product[here])
                _add(d_product[here], sums[there])
        state_at, row_at = low * size, first * width
        if cell == _GRU_BEFORE:
            _product(
                function, wide, d_product, first * size, size, weight, 2 * size * size, size,
                0, d_reset, state_at, size, rows, size, size,
            )  # fmt: skip
            for r in range(rows):
                b, at = low + r, first + r
                there = slice(b * size, (b + 1) * size)
                y = gates[at * width : (at + 1) * width]
                _gru_reset_backward(
                    d_reset[there], before[at * size : (at + 1) * size], y[:size], d_x[at * width : at * width + size]
                )
                _multiply_add(d_reset[there], y[:size], d_state[there], y[size : 2 * size])
        if cell == _GRU_AFTER:
            _product(
                function, wide, d_product, first * size, size, weight, 2 * size * size, size,
                1, d_state, state_at, size, rows, size, size,
            )  # fmt: skip
        is_gru = cell == _GRU_AFTER or cell == _GRU_BEFORE
        _product(
            function, wide, d_x, row_at, width, weight, 0, size, 1 if is_gru else 0, d_state, state_at, size,
            rows, 2 * size if is_gru else width, size,
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# Launchers
# ---------------------------------------------------------------------------------------------------------


def _run_forward(
    cell: int, attrs: Attrs, x: Any, weight: Any, bias_n: Any, batch_sizes: Any, workspace: Arrays,
    h: Any, state: Any, state_c: Any, c: Any, gates: Any, reset: Any,
) -> None:  # fmt: skip
    ends = starts_of(batch_sizes, len(x), len(state))
    if not h.size:
        return
    weight_t, product = workspace
    np.copyto(weight_t, weight.T)
    blocks, rows = _blocks(len(state))
    library = blas.find()
    assert library is not None
    with blas.single_threaded():
        _forward(
            blocks, cell, int(attrs["reverse"]), library.gemm_address(x.dtype), int(library.wide), x, weight_t, bias_n,
            ends, h, state, state_c, c, gates, reset, product, h.shape[1], x.shape[1], rows,
        )  # fmt: skip


def rnn(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    x, h0, weight, batch_sizes = inputs
    h, state = outputs
    np.copyto(state, h0)
    none = np.empty(0, x.dtype)
    cell = _TANH if attrs["nonlinearity"] == "tanh" else _RELU
    _run_forward(cell, attrs, x, weight, none, batch_sizes, workspace, h, state, none, none, none, none)


def lstm(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    x, h0, c0, weight, batch_sizes = inputs
    h, state, state_c, c, gates = outputs
    np.copyto(state, h0)
    np.copyto(state_c, c0)
    none = np.empty(0, x.dtype)
    _run_forward(_LSTM, attrs, x, weight, none, batch_sizes, workspace, h, state, state_c, c, gates, none)


def gru(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    x, h0, weight, bias_n, batch_sizes = inputs
    h, state, gates, reset = outputs
    np.copyto(state, h0)
    none = np.empty(0, x.dtype)
    cell = _GRU_AFTER if attrs["reset_after"] else _GRU_BEFORE
    _run_forward(cell, attrs, x, weight, bias_n, batch_sizes, workspace, h, state, none, none, gates, reset)


def _run_backward(
    cell: int, attrs: Attrs, g_h: Any, weight: Any, h0: Any, c0: Any, h: Any, c: Any, gates: Any, reset: Any,
    batch_sizes: Any, d_x: Any, d_state: Any, d_cell: Any, before: Any, d_product: Any, d_reset: Any, sums: Any,
) -> None:  # fmt: skip
    ends = starts_of(batch_sizes, len(h), len(h0))
    if not h.size:
        return
    blocks, rows = _blocks(len(h0))
    library = blas.find()
    assert library is not None
    with blas.single_threaded():
        _backward(
            blocks, cell, int(attrs["reverse"]), library.gemm_address(h.dtype), int(library.wide), g_h, weight, h0, c0,
            h, c, gates, reset, ends, d_x, d_state, d_cell, before, d_product, d_reset, sums,
            h.shape[1], d_x.shape[1], rows,
        )  # fmt: skip


def rnn_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g_h, g_hn, weight, h0, h, batch_sizes = inputs
    d_x, d_h0, d_weight = outputs
    (before,) = workspace
    np.copyto(d_h0, g_hn)
    none = np.empty(0, h.dtype)
    cell = _TANH if attrs["nonlinearity"] == "tanh" else _RELU
    _run_backward(
        cell, attrs, g_h, weight, h0, none, h, none, none, none, batch_sizes, d_x, d_h0, none, before, none, none, none
    )
    matmul((d_x.T, before), (d_weight,), (), {})


def lstm_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g_h, g_hn, g_cn, weight, h0, c0, h, c, gates, batch_sizes = inputs
    d_x, d_h0, d_c0, d_weight = outputs
    (before,) = workspace
    np.copyto(d_h0, g_hn)
    np.copyto(d_c0, g_cn)
    none = np.empty(0, h.dtype)
    _run_backward(
        _LSTM, attrs, g_h, weight, h0, c0, h, c, gates, none, batch_sizes, d_x, d_h0, d_c0, before, none, none, none
    )
    matmul((d_x.T, before), (d_weight,), (), {})


def gru_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g_h, g_hn, weight, h0, h, gates, reset, batch_sizes = inputs
    d_x, d_h0, d_weight, d_bias_n = outputs
    before, d_product, d_reset, sums = workspace
    np.copyto(d_h0, g_hn)
    sums.fill(0)
    none = np.empty(0, h.dtype)
    cell = _GRU_AFTER if attrs["reset_after"] else _GRU_BEFORE
    _run_backward(
        cell, attrs, g_h, weight, h0, none, h, none, gates, reset, batch_sizes, d_x, d_h0, none, before, d_product,
        d_reset, sums,
    )  # fmt: skip
    size = h.shape[1]
    matmul((d_x[:, : 2 * size].T, before), (d_weight[: 2 * size],), (), {})
    factor = before if attrs["reset_after"] else reset  # of the product with weight_n
    matmul((d_product.T, factor), (d_weight[2 * size :],), (), {})
    np.sum(sums, axis=0, dtype=np.float64, out=d_bias_n)
