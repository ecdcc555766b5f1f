"""Recurrent nets in Triton: each variant over several programs and ragged lengths, sizes read on the device, and what
the machine code of the shipped sizes takes.

Run as a program, this file compiles kernels and prints what the tests of their machine code read: a process in which
Triton interprets cannot compile.
"""

import numpy as np
import pytest

from gmkernels import registry
from gmkernels.recurrent import spec

pytest.importorskip("triton")

CELLS = {
    "tanh": (spec.RNN, spec.RNN_BACKWARD, {"nonlinearity": "tanh"}),
    "relu": (spec.RNN, spec.RNN_BACKWARD, {"nonlinearity": "relu"}),
    "lstm": (spec.LSTM, spec.LSTM_BACKWARD, {}),
    "gru": (spec.GRU, spec.GRU_BACKWARD, {"reset_after": True}),
    "gru_before": (spec.GRU, spec.GRU_BACKWARD, {"reset_after": False}),
}
GATES = {"rnn": 1, "lstm": 4, "gru": 3}
RAGGED = (18, 17, 3)
"""Rows of steps: sequences of two programs, which end in every step."""
UNITS = 19
"""More than a tile of a step has, and no power of two."""


@pytest.fixture(params=["whole", "steps"])
def variant(request, monkeypatch):
    from gmkernels.recurrent import triton

    if request.param == "steps":
        monkeypatch.setattr(triton, "_RESIDENT", -1)
    return request.param


def forward_inputs(op, batch_sizes, size, dtype, seed=0):
    rng = np.random.default_rng(seed)
    gates, batch = GATES[op.name], batch_sizes[0]
    states = 2 if op.name == "lstm" else 1
    found = [rng.standard_normal((sum(batch_sizes), gates * size))]
    found += [rng.standard_normal((batch, size)) for _ in range(states)]
    found += [rng.standard_normal((gates * size, size)) * 0.7 / np.sqrt(size)]
    found += [rng.standard_normal(size)] if op.name == "gru" else []
    return [a.astype(dtype) for a in found] + [np.array(batch_sizes, np.int64)]


def backward_inputs(op, inputs, outputs, seed=1):
    """Of the gradient, from what the forward reference made of its inputs."""
    rng = np.random.default_rng(seed)
    states = 2 if op.name == "lstm" else 1
    h, saved = outputs[0], outputs[1 + states :]
    gradients = [rng.standard_normal(a.shape).astype(a.dtype) for a in outputs[: 1 + states]]
    return [*gradients, inputs[1 + states], *inputs[1 : 1 + states], h, *saved, inputs[-1]]


def run(op, inputs, attrs, backend):
    import cupy

    if backend == "triton":
        return [a.get() for a in registry.run(op, [cupy.asarray(a) for a in inputs], attrs, backend=backend)]
    return list(registry.run(op, inputs, attrs, backend=backend))


def wide(inputs):
    return [a.astype(np.float64) if a.dtype != np.int64 else a for a in inputs]


def check(op, inputs, attrs):
    dtype = inputs[0].dtype
    found = run(op, inputs, attrs, "triton")
    rtol, atol = op.tolerance[dtype.name]
    for name, a, b in zip(op.outputs, found, run(op, wide(inputs), attrs, "reference"), strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a.astype(np.float64), b, rtol=rtol, atol=atol, err_msg=f"{op.name} {name}")


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "cell", ["lstm", *(pytest.param(cell, marks=pytest.mark.slow) for cell in CELLS if cell != "lstm")]
)
def test_ragged_sequences_over_several_programs(cell, reverse, variant):
    forward, backward, attrs = CELLS[cell]
    attrs = attrs | {"reverse": reverse}
    inputs = forward_inputs(forward, RAGGED, UNITS, np.float32)
    check(forward, inputs, attrs)
    outputs = run(forward, inputs, attrs, "reference")
    check(backward, backward_inputs(forward, inputs, outputs), attrs)
