"""The cells of recurrent nets as tests of their kernels name them."""

from gmkernels.recurrent import spec

CELLS = {
    "tanh": (spec.RNN, spec.RNN_BACKWARD, {"nonlinearity": "tanh"}),
    "relu": (spec.RNN, spec.RNN_BACKWARD, {"nonlinearity": "relu"}),
    "lstm": (spec.LSTM, spec.LSTM_BACKWARD, {}),
    "gru": (spec.GRU, spec.GRU_BACKWARD, {"reset_after": True}),
    "gru_before": (spec.GRU, spec.GRU_BACKWARD, {"reset_after": False}),
}
"""Forward, backward and attributes."""
GATES = {"rnn": 1, "lstm": 4, "gru": 3}
"""By the name of the operation."""
