"""Recurrent nets (tanh and ReLU, LSTM, GRU) over whole sequences, and their gradients."""

from __future__ import annotations

from gmkernels import blas
from gmkernels.recurrent import reference, spec
from gmkernels.registry import Array, Signature, register, run


def _needs_blas(signature: Signature) -> str | None:
    return blas.available()


for _spec in (spec.RNN, spec.RNN_BACKWARD, spec.LSTM, spec.LSTM_BACKWARD, spec.GRU, spec.GRU_BACKWARD):
    register(_spec, "reference", getattr(reference, _spec.name), overhead=5e-5, efficiency=0.1)
    register(
        _spec, "cpu", f"gmkernels.recurrent.cpu:{_spec.name}", overhead=2e-5, efficiency=0.4, accepts=_needs_blas
    )
