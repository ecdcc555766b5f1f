"""Random steps, and what changes between their calls: a captured step leaves what the eager one does, bit for bit."""

import copy
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gmcore
from gmcore import distributions, nn, ops, optim
from gmcore.errors import CaptureError

SIZE = 6
"""Of the rows of all values in a step."""
CALLS = 5
"""Of a step between two changes of what it does: the fourth at the latest is a repetition."""

# -- what a step is made of: from a model and two values of the shape (rows, SIZE) to another one ---------------------
INDEX = np.array([3, 0, 0, 5, 1, 2])
PIECES = {
    "tanh": lambda m, a, b: ops.tanh(a),
    "silu": lambda m, a, b: ops.silu(a - 1.0),
    "bounded exp": lambda m, a, b: ops.exp(-ops.square(a)),
    "ratio": lambda m, a, b: a / (ops.absolute(b) + 1.0),
    "minus row": lambda m, a, b: a - b[0],
    "where": lambda m, a, b: ops.where(a > b, a, 0.5 * b),
    "largest": lambda m, a, b: a - ops.max(b, axis=1, keepdims=True),
    "moments": lambda m, a, b: (a - ops.mean(b, axis=0)) / (ops.std(b, axis=0) + 1.0),
    "logsumexp": lambda m, a, b: b - ops.logsumexp(a, axis=0),
    "softmax": lambda m, a, b: ops.softmax(a, axis=-1),
    "running sum": lambda m, a, b: ops.cumsum(ops.tanh(a), axis=1),
    "sorted": lambda m, a, b: ops.sort(a, axis=1) - b,
    "product": lambda m, a, b: ops.tanh(a) @ m.weight,
    "stacked product": lambda m, a, b: (ops.tanh(a)[:, None, :] * b[:, :, None] @ m.weight)[:, 1],
    "contraction": lambda m, a, b: ops.einsum("nd,de->ne", ops.sin(a), m.weight),
    "linear": lambda m, a, b: ops.linear(a, m.weight, m.bias),
    "layers": lambda m, a, b: m.layers(a),
    "norm": lambda m, a, b: m.norm(a),
    "layer norm": lambda m, a, b: ops.layer_norm(a, (SIZE,), m.bias, b[0]),
    "dropout": lambda m, a, b: m.dropout(a),
    "convolution": lambda m, a, b: m.convolution(a[:, None])[:, 0],
    "pooling": lambda m, a, b: ops.max_pool1d(a[:, None], 3, 1, 1)[:, 0],
    "cell": lambda m, a, b: m.cell(a, ops.tanh(b)),
    "network in time": lambda m, a, b: m.lstm(a[None])[0][0],
    "noise": lambda m, a, b: a + 0.1 * ops.normal(a.shape, dtype=a.dtype, generator=m.generator),
    "default noise": lambda m, a, b: a * ops.uniform(a.shape, dtype=a.dtype),
    "sample": lambda m, a, b: ops.gaussian_sample(a, ops.tanh(b), generator=m.generator)[0],
    "distribution": lambda m, a, b: distributions.Gamma(ops.softplus(a) + 1.0, 2.0).rsample(generator=m.generator),
    "density": lambda m, a, b: ops.tanh(distributions.Normal(b, ops.exp(ops.tanh(m.bias))).log_prob(a)),
    "reversed": lambda m, a, b: a[::-1] - b[:, ::-1],
    "chosen": lambda m, a, b: a[:, INDEX],
    "written": lambda m, a, b: ops.set_at(a, 0, b[-1]),
    "reshaped": lambda m, a, b: ops.reshape(a.T, a.shape),
    "joined": lambda m, a, b: ops.concatenate([a, b], axis=1)[:, ::2],
    "padded": lambda m, a, b: ops.pad(a, ((0, 0), (1, 0)))[:, :-1],
    "state": lambda m, a, b: a * (m.state + 0.5),
    "kept": lambda m, a, b: a + m.state.copy_(ops.tanh(ops.mean(b.detach(), axis=0))),
    "turned state": lambda m, a, b: a - m.state.copy_(m.state.detach()[::-1]),
    "constant": lambda m, a, b: a * np.linspace(0.5, 1.0, SIZE, dtype=a.dtype),
    "cut": lambda m, a, b: a.detach() * b,
    "half": lambda m, a, b: a.astype("float16").astype(b.dtype),
    "fused": lambda m, a, b: FUSED(a, b),
    "checkpoint": lambda m, a, b: gmcore.checkpoint(lambda x: m.dropout(ops.tanh(x @ m.weight)) * x, a),
    "penalty": lambda m, a, b: b + ops.mean(slope(m, a), axis=0),
}  # fmt: skip
FUSED = gmcore.fuse(lambda a, b: ops.tanh(a) * b + a)


def slope(m, a):
    with gmcore.enable_grad():
        return gmcore.grad(ops.sum(ops.sin(a @ m.weight)), m.weight, create_graph=True)


REFUSED = {
    "looked at": (lambda m, a, b: a * float(ops.mean(b).item() > 0.1), "looks at numbers that change"),
    "array": (lambda m, a, b: a + m.rng.random(SIZE).astype(a.dtype), "changes from step to step and that no"),
    "number": (lambda m, a, b: a * m.rng.random(), "changes from step to step"),
    "seeded": (lambda m, a, b: a + ops.normal(a.shape, dtype=a.dtype, generator=gmcore.Generator(1)), "it seeds a"),
}  # fmt: skip
"""What cannot be repeated, and a part of the reason."""

OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, lr=0.05, weight_decay=0.01),
    "momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda p: optim.Adam([{"params": p[:2], "lr": 0.02}, {"params": p[2:]}], lr=0.05),
    "AdamW": lambda p: optim.AdamW(p, lr=0.05, amsgrad=True),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.1, lr_decay=0.01),
    "Adadelta": lambda p: optim.Adadelta(p),
}
CLEARINGS = {
    "before": lambda o: (o.zero_grad(), lambda: None)[1],
    "zeros": lambda o: (o.zero_grad(set_to_none=False), lambda: None)[1],
    "after": lambda o: o.zero_grad,
}
LOSSES = {
    "squares": lambda y, x, labels: ops.mean(ops.square(ops.tanh(y))),
    "classes": lambda y, x, labels: ops.cross_entropy(y, labels),
    "bernoulli": lambda y, x, labels: -ops.mean(ops.bernoulli_log_prob(y, ops.sigmoid(x))),
    "huber": lambda y, x, labels: ops.smooth_l1_loss(y, x),
}
CLIPPINGS = {
    "none": lambda p: None,
    "norm": lambda p: optim.clip_grad_norm_(p, 0.1),
    "value": lambda p: optim.clip_grad_value_(p, 0.01),
}


RESULTS = {
    "loss": lambda m, loss, y, x: loss,
    "values": lambda m, loss, y, x: {"loss": loss.detach(), "y": (y.detach().T, [y.detach(), y.new_zeros((2,))])},
    "what it got": lambda m, loss, y, x: (x, x[1:], m.state, m.weight, m.weight.grad, "constant", None),
}


class Model(nn.Module):
    """Parameters, layers, state and generators that the pieces use; and a step that trains them, made of pieces."""

    def __init__(self, case):
        rng = np.random.default_rng(0)
        self.case, self.rng, self.generator, self.runs, self.found = case, rng, gmcore.Generator(7), [], []
        self.weight = nn.Parameter(0.5 * rng.standard_normal((SIZE, SIZE)).astype(case.dtype))
        self.bias = nn.Parameter(rng.standard_normal(SIZE).astype(case.dtype))
        self.layers = nn.Sequential(nn.Linear(SIZE, SIZE, dtype=case.dtype), nn.Tanh(), nn.Dropout(0.2))
        self.norm = nn.BatchNorm1d(SIZE, dtype=case.dtype)
        self.convolution = nn.Conv1d(1, 1, 3, padding=1, dtype=case.dtype)
        self.cell, self.lstm = nn.GRUCell(SIZE, SIZE, dtype=case.dtype), nn.LSTM(SIZE, SIZE, dtype=case.dtype)
        self.dropout, self.number = nn.Dropout(0.3), 1.5
        self.register_buffer("state", gmcore.tensor(np.zeros(SIZE, case.dtype)))
        self.optimizer = OPTIMIZERS[case.optimizer](list(self.parameters()))
        self.schedule = optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 7) if case.schedule else None
        self.average = optim.EMA(self, 0.9)

    def step(self, x, labels):
        case = self.case
        self.runs.append(None)
        finish = CLEARINGS[case.clearing](self.optimizer)
        values = [x, self.norm(self.dropout(self.layers(x + self.bias))) * self.number]  # on which every switch tells
        for name, i, j in case.pieces:
            a, b = values[-1 - i % len(values)], values[-1 - j % len(values)]
            values.append((PIECES.get(name) or REFUSED[name][0])(self, a, b))
        loss = LOSSES[case.loss](values[-1], x, labels) + 0.1 * ops.mean(ops.tanh(values[1] @ self.weight))
        if gmcore.is_grad_enabled():
            loss.backward()
            CLIPPINGS[case.clipping](list(self.parameters()))
            self.optimizer.step()
            self.average.update()
            if case.schedule == "in the step":
                self.schedule.step()
        finish()
        return RESULTS[case.results](self, loss, values[-1], x)


# -- what changes between calls --------------------------------------------------------------------------------------
def load(m, rng):
    m.load_state_dict({name: (0.9 * t.numpy()).astype(t.dtype) for name, t in m.state_dict().items()})


def overwrite_gradients(m, rng):
    for p in m.parameters():
        if p.grad is not None:
            p.grad.copy_(rng.standard_normal(p.shape))


def replace_gradients(m, rng):
    for p in m.parameters():
        if p.grad is not None:
            p.grad = gmcore.tensor(rng.standard_normal(p.shape).astype(p.dtype))


def set_rate(m, rng):
    if m.schedule is None:
        m.optimizer.param_groups[-1]["lr"] = 0.05 * rng.random()


NUMBERS = {
    "parameters": lambda m, rng: m.weight.copy_(rng.standard_normal((SIZE, SIZE))),
    "state dict": load,
    "state": lambda m, rng: m.state.copy_(rng.standard_normal(SIZE)),
    "seed": lambda m, rng: m.generator.manual_seed(int(rng.integers(9))),
    "default seed": lambda m, rng: gmcore.default_generator().manual_seed(int(rng.integers(9))),
    "rate": set_rate,
    "weight decay": lambda m, rng: m.optimizer.param_groups[0].update(weight_decay=rng.random()),
    "schedule": lambda m, rng: m.schedule and m.schedule.step(),
    "decay of the average": lambda m, rng: setattr(m.average, "decay", rng.random()),
    "gradients written": overwrite_gradients,
    "gradients exchanged": replace_gradients,
    "results written": lambda m, rng: [t.copy_(rng.standard_normal(t.shape)) for t in m.found],
}
"""Read from memory in a repetition: any of them may change before any call."""


def give_gradients(m, rng):
    for p in m.parameters():
        p.grad = p.new_ones(p.shape)


def convert(m, rng):
    dtype = m.weight.dtype
    m.to(np.float64 if dtype == np.float32 else np.float32).to(dtype)


SWITCHES = {
    "mode": lambda m, rng: m.train(not m.training),
    "mode of a part": lambda m, rng: m.norm.train(not m.norm.training),
    "frozen": lambda m, rng: m.layers.requires_grad_(not m.layers[0].weight.requires_grad),
    "frozen bias": lambda m, rng: setattr(m.bias, "requires_grad", not m.bias.requires_grad),
    "dropout": lambda m, rng: setattr(m.dropout, "p", rng.random()),
    "no gradients": lambda m, rng: m.zero_grad(),
    "no gradient": lambda m, rng: setattr(m.weight, "grad", None),
    "gradients": give_gradients,
    "memory": convert,
    "optimizer": lambda m, rng: m.optimizer.load_state_dict(copy.deepcopy(m.optimizer.state_dict())),
    "hook of a leaf": lambda m, rng: m.weight.register_hook(lambda g: 0.5 * g),
    "hook of a module": lambda m, rng: m.layers.register_forward_hook(lambda module, args, output: 0.5 * output),
    "layer": lambda m, rng: m.layers.__setitem__(1, nn.Identity()),
    "layers": lambda m, rng: setattr(m, "layers", m.layers[:2]),
    "number": lambda m, rng: setattr(m, "number", rng.random()),
    "default generator": lambda m, rng: gmcore.manual_seed(int(rng.integers(9))),
    "copy": lambda m, rng: None,
}
"""Change what the step does: it is recorded anew."""

LAYOUTS = {
    "as it is": lambda x: x,
    "by column": np.asfortranarray,
    "reversed": lambda x: x[::-1],
    "with gaps": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "one row": lambda x: np.broadcast_to(x[0], x.shape),
}


# -- the drawn cases -------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class Round:
    switches: list
    numbers: list
    """Before each call."""
    rows: int
    layout: str
    recording: bool


@dataclasses.dataclass
class Case:
    dtype: str
    pieces: list
    optimizer: str
    schedule: str | None
    clearing: str
    loss: str
    clipping: str
    results: str
    rounds: list


def some(table):
    return st.sampled_from(list(table))


def several(table, least, most):
    return st.lists(some(table), min_size=least, max_size=most, unique=True)


PLACES = st.integers(0, 3)
ROUNDS = st.builds(
    Round,
    switches=several(SWITCHES, 1, 3),
    numbers=st.lists(several(NUMBERS, 0, 2), min_size=CALLS, max_size=CALLS),
    rows=st.sampled_from([5, 5, 5, 2, 129]),  # the same arguments, as a rule: what else changes must be noticed
    layout=st.sampled_from(["as it is"] * 8 + list(LAYOUTS)),
    recording=st.sampled_from([True] * 7 + [False]),
)
CASES = st.builds(
    Case,
    dtype=st.sampled_from(["float32", "float64"]),
    pieces=st.lists(st.tuples(some(PIECES), PLACES, PLACES), min_size=1, max_size=8),
    optimizer=some(OPTIMIZERS),
    schedule=st.sampled_from([None, "in the step", "between the calls"]),
    clearing=some(CLEARINGS),
    loss=some(LOSSES),
    clipping=some(CLIPPINGS),
    results=some(RESULTS),
    rounds=st.lists(ROUNDS, min_size=2, max_size=5),
)


def bits(value):
    if isinstance(value, gmcore.Tensor):
        return (value.requires_grad, *bits(value.detach().numpy()))
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {name: bits(part) for name, part in value.items()}
    return [bits(part) for part in value] if isinstance(value, (tuple, list)) else value


def calls(case, wrap):
    """All that there is after each call, in bits; and how often the step has been run."""
    gmcore.manual_seed(3)
    rng = np.random.default_rng(4)
    m = Model(case)
    m.run = wrap(m.step)
    for each in case.rounds:
        for name in each.switches:
            SWITCHES[name](m, rng)
            m = copy.deepcopy(m) if name == "copy" else m
        for numbers in each.numbers:
            for name in numbers:
                NUMBERS[name](m, rng)
            x = rng.standard_normal((each.rows, SIZE)).astype(case.dtype)
            x, labels = gmcore.Tensor(LAYOUTS[each.layout](x)), gmcore.tensor(rng.integers(SIZE, size=each.rows))
            with gmcore.set_grad_enabled(each.recording):
                found = m.run(x, labels)
            m.found = [*found["y"][1]] if case.results == "values" else []
            averages, schedule = m.average.state_dict(), m.schedule and m.schedule.last_epoch
            named = {**dict(m.named_parameters()), **dict(m.named_buffers())}
            gradients = {name: t.grad for name, t in named.items()}
            states = m.generator.state, gmcore.default_generator().state
            yield bits((found, named, gradients, m.optimizer.state_dict(), averages, schedule, states)), len(m.runs)


def compare(case):
    runs = 0
    eager = list(calls(case, lambda step: step))
    for i, (found, (expected, _)) in enumerate(zip(calls(case, gmcore.capture), eager, strict=True)):
        assert found[0] == expected, f"call {i}"
        assert i % CALLS < CALLS - 1 or found[1] == runs, f"call {i} was no repetition"
        runs = found[1]


@settings(max_examples=60, derandomize=True)
@given(CASES)
def test_a_captured_step_does_as_the_eager_one(case):
    compare(case)


@pytest.mark.slow
@settings(max_examples=200)
@given(CASES)
def test_many_captured_steps_do_as_the_eager_ones(case):
    compare(case)


@settings(max_examples=10, derandomize=True)
@given(CASES, some(REFUSED), PLACES)
def test_what_cannot_be_repeated_is_refused_after_an_eager_step(case, name, at):
    case.pieces.insert(at, (name, 0, 0))
    case.rounds = [Round([], [[]] * CALLS, 5, "as it is", True)]
    eager = list(calls(case, lambda step: step))
    with pytest.raises(CaptureError, match=REFUSED[name][1]):
        for found, expected in zip(calls(case, gmcore.capture), eager, strict=True):
            assert found[0] == expected[0]
