"""Models of text, one character after another: streams of it, nats and bits per character, sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gmcore import ops
from gmcore.data import Text, Vocabulary
from gmcore.device import put_all
from gmcore.errors import ArgumentError, CheckpointError, DataError
from gmcore.io import write_atomically
from gmcore.models.base import Model, Recipe, Report, Step, check_size
from gmcore.random import Generator
from gmcore.streams import drawing_from, stream_seed
from gmcore.tensor import Tensor, no_grad, tensor

State = tuple[Tensor, ...]
"""What a model remembers of the text so far: arrays with the streams on their second axis."""

EVALUATION_STEPS = 256
"""Characters of a stream that are evaluated at once."""
EVALUATION_STREAMS = 32
SAMPLE_LENGTH = 2000
"""Characters that training writes when it has ended."""


class Excerpt(NamedTuple):
    """The next characters of every stream, and the ones that follow each of them."""

    inputs: np.ndarray
    """(steps, streams), numbers of characters."""
    targets: np.ndarray
    """(steps, streams)."""
    first: bool
    """Whether the streams begin here: there is nothing to remember."""


class Streams(Sequence[Excerpt]):
    """A text cut into `count` streams of one length, side by side, and these into excerpts of `steps`.

    Stream b holds the characters b length to (b + 1) length of the text, and each excerpt goes on where the one
    before has ended. The last excerpt may be shorter.
    """

    def __init__(self, codes: np.ndarray, count: int, steps: int) -> None:
        self.length = (len(codes) - 1) // count
        self._inputs = codes[: count * self.length].reshape(count, self.length)
        self._targets = codes[1 : count * self.length + 1].reshape(count, self.length)
        self._steps = steps

    def __len__(self) -> int:
        return -(-self.length // self._steps)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # slices are not wanted
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = slice(index * self._steps, (index + 1) * self._steps)
        return Excerpt(self._inputs[:, part].T.copy(), self._targets[:, part].T.copy(), index == 0)


class LanguageModel(Model):
    """A model of the next character of a text, p(x_t | x_1 .. x_{t-1}).

    Training follows `batch_size` streams of the text through an epoch, `sequence_length` characters at a time. The
    gradient of an excerpt stops where it begins; the state there is that at the end of the one before: truncated
    backpropagation through time (Williams & Peng, Neural Computation 2(4), 1990).

    A subclass sets what `Model` says, and implements `start` and `forward`.
    """

    training_figure = "log-probability"
    validation_figure = "log-probability"
    test_figure = "log-probability"
    unit = "nats per character"
    samples_file = "samples.txt"
    sequence_length: int
    vocabulary: Vocabulary
    _carried: State | None = None
    """The state after the last excerpt."""

    @classmethod
    def build(cls, dataset: Text, settings: Mapping[str, Any], generator: Generator) -> LanguageModel:
        cls.check_settings(settings)
        cls._check_kind(dataset)
        return cls(dataset.vocabulary.characters, **settings, generator=generator)  # type: ignore[call-arg]

    @classmethod
    def _check_kind(cls, dataset: Any) -> None:
        if not isinstance(dataset, Text):
            raise DataError(f"{cls.name} models text, and data set {dataset.name!r} holds none; give a UTF-8 file")

    # -- what a subclass implements --------------------------------------------------------------------------
    def start(self, streams: int) -> State:
        """The state before the first character of so many streams."""
        raise NotImplementedError

    def forward(self, inputs: np.ndarray, state: State) -> tuple[Tensor, State]:
        """Logits of the characters after each of `inputs`, (steps, streams, vocabulary), and the state after them.

        inputs : (steps, streams), numbers of characters.
        """
        raise NotImplementedError

    # -- training --------------------------------------------------------------------------------------------
    def check_data(self, dataset: Text, recipe: Recipe, seed: int) -> None:
        self._check_kind(dataset)
        if dataset.vocabulary != self.vocabulary:
            raise DataError(f"data set {dataset.name!r} has other characters than the model's vocabulary")
        length = Streams(dataset.train, recipe.batch_size, self.sequence_length).length
        if length < self.sequence_length:
            raise DataError(
                f"data set {dataset.name!r}, split 'train': {len(dataset.train)} characters in {recipe.batch_size} "
                f"streams are {length} each, shorter than the sequence_length {self.sequence_length}; set a smaller "
                f"batch_size or sequence_length"
            )
        for split in ("valid", "test"):
            if len(getattr(dataset, split)) < 2:
                raise DataError(f"data set {dataset.name!r}, split {split!r}: expected at least 2 characters")

    def batches(self, dataset: Text, recipe: Recipe, seed: int, epoch: int) -> Sequence[Excerpt]:
        return Streams(dataset.train, recipe.batch_size, self.sequence_length)

    def loss(self, excerpt: Excerpt, state: State) -> tuple[Tensor, State]:
        """-log p of an excerpt's targets, mean over its characters, and the state after it."""
        logits, state = self(excerpt.inputs, state)
        rows = ops.reshape(logits, (excerpt.targets.size, len(self.vocabulary)))
        return ops.cross_entropy(rows, excerpt.targets.reshape(-1)), state

    def compute_gradients(self, batch: Excerpt, *, generator: Generator) -> Step:
        first = self.start(batch.inputs.shape[1])
        if self._carried is None or [part.shape for part in self._carried] != [part.shape for part in first]:
            self._carried = first
        if batch.first:
            _write(self._carried, first)
        loss, state = self.loss(batch, self._carried)
        loss.backward()
        _write(self._carried, state)
        return Step(loss.detach(), {}, batch.targets.size)

    def training_state(self) -> dict[str, np.ndarray]:
        return {f"state.{i}": part.cpu().numpy().copy() for i, part in enumerate(self._carried or ())}

    def load_training_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        state = [arrays[name] for name in sorted(arrays)]
        expected = [part.shape for part in self.start(state[0].shape[1])] if state and state[0].ndim > 1 else []
        if [part.shape for part in state] != expected:
            raise CheckpointError(f"{self.name}: a carried state of {[a.shape for a in state]}, expected {expected}")
        self._carried = tuple([tensor(part, device=self.device) for part in state]) or None

    # -- evaluation ------------------------------------------------------------------------------------------
    def log_probability(self, codes: np.ndarray, report: Report) -> tuple[float, int]:
        """Mean log p of the characters of a text after its first, and how many they are.

        The text is read in up to 32 streams of at least 1000 characters, each from its own beginning; the last stream
        goes on with the few characters that the division leaves.
        """
        count = min(EVALUATION_STREAMS, max(1, (len(codes) - 1) // 1000))
        streams = Streams(codes, count, EVALUATION_STEPS)
        rest = codes[count * streams.length :, None]
        self.eval()
        state, total, done = self.start(count), 0.0, 0
        for excerpt in (*streams, *([Excerpt(rest[:-1], rest[1:], False)] if len(rest) > 1 else [])):
            width = excerpt.inputs.shape[1]  # all streams, or the last alone
            with no_grad():
                loss, state = self.loss(put_all(excerpt, self.device), tuple([part[:, -width:] for part in state]))
            total += loss.item() * excerpt.targets.size
            done += excerpt.targets.size
            report(done, len(codes) - 1)
        return -total / done, done

    def validate(self, dataset: Text, recipe: Recipe, seed: int, report: Report) -> float:
        return self.log_probability(dataset.valid, report)[0]

    def measure(
        self,
        dataset: Text,
        split: str,
        *,
        recipe: Recipe,
        samples: int,
        seed: int,
        data_seed: int,
        limit: int | None,
        report: Report,
    ) -> dict[str, Any]:
        """The mean log-probability of a character of a split, and that of characters drawn independently."""
        codes = getattr(dataset, split)
        codes = codes if limit is None else codes[: limit + 1]
        if len(codes) < 2:
            raise DataError(f"data set {dataset.name!r}, split {split!r}: expected at least 2 characters")
        bound, n = self.log_probability(codes, report)
        counts = np.bincount(dataset.train, minlength=len(self.vocabulary)) + 1.0
        return {
            "bound": bound,
            "standard_error": None,  # neighbouring characters are anything but independent
            "baseline": float(np.mean(np.log(counts / counts.sum())[codes[1:]])),
            "baseline_is": "independent characters",
            "bits_per_character": -bound / math.log(2.0),
            "n": n,
        }

    # -- sampling --------------------------------------------------------------------------------------------
    def sample(self, n: int, *, prime: str = "", temperature: float = 1.0, generator: Generator | None = None) -> str:
        """`prime`, continued by `n` characters drawn from p(x_t | x_1 .. x_{t-1})^(1 / temperature), normalised.

        Parameters
        ----------
        n : number of characters, at least 1.
        prime : what the model reads first; without it, the first character is any of the vocabulary's.
        temperature : below 1 favours likely characters; at 0 the likeliest is taken.
        generator : gives one draw; by default the context's.

        Returns
        -------
        The prime and the characters after it.

        Raises
        ------
        ArgumentError : n below 1, a temperature that is negative or not finite, a prime with a character that is not
            in the vocabulary.
        """
        check_size("n", n)
        if not 0.0 <= temperature < math.inf:
            raise ArgumentError(f"temperature must be a number from 0 up, got {temperature!r}")
        try:
            codes = self.vocabulary.encode(prime)
        except DataError as error:
            raise ArgumentError(f"prime: {error}") from None
        self.eval()
        uniform = ops.uniform((n,), dtype="float64", generator=generator).numpy()
        found = list(codes) or [min(int(uniform[0] * len(self.vocabulary)), len(self.vocabulary) - 1)]
        with no_grad():
            logits, state = self(np.array(found)[:, None], self.start(1))
            for u in uniform[len(found) - len(codes) :]:
                code = _draw(logits.cpu().numpy()[-1, 0].astype(np.float64), temperature, u)
                found.append(code)
                logits, state = self(np.array([[code]]), state)
        return self.vocabulary.decode(found)

    def draw(self, folder: Path, dataset: Text, recipe: Recipe, seed: int) -> None:
        """A sample of the text that the model writes."""
        noise = Generator(stream_seed(seed, "sampling"))
        text = drawing_from(noise, self.sample, SAMPLE_LENGTH, generator=noise)
        write_atomically(folder / self.samples_file, text.encode())


def _write(carried: State, state: State) -> None:
    """Write a state where the next step looks for it."""
    for part, new in zip(carried, state, strict=True):
        part.copy_(new)


def _draw(logits: np.ndarray, temperature: float, u: float) -> int:
    """The number whose share of the cumulative probabilities holds u in (0, 1]."""
    if temperature == 0.0:
        return int(np.argmax(logits))
    cumulative = np.cumsum(np.exp((logits - logits.max()) / temperature))
    return int(np.searchsorted(cumulative, u * cumulative[-1]))


__all__ = ["Excerpt", "LanguageModel", "State", "Streams"]
