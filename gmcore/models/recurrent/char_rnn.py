"""The character-level language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gmcore import nn
from gmcore.data import Text, Vocabulary
from gmcore.errors import ArgumentError
from gmcore.models.base import Recipe, check_size
from gmcore.models.language import LanguageModel, State
from gmcore.models.recurrent import gradient_flow
from gmcore.random import Generator
from gmcore.streams import drawing_from, stream_seed
from gmcore.tensor import Tensor

CELLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "rnn": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
}
"""The layers by name, and how they are made."""
FLOW_STEPS = 100
"""Time steps over which the flow of gradients is pictured."""


class CharRNN(LanguageModel):
    """A recurrent net that predicts the next character of a text.

    With characters as one-hot vectors x_t and the state h_t of one of the cells,

        h_t = tanh(b + w h_{t-1} + U x_t)        "rnn", Elman 1990; "relu" with max(0, .) in place of tanh
        h_t = GRU(h_{t-1}, x_t)                  "gru", Cho et al. 2014
        h_t, c_t = LSTM(h_{t-1}, c_{t-1}, x_t)   "lstm", Hochreiter & Schmidhuber 1997
        p(x_{t+1} | x_1 .. x_t) = softmax(c + V h_t)

    training minimises -log p(x_{t+1} | x_1 .. x_t), mean over the characters, by truncated backpropagation through
    time with the norm of the gradient clipped (Pascanu, Mikolov & Bengio, ICML 2013). With several layers, h_t of one
    is the input of the next. Slides that give the gates of a GRU h_t, or mix by u_{t-1}, slipped in the time: the
    gates see h_{t-1}, and step t mixes with its own u_t (see `ops.gru`).

    Since x_t is one-hot, U x_t is a column of U: it is looked up, not multiplied.

    Parameters
    ----------
    vocabulary : the characters, each once; a character's number is its place.
    cell : "lstm", "gru", "rnn" or "relu".
    hidden_size : length of the state of a layer.
    num_layers : layers on top of each other.
    dropout : in training, of the states of each layer on their way up, the last one's included.
    sequence_length : characters between truncations.
    generator : initialises the weights.

    Raises
    ------
    ArgumentError : a size below 1, a cell that does not exist, a dropout outside [0, 1].
    DataError : a vocabulary without characters, or with one twice.
    """

    name = "char_rnn"
    summary = "character language model: LSTM, GRU or simple RNN"
    source = "Graves, Generating sequences with recurrent neural networks, 2013; recipe: Karpathy, char-rnn, 2015"
    recipe = Recipe(epochs=50, batch_size=50, learning_rate=2e-3, max_norm=5.0, schedule="char-rnn")
    settings: ClassVar[tuple[str, ...]] = ("cell", "hidden_size", "num_layers", "dropout", "sequence_length")

    def __init__(
        self,
        vocabulary: str,
        cell: str = "lstm",
        hidden_size: int = 128,
        num_layers: int = 2,
        dropout: float = 0.0,
        sequence_length: int = 50,
        *,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if cell not in [*CELLS]:
            raise ArgumentError(f"cell {cell!r}; expected one of {', '.join(CELLS)}")
        if not isinstance(dropout, (int, float)) or not 0.0 <= dropout <= 1.0:
            raise ArgumentError(f"dropout must be in [0, 1], got {dropout!r}")
        check_size("hidden_size", hidden_size)
        check_size("num_layers", num_layers)
        self.vocabulary = Vocabulary(vocabulary)
        self.sequence_length = check_size("sequence_length", sequence_length)
        self.config = {
            "vocabulary": vocabulary, "cell": cell, "hidden_size": hidden_size, "num_layers": num_layers,
            "dropout": dropout, "sequence_length": sequence_length,
        }  # fmt: skip
        symbols, between = len(self.vocabulary), dropout if num_layers > 1 else 0.0
        layers, options = CELLS[cell]
        self.rnn = layers(symbols, hidden_size, num_layers, dropout=between, **options)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.output = nn.Linear(hidden_size, symbols)
        if generator is not None:
            self.rnn.reset_parameters(generator)
            self.output.reset_parameters(generator)

    def start(self, streams: int) -> State:
        shape = (self.rnn.num_layers, streams, self.rnn.hidden_size)
        states = 2 if isinstance(self.rnn, nn.LSTM) else 1
        return tuple(self.output.weight.new_zeros(shape) for _ in range(states))

    def forward(self, inputs: np.ndarray, state: State) -> tuple[Tensor, State]:
        h, last = self.rnn(inputs, state if len(state) > 1 else state[0])
        logits = self.output(self.dropout(h))
        return logits, last if isinstance(last, tuple) else (last,)

    def draw(self, folder: Path, dataset: Text, recipe: Recipe, seed: int) -> None:
        """A sample of the text that the model writes, and how gradients flow through time, now and before training."""
        super().draw(folder, dataset, recipe, seed)
        init = Generator(stream_seed(seed, "init"))
        fresh, trained = (drawing_from(init, type(self), **self.config, generator=init).eval() for _ in range(2))
        # Looked at on the CPU, wherever it was trained.
        trained.load_state_dict({name: value.cpu() for name, value in self.state_dict().items()})
        codes = dataset.test[: FLOW_STEPS + 1]
        flows = {
            name: gradient_flow.measure(model.rnn, model.output, codes)
            for name, model in (("before training", fresh), ("trained", trained))
        }
        gradient_flow.save(folder / "gradients.png", flows, self.config["cell"])


__all__ = ["CharRNN"]
