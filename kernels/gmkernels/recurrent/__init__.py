"""Recurrent nets (tanh and ReLU, LSTM, GRU) over whole sequences, and their gradients."""

from __future__ import annotations

from gmkernels import blas
from gmkernels.recurrent import reference, spec
from gmkernels.registry import FLOATS, HALVES, Array, Signature, deferred, register, run


def _needs_blas(signature: Signature) -> str | None:
    return blas.available()


for _spec in (spec.RNN, spec.RNN_BACKWARD, spec.LSTM, spec.LSTM_BACKWARD, spec.GRU, spec.GRU_BACKWARD):
    register(_spec, "reference", getattr(reference, _spec.name), overhead=5e-5, efficiency=0.1)
    register(_spec, "cpu", f"gmkernels.recurrent.cpu:{_spec.name}", overhead=2e-5, efficiency=0.4, accepts=_needs_blas)
    for _backend in ("triton", "cuda"):
        _module = f"gmkernels.recurrent.{_backend}"
        register(
            _spec, _backend, f"{_module}:{_spec.name}", dtypes=FLOATS + HALVES,
            note=deferred(f"{_module}:note", _spec), estimate=deferred(f"{_module}:estimate", _spec),
        )  # fmt: skip


def rnn(
    x: Array,
    h0: Array,
    weight: Array,
    batch_sizes: Array,
    *,
    nonlinearity: str = "tanh",
    reverse: bool = False,
    backend: str | None = None,
) -> tuple[Array, Array]:
    """The states h_t = f(x_t + weight h_{t-1}) of packed sequences.

    Parameters
    ----------
    x : (N, H), the input projections of all steps with all biases, packed (see `gmkernels.recurrent.spec`);
        float32 or float64; float16 and bfloat16 too on a GPU
    h0 : (B, H), the first states
    weight : (H, H), as ``weight_hh_l0`` of ``torch.nn.RNN``
    batch_sizes : (T,) int64, the rows of each step; they begin with B, never grow, and sum to N
    nonlinearity : f, "tanh" or "relu"
    reverse : read the sequences from their last step to their first

    Returns
    -------
    h : (N, H), the states after each step
    h_n : (B, H), the last state of each sequence

    Raises
    ------
    KernelError : shapes, dtypes or batch_sizes that do not fit, or an unknown nonlinearity.
    """
    attrs = {"nonlinearity": nonlinearity, "reverse": reverse}
    h, h_n = run(spec.RNN, (x, h0, weight, batch_sizes), attrs, backend=backend)
    return h, h_n


def rnn_backward(
    g_h: Array,
    g_hn: Array,
    weight: Array,
    h0: Array,
    h: Array,
    batch_sizes: Array,
    *,
    nonlinearity: str = "tanh",
    reverse: bool = False,
    backend: str | None = None,
) -> tuple[Array, Array, Array]:
    """Gradients of `rnn`, from those of its outputs.

    Parameters
    ----------
    g_h, g_hn : (N, H) and (B, H), gradients with respect to h and h_n
    weight, h0, batch_sizes, nonlinearity, reverse : as given to `rnn`
    h : (N, H), as `rnn` returned it

    Returns
    -------
    d_x : (N, H); summed over its rows it is the gradient of the biases
    d_h0 : (B, H)
    d_weight : (H, H)

    Raises
    ------
    KernelError : shapes, dtypes or batch_sizes that do not fit, or an unknown nonlinearity.
    """
    attrs = {"nonlinearity": nonlinearity, "reverse": reverse}
    d_x, d_h0, d_weight = run(spec.RNN_BACKWARD, (g_h, g_hn, weight, h0, h, batch_sizes), attrs, backend=backend)
    return d_x, d_h0, d_weight


def lstm(
    x: Array,
    h0: Array,
    c0: Array,
    weight: Array,
    batch_sizes: Array,
    *,
    reverse: bool = False,
    backend: str | None = None,
) -> tuple[Array, Array, Array, Array, Array]:
    """The states of a long short-term memory that reads packed sequences.

        i, f, g, o = sigma, sigma, tanh, sigma of the quarters of x_t + weight h_{t-1}
        c_t = f c_{t-1} + i g,    h_t = o tanh(c_t)

    Parameters
    ----------
    x : (N, 4 H), the input projections of all steps with all biases, packed (see `gmkernels.recurrent.spec`);
        float32 or float64; float16 and bfloat16 too on a GPU
    h0, c0 : (B, H), the first states
    weight : (4 H, H), as ``weight_hh_l0`` of ``torch.nn.LSTM``
    batch_sizes, reverse : as in `rnn`

    Returns
    -------
    h : (N, H), the states after each step
    h_n, c_n : (B, H), the last states of each sequence
    c : (N, H), the cells after each step
    gates : (N, 4 H), the gates i, f, g, o of each step

    Raises
    ------
    KernelError : shapes, dtypes or batch_sizes that do not fit.

    References
    ----------
    Hochreiter & Schmidhuber, Neural Computation 9, 1997; Gers, Schmidhuber & Cummins, Neural Computation 12, 2000.
    """
    h, h_n, c_n, c, gates = run(spec.LSTM, (x, h0, c0, weight, batch_sizes), {"reverse": reverse}, backend=backend)
    return h, h_n, c_n, c, gates


def lstm_backward(
    g_h: Array,
    g_hn: Array,
    g_cn: Array,
    weight: Array,
    h0: Array,
    c0: Array,
    h: Array,
    c: Array,
    gates: Array,
    batch_sizes: Array,
    *,
    reverse: bool = False,
    backend: str | None = None,
) -> tuple[Array, Array, Array, Array]:
    """Gradients of `lstm`, from those of h, h_n and c_n.

    Parameters
    ----------
    g_h, g_hn, g_cn : (N, H), (B, H) and (B, H), gradients with respect to h, h_n and c_n
    weight, h0, c0, batch_sizes, reverse : as given to `lstm`
    h, c, gates : as `lstm` returned them

    Returns
    -------
    d_x : (N, 4 H); summed over its rows it is the gradient of the biases
    d_h0, d_c0 : (B, H)
    d_weight : (4 H, H)

    Raises
    ------
    KernelError : shapes, dtypes or batch_sizes that do not fit.
    """
    inputs = (g_h, g_hn, g_cn, weight, h0, c0, h, c, gates, batch_sizes)
    d_x, d_h0, d_c0, d_weight = run(spec.LSTM_BACKWARD, inputs, {"reverse": reverse}, backend=backend)
    return d_x, d_h0, d_c0, d_weight


def gru(
    x: Array,
    h0: Array,
    weight: Array,
    bias_n: Array,
    batch_sizes: Array,
    *,
    reset_after: bool = True,
    reverse: bool = False,
    backend: str | None = None,
) -> tuple[Array, Array, Array, Array]:
    """The states of a gated recurrent unit that reads packed sequences.

        r, z = sigma of the first two thirds of x_t + weight h_{t-1}
        n = tanh(x_n + r (weight_n h_{t-1} + bias_n))       with reset_after: PyTorch's and cuDNN's form
        n = tanh(x_n + weight_n (r h_{t-1}) + bias_n)       without it: Cho et al.'s
        h_t = (1 - z) n + z h_{t-1}

    Parameters
    ----------
    x : (N, 3 H), the input projections of all steps with the other biases, packed (see `gmkernels.recurrent.spec`);
        float32 or float64; float16 and bfloat16 too on a GPU
    h0 : (B, H), the first states
    weight : (3 H, H), as ``weight_hh_l0`` of ``torch.nn.GRU``; weight_n is its last third
    bias_n : (H,), the last third of ``bias_hh_l0``
    batch_sizes, reverse : as in `rnn`
    reset_after : whether the reset gate r multiplies the product, or the state before the product

    Returns
    -------
    h : (N, H), the states after each step
    h_n : (B, H), the last state of each sequence
    gates : (N, 3 H), r, z and n of each step
    reset : (N, H), weight_n h_{t-1} + bias_n; or r h_{t-1} without reset_after

    Raises
    ------
    KernelError : shapes, dtypes or batch_sizes that do not fit.

    References
    ----------
    Cho et al., Learning phrase representations using RNN encoder-decoder, EMNLP 2014, eq. 5 to 8.
    """
    attrs = {"reset_after": reset_after, "reverse": reverse}
    h, h_n, gates, reset = run(spec.GRU, (x, h0, weight, bias_n, batch_sizes), attrs, backend=backend)
    return h, h_n, gates, reset


def gru_backward(
    g_h: Array,
    g_hn: Array,
    weight: Array,
    h0: Array,
    h: Array,
    gates: Array,
    reset: Array,
    batch_sizes: Array,
    *,
    reset_after: bool = True,
    reverse: bool = False,
    backend: str | None = None,
) -> tuple[Array, Array, Array, Array]:
    """Gradients of `gru`, from those of h and h_n.

    Parameters
    ----------
    g_h, g_hn : (N, H) and (B, H), gradients with respect to h and h_n
    weight, h0, batch_sizes, reset_after, reverse : as given to `gru`
    h, gates, reset : as `gru` returned them

    Returns
    -------
    d_x : (N, 3 H); summed over its rows it is the gradient of the biases in x
    d_h0 : (B, H)
    d_weight : (3 H, H)
    d_bias_n : (H,)

    Raises
    ------
    KernelError : shapes, dtypes or batch_sizes that do not fit.
    """
    attrs = {"reset_after": reset_after, "reverse": reverse}
    inputs = (g_h, g_hn, weight, h0, h, gates, reset, batch_sizes)
    d_x, d_h0, d_weight, d_bias_n = run(spec.GRU_BACKWARD, inputs, attrs, backend=backend)
    return d_x, d_h0, d_weight, d_bias_n
