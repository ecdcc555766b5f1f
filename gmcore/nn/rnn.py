"""Recurrent layers and cells. `torch.nn`'s names, arguments, parameter names and order of the gates.

A layer computes the input projections of all time steps as one product, and hands them to the fused loop of
`ops.rnn`, `ops.lstm` or `ops.gru`. A cell is the same for one step.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from gmcore import ops
from gmcore.device import put
from gmcore.errors import ArgumentError, DtypeError, ShapeError
from gmcore.nn import init
from gmcore.nn.arguments import floating, positive_integer
from gmcore.nn.module import Module
from gmcore.nn.parameter import Parameter
from gmcore.nn.utils.rnn import PackedSequence
from gmcore.op import user_line
from gmcore.random import Generator
from gmcore.tensor import Tensor, as_tensor
from gmcore.watch import computed

_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_DEFAULTS: dict[str, Any] = {
    "num_layers": 1, "nonlinearity": "tanh", "bias": True, "batch_first": False, "dropout": 0.0,
    "bidirectional": False, "reset_after": True,
}  # fmt: skip
"""What the representation leaves out."""


# -- the three recurrences ------------------------------------------------------------------------------------
class _Recurrence(Module):
    """What layers and cells share: sizes, the parameters of a recurrence, and its pass over packed rows."""

    _gates: ClassVar[int]
    _states: ClassVar[int] = 1
    """How many states it carries: 1, or 2 with the cell of an LSTM."""
    input_size: int
    hidden_size: int
    bias: bool

    def _set_sizes(self, input_size: int, hidden_size: int, bias: bool) -> None:
        name = type(self).__name__
        self.input_size = positive_integer(name, "input_size", input_size)
        self.hidden_size = positive_integer(name, "hidden_size", hidden_size)
        self.bias = bool(bias)

    def _make(self, input_size: int, suffix: str, device: str | None, dtype: Any) -> None:
        """Assign the parameters of one recurrence, under PyTorch's names and the suffix."""
        rows = self._gates * self.hidden_size
        shapes = ((rows, input_size), (rows, self.hidden_size), (rows,), (rows,))
        for name, shape in zip(_WEIGHTS[: 4 if self.bias else 2], shapes):
            setattr(self, name + suffix, Parameter(put(np.empty(shape, floating(dtype)), device)))

    def extra_repr(self) -> str:
        given = [(name, getattr(self, name)) for name in _DEFAULTS if hasattr(self, name)]
        changed = [f"{name}={value!r}" for name, value in given if value != _DEFAULTS[name]]
        return ", ".join([str(self.input_size), str(self.hidden_size), *changed])

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw all parameters from U(-1/sqrt(hidden_size), 1/sqrt(hidden_size)); one draw of the generator each."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound, generator=generator)

    def _weights(self, suffix: str) -> list[Tensor | None]:
        return [getattr(self, name + suffix, None) for name in _WEIGHTS]

    def _pass(
        self, rows: Tensor, first: list[Tensor], weights: list[Any], batch_sizes: Tensor, reverse: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """The states of all rows, and the last states of each sequence."""
        raise NotImplementedError

    def _project(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The input projections of rows, or of the one-hot rows that integers stand for."""
        if rows.dtype.kind not in "iu":
            return ops.linear(rows, weight, bias)
        columns = ops.transpose(weight)
        return ops.getitem(columns if bias is None else columns + bias, rows)

    def _check_input(self, x: Tensor) -> None:
        """Raise unless x is (..., input_size), or integers below it."""
        name = type(self).__name__
        if x.dtype.kind in "iu":
            computed(_check_symbols, x._data, name=name, symbols=self.input_size)
        elif x.dtype.kind == "b":
            raise DtypeError(f"{name}: expected a floating input, or integers, got bool (called at {user_line()})")
        elif x.shape[-1:] != (self.input_size,):
            raise ShapeError(
                f"{name}: expected an input (..., {self.input_size}), got {x.shape} (called at {user_line()})"
            )

    def _check_states(self, hx: Any, shape: tuple[int, ...], like: Tensor) -> list[Tensor]:
        """The first states as tensors; for None zeros, in the dtype and on the device of `like`."""
        if hx is None:
            return [like.new_zeros(shape) for _ in range(self._states)]
        given = [as_tensor(h) for h in (hx if self._states > 1 else (hx,))]
        if [h.shape for h in given] != [shape] * self._states:
            expected = f"{shape}" if self._states == 1 else f"a pair (h_0, c_0) of {shape}"
            found = ", ".join(str(h.shape) for h in given)
            raise ShapeError(f"{type(self).__name__}: expected hx {expected}, got {found} (called at {user_line()})")
        return given


def _sequences(h: Tensor, order: Tensor) -> Tensor:
    """The states (layers, B, H) of sequences in another order, read as rows, for which there are kernels."""
    return ops.swapaxes(ops.getitem(ops.swapaxes(h, 0, 1), order), 0, 1)


def _check_symbols(x: np.ndarray, name: str, symbols: int) -> None:
    if x.size and not (x.min() >= 0 and x.max() < symbols):
        raise ArgumentError(
            f"{name}: integers stand for one-hot rows, from 0 to {symbols - 1}, got {x.min()} to {x.max()} "
            f"(called at {user_line()})"
        )


class _Simple(_Recurrence):
    _gates = 1
    nonlinearity: str

    def _set_nonlinearity(self, nonlinearity: str) -> None:
        if nonlinearity not in ops.recurrent.NONLINEARITIES:
            known = ", ".join(ops.recurrent.NONLINEARITIES)
            raise ArgumentError(f"{type(self).__name__}: nonlinearity {nonlinearity!r}; expected one of {known}")
        self.nonlinearity = nonlinearity

    def _pass(
        self, rows: Tensor, first: list[Tensor], weights: list[Any], batch_sizes: Tensor, reverse: bool
    ) -> tuple[Tensor, list[Tensor]]:
        w_ih, w_hh, b_ih, b_hh = weights
        x = self._project(rows, w_ih, b_ih + b_hh if self.bias else None)
        h, h_n = ops.rnn(x, first[0], w_hh, batch_sizes, nonlinearity=self.nonlinearity, reverse=reverse)
        return h, [h_n]


class _LongShortTerm(_Recurrence):
    _gates = 4
    _states = 2

    def _pass(
        self, rows: Tensor, first: list[Tensor], weights: list[Any], batch_sizes: Tensor, reverse: bool
    ) -> tuple[Tensor, list[Tensor]]:
        w_ih, w_hh, b_ih, b_hh = weights
        x = self._project(rows, w_ih, b_ih + b_hh if self.bias else None)
        h, h_n, c_n, _, _ = ops.lstm(x, first[0], first[1], w_hh, batch_sizes, reverse=reverse)
        return h, [h_n, c_n]


class _Gated(_Recurrence):
    _gates = 3
    reset_after: bool

    def _pass(
        self, rows: Tensor, first: list[Tensor], weights: list[Any], batch_sizes: Tensor, reverse: bool
    ) -> tuple[Tensor, list[Tensor]]:
        w_ih, w_hh, b_ih, b_hh = weights
        bias, bias_n = None, w_hh.new_zeros((self.hidden_size,))
        if self.bias:  # that of the candidate belongs to the product, which the reset gate may multiply
            split = 2 * self.hidden_size
            bias, bias_n = ops.concatenate([b_ih[:split] + b_hh[:split], b_ih[split:]]), b_hh[split:]
        x = self._project(rows, w_ih, bias)
        h, h_n, _, _ = ops.gru(x, first[0], w_hh, bias_n, batch_sizes, reset_after=self.reset_after, reverse=reverse)
        return h, [h_n]


# -- layers ---------------------------------------------------------------------------------------------------------
class _Layers(_Recurrence):
    """Recurrences on top of each other, each in one or in both directions."""

    weight_hh_l0: Parameter

    def _set_layers(
        self, num_layers: int, batch_first: bool, dropout: float, bidirectional: bool, device: str | None, dtype: Any
    ) -> None:
        name = type(self).__name__
        self.num_layers = positive_integer(name, "num_layers", num_layers)
        if isinstance(dropout, bool) or not 0 <= dropout <= 1:
            raise ArgumentError(f"{name}: dropout must be in [0, 1], got {dropout!r}")
        if dropout and num_layers == 1:
            raise ArgumentError(
                f"{name}: dropout={dropout!r} acts between layers, and num_layers is 1; use nn.Dropout on the output"
            )
        self.batch_first, self.dropout, self.bidirectional = bool(batch_first), float(dropout), bool(bidirectional)
        for layer in range(self.num_layers):
            for suffix in self._suffixes(layer):
                below = self.hidden_size * (1 + self.bidirectional)
                self._make(below if layer else self.input_size, suffix, device, dtype)
        self.reset_parameters()

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: 1 + self.bidirectional]

    def forward(self, input: Any, hx: Any = None) -> Any:
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        x = as_tensor(input)
        self._check_input(x)
        axes = x.ndim + (x.dtype.kind in "iu")
        if axes not in (2, 3):
            form = "(B, T, ...)" if self.batch_first else "(T, B, ...)"
            raise ShapeError(
                f"{type(self).__name__}: expected an input {form} or, of a single sequence, (T, ...), got {x.shape} "
                f"(called at {user_line()})"
            )
        if axes == 2:
            x, hx = ops.expand_dims(x, 1), self._map(lambda h: ops.expand_dims(h, 1), hx)
        elif self.batch_first:
            x = ops.swapaxes(x, 0, 1)
        steps, batch = x.shape[:2]
        if steps == 0:
            raise ShapeError(
                f"{type(self).__name__}: expected sequences of at least one step, got an input of shape "
                f"{as_tensor(input).shape} (called at {user_line()})"
            )
        rows = ops.reshape(x, (steps * batch, *x.shape[2:]))
        h, last = self._stack(rows, hx, self.weight_hh_l0.new_full((steps,), batch, np.int64), batch)
        out = ops.reshape(h, (steps, batch, h.shape[1]))
        if axes == 2:
            return ops.squeeze(out, 1), self._map(lambda h: ops.squeeze(h, 1), last)
        return ops.swapaxes(out, 0, 1) if self.batch_first else out, last

    def _packed(self, input: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
        """The states of packed sequences, in their order; hx and the last states are in the order of the user's."""
        self._check_input(input.data)
        order, back = input.sorted_indices, input.unsorted_indices
        if order is not None:
            hx = self._map(lambda h: _sequences(h, order), hx)
        # By its shape where that tells: Python would wait for a number on a GPU, and not see one that is to change.
        batch = int(input.batch_sizes[0]) if order is None else len(order)
        h, last = self._stack(input.data, hx, input.batch_sizes, batch)
        if back is not None:
            last = self._map(lambda h: _sequences(h, back), last)
        return input._replace(data=h), last

    def _map(self, function: Any, hx: Any) -> Any:
        """`function` of the state, or of each of a pair."""
        if hx is None:
            return None
        return function(as_tensor(hx)) if self._states == 1 else tuple(function(as_tensor(h)) for h in hx)

    def _stack(self, rows: Tensor, hx: Any, batch_sizes: Tensor, batch: int) -> tuple[Tensor, Any]:
        """The states of the last layer, and the last states of all layers and directions."""
        directions = 1 + self.bidirectional
        weights = self._weights("_l0")
        assert weights[0] is not None
        first = self._check_states(hx, (self.num_layers * directions, batch, self.hidden_size), weights[0])
        last = []
        for layer in range(self.num_layers):
            outputs = []
            for reverse, suffix in enumerate(self._suffixes(layer)):
                states = [h[layer * directions + reverse] for h in first]
                h, h_n = self._pass(rows, states, self._weights(suffix), batch_sizes, bool(reverse))
                outputs.append(h)
                last.append(h_n)
            rows = outputs[0] if len(outputs) == 1 else ops.concatenate(outputs, axis=1)
            if self.dropout and layer < self.num_layers - 1:
                rows = ops.dropout(rows, self.dropout, self.training)
        stacked = [ops.stack(part) if len(part) > 1 else ops.expand_dims(part[0], 0) for part in zip(*last)]
        return rows, stacked[0] if self._states == 1 else tuple(stacked)


class RNN(_Simple, _Layers):
    """Layers of h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), Elman's simple recurrent net: `ops.rnn`.

    Parameters
    ----------
    input_size, hidden_size : lengths of a step's input and of the state, at least 1.
    num_layers : layers on top of each other; each reads the states of the one below.
    nonlinearity : f, ``"tanh"`` or ``"relu"``.
    bias : whether there are bias_ih and bias_hh.
    batch_first : input and output are (B, T, ...) instead of (T, B, ...); hx and h_n are not affected.
    dropout : in training, applied to the states of each layer but the last.
    bidirectional : a second recurrence in each layer reads the sequences backwards; the states of both are
        concatenated.
    device, dtype : ``"cpu"``; floating, float32 by default.

    Attributes
    ----------
    weight_ih_l0 : (hidden_size, input_size), for layers above (hidden_size, directions hidden_size);
    weight_hh_l0 : (hidden_size, hidden_size);  bias_ih_l0, bias_hh_l0 : (hidden_size,).
        Drawn from U(-1/sqrt(hidden_size), 1/sqrt(hidden_size)). Those of layer k end in ``_lk``, those that read
        backwards in ``_lk_reverse``.

    Raises
    ------
    ArgumentError : sizes below 1, an unknown nonlinearity, a dropout outside [0, 1] or with one layer.
    ShapeError, ArgumentError, DtypeError : (called) an input or an hx that does not fit, a sequence of length 0.

    Notes
    -----
    ``layer(input, hx=None) -> (output, h_n)`` as in PyTorch. input : (T, B, input_size), (T, input_size) for one
    sequence, or a `PackedSequence` of sequences of different lengths. Integers without the last axis stand for
    one-hot rows: their projections are looked up, and never multiplied. hx : (num_layers directions, B, hidden_size),
    zeros by default. output : the states of the last layer, (T, B, directions hidden_size), packed if the input is.
    h_n : the last states, in the shape of hx.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        self._set_nonlinearity(nonlinearity)
        self._set_sizes(input_size, hidden_size, bias)
        self._set_layers(num_layers, batch_first, dropout, bidirectional, device, dtype)


class LSTM(_LongShortTerm, _Layers):
    """Layers of long short-term memory: `ops.lstm` of the input projections.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype : as in `RNN`.
    proj_size : only 0: the states are not projected.

    Attributes
    ----------
    weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0 : as in `RNN` with 4 hidden_size rows, those of the gates i,
        f, g, o.

    Raises
    ------
    ArgumentError : as `RNN`, and a proj_size.
    ShapeError, ArgumentError, DtypeError : (called) as `RNN`.

    Notes
    -----
    ``layer(input, hx=None) -> (output, (h_n, c_n))``, with hx a pair (h_0, c_0); otherwise as in `RNN`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        if proj_size:
            raise ArgumentError(f"LSTM: proj_size={proj_size!r} is not supported; put an nn.Linear on the output")
        self._set_sizes(input_size, hidden_size, bias)
        self._set_layers(num_layers, batch_first, dropout, bidirectional, device, dtype)


class GRU(_Gated, _Layers):
    """Layers of gated recurrent units: `ops.gru` of the input projections.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype : as in `RNN`.
    reset_after : the reset gate multiplies the product with the state, as in PyTorch; False: it multiplies the state
        before the product, as in Cho et al. 2014.

    Attributes
    ----------
    weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0 : as in `RNN` with 3 hidden_size rows, those of the gates r
        and z and of the candidate n.

    Raises
    ------
    ArgumentError : as `RNN`.
    ShapeError, ArgumentError, DtypeError : (called) as `RNN`.

    Notes
    -----
    ``layer(input, hx=None) -> (output, h_n)`` as in `RNN`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: str | None = None,
        dtype: Any = None,
        *,
        reset_after: bool = True,
    ) -> None:
        self.reset_after = bool(reset_after)
        self._set_sizes(input_size, hidden_size, bias)
        self._set_layers(num_layers, batch_first, dropout, bidirectional, device, dtype)


# -- cells ----------------------------------------------------------------------------------------------------------
class _Cell(_Recurrence):
    """One step of a recurrence."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        x = as_tensor(input)
        self._check_input(x)
        axes = x.ndim + (x.dtype.kind in "iu")
        if axes not in (1, 2):
            raise ShapeError(
                f"{type(self).__name__}: expected an input (B, {self.input_size}) or ({self.input_size},), got "
                f"{x.shape} (called at {user_line()})"
            )
        weights = self._weights("")
        assert weights[0] is not None
        batch = x.shape[:1] if axes == 2 else ()
        states = self._check_states(hx, (*batch, self.hidden_size), weights[0])
        if axes == 1:
            x, states = ops.expand_dims(x, 0), [ops.expand_dims(h, 0) for h in states]
        last = self._pass(x, states, weights, weights[0].new_full((1,), x.shape[0], np.int64), False)[1]
        if axes == 1:
            last = [ops.squeeze(h, 0) for h in last]
        return last[0] if self._states == 1 else tuple(last)


class RNNCell(_Simple, _Cell):
    """One step of a simple RNN, f(W_ih x + b_ih + W_hh h + b_hh).

    Parameters
    ----------
    input_size, hidden_size, bias, nonlinearity, device, dtype : as in `RNN`.

    Attributes
    ----------
    weight_ih, weight_hh, bias_ih, bias_hh : as in `RNN`.

    Raises
    ------
    ArgumentError : as `RNN`.  ShapeError, ArgumentError, DtypeError : (called) as `RNN`.

    Notes
    -----
    ``cell(input, hx=None) -> h``; input : (B, input_size), integers (B,) for one-hot rows, or (input_size,);
    hx and h : (B, hidden_size), or (hidden_size,).
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        self._set_nonlinearity(nonlinearity)
        self._set_sizes(input_size, hidden_size, bias)
        self._make(self.input_size, "", device, dtype)
        self.reset_parameters()


class LSTMCell(_LongShortTerm, _Cell):
    """One step of an LSTM: ``cell(input, hx=None) -> (h, c)`` with hx a pair (h_0, c_0); otherwise as `RNNCell`.

    Parameters
    ----------
    input_size, hidden_size, bias, device, dtype : as in `RNN`.

    Attributes
    ----------
    weight_ih, weight_hh, bias_ih, bias_hh : as in `LSTM`.

    Raises
    ------
    ArgumentError : as `RNN`.  ShapeError, ArgumentError, DtypeError : (called) as `RNN`.
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: str | None = None, dtype: Any = None
    ) -> None:
        self._set_sizes(input_size, hidden_size, bias)
        self._make(self.input_size, "", device, dtype)
        self.reset_parameters()


class GRUCell(_Gated, _Cell):
    """One step of a GRU: ``cell(input, hx=None) -> h`` as `RNNCell`.

    Parameters
    ----------
    input_size, hidden_size, bias, device, dtype : as in `RNN`.
    reset_after : as in `GRU`.

    Attributes
    ----------
    weight_ih, weight_hh, bias_ih, bias_hh : as in `GRU`.

    Raises
    ------
    ArgumentError : as `RNN`.  ShapeError, ArgumentError, DtypeError : (called) as `RNN`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: str | None = None,
        dtype: Any = None,
        *,
        reset_after: bool = True,
    ) -> None:
        self.reset_after = bool(reset_after)
        self._set_sizes(input_size, hidden_size, bias)
        self._make(self.input_size, "", device, dtype)
        self.reset_parameters()
