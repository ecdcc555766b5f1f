"""Language models: streams, losses, sampling and refusals, on a bigram model from outside the package."""

import math

import numpy as np
import pytest
from scipy import special, stats

import gmcore
from gmcore import nn, ops
from gmcore.data import Text, Vocabulary
from gmcore.errors import ArgumentError, CheckpointError, DataError
from gmcore.models import LanguageModel, Recipe
from gmcore.models.language import Streams
from gmcore.tensor import Tensor

CHARACTERS = "abc"


class Bigram(LanguageModel):
    """p(x_{t+1} | x_t) = softmax(table[x_t]); its state counts the characters read, and nothing depends on it."""

    name = "bigram"
    recipe = Recipe(epochs=1, batch_size=2)
    settings = ("sequence_length",)

    def __init__(self, vocabulary, sequence_length=3, *, generator=None):
        super().__init__()
        self.vocabulary, self.sequence_length = Vocabulary(vocabulary), sequence_length
        self.config = {"vocabulary": vocabulary, "sequence_length": sequence_length}
        self.table = nn.Parameter(np.random.default_rng(0).standard_normal((len(vocabulary),) * 2))

    def start(self, streams):
        return (Tensor(np.zeros((1, streams, 1))),)

    def forward(self, inputs, state):
        return ops.getitem(self.table, inputs), (state[0] + len(inputs),)


def make(text="abcacbbacabcbabcaabc" * 6):
    vocabulary = Vocabulary(CHARACTERS)
    codes = vocabulary.encode(text)
    return Text("made", codes[:-60], codes[-60:-30], codes[-30:], vocabulary)


def log_p(model, codes):
    return special.log_softmax(model.table.detach().numpy(), 1)[codes[:-1], codes[1:]]


# -- streams ----------------------------------------------------------------
@pytest.mark.parametrize(("n", "count", "steps"), [(21, 2, 3), (20, 2, 3), (7, 1, 10), (24, 3, 7)])
def test_streams_hold_the_text_in_order_and_its_next_characters(n, count, steps):
    codes = np.arange(n, dtype=np.int32)
    streams = Streams(codes, count, steps)
    excerpts = list(streams)
    inputs, targets = (np.concatenate([e[i] for e in excerpts]).T for i in (0, 1))
    length = (n - 1) // count
    np.testing.assert_array_equal(inputs, np.arange(count * length).reshape(count, length))
    np.testing.assert_array_equal(targets, inputs + 1)
    assert [e.first for e in excerpts] == [True] + [False] * (len(streams) - 1)
    assert all(len(e.inputs) == steps for e in excerpts[:-1]) and 1 <= len(excerpts[-1].inputs) <= steps


# -- training and evaluation ----------------------------------------------------------------
def test_the_loss_is_minus_the_mean_log_probability_and_the_state_is_carried():
    model, text = Bigram(CHARACTERS), make()
    total, count = 0.0, 0
    for i, excerpt in enumerate(model.batches(text, model.recipe, 0, 1)):
        model.zero_grad()
        step = model.compute_gradients(excerpt, generator=gmcore.Generator(0))
        total, count = total + step.examples * step.loss.item(), count + step.examples
        steps = len(excerpt.inputs)
        assert model.training_state()["state.0"].tolist() == [[[3.0 * i + steps]] * 2]
        p = special.softmax(model.table.detach().numpy(), 1)[excerpt.inputs]
        gradient = np.zeros((3, 3))
        np.add.at(gradient, excerpt.inputs, p - np.eye(3)[excerpt.targets])  # dL/do = p - y
        np.testing.assert_allclose(model.table.grad.numpy(), gradient / excerpt.inputs.size, rtol=1e-12, atol=1e-15)
    length = (len(text.train) - 1) // 2
    expected = -log_p(model, text.train[: 2 * length + 1]).mean()
    assert total / count == pytest.approx(expected, rel=1e-12)
    first = model.batches(text, model.recipe, 0, 2)[0]
    model.compute_gradients(first, generator=gmcore.Generator(0))
    assert model.training_state()["state.0"].tolist() == [[[3.0]] * 2], "an epoch starts from nothing"


def test_the_carried_state_is_restored():
    model, other = Bigram(CHARACTERS), Bigram(CHARACTERS)
    other.load_training_state({})
    assert other.training_state() == {}
    model.compute_gradients(model.batches(make(), model.recipe, 0, 1)[0], generator=gmcore.Generator(0))
    other.load_training_state(model.training_state())
    assert other.training_state()["state.0"].tolist() == [[[3.0]] * 2]
    for shapes in ([(2, 2, 1)], [(3,)], [(1, 2, 1), (1, 2, 1)]):
        with pytest.raises(CheckpointError, match="bigram: a carried state of"):
            other.load_training_state({f"state.{i}": np.zeros(shape) for i, shape in enumerate(shapes)})


def test_what_is_reported():
    model, text, seen = Bigram(CHARACTERS), make(), []
    options = {"recipe": model.recipe, "samples": 1, "seed": 0, "data_seed": 0}
    found = model.measure(text, "test", **options, limit=None, report=lambda done, total: seen.append((done, total)))
    assert found["n"] == 29 and seen == [(29, 29)]
    assert found["bound"] == pytest.approx(log_p(model, text.test).mean(), rel=1e-12)
    assert found["bits_per_character"] == pytest.approx(-found["bound"] / math.log(2), rel=1e-12)
    counts = np.bincount(text.train) + 1.0
    assert found["baseline"] == pytest.approx(np.log(counts / counts.sum())[text.test[1:]].mean(), rel=1e-12)
    assert model.validate(text, model.recipe, 0, lambda *_: None) == pytest.approx(log_p(model, text.valid).mean())
    few = model.measure(text, "test", **options, limit=5, report=lambda *_: None)
    assert few["n"] == 5 and few["bound"] == pytest.approx(log_p(model, text.test[:6]).mean(), rel=1e-12)


@pytest.mark.parametrize("size", [3100, 3102])
def test_long_texts_are_evaluated_in_several_streams(size, monkeypatch):
    """To the last character: what a division into three leaves follows the last stream."""
    codes = np.random.default_rng(0).integers(0, 3, size).astype(np.int32)
    model, states = Bigram(CHARACTERS), []
    forward = model.forward
    monkeypatch.setattr(model, "start", lambda streams: (Tensor(np.arange(streams)[None, :, None] * 10_000),))
    monkeypatch.setattr(model, "forward", lambda inputs, state: states.append(state[0]) or forward(inputs, state))
    bound, n = model.log_probability(codes, lambda *_: None)
    assert n == size - 1 and bound == pytest.approx(log_p(model, codes).mean(), rel=1e-12)
    assert states[4].numpy().ravel().tolist() == [4 * 256, 10_000 + 4 * 256, 20_000 + 4 * 256]
    assert [state.numpy().ravel().tolist() for state in states[5:]] == [[20_000 + 1033]] * (size - 3100 > 0)


# -- sampling ----------------------------------------------------------------
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_have_the_probabilities_of_the_model(temperature):
    """Transitions of one long sample, by chi-square; false alarms in one of 10^4 runs, and the seed is fixed."""
    model = Bigram(CHARACTERS)
    codes = model.vocabulary.encode(model.sample(20_000, temperature=temperature, generator=gmcore.Generator(1)))
    counts = np.zeros((3, 3))
    np.add.at(counts, (codes[:-1], codes[1:]), 1)
    p = special.softmax(model.table.detach().numpy() / temperature, 1)
    chi = np.sum((counts - counts.sum(1, keepdims=True) * p) ** 2 / (counts.sum(1, keepdims=True) * p))
    assert chi < stats.chi2.isf(1e-4, 6)


def test_primes_and_temperature_zero():
    model = Bigram(CHARACTERS)
    best = model.table.detach().numpy().argmax(1)
    text = model.sample(5, prime="ab", temperature=0.0)
    codes = model.vocabulary.encode(text)
    assert text.startswith("ab") and len(text) == 7
    assert all(codes[t + 1] == best[codes[t]] for t in range(1, 6))
    generator = gmcore.Generator(4)
    first = model.sample(30, generator=generator)
    assert len(first) == 30 and generator.state == (4, 1)
    assert first == model.sample(30, generator=gmcore.Generator(4)) != model.sample(30, generator=generator)
    assert {model.sample(1, generator=gmcore.Generator(seed)) for seed in range(30)} == set(CHARACTERS)


# -- refusals ----------------------------------------------------------------
def test_refused_samples():
    model = Bigram(CHARACTERS)
    for options, match in (
        ({"n": 0}, "n must be a positive integer, got 0"),
        ({"temperature": -0.5}, "temperature must be a number from 0 up, got -0.5"),
        ({"temperature": math.nan}, "temperature must be a number from 0 up, got nan"),
        ({"prime": "abd"}, "prime: the character 'd' at 2 of the text is none of the 3 of the vocabulary"),
    ):
        with pytest.raises(ArgumentError, match=match):
            model.sample(**{"n": 3, **options})


def test_refused_data():
    model, text = Bigram(CHARACTERS, sequence_length=40), make()
    with pytest.raises(DataError, match=r"60 characters in 2 streams are 29 each, shorter than the sequence_length 40"):
        model.check_data(text, model.recipe, 0)
    other = Text("o", text.train, text.valid, text.test, Vocabulary("abd"))
    with pytest.raises(DataError, match="'o' has other characters than the model's vocabulary"):
        model.check_data(other, model.recipe, 0)
    short = Text("s", text.train, text.valid[:1], text.test, text.vocabulary)
    with pytest.raises(DataError, match="split 'valid': expected at least 2 characters"):
        Bigram(CHARACTERS).check_data(short, model.recipe, 0)
    images = gmcore.data.Dataset("images", *[np.zeros((2, 3), np.float32)] * 3)
    with pytest.raises(DataError, match="bigram models text, and data set 'images' holds none; give a UTF-8 file"):
        Bigram.build(images, {}, gmcore.Generator(0))
