"""What recurrent nets can and cannot learn: the adding problem, a Markov source, a long period. Budgets are fixed."""

import math

import numpy as np
import pytest

import gmcore
from gmcore import nn, ops, optim
from gmcore.data import Text, Vocabulary
from gmcore.models import Recipe
from gmcore.models.recurrent.char_rnn import CharRNN

pytestmark = pytest.mark.slow

STEPS, BATCH, BUDGET = 100, 50, 1500


def adding_problem(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Numbers in [0, 1] of which one in each half of the sequence is marked; the target is the sum of the two.

    Hochreiter & Schmidhuber 1997, section 5.4. Who answers 1, the mean, has an error of 1/6.
    """
    x = np.zeros((STEPS, BATCH, 2), np.float32)
    x[..., 0] = rng.random((STEPS, BATCH))
    for low in (0, STEPS // 2):
        x[rng.integers(low, low + STEPS // 2, BATCH), np.arange(BATCH), 1] = 1.0
    return x, (x[..., 0] * x[..., 1]).sum(0)[:, None]


def error_on_the_adding_problem(name: str) -> float:
    """The mean error of 50 steps, the lowest within the budget."""
    gmcore.manual_seed(0)
    rng = np.random.default_rng(0)
    layer, output = getattr(nn, name)(2, 64), nn.Linear(64, 1)
    parameters = [*layer.parameters(), *output.parameters()]
    optimizer = optim.Adam(parameters, lr=5e-3)
    errors: list[float] = []
    best = math.inf
    for step in range(1, BUDGET + 1):
        x, target = adding_problem(rng)
        optimizer.zero_grad()
        difference = output(layer(x)[0][-1]) - target
        error = ops.mean(difference * difference)
        error.backward()
        optim.clip.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        errors.append(error.item())
        if step % 50 == 0:
            best = min(best, float(np.mean(errors[-50:])))
            if best < 0.005:
                break
    return best


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_gated_nets_solve_the_adding_problem(name: str) -> None:
    assert error_on_the_adding_problem(name) < 0.01


def test_the_simple_rnn_does_not() -> None:
    assert 0.12 < error_on_the_adding_problem("RNN") < 0.18


def learn(model: CharRNN, text: Text, batch_size: int, steps: int, learning_rate: float) -> float:
    """Minus the log-probability of the validation split after so many steps of Adam, in nats per character."""
    batches = model.train().batches(text, Recipe(1, batch_size), 0, 1)
    optimizer = optim.Adam(model.parameters(), lr=learning_rate)
    for step in range(steps):
        optimizer.zero_grad()
        model.compute_gradients(batches[step % len(batches)], generator=gmcore.Generator(0))
        optim.clip.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.param_groups[0]["lr"] = learning_rate * (1.0 - step / steps)
        optimizer.step()
    return -model.validate(text, model.recipe, 0, lambda *_: None)


def test_an_order_2_markov_source_is_learnt_to_its_entropy_rate() -> None:
    """The next of 3 characters depends on the last two. The best loss is the entropy rate; on 40000 characters of the
    source that rate is known to sqrt(var log p / 40000) = 0.003."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(3, 0.5), (3, 3))
    codes = np.zeros(440_000, np.int32)
    uniform, cumulative = rng.random(len(codes)), p.cumsum(-1)
    for t in range(2, len(codes)):
        codes[t] = np.searchsorted(cumulative[codes[t - 2], codes[t - 1]], uniform[t])
    codes = np.minimum(codes, 2)
    text = Text("markov", codes[:400_000], codes[400_000:], codes[-10:], Vocabulary("abc"))
    rows = codes[400_000:]
    rate = -np.log(p[rows[:-2], rows[1:-1], rows[2:]]).mean()  # of this very text: its best prediction
    model = CharRNN("abc", "lstm", 32, 1, sequence_length=50, generator=gmcore.Generator(0))
    assert learn(model, text, 50, 600, 0.01) == pytest.approx(rate, abs=0.01)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_period_of_10_is_learnt(cell: str) -> None:
    """9 a's and a b: the net has to count. The loss of one that does not is the entropy of b in 1 of 10, 0.325."""
    codes = np.array(([0] * 9 + [1]) * 1000, np.int32)
    text = Text("period", codes, codes[:3000], codes[:3000], Vocabulary("ab"))
    model = CharRNN("ab", cell, 32, 1, sequence_length=30, generator=gmcore.Generator(0))
    assert learn(model, text, 10, 400, 0.02) < 0.01
