"""Recurrent nets over whole sequences: the fused loops over time, and their derivatives of any order.

The first derivative is a fused loop as well. That loop's own derivative goes through the same formulas written in
tensors below: backpropagation through time, line by line, and what to read first.

Sequences are packed as PyTorch packs them: sorted by decreasing length, the rows of all time steps one after the
other, ``batch_sizes`` (T,) of them in each step. For T steps of B sequences of one length, that is
``reshape(x, (T * B, -1))`` and ``np.full(T, B)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gmcore.engine import by_decomposition
from gmcore.errors import ArgumentError, ShapeError
from gmcore.op import Example, Op, kernel, user_line
from gmcore.ops.arrange import concatenate, split
from gmcore.ops.elementwise import greater, real, tanh, to_device, where
from gmcore.ops.product import matmul
from gmcore.ops.reduce import sum
from gmcore.ops.shape import transpose
from gmcore.tensor import Tensor, as_tensor
from gmcore.watch import computed, is_watched
from gmkernels import KernelError
from gmkernels.arrays import on_gpu
from gmkernels.recurrent import spec

NONLINEARITIES = spec.NONLINEARITIES


# -- time steps -----------------------------------------------------------------------------------------------
def _steps(batch_sizes: Tensor, reverse: bool) -> list[tuple[slice, int]]:
    """The rows of each time step, and how many they are, in the order in which sequences are read.

    Python looks at the numbers: those on a GPU are waited for, and a captured step that does not know them is refused.
    """
    sizes = batch_sizes.tolist()
    steps = [(slice(end - n, end), n) for end, n in zip(np.cumsum(sizes, dtype=int).tolist(), sizes, strict=True)]
    return steps[::-1] if reverse else steps


def _before(h: Tensor, h0: Tensor, batch_sizes: Tensor, reverse: bool) -> Tensor:
    """The state before each row of h: the row of its sequence at the step before, or its first state."""
    batch = h0.shape[0]
    state, places = np.arange(batch), np.empty(h.shape[0], np.int64)
    for rows, n in _steps(batch_sizes, reverse):
        places[rows] = state[:n]
        state[:n] = np.arange(rows.start, rows.stop) + batch
    return concatenate([h0, h])[places]


def _update(state: Tensor, new: Tensor) -> Tensor:
    """The state of all sequences with its first rows replaced."""
    n = new.shape[0]
    return new if n == state.shape[0] else concatenate([new, state[n:]])


def _in_order(found: dict[int, Tensor], like: Tensor, width: int) -> Tensor:
    """The rows of all steps, each found under the number of its first, as one matrix."""
    rows = [found[start] for start in sorted(found)]
    return concatenate(rows) if rows else like.new_zeros((0, width))


def _zeros(g: Tensor | None, like: Tensor) -> Tensor:
    return like.new_zeros(like.shape) if g is None else g


# -- simple RNN -------------------------------------------------------------------------------------------------
def _rnn_backward_plain(
    g_h: Tensor, g_hn: Tensor, weight: Tensor, h0: Tensor, h: Tensor, batch_sizes: Tensor,
    nonlinearity: str, reverse: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    one = h.new_ones(())
    slope = one - h * h if nonlinearity == "tanh" else where(greater(h, 0.0), one, 0.0)
    d_state, found = g_hn, {}
    for rows, n in _steps(batch_sizes, not reverse):
        d = found[rows.start] = (g_h[rows] + d_state[:n]) * slope[rows]
        d_state = _update(d_state, matmul(d, weight))
    d_x = _in_order(found, h, weight.shape[0])
    return d_x, d_state, matmul(transpose(d_x), _before(h, h0, batch_sizes, reverse))


def _rnn_rule(
    g_h: Tensor | None, g_h_n: Tensor | None, weight: Tensor, h0: Tensor, h: Tensor, batch_sizes: Tensor,
    nonlinearity: str, reverse: bool,
) -> list[Tensor | None]:  # fmt: skip
    g_h, g_h_n = _zeros(g_h, h), _zeros(g_h_n, h0)
    d_x, d_h0, d_weight = _rnn_backward(
        g_h, g_h_n, weight, h0, h, batch_sizes, nonlinearity=nonlinearity, reverse=reverse
    )
    return [d_x, d_h0, d_weight, None]


# -- LSTM -----------------------------------------------------------------------------------------------------------
def _lstm_backward_plain(
    g_h: Tensor, g_hn: Tensor, g_cn: Tensor, weight: Tensor, h0: Tensor, c0: Tensor, h: Tensor, c: Tensor,
    gates: Tensor, batch_sizes: Tensor, reverse: bool, g_c: Tensor | None = None, g_gates: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    i, f, g, o = split(gates, 4, axis=1)
    slope = concatenate([i * (1.0 - i), f * (1.0 - f), 1.0 - g * g, o * (1.0 - o)], axis=1)
    tanh_c, c_before = tanh(c), _before(c, c0, batch_sizes, reverse)
    d_state, d_cell, found = g_hn, g_cn, {}
    for rows, n in _steps(batch_sizes, not reverse):
        dh = g_h[rows] + d_state[:n]
        dc = d_cell[:n] + dh * o[rows] * (1.0 - tanh_c[rows] * tanh_c[rows])
        dc = dc if g_c is None else dc + g_c[rows]
        d_gates = concatenate([dc * g[rows], dc * c_before[rows], dc * i[rows], dh * tanh_c[rows]], axis=1)
        d_gates = d_gates if g_gates is None else d_gates + g_gates[rows]
        d = found[rows.start] = d_gates * slope[rows]
        d_state, d_cell = _update(d_state, matmul(d, weight)), _update(d_cell, dc * f[rows])
    d_x = _in_order(found, h, weight.shape[0])
    return d_x, d_state, d_cell, matmul(transpose(d_x), _before(h, h0, batch_sizes, reverse))


def _lstm_rule(
    g_h: Tensor | None, g_h_n: Tensor | None, g_c_n: Tensor | None, g_c: Tensor | None, g_gates: Tensor | None,
    h0: Tensor, c0: Tensor, weight: Tensor, batch_sizes: Tensor, h: Tensor, c: Tensor, gates: Tensor, reverse: bool,
) -> list[Tensor | None]:  # fmt: skip
    g_h, g_h_n, g_c_n = _zeros(g_h, h), _zeros(g_h_n, h0), _zeros(g_c_n, c0)
    arrays = (g_h, g_h_n, g_c_n, weight, h0, c0, h, c, gates, batch_sizes)
    if g_c is None and g_gates is None:
        return [*_lstm_backward(*arrays, reverse=reverse), None]
    return [*_lstm_backward_plain(*arrays, reverse, g_c, g_gates), None]


# -- GRU ------------------------------------------------------------------------------------------------------------
def _gru_backward_plain(
    g_h: Tensor, g_hn: Tensor, weight: Tensor, h0: Tensor, h: Tensor, gates: Tensor, reset: Tensor,
    batch_sizes: Tensor, reset_after: bool, reverse: bool, g_gates: Tensor | None = None, g_reset: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    size = h0.shape[1]
    weight_rz, weight_n = weight[: 2 * size], weight[2 * size :]
    r, z, candidate = split(gates, 3, axis=1)
    g_gates, g_reset = _zeros(g_gates, gates), _zeros(g_reset, reset)
    g_r, g_z, g_n = split(g_gates, 3, axis=1)
    before = _before(h, h0, batch_sizes, reverse)
    d_state, found, products = g_hn, {}, {}
    for rows, n in _steps(batch_sizes, not reverse):
        dh = g_h[rows] + d_state[:n]
        d_n = (dh * (1.0 - z[rows]) + g_n[rows]) * (1.0 - candidate[rows] * candidate[rows])
        d_z = (dh * (before[rows] - candidate[rows]) + g_z[rows]) * (z[rows] * (1.0 - z[rows]))
        if reset_after:
            product = products[rows.start] = d_n * r[rows] + g_reset[rows]
            d_r = d_n * reset[rows]
            through_n = matmul(product, weight_n)
        else:
            product = products[rows.start] = d_n
            d_reset = matmul(product, weight_n) + g_reset[rows]
            d_r = d_reset * before[rows]
            through_n = d_reset * r[rows]
        d_r = (d_r + g_r[rows]) * (r[rows] * (1.0 - r[rows]))
        d_rz = concatenate([d_r, d_z], axis=1)
        found[rows.start] = concatenate([d_rz, d_n], axis=1)
        d_state = _update(d_state, dh * z[rows] + matmul(d_rz, weight_rz) + through_n)
    d_x, d_product = _in_order(found, h, weight.shape[0]), _in_order(products, h, size)
    d_weight_rz = matmul(transpose(d_x[:, : 2 * size]), before)
    d_weight_n = matmul(transpose(d_product), before if reset_after else reset)
    return d_x, d_state, concatenate([d_weight_rz, d_weight_n]), sum(d_product, axis=0)


def _gru_rule(
    g_h: Tensor | None, g_h_n: Tensor | None, g_gates: Tensor | None, g_reset: Tensor | None, h0: Tensor,
    weight: Tensor, batch_sizes: Tensor, h: Tensor, gates: Tensor, reset: Tensor, reset_after: bool, reverse: bool,
) -> list[Tensor | None]:  # fmt: skip
    arrays = (_zeros(g_h, h), _zeros(g_h_n, h0), weight, h0, h, gates, reset, batch_sizes)
    if g_gates is None and g_reset is None:
        return [*_gru_backward(*arrays, reset_after=reset_after, reverse=reverse), None]
    return [*_gru_backward_plain(*arrays, reset_after, reverse, g_gates, g_reset), None]


# -- declarations -----------------------------------------------------------------------------------------------------
_PACKED = [([2, 1], 2, False), ([1, 1], 1, True), ([], 1, False)]
"""batch_sizes, H, and whether to read backwards: few, because each is differentiated three times."""


def _examples(gates: int, shapes: str, **options: Any) -> Any:
    """Examples for every packing of inputs with shapes in the letters of `gmkernels.recurrent.spec`.

    An option with several values takes them in turn.
    """

    def examples(rng: np.random.Generator) -> Iterator[Example]:
        for k, (batch_sizes, size, reverse) in enumerate(_PACKED):
            batch = batch_sizes[0] if batch_sizes else 2
            length = {"N": int(np.sum(batch_sizes)), "B": batch, "H": size, "G": gates * size}
            arrays = [real(rng, tuple([length[letter] for letter in letters])) for letters in shapes.split()]
            chosen = {name: values[k % len(values)] for name, values in options.items()}
            yield (*arrays, np.array(batch_sizes, np.int64)), {**chosen, "reverse": reverse}

    return examples


_rnn_backward = Op(
    "rnn_backward",
    "g_h g_hn weight h0 h batch_sizes",
    "d_x d_h0 d_weight",
    forward=kernel(spec.RNN_BACKWARD),
    vjp=by_decomposition("g_h g_hn weight h0 h batch_sizes", _rnn_backward_plain, "nonlinearity reverse"),
    formula=spec.RNN_BACKWARD.formula,
    source=spec.RNN_BACKWARD.source,
    examples=_examples(1, "NH BH GH BH NH", nonlinearity=spec.NONLINEARITIES),
)
_rnn = Op(
    "rnn",
    "x h0 weight batch_sizes",
    "h h_n",
    forward=kernel(spec.RNN),
    vjp=_rnn_rule,
    partial=True,
    formula=spec.RNN.formula,
    source=spec.RNN.source,
    examples=_examples(1, "NG BH GH", nonlinearity=spec.NONLINEARITIES),
)
_lstm_backward = Op(
    "lstm_backward",
    "g_h g_hn g_cn weight h0 c0 h c gates batch_sizes",
    "d_x d_h0 d_c0 d_weight",
    forward=kernel(spec.LSTM_BACKWARD),
    vjp=by_decomposition("g_h g_hn g_cn weight h0 c0 h c gates batch_sizes", _lstm_backward_plain, "reverse"),
    formula=spec.LSTM_BACKWARD.formula,
    source=spec.LSTM_BACKWARD.source,
    examples=_examples(4, "NH BH BH GH BH BH NH NH NG"),
)
_lstm = Op(
    "lstm",
    "x h0 c0 weight batch_sizes",
    "h h_n c_n c gates",
    forward=kernel(spec.LSTM),
    vjp=_lstm_rule,
    partial=True,
    formula=spec.LSTM.formula,
    source=spec.LSTM.source,
    examples=_examples(4, "NG BH BH GH"),
)
_gru_backward = Op(
    "gru_backward",
    "g_h g_hn weight h0 h gates reset batch_sizes",
    "d_x d_h0 d_weight d_bias_n",
    forward=kernel(spec.GRU_BACKWARD),
    vjp=by_decomposition("g_h g_hn weight h0 h gates reset batch_sizes", _gru_backward_plain, "reset_after reverse"),
    formula=spec.GRU_BACKWARD.formula,
    source=spec.GRU_BACKWARD.source,
    examples=_examples(3, "NH BH GH BH NH NG NH", reset_after=(True, False)),
)
_gru = Op(
    "gru",
    "x h0 weight bias_n batch_sizes",
    "h h_n gates reset",
    forward=kernel(spec.GRU),
    vjp=_gru_rule,
    partial=True,
    formula=spec.GRU.formula,
    source=spec.GRU.source,
    examples=_examples(3, "NG BH GH H", reset_after=(True, False)),
)


# -- checks -----------------------------------------------------------------------------------------------------------
def _placed(name: str, x: Any, h0: Any, batch_sizes: Any) -> Tensor:
    """`batch_sizes` as a tensor on the device of x, where the kernels read it.

    It is checked in the CPU's memory: on a GPU Python would wait for it, and the kernels keep to the rows there are.
    Kernels of the CPU check it themselves, but a captured step, which repeats launches alone, would not.
    """
    x, h0, sizes = as_tensor(x), as_tensor(h0), as_tensor(batch_sizes)
    if on_gpu(sizes._data):
        return sizes
    if (is_watched() or on_gpu(x._data)) and x.ndim == h0.ndim == 2 and sizes.ndim == 1:
        computed(_check_batch_sizes, sizes._data, name=name, rows=x.shape[0], batch=h0.shape[0])
    return to_device(sizes, x.device)


def _check_batch_sizes(batch_sizes: np.ndarray, name: str, rows: int, batch: int) -> None:
    try:
        spec.check_batch_sizes(batch_sizes, rows, batch)
    except KernelError as error:
        raise ShapeError(f"{name}: {error} (called at {user_line()})") from None


# -- public functions -------------------------------------------------------------------------------------------------
def rnn(
    x: Any, h0: Any, weight: Any, batch_sizes: Any, *, nonlinearity: str = "tanh", reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """The states h_t = f(x_t + weight h_{t-1}) of a simple RNN that reads packed sequences. Elman 1990.

    Parameters
    ----------
    x : (N, H), the input projections of all time steps, biases included, packed: sequences sorted by decreasing
        length, the rows of step 0 first, then those of step 1, ...
    h0 : (B, H), the first state of each sequence.
    weight : (H, H), the recurrent weight.
    batch_sizes : (T,) integers, the number of rows of each step; they begin with B, never grow, and sum to N. On a GPU
        they lie there, int64, and are not checked, or are copied there.
    nonlinearity : f, ``"tanh"`` or ``"relu"``.
    reverse : read the sequences from their last step to their first.

    Returns
    -------
    h : (N, H), the states after each step;  h_n : (B, H), the last state of each sequence.

    Raises
    ------
    ShapeError : shapes or batch_sizes that do not fit.  ArgumentError : an unknown nonlinearity.
    """
    if nonlinearity not in spec.NONLINEARITIES:
        raise ArgumentError(
            f"rnn: nonlinearity {nonlinearity!r}; expected one of {', '.join(spec.NONLINEARITIES)} "
            f"(called at {user_line()})"
        )
    batch_sizes = _placed("rnn", x, h0, batch_sizes)
    return _rnn(x, h0, weight, batch_sizes, nonlinearity=nonlinearity, reverse=bool(reverse))


def lstm(
    x: Any, h0: Any, c0: Any, weight: Any, batch_sizes: Any, *, reverse: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The states of a long short-term memory that reads packed sequences.

        i, f, g, o = sigma, sigma, tanh, sigma of the quarters of x_t + weight h_{t-1}
        c_t = f c_{t-1} + i g,    h_t = o tanh(c_t)

    Parameters
    ----------
    x : (N, 4 H), the input projections of all time steps, biases included, packed as in `rnn`.
    h0, c0 : (B, H), the first state and cell of each sequence.
    weight : (4 H, H), the recurrent weight, in PyTorch's order of the gates.
    batch_sizes, reverse : as in `rnn`.

    Returns
    -------
    h : (N, H), the states after each step;  h_n, c_n : (B, H), the last state and cell of each sequence;
    c : (N, H), the cells after each step;  gates : (N, 4 H), the gates i, f, g, o of each step.

    Raises
    ------
    ShapeError : shapes or batch_sizes that do not fit.

    Notes
    -----
    Hochreiter & Schmidhuber 1997, with the forget gate of Gers, Schmidhuber & Cummins 2000. A gradient of h, h_n and
    c_n goes through the fused loop; one of c or of gates through the same formulas in tensors.
    """
    return _lstm(x, h0, c0, weight, _placed("lstm", x, h0, batch_sizes), reverse=bool(reverse))


def gru(
    x: Any, h0: Any, weight: Any, bias_n: Any, batch_sizes: Any, *, reset_after: bool = True, reverse: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The states of a gated recurrent unit that reads packed sequences.

        r, z = sigma of the first two thirds of x_t + weight h_{t-1}
        n = tanh(x_n + r (weight_n h_{t-1} + bias_n))       with reset_after: PyTorch's and cuDNN's form
        n = tanh(x_n + weight_n (r h_{t-1}) + bias_n)       without it: Cho et al. 2014, equation 8
        h_t = (1 - z) n + z h_{t-1}

    Parameters
    ----------
    x : (N, 3 H), the input projections of all time steps with the other biases, packed as in `rnn`.
    h0 : (B, H), the first state of each sequence.
    weight : (3 H, H), the recurrent weight, in PyTorch's order of the gates; weight_n is its last third.
    bias_n : (H,).
    batch_sizes, reverse : as in `rnn`.
    reset_after : whether the reset gate multiplies the product, or the state before the product.

    Returns
    -------
    h : (N, H), the states after each step;  h_n : (B, H), the last state of each sequence;
    gates : (N, 3 H), r, z and n of each step;
    reset : (N, H), weight_n h_{t-1} + bias_n, or r h_{t-1} without reset_after.

    Raises
    ------
    ShapeError : shapes or batch_sizes that do not fit.

    Notes
    -----
    Some course slides write the gates with h_t and mix by u_{t-1}; they are functions of h_{t-1}, and step t mixes
    with its own u_t. Then a GRU whose update gate takes the whole candidate (z = 0 here) and whose r = 1 is a simple
    RNN. The z here multiplies the old state, as in Cho et al. and PyTorch; some authors call 1 - z the update gate.
    """
    batch_sizes = _placed("gru", x, h0, batch_sizes)
    return _gru(x, h0, weight, bias_n, batch_sizes, reset_after=bool(reset_after), reverse=bool(reverse))


_rnn.public, _lstm.public, _gru.public = rnn, lstm, gru
