"""Recurrent nets on the CPU: a block takes some of the sequences through all time steps by itself.

So there is no barrier between steps. A step multiplies the states of the block's sequences by the recurrent weight,
which is packed once a call (`panel`), and passes once over the rows of the step for the gates while they are in the
cache. The gradient of the weight is one product after the loop, by BLAS.

The state of each sequence is updated in the output that holds the last one, and in the backward pass its gradient
in that of the first state. A loop writes one or two arrays: with more, LLVM would not make vector code of it, for it
checks at run time that what is written lies apart from all else, and gives up on more than eight pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.dense.cpu import multiply
from gmkernels.dense.panel import pack, product
from gmkernels.dense.tiles import PANEL_BYTES, UNIT
from gmkernels.elementary import sigmoid, tanh
from gmkernels.pool import block_kernel, jitable, long_loop, part
from gmkernels.recurrent.spec import check_batch_sizes, padded
from gmkernels.rows import add_row, copy_row

Arrays = Sequence[np.ndarray]
Attrs = Mapping[str, Any]

_TANH, _RELU, _LSTM, _GRU_AFTER, _GRU_BEFORE = range(5)
_STRIP = 128
"""Columns of a block that adds rows."""


def _blocks(batch: int) -> tuple[int, int]:
    """Number of blocks, and of sequences in each: one or two tiles of a product, so that few cores have work, too."""
    rows = 16 if batch >= 32 else 8
    return -(-batch // rows), rows


# ---------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------


@jitable
def _sigmoid_of_sum(x, product, y):
    long_loop()
    for j in range(y.size):
        y[j] = sigmoid(x[j] + product[j])


@jitable
def _tanh_of_sum(x, product, y):
    long_loop()
    for j in range(y.size):
        y[j] = tanh(x[j] + product[j])


@jitable
def _relu_of_sum(x, product, y):
    long_loop()
    for j in range(y.size):
        a = x[j] + product[j]
        y[j] = 0 if a <= 0 else a  # NaN stays


@jitable
def _times_slope(d, h, cell, d_x):
    """d_x = d f'(a), where h = f(a)."""
    long_loop()
    one = h.dtype.type(1)
    if cell == _TANH:
        for j in range(d_x.size):
            d_x[j] = d[j] * (one - h[j] * h[j])
    else:
        for j in range(d_x.size):
            d_x[j] = d[j] * (0 if h[j] <= 0 else one)


@jitable
def _lstm_cell(i, f, g, state, c):
    long_loop()
    for j in range(c.size):
        new = f[j] * state[j] + i[j] * g[j]
        c[j] = new
        state[j] = new


@jitable
def _lstm_output(o, c, state, h):
    long_loop()
    for j in range(h.size):
        new = o[j] * tanh(c[j])
        h[j] = new
        state[j] = new


@jitable
def _lstm_output_backward(d, c, o, d_cell, d_o):
    """Of h = o tanh(c), whose gradient is d: adds to that of c."""
    long_loop()
    one = c.dtype.type(1)
    for j in range(d_o.size):
        tanh_c = tanh(c[j])
        d_cell[j] += d[j] * o[j] * (one - tanh_c * tanh_c)
        d_o[j] = d[j] * tanh_c * (o[j] * (one - o[j]))


@jitable
def _lstm_input_backward(d_cell, i, g, d_i, d_g):
    """Of the part i g of c."""
    long_loop()
    one = i.dtype.type(1)
    for j in range(d_i.size):
        d_i[j] = d_cell[j] * g[j] * (i[j] * (one - i[j]))
        d_g[j] = d_cell[j] * i[j] * (one - g[j] * g[j])


@jitable
def _lstm_forget_backward(before, f, d_cell, d_f):
    """Of the part f before of c: turns the gradient of c into that of the cell before."""
    long_loop()
    one = f.dtype.type(1)
    for j in range(d_f.size):
        d_f[j] = d_cell[j] * before[j] * (f[j] * (one - f[j]))
        d_cell[j] = d_cell[j] * f[j]


@jitable
def _gru_candidate(x, r, reset, n):
    long_loop()
    for j in range(n.size):
        n[j] = tanh(x[j] + r[j] * reset[j])


@jitable
def _gru_mix(z, n, state, h):
    long_loop()
    one = n.dtype.type(1)
    for j in range(h.size):
        new = (one - z[j]) * n[j] + z[j] * state[j]
        h[j] = new
        state[j] = new


@jitable
def _gru_mix_backward(d, z, n, before, d_n, d_z):
    long_loop()
    one = n.dtype.type(1)
    for j in range(d_n.size):
        d_n[j] = d[j] * (one - z[j]) * (one - n[j] * n[j])
    for j in range(d_z.size):
        d_z[j] = d[j] * (before[j] - n[j]) * (z[j] * (one - z[j]))


@jitable
def _gru_reset_backward(d, factor, r, d_r):
    """Of r factor, whose gradient is d, with respect to the argument of r = sigmoid(...)."""
    long_loop()
    one = r.dtype.type(1)
    for j in range(d_r.size):
        d_r[j] = d[j] * factor[j] * (r[j] * (one - r[j]))


@jitable
def _multiply(x, y, product):
    long_loop()
    for j in range(product.size):
        product[j] = x[j] * y[j]


@jitable
def _multiply_by(x, y):
    """x *= y. A loop that is given one array twice finds that it overlaps, and takes no vectors."""
    long_loop()
    for j in range(x.size):
        x[j] *= y[j]


@jitable
def _sum(x, y, total):
    long_loop()
    for j in range(total.size):
        total[j] = x[j] + y[j]


# ---------------------------------------------------------------------------------------------------------
# Loops over time
# ---------------------------------------------------------------------------------------------------------


# `rows` sequences from number `low` on, whose rows of the step begin at number `first`. Rows of `sums`, the products
# with the weight, are `stride` long.


@jitable
def _rnn_rows(rows, low, first, cell, x, sums, h, state, size, stride):
    long_loop()
    for r in range(rows):
        b, at = low + r, first + r
        x_row, sum_row, h_row = part(x, at * size, size), part(sums, b * stride, size), part(h, at * size, size)
        if cell == _TANH:
            _tanh_of_sum(x_row, sum_row, h_row)
        else:
            _relu_of_sum(x_row, sum_row, h_row)
        copy_row(h_row, part(state, b * size, size))


@jitable
def _lstm_rows(rows, low, first, x, sums, gates, c, h, state_c, state, size, stride):
    long_loop()
    for r in range(rows):
        b, at = low + r, first + r
        x_row, sum_row = part(x, at * 4 * size, 4 * size), part(sums, b * stride, 4 * size)
        y, c_row = part(gates, at * 4 * size, 4 * size), part(c, at * size, size)
        i, f, g, o = part(y, 0, size), part(y, size, size), part(y, 2 * size, size), part(y, 3 * size, size)
        _sigmoid_of_sum(x_row, sum_row, part(y, 0, 2 * size))
        _tanh_of_sum(part(x_row, 2 * size, size), part(sum_row, 2 * size, size), g)
        _sigmoid_of_sum(part(x_row, 3 * size, size), part(sum_row, 3 * size, size), o)
        _lstm_cell(i, f, g, part(state_c, b * size, size), c_row)
        _lstm_output(o, c_row, part(state, b * size, size), part(h, at * size, size))


@jitable
def _gru_gate_rows(rows, low, first, cell, x, sums, bias_n, gates, reset, state, size, stride, second):
    """The gates r and z, and what the reset gate makes: the state reset, or the candidate."""
    long_loop()
    for r in range(rows):
        b, at = low + r, first + r
        x_row, sum_row = part(x, at * 3 * size, 3 * size), part(sums, b * stride, stride)
        y, reset_row = part(gates, at * 3 * size, 3 * size), part(reset, at * size, size)
        _sigmoid_of_sum(x_row, sum_row, part(y, 0, 2 * size))
        if cell == _GRU_BEFORE:
            _multiply(part(y, 0, size), part(state, b * size, size), reset_row)
        else:
            _sum(part(sum_row, second, size), bias_n, reset_row)
            _gru_candidate(part(x_row, 2 * size, size), part(y, 0, size), reset_row, part(y, 2 * size, size))


@jitable
def _gru_state_rows(rows, low, first, cell, x, sums, bias_n, gates, h, state, size, stride, second):
    long_loop()
    for r in range(rows):
        b, at = low + r, first + r
        y = part(gates, at * 3 * size, 3 * size)
        if cell == _GRU_BEFORE:
            sum_row = part(sums, b * stride + second, size)
            add_row(bias_n, sum_row)
            _tanh_of_sum(part(x, at * 3 * size + 2 * size, size), sum_row, part(y, 2 * size, size))
        _gru_mix(part(y, size, size), part(y, 2 * size, size), part(state, b * size, size), part(h, at * size, size))


@block_kernel
def _forward(
    block, cell, reverse, x, h0, c0, panels, bias_n, batch_sizes, h, state, state_c, c, gates, reset, sums, size,
    stride, second, per_block,
):  # fmt: skip
    """`stride` is the length of a row of `sums`; there the product of a GRU's candidate begins at `second`."""
    low = block * per_block
    own, count = low * size, min(per_block * size, state.size - low * size)
    copy_row(part(h0, own, count), part(state, own, count))
    if cell == _LSTM:
        copy_row(part(c0, own, count), part(state_c, own, count))
    steps = batch_sizes.size
    start = h.size // size if reverse else 0  # of the step's rows
    for step in range(steps):
        t = steps - 1 - step if reverse else step
        if reverse:
            start -= batch_sizes[t]
        elif step > 0:
            start += batch_sizes[t - 1]
        rows, first = min(per_block, batch_sizes[t] - low), start + low
        if rows <= 0:
            continue
        columns = second if cell == _GRU_BEFORE else stride
        product(state, own, size, 1, panels, 0, size, columns, 0, sums, low * stride, stride, rows)
        if cell == _TANH or cell == _RELU:
            _rnn_rows(rows, low, first, cell, x, sums, h, state, size, stride)
        elif cell == _LSTM:
            _lstm_rows(rows, low, first, x, sums, gates, c, h, state_c, state, size, stride)
        else:
            _gru_gate_rows(rows, low, first, cell, x, sums, bias_n, gates, reset, state, size, stride, second)
            if cell == _GRU_BEFORE:
                at, to = first * size, low * stride + second
                product(reset, at, size, 1, panels, second * size, size, size, 0, sums, to, stride, rows)
            _gru_state_rows(rows, low, first, cell, x, sums, bias_n, gates, h, state, size, stride, second)


@jitable
def _row_before(batch_sizes, t, start, b, reverse):
    """The row of sequence b at the step that it reads before step t; -1 where t is its first. `start` is that of t."""
    other = t + 1 if reverse else t - 1
    if 0 <= other < batch_sizes.size and b < batch_sizes[other]:
        return b + (start + batch_sizes[t] if reverse else start - batch_sizes[other])
    return -1


@jitable
def _rows_before(rows, low, first, t, reverse, batch_sizes, h0, h, before, size):
    """Write the state that each row of step t began with."""
    long_loop()
    for r in range(rows):
        b, at = low + r, _row_before(batch_sizes, t, first - low, low + r, reverse)
        source = part(h0, b * size, size) if at < 0 else part(h, at * size, size)
        copy_row(source, part(before, (first + r) * size, size))


@jitable
def _lstm_rows_backward(rows, low, first, t, reverse, batch_sizes, c0, c, gates, d_x, d_state, d_cell, size):
    long_loop()
    for r in range(rows):
        b, at = low + r, first + r
        y, d_row = part(gates, at * 4 * size, 4 * size), part(d_x, at * 4 * size, 4 * size)
        d_cell_row, at_before = part(d_cell, b * size, size), _row_before(batch_sizes, t, first - low, b, reverse)
        c_before = part(c0, b * size, size) if at_before < 0 else part(c, at_before * size, size)
        i, f, g, o = part(y, 0, size), part(y, size, size), part(y, 2 * size, size), part(y, 3 * size, size)
        d_o = part(d_row, 3 * size, size)
        _lstm_output_backward(part(d_state, b * size, size), part(c, at * size, size), o, d_cell_row, d_o)
        _lstm_input_backward(d_cell_row, i, g, part(d_row, 0, size), part(d_row, 2 * size, size))
        _lstm_forget_backward(c_before, f, d_cell_row, part(d_row, size, size))


@jitable
def _gru_rows_backward(
    rows, low, first, cell, gates, reset, before, d_x, d_state, d_product, d_bias_n, size
):  # fmt: skip
    long_loop()
    for r in range(rows):
        b, at = low + r, first + r
        y, d_row = part(gates, at * 3 * size, 3 * size), part(d_x, at * 3 * size, 3 * size)
        r_gate, z, n = part(y, 0, size), part(y, size, size), part(y, 2 * size, size)
        d_n, d_state_row = part(d_row, 2 * size, size), part(d_state, b * size, size)
        d_product_row = part(d_product, at * size, size)
        _gru_mix_backward(d_state_row, z, n, part(before, at * size, size), d_n, part(d_row, size, size))
        if cell == _GRU_AFTER:
            _multiply(d_n, r_gate, d_product_row)
            _gru_reset_backward(d_n, part(reset, at * size, size), r_gate, part(d_row, 0, size))
        else:
            copy_row(d_n, d_product_row)
        _multiply_by(d_state_row, z)
        add_row(d_product_row, part(d_bias_n, b * size, size))


@jitable
def _gru_reset_rows_backward(rows, low, first, gates, before, d_x, sums, size, stride):
    """Through the reset of the state before the product: turns the gradient of the state reset into that before."""
    long_loop()
    for r in range(rows):
        b, at = low + r, first + r
        sum_row, r_gate = part(sums, b * stride, size), part(gates, at * 3 * size, size)
        _gru_reset_backward(sum_row, part(before, at * size, size), r_gate, part(d_x, at * 3 * size, size))
        _multiply_by(sum_row, r_gate)


@jitable
def _add_rows(rows, x, at_x, stride_x, y, at_y, stride_y, size, replace):
    """y += x, or y = x, on rows that begin at elements at_x and at_y."""
    long_loop()
    for r in range(rows):
        x_row, y_row = part(x, at_x + r * stride_x, size), part(y, at_y + r * stride_y, size)
        if replace:
            copy_row(x_row, y_row)
        else:
            add_row(x_row, y_row)


@block_kernel
def _backward(
    block, cell, reverse, g_h, g_hn, g_cn, panels, h0, c0, h, c, gates, reset, batch_sizes, d_x, d_state, d_cell, sums,
    before, sums_n, d_product, d_bias_n, size, width, stride, per_block,
):  # fmt: skip
    """`sums` are products with the weight, of a GRU with that of its gates r and z; `sums_n` with its candidate's."""
    low = block * per_block
    is_gru = cell == _GRU_AFTER or cell == _GRU_BEFORE
    inner = 2 * size if is_gru else width
    own, count = low * size, min(per_block * size, d_state.size - low * size)
    copy_row(part(g_hn, own, count), part(d_state, own, count))
    if cell == _LSTM:
        copy_row(part(g_cn, own, count), part(d_cell, own, count))
    elif is_gru:
        d_bias_n[own : own + count] = 0
    steps = batch_sizes.size
    start = 0 if reverse else h.size // size  # of the step's rows
    for step in range(steps):
        t = step if reverse else steps - 1 - step
        if not reverse:
            start -= batch_sizes[t]
        elif step > 0:
            start += batch_sizes[t - 1]
        rows, first = min(per_block, batch_sizes[t] - low), start + low
        if rows <= 0:
            continue
        sum_at = low * stride
        _rows_before(rows, low, first, t, reverse, batch_sizes, h0, h, before, size)
        _add_rows(rows, g_h, first * size, size, d_state, own, size, size, False)
        if cell == _TANH or cell == _RELU:
            _times_slope(
                part(d_state, own, rows * size),
                part(h, first * size, rows * size),
                cell,
                part(d_x, first * size, rows * size),
            )
        elif cell == _LSTM:
            _lstm_rows_backward(rows, low, first, t, reverse, batch_sizes, c0, c, gates, d_x, d_state, d_cell, size)
        else:
            _gru_rows_backward(rows, low, first, cell, gates, reset, before, d_x, d_state, d_product, d_bias_n, size)
            at = first * size
            product(d_product, at, size, 1, panels, 2 * size * stride, size, size, 0, sums_n, sum_at, stride, rows)
            if cell == _GRU_BEFORE:
                _gru_reset_rows_backward(rows, low, first, gates, before, d_x, sums_n, size, stride)
            _add_rows(rows, sums_n, sum_at, stride, d_state, own, size, size, False)
        product(d_x, first * width, width, 1, panels, 0, inner, size, 0, sums, sum_at, stride, rows)
        _add_rows(rows, sums, sum_at, stride, d_state, own, size, size, not is_gru)


@block_kernel
def _sum_rows(block, x, total, strip):
    width = total.size
    for j in range(block * strip, min(width, (block + 1) * strip)):
        sum_of = 0.0
        for at in range(j, x.size, width):
            sum_of += x[at]
        total[j] = sum_of


# ---------------------------------------------------------------------------------------------------------
# Launchers
# ---------------------------------------------------------------------------------------------------------


@block_kernel
def _pack(block, matrix, transposed, length, inner, columns, panels):
    """One panel of a matrix whose rows have `length` elements."""
    width = PANEL_BYTES // matrix.itemsize
    left = block * width
    at = left * length if transposed else left
    pack(matrix, at, transposed, length, inner, min(width, columns - left), panels, left * inner)


def _pack_rows(matrix: np.ndarray, transposed: bool, panels: np.ndarray) -> None:
    """A matrix, or its transpose, as panels."""
    inner, columns = matrix.shape[::-1] if transposed else matrix.shape
    panels_of_it = padded(columns, matrix.itemsize) * matrix.itemsize // PANEL_BYTES
    _pack(panels_of_it, matrix, int(transposed), matrix.shape[1], inner, columns, panels)


def _run_forward(
    cell: int, attrs: Attrs, x: Any, h0: Any, c0: Any, weight: Any, bias_n: Any, batch_sizes: Any, workspace: Arrays,
    h: Any, state: Any, state_c: Any, c: Any, gates: Any, reset: Any,
) -> None:  # fmt: skip
    check_batch_sizes(batch_sizes, len(x), len(state))
    if not state.size:
        return
    panels, sums = workspace[0].reshape(-1), workspace[1]
    size, stride = h.shape[1], sums.shape[1]
    second = 0
    if cell in (_GRU_AFTER, _GRU_BEFORE):
        second = padded(2 * size, x.itemsize)
        _pack_rows(weight[2 * size :], True, panels[second * size :])
        weight = weight[: 2 * size]
    _pack_rows(weight, True, panels)
    blocks, rows = _blocks(len(state))
    _forward(
        blocks, cell, int(attrs["reverse"]), x, h0, c0, panels, bias_n, batch_sizes, h, state, state_c, c, gates,
        reset, sums, size, stride, second, rows,
    )  # fmt: skip


def rnn(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    x, h0, weight, batch_sizes = inputs
    h, state = outputs
    none = np.empty(0, x.dtype)
    cell = _TANH if attrs["nonlinearity"] == "tanh" else _RELU
    _run_forward(cell, attrs, x, h0, none, weight, none, batch_sizes, workspace, h, state, none, none, none, none)


def lstm(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    x, h0, c0, weight, batch_sizes = inputs
    h, state, state_c, c, gates = outputs
    none = np.empty(0, x.dtype)
    _run_forward(_LSTM, attrs, x, h0, c0, weight, none, batch_sizes, workspace, h, state, state_c, c, gates, none)


def gru(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    x, h0, weight, bias_n, batch_sizes = inputs
    h, state, gates, reset = outputs
    none = np.empty(0, x.dtype)
    cell = _GRU_AFTER if attrs["reset_after"] else _GRU_BEFORE
    _run_forward(cell, attrs, x, h0, none, weight, bias_n, batch_sizes, workspace, h, state, none, none, gates, reset)


def _run_backward(
    cell: int, attrs: Attrs, g_h: Any, g_hn: Any, g_cn: Any, weight: Any, h0: Any, c0: Any, h: Any, c: Any, gates: Any,
    reset: Any, batch_sizes: Any, d_x: Any, d_state: Any, d_cell: Any, workspace: Arrays,
) -> None:  # fmt: skip
    check_batch_sizes(batch_sizes, len(h), len(h0))
    if not h0.size:
        return
    none = np.empty(0, h.dtype)
    panels, sums, before, sums_n, d_product, d_bias_n = [*workspace, none, none, none][:6]
    size, width, stride = h.shape[1], d_x.shape[1], sums.shape[1]
    gate_rows = 2 * size if cell in (_GRU_AFTER, _GRU_BEFORE) else width
    panels = panels.reshape(-1)
    _pack_rows(weight[:gate_rows], False, panels)
    if gate_rows < width:
        _pack_rows(weight[gate_rows:], False, panels[gate_rows * stride :])
    blocks, rows = _blocks(len(h0))
    _backward(
        blocks, cell, int(attrs["reverse"]), g_h, g_hn, g_cn, panels, h0, c0, h, c, gates, reset, batch_sizes, d_x,
        d_state, d_cell, sums, before, sums_n, d_product, d_bias_n, size, width, stride, rows,
    )  # fmt: skip


def _weight_gradient(d: np.ndarray, before: np.ndarray, d_weight: np.ndarray, batch: int) -> None:
    """The sum of the products of all rows of d and of the states before them, in as many tiles as the loop has blocks.

    More would keep more cores busy than the loop does, and each packs all states anew: with 8 in place of 2 the product
    of 2048 rows for an LSTM of 256 units takes a third longer.
    """
    multiply(d.T, before, d_weight, max(1, min(_blocks(batch)[0], -(-d.shape[1] // UNIT))), 1)


def rnn_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g_h, g_hn, weight, h0, h, batch_sizes = inputs
    d_x, d_h0, d_weight = outputs
    none = np.empty(0, h.dtype)
    cell = _TANH if attrs["nonlinearity"] == "tanh" else _RELU
    _run_backward(
        cell, attrs, g_h, g_hn, none, weight, h0, none, h, none, none, none, batch_sizes, d_x, d_h0, none, workspace
    )
    before = workspace[2]
    _weight_gradient(d_x, before, d_weight, len(h0))


def lstm_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g_h, g_hn, g_cn, weight, h0, c0, h, c, gates, batch_sizes = inputs
    d_x, d_h0, d_c0, d_weight = outputs
    none = np.empty(0, h.dtype)
    _run_backward(
        _LSTM, attrs, g_h, g_hn, g_cn, weight, h0, c0, h, c, gates, none, batch_sizes, d_x, d_h0, d_c0, workspace
    )
    before = workspace[2]
    _weight_gradient(d_x, before, d_weight, len(h0))


def gru_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g_h, g_hn, weight, h0, h, gates, reset, batch_sizes = inputs
    d_x, d_h0, d_weight, d_bias_n = outputs
    _, _, before, _, d_product, sequence_bias = workspace
    none = np.empty(0, h.dtype)
    cell = _GRU_AFTER if attrs["reset_after"] else _GRU_BEFORE
    _run_backward(
        cell, attrs, g_h, g_hn, none, weight, h0, none, h, none, gates, reset, batch_sizes, d_x, d_h0, none, workspace
    )
    size = h.shape[1]
    _weight_gradient(d_x[:, : 2 * size], before, d_weight[: 2 * size], len(h0))
    factor = before if attrs["reset_after"] else reset  # of the product with the candidate's weight
    _weight_gradient(d_product, factor, d_weight[2 * size :], len(h0))
    _sum_rows(-(-size // _STRIP), sequence_bias, d_bias_n, _STRIP)
