"""Contracts of recurrent nets over whole sequences, given their input projections.

Sequences of different lengths are packed as PyTorch packs them. They are sorted by decreasing length, and the rows
of all time steps follow one another: first those of step 0, one a sequence, then those of step 1, one for each
sequence that is longer than 1, and so on. ``batch_sizes``, int64 (T,), is the number of rows of each step; for
sequences of one length it is constant. A single step is a sequence of length 1. With ``reverse`` a sequence is read
from its last step to its first.

On the CPU kernels raise where ``batch_sizes`` does not fit the rows (`check_batch_sizes`). On a GPU it lies in the
device's memory, where only kernels read it, so that the lengths may change between two launches of a CUDA graph;
they cannot raise, and count a step's rows as min(max(batch_sizes[t], 0), B, the rows of N that are left). No memory
but the arrays' own is touched then; results for sizes that the CPU refuses mean nothing.

The input projection x = input W_ih^T + biases of all steps is one product before the loop, and no part of these
kernels; nor are its gradients. The gradient of the recurrent weight is one product after the loop.

Shapes are written in letters: N rows, B sequences, T steps, a state of H numbers, G numbers of all gates of a row;
small letters for H and G rounded up to whole panels (see `gmkernels.dense.panel`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gmkernels.arrays import on_gpu
from gmkernels.cost import Cost, nominal_gpu
from gmkernels.dense.spec import product_workspace
from gmkernels.dense.tiles import PANEL_BYTES
from gmkernels.registry import Array, Example, KernelError, KernelSpec, Layout, is_float

NONLINEARITIES = ("tanh", "relu")


def padded(size: int, itemsize: int) -> int:
    """`size` rounded up to whole panels."""
    width = PANEL_BYTES // itemsize
    return -(-size // width) * width


def check_batch_sizes(batch_sizes: np.ndarray, rows: int, batch: int) -> None:
    """Raise `KernelError` where `batch_sizes` does not describe so many rows of so many sequences.

    Kernels of the CPU call it, since specs see shapes only.
    """
    sizes = batch_sizes.tolist()
    falls = [*sizes, 0] == sorted([*sizes, 0], reverse=True)
    if not falls or sum(sizes) != rows or (sizes and sizes[0] != batch):
        raise KernelError(
            f"recurrent: batch_sizes {sizes} do not describe {rows} rows of {batch} sequences: they "
            f"begin with the sequences, never grow, and sum to the rows"
        )


GPU_BYTES, GPU_UNITS, GPU_ROWS = 64, 16, 64
"""What kernels of a GPU round up to: bytes of a row of numbers that are summed, numbers of a state, sequences."""


def rounded(size: int, multiple: int) -> int:
    """`size` rounded up to a multiple."""
    return -(-size // multiple) * multiple


def weight_products(gates: int, size: int) -> tuple[int, ...]:
    """Rows of the weight in each of the products that its gradient is: a GRU's candidate has other factors."""
    return (2 * size, size) if gates == 3 else (gates * size,)


def seconds_beside_steps(op: KernelSpec, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> float:
    """Of a call on a GPU, with a third of its nominal rates: for its rows, and for the gradient of its weight."""
    found = op.cost(*inputs, **attrs)
    found = replace(found, flops=found.flops / 2 if op.name.endswith("_backward") else 0)
    return 3 * nominal_gpu(inputs[0].data.device_id).floor(found, inputs[0].itemsize)


class _Shapes:
    """Shapes of named arrays, in letters: ``"x NG  h0 BH  batch_sizes T"``."""

    def __init__(self, op: str, gates: int, inputs: str, outputs: str) -> None:
        self.op, self.gates = op, gates
        self.inputs, self.outputs = (dict(zip(text.split()[::2], text.split()[1::2])) for text in (inputs, outputs))

    def lengths(self, arrays: tuple[Array, ...]) -> dict[str, int]:
        """What the letters stand for, from the arrays that have them. Raises `KernelError` where they do not fit."""
        named = dict(zip(self.inputs, arrays))
        floating = [a.dtype for name, a in named.items() if name != "batch_sizes"]
        fits = all(a.ndim == len(self.inputs[name]) for name, a in named.items())
        found = {}
        if fits:
            size = named["weight"].shape[1]
            rows, batch, steps = arrays[0].shape[0], named["h0"].shape[0], named["batch_sizes"].shape[0]
            found = {"N": rows, "B": batch, "H": size, "G": self.gates * size, "T": steps}
            item = arrays[0].itemsize
            found["h"] = padded(size, item)
            # The panels of a GRU's candidate begin anew.
            found["g"] = padded(2 * size, item) + padded(size, item) if self.gates == 3 else padded(found["G"], item)
            fits = all(a.shape == self._shape(self.inputs[name], found) for name, a in named.items())
        if (
            not fits
            or len(set(floating)) > 1
            or not is_float(floating[0].name)
            or named["batch_sizes"].dtype != np.int64
        ):
            expected = ", ".join(f"{name} ({', '.join(letters)})" for name, letters in self.inputs.items())
            given = ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in named.items())
            raise KernelError(
                f"{self.op}: expected {expected}, with G = {self.gates} H, in one floating dtype and int64, got {given}"
            )
        return found

    @staticmethod
    def _shape(letters: str, lengths: dict[str, int]) -> tuple[int, ...]:
        return tuple(lengths[letter] for letter in letters)

    def infer(self, *arrays: Array, **attrs: Any) -> Layout:
        if attrs.get("nonlinearity", "tanh") not in NONLINEARITIES:
            known = ", ".join(NONLINEARITIES)
            raise KernelError(f"{self.op}: unknown nonlinearity {attrs['nonlinearity']!r}; expected one of {known}")
        return self.layout(" ".join(self.outputs.values()), *arrays)

    def layout(self, shapes: str, *arrays: Array, **attrs: Any) -> Layout:
        lengths = self.lengths(arrays)
        return [(self._shape(letters, lengths), arrays[0].dtype) for letters in shapes.split()]

    def workspace(self, shapes: str, *arrays: Array, **attrs: Any) -> Layout:
        """On the CPU arrays of these shapes. On a GPU, for both directions:

        offsets (T + 1,) int64, the row at which each step begins, and the end; states (3, B, H) in the dtype that is
        computed in: what runs along with the sequences; exchange (2, B, inner), which a step reads and the next writes;
        panels, the recurrent weight as it is multiplied; barrier, the counter of a cooperative grid; and backward
        also before (N, H), the states that rows began with, factors (N, H) of a GRU's candidate, and parts of sums.
        B and inner, the length of the sums of a step's product, are rounded up.
        """
        x = arrays[0]
        if not on_gpu(x):
            return self.layout(shapes, *arrays)
        lengths, computed = self.lengths(arrays), np.promote_types(np.float32, x.dtype)
        backward = "g_h" in self.inputs
        size, rows = lengths["H"], rounded(lengths["B"], GPU_ROWS)
        whole = GPU_BYTES // x.itemsize
        # A GRU's two products begin anew.
        inner = rounded(size, whole)
        if backward:
            inner = sum(rounded(n, whole) for n in weight_products(self.gates, size))
        units = rounded(size, GPU_UNITS)
        layout = [
            ((lengths["T"] + 1,), np.dtype(np.int64)),
            ((3, lengths["B"], size), computed),
            ((2, rows, inner), x.dtype),
            ((units * inner * (1 if backward else self.gates),), x.dtype),
            ((1,), np.dtype(np.uint32)),
        ]
        if backward:
            layout.append(((lengths["N"], size), x.dtype))
            layout.append(((lengths["N"] if self.gates == 3 else 0, size), x.dtype))
            parts = [product_workspace(x, n, lengths["N"], size) for n in weight_products(self.gates, size)]
            largest = max((math.prod(shape) for each in parts for shape, _ in each), default=0)
            layout.append(((largest,), computed))
        return layout

    def flops(self, passes: int, *arrays: Array, **attrs: Any) -> int:
        lengths = self.lengths(arrays)
        return 2 * passes * lengths["N"] * lengths["H"] * lengths["G"]

    def cost(self, passes: int, slots: int, *arrays: Array, **attrs: Any) -> Cost:
        moved = sum(math.prod(shape) for shape, _ in self.infer(*arrays)) + sum(a.size for a in arrays)
        lengths = self.lengths(arrays)
        work = slots * lengths["N"] * lengths["H"]
        return Cost(arrays[0].itemsize * moved, self.flops(passes, *arrays), work)


def _spec(
    name: str, gates: int, inputs: str, outputs: str, workspace: str, products: int, slots: int, **rest: Any
) -> KernelSpec:
    """A spec of arrays with shapes in letters, with as many `products` of all rows and the recurrent weight, and
    `slots` instructions for each number of the states."""
    shapes = _Shapes(name, gates, inputs, outputs)
    return KernelSpec(
        name=name,
        family="recurrent",
        inputs=tuple(shapes.inputs),
        outputs=tuple(shapes.outputs),
        infer=shapes.infer,
        workspace=functools.partial(shapes.workspace, workspace),
        cost=functools.partial(shapes.cost, products, slots),
        size=functools.partial(shapes.flops, products),
        tolerance=_TOLERANCE,
        **rest,
    )


# A step rounds sums of at most 127 terms (as a random walk, 12 u of numbers of size 1) and 20 times more, and passes
# on the errors of the steps before, which gates and slopes shrink: 7 steps, 250 u. The gradient of the weight sums
# 73 such rows.
# Of half types what a step multiplies is rounded to them: u = 2^-9 of bfloat16 and 2^-12 of float16, of states and of
# gradients of size 1, which a weight of size 0.7 / sqrt(H) makes 0.7 u of a sum, and the steps that follow 2 u; four
# deviations are 8 u, and twice that where gates have slopes and 73 rows are summed. One rounding of a result is 2 u.
_TOLERANCE = {
    "float32": (1e-5, 3e-5),
    "float64": (2e-14, 6e-14),
    "float16": (5e-4, 4e-3),
    "bfloat16": (4e-3, 3e-2),
}


# ---------------------------------------------------------------------------------------------------------
# Examples
# ---------------------------------------------------------------------------------------------------------

_SIZES: list[tuple[tuple[int, ...], int]] = [
    ((3, 3, 3, 3), 5), ((1,), 1), ((1,) * 7, 3), ((), 2), ((5, 3, 3, 1), 7), ((33, 20, 19, 1), 31), ((2, 2), 127),
]  # fmt: skip
"""batch_sizes, and H."""


def _examples(gates: int, inputs: str, *options: dict[str, Any]) -> Callable[..., Iterator[Example]]:
    """Examples of every size, with the `options` in turn and in both directions."""

    def examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
        names, shapes = inputs.split()[::2], inputs.split()[1::2]
        for i, (batch_sizes, size) in enumerate(_SIZES):
            batch = batch_sizes[0] if batch_sizes else 2  # without steps: two sequences of length 0
            lengths = {"N": sum(batch_sizes), "B": batch, "H": size, "G": gates * size}
            arrays = []
            for name, letters in zip(names, shapes):
                if name == "batch_sizes":
                    arrays.append(np.array(batch_sizes, np.int64))
                    continue
                a = rng.standard_normal([lengths[letter] for letter in letters])
                if name == "weight":
                    a *= 0.7 / np.sqrt(size)
                if name == "gates":
                    a = 1.0 / (1.0 + np.exp(-a))
                arrays.append(a.astype(dtype))
            yield Example(tuple(arrays), {**options[i % len(options)], "reverse": i % 3 == 1})

    return examples


# ---------------------------------------------------------------------------------------------------------
# The cells
# ---------------------------------------------------------------------------------------------------------

_RNN = "x NG  h0 BH  weight GH  batch_sizes T"
_RNN_BACKWARD = "g_h NH  g_hn BH  weight GH  h0 BH  h NH  batch_sizes T"
_LSTM = "x NG  h0 BH  c0 BH  weight GH  batch_sizes T"
_LSTM_BACKWARD = "g_h NH  g_hn BH  g_cn BH  weight GH  h0 BH  c0 BH  h NH  c NH  gates NG  batch_sizes T"
_GRU = "x NG  h0 BH  weight GH  bias_n H  batch_sizes T"
_GRU_BACKWARD = "g_h NH  g_hn BH  weight GH  h0 BH  h NH  gates NG  reset NH  batch_sizes T"
_KINDS = [{"nonlinearity": name} for name in NONLINEARITIES]
_RESETS = [{"reset_after": True}, {"reset_after": False}]
_FORWARD_WORKSPACE = "Hg Bg"  # the packed weight, the products of a step

RNN = _spec(
    "rnn", 1, _RNN, "h NH  h_n BH", _FORWARD_WORKSPACE, 1, 20,
    examples=_examples(1, _RNN, *_KINDS),
    formula="h_t = f(x_t + weight h_{t-1}), f tanh or relu; h_n the last h of each sequence",
    source="Elman, Finding structure in time, Cognitive Science 14, 1990",
)  # fmt: skip
RNN_BACKWARD = _spec(
    "rnn_backward", 1, _RNN_BACKWARD, "d_x NG  d_h0 BH  d_weight GH", "Gh Bh NH", 2, 6,
    examples=_examples(1, _RNN_BACKWARD, *_KINDS),
    formula="d_x_t = f'(h_t) (g_h_t + weight^T d_x_{t+1}); d_weight = sum_t d_x_t h_{t-1}^T",
    source="Werbos, Backpropagation through time, Proceedings of the IEEE 78, 1990",
)  # fmt: skip
LSTM = _spec(
    "lstm", 4, _LSTM, "h NH  h_n BH  c_n BH  c NH  gates NG", _FORWARD_WORKSPACE, 1, 90,
    examples=_examples(4, _LSTM, {}),
    formula=(
        "i, f, g, o = sigma, sigma, tanh, sigma of the quarters of x_t + weight h_{t-1}; c_t = f c_{t-1} + i g; "
        "h_t = o tanh(c_t); gates = (i, f, g, o)"
    ),
    source="Hochreiter & Schmidhuber 1997, with the forget gate of Gers, Schmidhuber & Cummins 2000",
)  # fmt: skip
LSTM_BACKWARD = _spec(
    "lstm_backward", 4, _LSTM_BACKWARD, "d_x NG  d_h0 BH  d_c0 BH  d_weight GH", "Gh Bh NH", 2, 50,
    examples=_examples(4, _LSTM_BACKWARD, {}),
    formula=(
        "dh_t = g_h_t + weight^T d_x_{t+1}; dc_t = dh_t o (1 - tanh^2 c_t) + f_{t+1} dc_{t+1}; d_x_t = (dc g i(1-i), "
        "dc c_{t-1} f(1-f), dc i (1-g^2), dh tanh(c) o(1-o)); d_weight = sum_t d_x_t h_{t-1}^T"
    ),
    source="Gers, Schmidhuber & Cummins 2000, in full: no gradient is cut",
)  # fmt: skip
GRU = _spec(
    "gru", 3, _GRU, "h NH  h_n BH  gates NG  reset NH", _FORWARD_WORKSPACE, 1, 65,
    examples=_examples(3, _GRU, *_RESETS),
    formula=(
        "r, z = sigma of the first two thirds of x_t + weight h_{t-1}; n = tanh(x_n + r (weight_n h_{t-1} + bias_n)), "
        "or before the product: tanh(x_n + weight_n (r h_{t-1}) + bias_n); h_t = (1 - z) n + z h_{t-1}; "
        "gates = (r, z, n); reset = weight_n h_{t-1} + bias_n, or r h_{t-1}"
    ),
    source="Cho et al. 2014, eq. 5-8 (reset before the product); cuDNN's and PyTorch's form (after it)",
)  # fmt: skip
GRU_BACKWARD = _spec(
    "gru_backward", 3, _GRU_BACKWARD, "d_x NG  d_h0 BH  d_weight GH  d_bias_n H", "Gh Bh NH Bh NH BH", 2, 30,
    examples=_examples(3, _GRU_BACKWARD, *_RESETS),
    formula=(
        "dn = dh (1 - z), d_x_n = dn (1 - n^2), d_x_z = dh (h_{t-1} - n) z(1-z), d_x_r = dr r(1-r) with dr = d_x_n "
        "reset and the product's gradient d_x_n r, or before the product dr = q h_{t-1}, q = weight_n^T d_x_n"
    ),
    source="the derivative of gru",
)  # fmt: skip
