"""What changes between the calls of a captured step: it does as the eager step would, or says why it cannot."""

import collections
import copy
import dataclasses
import enum
import math
import pickle

import numpy as np
import pytest

import gmcore
from gmcore import nn, ops, optim, watch
from gmcore.capture import CaptureWarning
from gmcore.distributions import Beta
from gmcore.distributions.relaxed import gumbel_softmax
from gmcore.errors import ArgumentError, CaptureError, GraphError
from gmcore.random import Generator

CALLS = 8
"""Two are recorded; what changes does so before the fifth, and where it changes back before the seventh."""


def leaf(seed=0):
    return gmcore.tensor(np.random.default_rng(seed).standard_normal((4, 4)), requires_grad=True)


def batch(i):
    return gmcore.tensor(np.random.default_rng(100 + i).standard_normal((4, 4)))


def loss(x, *weights):
    for w in weights:
        x = ops.tanh(x @ w)
    return ops.sum(ops.square(x))


def freezing(wrap):
    w, v = leaf(0), leaf(1)
    optimizer = optim.SGD([w, v], lr=0.1)

    def step(x):
        optimizer.zero_grad()
        loss(x, w, v).backward()
        optimizer.step()

    run = wrap(step)
    for i in range(CALLS):
        w.requires_grad = i not in (4, 5)
        run(batch(i))
        yield w.detach(), v.detach()


def training_and_evaluation(wrap):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    run = wrap(lambda x: model(x).detach())
    for i in range(CALLS):
        model.train(i not in (4, 5))
        yield run(batch(i).astype("float32")), model[1].running_mean


def another_parameter(wrap):
    model = nn.Sequential(nn.Linear(4, 4, dtype="float64"))
    run = wrap(lambda x: model(x).detach())
    for i in range(CALLS):
        if i == 4:
            model[0].weight = nn.Parameter(np.ones((4, 4)))
        yield run(batch(i))


def hooks_of_a_module(wrap):
    model = nn.Linear(4, 4, dtype="float64")
    run = wrap(lambda x: model(x).detach())
    for i in range(CALLS):
        if i == 4:
            handle = model.register_forward_hook(lambda module, args, output: output * 2.0)
        if i == 6:
            handle.remove()
        yield run(batch(i))


def layers_that_fused_operations_compute(wrap):
    """None of them is called: hooks, and another weight, decide all the same."""
    model = nn.Sequential(nn.Linear(4, 4, dtype="float64"), nn.Tanh(), nn.Linear(4, 4, dtype="float64"), nn.Tanh())
    last = nn.Linear(4, 4, dtype="float64")
    run = wrap(lambda x: nn.bernoulli_log_prob(last, model(x), ops.sigmoid(x)).detach())
    for i in range(3 * CALLS):
        if i == 4:
            handle = model[0].register_forward_hook(lambda module, args, output: output * 2.0)
        if i == 8:
            handle.remove()
            model[3].register_forward_pre_hook(lambda module, args: args[0] * 0.5)
        if i == 12:
            model[2].weight = nn.Parameter(np.ones((4, 4)))
        if i == 16:
            last.register_forward_hook(lambda module, args, output: output * 0.5)
        yield run(batch(i))


def options_of_a_module(wrap):
    class Scaled(nn.Module):
        def __init__(self):
            self.calls, self.scale = 0, 2.0

        def forward(self, x):
            self.calls += 1
            return self.scale * x

    scaled, dropout = Scaled(), nn.Dropout(0.5)
    run = wrap(lambda x: dropout(scaled(x)))
    for i in range(2 * CALLS):
        scaled.scale = 2.0 if i < 4 else 3.0
        dropout.p = 0.5 if i < 8 else 0.1
        yield run(batch(i))


def hooks_of_a_leaf(wrap):
    w = leaf()

    def step(x):
        w.grad = None
        loss(x, w).backward()

    run = wrap(step)
    for i in range(CALLS):
        if i == 4:
            handle = w.register_hook(lambda g: g * 0.5)
        if i == 6:
            handle.remove()
        run(batch(i))
        yield w.grad


def gradients_of_others(wrap):
    """That the step only reads a parameter of leaves its gradient to the caller."""
    w = leaf()
    optimizer = optim.SGD([w], lr=0.1)
    run = wrap(lambda x: (x @ w).detach())
    for i in range(CALLS):
        if i != 1:
            loss(batch(i), w).backward()
        yield run(batch(i)), w.grad
        optimizer.step()
        optimizer.zero_grad()


def clearing_what_it_does_not_use(wrap):
    w, v = leaf(0), leaf(1)
    optimizer = optim.SGD([w, v], lr=0.1)

    def step(x):
        optimizer.zero_grad()
        loss(x, w).backward()
        optimizer.step()

    run = wrap(step)
    for i in range(CALLS):
        if i > 3:
            loss(batch(i), v).backward()
        run(batch(i))
        yield w.detach(), v.detach(), v.grad


def another_group(wrap):
    w, v = leaf(0), leaf(1)
    optimizer = optim.SGD([w], lr=0.1)

    def step(x):
        w.grad = v.grad = None
        loss(x, w, v).backward()
        optimizer.step()

    run = wrap(step)
    for i in range(CALLS):
        if i == 4:
            optimizer.add_param_group({"params": [v]})
        run(batch(i))
        yield w.detach(), v.detach()


def another_state(wrap):
    w = leaf()
    optimizer = optim.Adam([w], lr=0.1)

    def step(x):
        w.grad = None
        loss(x, w).backward()
        optimizer.step()

    run = wrap(step)
    for i in range(CALLS):
        if i == 3:
            optimizer.state.clear()
        if i == 6:
            optimizer.state[w] = {"step": 0, "exp_avg_sq": gmcore.tensor(np.ones((4, 4)))}
        run(batch(i))
        yield w.detach()


def decay_of_an_average(wrap):
    w = leaf()
    average = optim.EMA([w], 0.5)

    def step(x):
        w.copy_(w.detach() + x)
        average.update()

    run = wrap(step)
    for i in range(CALLS):
        average.decay = 0.5 if i < 4 else 0.5 + 0.01 * i
        run(batch(i))
        yield average.averages["0"]


def numbers_that_python_looks_at(wrap):
    temperature = gmcore.tensor(1.0)
    run = wrap(lambda x: x * 2.0 if temperature.item() > 0.5 else x * 3.0)
    for i in range(CALLS):
        temperature.copy_(np.float32(i not in (4, 5)))
        yield run(batch(i))


def equal_batches_at_first(wrap):
    """Of which NumPy computes something: that it is the same in two calls says nothing."""
    run = wrap(lambda x: gmcore.tensor(2.0) * np.round(x).sum())
    for i in range(5):
        yield run(np.full(3, 1.0 if i < 4 else 1.2))


def layouts(wrap):
    """Sums are taken in the order of memory."""
    w = leaf()
    run = wrap(lambda x: (ops.sum(x), ops.mean(x, axis=0), ops.cumsum(x, 0), (x @ w).detach()))
    for i in range(CALLS):
        numbers = np.random.default_rng(i).standard_normal((131, 4))
        yield run(gmcore.Tensor(np.asfortranarray(numbers) if i % 2 else numbers))


def views_of_one_result(wrap):
    """Whose memory the sum could have taken, were it not read by row too."""

    def step(x):
        y = x * 1.5
        return y + y[0]

    run = wrap(step)
    for i in range(CALLS):
        yield run(batch(i))


@dataclasses.dataclass
class Found:
    loss: object
    parts: dict


def results_in_dataclasses_and_ordered_dictionaries(wrap):
    run = wrap(lambda x: Found(ops.sum(x), collections.OrderedDict(b=x * 2.0, a="constant")))
    for i in range(CALLS):
        found = run(batch(i))
        assert type(found.parts) is collections.OrderedDict and found.parts["a"] == "constant"
        yield found.loss, found.parts["b"]


def gradients_that_are_kept(wrap):
    w, kept = leaf(), {}

    def step(x):
        w.grad = None
        loss(x, w).backward()
        kept["g"] = w.grad
        return ops.sum(x)

    run = wrap(step)
    for i in range(CALLS):
        run(batch(i))
        yield kept["g"]


def methods(wrap):
    class Model:
        def __init__(self, seed):
            self.w = leaf(seed)

        step = wrap(lambda self, x: (x @ self.w).detach())

    a, b = Model(0), Model(1)
    for i in range(CALLS):
        yield a.step(batch(i)), b.step(batch(i))


class Holder(nn.Module):
    def __init__(self, wrap):
        self.layer = nn.Linear(4, 4, dtype="float64")
        self.run = wrap(self.compute)

    def compute(self, x):
        return self.layer(x).detach()


def copies(wrap):
    model = Holder(wrap)
    for i in range(3):
        yield model.run(batch(i))
    other = copy.deepcopy(model)
    other.layer.weight.copy_(np.ones((4, 4)))
    for i in range(CALLS):
        yield model.run(batch(i)), other.run(batch(i))


def places_that_change_late(wrap):
    """What operations derive of indices in NumPy is derived anew."""

    def step(x, index, rows):
        y = ops.set_at(x, index, 0.5)
        z = ops.put_along_axis(x, rows, y[:, :2], 1)
        unpooled = ops.max_unpool1d(y[None, :, :2], rows[None], 2)
        return y, z, unpooled, gumbel_softmax(x, hard=True)

    run = wrap(step)
    for i in range(CALLS):
        rng = np.random.default_rng(max(i, 3))
        yield run(batch(i), gmcore.tensor(rng.integers(4, size=3)), gmcore.tensor(rng.integers(4, size=(4, 2))))


def scalars(wrap):
    """Whose gradients add up, of which NumPy makes numbers."""
    w = gmcore.tensor(np.float64(0.5), requires_grad=True)

    def step(x):
        w.grad = None
        ops.sum(x * w).backward()
        (w * w + ops.exp(w)).backward()
        return w.grad

    run = wrap(step)
    for i in range(CALLS):
        yield run(batch(i))


def averages_that_are_applied(wrap):
    model = nn.Linear(4, 4, dtype="float64")
    average = optim.EMA(model, 0.5)

    def step(x):
        model.weight.copy_(model.weight.detach() + x)
        average.update()
        with average.applied():
            return model(x).detach()

    run = wrap(step)
    for i in range(CALLS):
        yield run(batch(i)), model.weight.detach()


def counts_that_diverge(wrap):
    """Parameters that one call of the optimiser's kernel updated: outside, one of them goes some steps ahead."""
    w, v = leaf(0), leaf(1)
    optimizer = optim.Adam([w, v], lr=0.1)

    def step(x):
        loss(x, w, v).backward()
        optimizer.step()
        optimizer.zero_grad()

    run = wrap(step)
    for i in range(CALLS):
        if i == 4:
            loss(batch(0), w).backward()
            optimizer.step()
            optimizer.zero_grad()
        run(batch(i))
        yield w.detach(), v.detach()


def a_gradient_where_there_was_none(wrap):
    w, v = leaf(0), leaf(1)
    optimizer = optim.SGD([w, v], lr=0.1)

    def step(x):
        loss(x, w).backward()
        optimizer.step()

    run = wrap(step)
    for i in range(CALLS):
        optimizer.zero_grad()
        if i == 4:
            loss(batch(0), v).backward()
        run(batch(i))
        yield w.detach(), v.detach()


def one_array_of_a_state(wrap):
    w = leaf()
    optimizer = optim.SGD([w], lr=0.1, momentum=0.9)

    def step(x):
        optimizer.zero_grad()
        loss(x, w).backward()
        optimizer.step()

    run = wrap(step)
    for i in range(2 * CALLS):
        if i == 4:
            optimizer.state[w]["momentum_buffer"] = gmcore.tensor(np.zeros((4, 4)))
        if i == 8:
            del optimizer.state[w]["momentum_buffer"]
        run(batch(i))
        yield w.detach()


def parts_of_containers(wrap):
    class Chosen(nn.Module):
        def __init__(self):
            self.layers, self.scales = nn.ModuleList([nn.Tanh()]), nn.ParameterList([np.ones((4, 4))])
            self.size = (2, 2)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return (x * self.scales[0]).detach() * float(self.size[0]) * getattr(self, "factor", 1.0)

    model, stack = Chosen(), nn.Sequential(nn.Tanh())
    run = wrap(lambda x: (model(x), stack(x)))
    for i in range(5 * CALLS):
        if i == 4:
            model.layers[0] = nn.Sigmoid()
        if i == 8:
            model.layers.append(nn.Tanh())
        if i == 12:
            model.scales[0] = nn.Parameter(np.full((4, 4), 3.0))
        if i == 16:
            stack.append(nn.Sigmoid())
        if i == 20:
            model.factor = 2.0
        if i == 24:
            model.size = (3, 2)
        yield run(batch(i))


def a_third_hook(wrap):
    """That two hooks left the step as it was tells nothing of the next."""
    w = leaf()
    w.register_hook(lambda g: None)

    def step(x):
        w.grad = None
        loss(x, w).backward()

    run = wrap(step)
    for i in range(2 * CALLS):
        if i == 4:
            w.register_hook(lambda g: None)
        if i == 8:
            w.register_hook(lambda g: g * 2.0)
        run(batch(i))
        yield w.grad


def a_gradient_that_is_cleared_by_hand(wrap):
    w, v = leaf(0), leaf(1)

    def step(x):
        w.grad = v.grad = None
        loss(x, w).backward()

    run = wrap(step)
    for i in range(CALLS):
        if i == 4:
            loss(batch(0), v).backward()
        run(batch(i))
        yield w.grad, v.grad


def memory_that_is_exchanged(wrap):
    model = nn.Linear(4, 4, dtype="float64")
    average = optim.EMA(model, 0.5)

    def step(x):
        average.update()
        return x + model.weight.detach()

    run = wrap(step)
    for i in range(2 * CALLS):
        if i in (4, 8):
            model.float().double()
            model.weight.copy_(np.full((4, 4), float(i)))
        if i == 12:
            average.averages["weight"] = gmcore.tensor(np.zeros((4, 4)))
        yield run(batch(i)), gmcore.tensor(average.averages["weight"].numpy().copy())


def copies_between_overlapping_views(wrap):
    history = gmcore.tensor(np.arange(600.0).reshape(6, 100))
    later, earlier = history.detach()[1:], history.detach()[:-1]
    run = wrap(lambda: later.copy_(earlier))
    for _ in range(CALLS):
        run()
        yield gmcore.tensor(history.numpy().copy())


def a_setting_that_changed_between_the_recordings(wrap):
    """Not one that the step itself switches to and fro: it is looked at ever after."""

    class Counted(nn.Module):
        def __init__(self):
            self.epoch, self.mode = 0, "first"

        def forward(self, x):
            return x * (2.0 if self.epoch >= 4 else 1.0) * (3.0 if self.mode == "last" else 1.0)

    model = Counted()
    run = wrap(lambda x: model(x))
    for i in range(2 * CALLS):
        model.epoch = min(i, 5)
        model.mode = "first" if i == 0 else "last" if i > 8 else "next"
        yield run(batch(i))


def attributes_of_a_module_that_is_not_called(wrap):
    """It computes in methods of its own, as models with a `loss` do."""

    class Model(nn.Module):
        power = 1

        def __init__(self):
            self.weight, self.shift = nn.Parameter(np.eye(4)), nn.Linear(4, 4, dtype="float64")
            self.beta, self.kind = 1.0, ("plain", 0)

        @property
        def factor(self):
            return 2.0 * self.beta

        def loss(self, x):
            x = self.shift(x) @ self.weight if self.kind[0] == "plain" else x
            return ops.sum(ops.power(x, self.power)) * self.factor

    gmcore.manual_seed(1)
    model = Model()
    run = wrap(lambda x: model.loss(x))
    for i in range(3 * CALLS):
        if i == 4:
            model.beta = 0.5
        elif i == 8:
            model.power = 2
        elif i == 12:
            model.weight = nn.Parameter(np.ones((4, 4)))
        elif i == 16:
            model.shift = nn.Identity()
        elif i == 20:
            model.kind = ("other", 0)
        yield run(batch(i)).detach()


def gradients_that_are_only_looked_at(wrap):
    w, v = leaf(0), leaf(1)

    def step(x):
        for p in (w, v):
            if p.grad is not None:
                p.grad = None
        loss(x, w).backward()

    run = wrap(step)
    for i in range(CALLS):
        if i == 4:
            v.grad = batch(0)
        run(batch(i))
        yield w.grad, v.grad


def gradients_of_arguments(wrap):
    run = wrap(lambda x: x * 1.0 if x.grad is None else x + x.grad)
    for i in range(CALLS):
        x = batch(i)
        if i % 2:
            x.grad = batch(0)
        yield run(x)


def sets(wrap):
    names = {"a"}
    run = wrap(lambda x, names: x * float(len(names)))
    for i in range(CALLS):
        if i == 4:
            names.add("b")
        yield run(batch(i), names)


def layouts_of_arguments(wrap):
    """Sums over other runs are rounded otherwise."""
    x = np.random.default_rng(0).standard_normal((64, 40))
    windows = np.lib.stride_tricks.sliding_window_view(x, (5, 5))
    run = wrap(lambda x: (ops.sum(x), ops.sum(x, axis=-1)))
    for given in (x[:, :33], x[::2], x[:, ::-2], x.T[::-1, 3:], np.broadcast_to(x[:1], x.shape), windows):
        for _ in range(3):
            yield run(gmcore.Tensor(given))


def signs_of_zero(wrap):
    run = wrap(lambda x, scale: x * scale)
    for i in range(CALLS):
        yield run(batch(i), np.float64(-0.0 if i > 3 else 0.0))


def constants_that_it_hands_out(wrap):
    """Each call makes them anew, whatever has become of the last ones."""
    w, v = leaf(0), leaf(1)
    optimizer = optim.SGD([w, v], lr=0.1)

    def step(x):
        optimizer.zero_grad(set_to_none=False)
        loss(x, w).backward()
        zeros = x.new_zeros((4, 4))
        optimizer.step()
        return zeros, x + zeros

    run = wrap(step)
    for i in range(CALLS):
        v.grad = batch(0) if i == 0 else v.grad
        zeros, same = run(batch(i))
        yield zeros.detach(), same, w.detach(), v.detach(), v.grad
        zeros.copy_(batch(i))
        v.grad.copy_(batch(i))


CASES = (
    freezing, training_and_evaluation, another_parameter, hooks_of_a_module, layers_that_fused_operations_compute,
    options_of_a_module, hooks_of_a_leaf, gradients_of_others,
    clearing_what_it_does_not_use, another_group, another_state, decay_of_an_average, numbers_that_python_looks_at,
    equal_batches_at_first, layouts, views_of_one_result, results_in_dataclasses_and_ordered_dictionaries,
    gradients_that_are_kept, methods, copies, places_that_change_late, scalars, averages_that_are_applied,
    counts_that_diverge, a_gradient_where_there_was_none, one_array_of_a_state, parts_of_containers, a_third_hook,
    a_gradient_that_is_cleared_by_hand, memory_that_is_exchanged, copies_between_overlapping_views,
    layouts_of_arguments, signs_of_zero, a_setting_that_changed_between_the_recordings,
    gradients_that_are_only_looked_at, gradients_of_arguments, sets, attributes_of_a_module_that_is_not_called,
    constants_that_it_hands_out,
)  # fmt: skip


def bits(found):
    found = found if isinstance(found, tuple) else (found,)
    return [None if t is None else (t.dtype, t.shape, t.numpy().tobytes()) for t in found]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_captured_step_does_as_the_eager_one(case):
    gmcore.manual_seed(3)
    expected = [bits(found) for found in case(lambda step: step)]
    captured = []

    def wrap(step):
        captured.append(gmcore.capture(step))
        return captured[-1]

    gmcore.manual_seed(3)
    for i, (found, eager) in enumerate(zip(case(wrap), expected, strict=True)):
        assert bits(found) == eager, f"call {i}"
    assert all(each.refusal is None for each in captured)
    assert case is equal_batches_at_first or all(each.programs for each in captured)


def test_what_a_step_switches_itself_is_no_reason_to_record_it_anew():
    model, recorded = nn.Sequential(nn.Linear(4, 4, dtype="float64"), nn.Tanh(), nn.Dropout(0.5)), 0

    def step(x):
        nonlocal recorded
        recorded += 1
        model.eval()
        without = model(x).detach()
        model.train()
        return without, model(x).detach()

    captured = gmcore.capture(step)
    for i in range(CALLS):
        without, _ = captured(batch(i))
        np.testing.assert_array_equal(without.numpy(), model[:2](batch(i)).detach().numpy())
    assert recorded == 2
    model[2].p = 0.0
    without, dropped = captured(batch(0))
    assert recorded == 3 and bits(without) == bits(dropped)


class Slot:
    """A descriptor that keeps its value where the module does not see it."""

    def __get__(self, module, owner=None):
        return vars(module)["hidden"]

    def __set__(self, module, value):
        vars(module)["hidden"] = value


class Read(nn.Module):
    """Never called: a step reads its attributes."""

    __slots__ = ("slot",)
    described = Slot()
    of_class = 1.5

    def __init__(self):
        self.slot = self.described = self.number = 1.5
        self.nan, self.zero, self.kind, self.function = math.nan, 0.0, Kind.A, ops.tanh
        self.array, self.tensor = np.full(4, 2.0), gmcore.tensor(np.full(4, 2.0))
        self.linear, self.pair = nn.Linear(4, 4), (nn.Linear(4, 1), nn.Linear(4, 1))
        self.layers, self.named = nn.ModuleList([nn.Linear(4, 4)]), nn.ModuleDict({"a": nn.Linear(4, 4)})
        self.weights = nn.ParameterList([np.full(4, 2.0)])

    def method(self):
        return 1.5


class Kind(enum.Enum):
    A = 1.5
    B = 3.0


def total(parameters):
    return sum([ops.sum(p) for p in parameters], gmcore.tensor(0.0))


@pytest.mark.parametrize(
    ("read", "change"),
    [
        pytest.param(lambda m: getattr(m, "absent", 1.5), lambda m: setattr(m, "absent", 3.0), id="absent"),
        pytest.param(lambda m: 1.5 + hasattr(m, "absent"), lambda m: setattr(m, "absent", m.linear), id="hasattr"),
        pytest.param(lambda m: m.of_class, lambda m: setattr(type(m), "of_class", 3.0), id="class"),
        pytest.param(lambda m: m.slot, lambda m: setattr(m, "slot", 3.0), id="slot"),
        pytest.param(lambda m: m.described, lambda m: setattr(m, "described", 3.0), id="descriptor"),
        pytest.param(lambda m: np.nan_to_num(m.nan), lambda m: setattr(m, "nan", 3.0), id="NaN"),
        pytest.param(lambda m: math.copysign(1, m.zero), lambda m: setattr(m, "zero", -0.0), id="minus zero"),
        pytest.param(lambda m: m.kind.value, lambda m: setattr(m, "kind", Kind.B), id="enum"),
        pytest.param(lambda m: m.function(2.0), lambda m: setattr(m, "function", ops.exp), id="function"),
        pytest.param(lambda m: m.method(), lambda m: setattr(m, "method", lambda: 3.0), id="method"),
        pytest.param(lambda m: m.array, lambda m: setattr(m, "array", np.full(4, 3.0)), id="array"),
        pytest.param(lambda m: m.tensor, lambda m: setattr(m, "tensor", m.tensor + 1), id="tensor"),
        pytest.param(lambda m: m.pair[0].weight, lambda m: setattr(m, "pair", m.pair[::-1]), id="tuple"),
        pytest.param(lambda m: total(m.parameters()), lambda m: setattr(m, "linear", nn.Linear(4, 4)), id="exchanged"),
        pytest.param(lambda m: total(m.parameters()), lambda m: setattr(m, "another", nn.Linear(4, 4)), id="added"),
        pytest.param(lambda m: len(m.layers), lambda m: m.layers.append(nn.Linear(4, 4)), id="list of modules"),
        pytest.param(lambda m: len(m.named), lambda m: m.named.update({"b": m.linear}), id="dict of modules"),
        pytest.param(lambda m: total(m.weights), lambda m: m.weights.append(np.ones(4)), id="list of parameters"),
    ],
)  # fmt: skip
def test_attributes_of_a_module_that_is_only_read_are_noticed(read, change):
    model = type("Model", (Read,), {})()
    captured = gmcore.capture(lambda x: x * read(model))
    for i in range(CALLS):
        if i == CALLS - 2:
            change(model)
        assert bits(captured(batch(i)).detach()) == bits((batch(i) * read(model)).detach()), f"call {i}"
        assert i != CALLS - 3 or captured.programs[0].was_repeated


def test_modules_are_as_quick_to_read_after_a_recording_as_before():
    gmcore.capture(lambda x: nn.Tanh()(x))(batch(0))
    assert "__getattribute__" not in vars(nn.Module)


def test_a_class_that_a_step_imports_is_read_too(monkeypatch):
    class Late:
        number = 1

    def reader(late, name):
        seen.append(name)
        return object.__getattribute__(late, name)

    monkeypatch.setattr(watch, "_readers", {})
    seen = []
    with watch.reading():
        watch.reads(Late, reader)
        assert Late().number == 1 and seen == ["number"]
    assert "__getattribute__" not in vars(Late)


def test_programs_that_never_hold_are_told_of():
    dropout = nn.Dropout(0.5)
    captured = gmcore.capture(lambda x: dropout(x))
    with pytest.warns(CaptureWarning, match="4 of its programs no longer held when they were to be repeated") as told:
        for i in range(30):
            dropout.train(i % 3 != 2)  # two recordings that agree, and then another mode
            captured(batch(i))
    assert len(told) == 1


def refused(step, match, arguments=batch):
    captured = gmcore.capture(step)
    with pytest.raises(CaptureError, match=match) as caught:
        for i in range(CALLS):
            captured(arguments(i))
    return str(caught.value)


def test_state_that_is_an_argument_is_refused_and_written():
    h = gmcore.tensor(np.zeros((4, 4)))
    captured = gmcore.capture(lambda x, h: h.copy_(h + x))
    with pytest.raises(CaptureError, match="it writes into an argument"):
        captured(batch(0), h)
    np.testing.assert_array_equal(h.numpy(), batch(0).numpy())
    array = np.zeros(3)

    def step(x):
        x += 1.0
        return ops.sum(x)

    refused(step, "NumPy writes into an argument", lambda i: array)
    assert array.tolist() == [1.0] * 3


def test_arguments_that_a_step_does_more_with_than_read_their_numbers_are_refused():
    w = gmcore.tensor(np.zeros((4, 4)))

    def grow(x):
        w.copy_(w + 1.0)
        return x * 1.0

    refused(grow, "an argument lies in memory that it writes", lambda i: w.detach())
    # Later, too, when the program is there.
    captured = gmcore.capture(grow)
    for i in range(CALLS):
        captured(batch(i))
    assert captured.programs
    with pytest.raises(CaptureError, match="an argument lies in memory that it writes"):
        captured(w.detach()[::-1])
    # Two arrays on memory that is no array's.
    memory = bytearray(128)
    state = gmcore.Tensor(np.frombuffer(memory).reshape(4, 4))
    refused(
        lambda x: (state.copy_(state + 1.0), x * 2.0)[1],
        "an argument lies in memory that it writes",
        lambda i: gmcore.Tensor(np.frombuffer(memory).reshape(4, 4)),
    )

    for log in ([], {}):
        captured = gmcore.capture(lambda x, log: log.append(x) if isinstance(log, list) else log.update(x=x))
        with pytest.raises(CaptureError, match="it changes a list or a dict that it is given"):
            captured(batch(0), log)
    x = batch(0)
    captured = gmcore.capture(lambda x: ops.sum(x.requires_grad_() * 2.0).backward())
    with pytest.raises(CaptureError, match="it asks for the gradient of an argument"):
        captured(x)
    np.testing.assert_array_equal(x.grad.numpy(), np.full((4, 4), 2.0))
    refused(lambda x: nn.Parameter(x * 1.0), "it returns a leaf that requires a gradient and that it has made")


def test_distributions_check_their_values_in_repetitions_too():
    captured = gmcore.capture(lambda x: Beta(2.0, 3.0).log_prob(x))
    for i in range(CALLS):
        captured(ops.sigmoid(batch(i)))
    assert captured.programs
    with pytest.raises(ArgumentError, match=r"Beta: value must be in .*got 1.5 at index \(0, 0\)"):
        captured(gmcore.tensor(np.full((4, 4), 1.5)))


def test_memory_that_python_writes_is_refused():
    buffer, rng = np.zeros((4, 4)), np.random.default_rng(0)

    def step(x):
        buffer[:] = rng.standard_normal((4, 4))
        return x + buffer

    assert "test_capture_changes.py:" in refused(step, "NumPy writes into an array that an operation then reads")

    def after(x):
        y = x + buffer
        buffer[:] += 1.0
        return y

    refused(after, "NumPy writes into an array of 128 bytes that operations read too")
    held = gmcore.tensor(np.zeros((4, 4)))

    def through_a_tensor(x):
        held.numpy(writable=True)[...] += 1.0
        return x + held

    refused(through_a_tensor, "takes the memory of a tensor to write into it")


def test_generators_that_the_step_seeds_are_refused():
    own = Generator(1)

    def again(x):
        state = own.state
        a = ops.normal((4, 4), generator=own)
        own.state = state
        return a + ops.normal((4, 4), generator=own)

    for step in (again, lambda x: ops.normal((4,), generator=Generator(1)), lambda x: gmcore.manual_seed(1)):
        refused(step, "it seeds a generator, or sets its state")
    fresh = gmcore.capture(lambda: ops.normal((4,), generator=Generator()))
    assert len({fresh().numpy().tobytes() for _ in range(CALLS)}) == CALLS


def test_gradients_that_one_step_hands_to_another_in_changing_memory_are_refused():
    w = leaf()
    optimizer = optim.SGD([w], lr=0.1)

    @gmcore.capture
    def compute(x):
        w.grad = None
        loss(x, w).backward()

    update = gmcore.capture(optimizer.step)
    expected = w.detach().numpy().copy()

    def call(rows):
        x = gmcore.tensor(np.ones((rows, 4)))
        compute(x)
        expected[...] -= 0.1 * w.grad.numpy()
        update()
        np.testing.assert_array_equal(w.detach().numpy(), expected)

    for _ in range(CALLS):
        call(3)
    assert update.programs
    with pytest.raises(CaptureError, match="changes from step to step|in memory from step to step"):
        for i in range(CALLS):
            call(3 + i % 2)


PILED_UP = r"backward\(\) adds to a `.grad` .* Clear the gradients in the step, .* give it all of them, in a list"


@pytest.mark.parametrize("rounds", [2, 3, 4, 30])
@pytest.mark.parametrize("clear", [lambda w: None, lambda w: w.new_zeros(w.shape)], ids=["none", "zeros"])
def test_micro_batches_whose_gradients_add_up_between_calls_are_refused_by_name(rounds, clear):
    w, v = leaf(0), leaf(0)

    def step(x, w):
        loss(x, w).backward()

    captured = gmcore.capture(lambda x: step(x, w))
    with pytest.raises(CaptureError, match=PILED_UP):
        for i in range(CALLS):
            for p in (w, v) if i % rounds == 0 else ():
                p.grad = clear(p)
            step(batch(i), v)
            captured(batch(i))
            assert bits(w.grad) == bits(v.grad)
    assert bits(w.grad) == bits(v.grad)


def test_micro_batches_in_a_list_add_up_inside():
    w, v = leaf(0), leaf(0)

    def step(xs, w):
        w.grad = None
        for x in xs:
            loss(x, w).backward()

    captured = gmcore.capture(lambda xs: step(xs, w))
    for i in range(CALLS):
        xs = [batch(3 * i + j) for j in range(3)]
        step(xs, v)
        captured(xs)
        assert bits(w.grad) == bits(v.grad)
    assert captured.programs


def test_gradients_that_pile_up_later_are_refused():
    w = leaf()
    captured = gmcore.capture(lambda x: loss(x, w).backward())
    total = np.zeros((4, 4))
    with pytest.raises(CaptureError, match=PILED_UP):
        for i in range(3 * CALLS):
            if i < CALLS:
                w.grad, total = None, 0.0
            v = gmcore.tensor(w.detach().numpy(), requires_grad=True)
            loss(batch(i), v).backward()
            total = total + v.grad.numpy()
            captured(batch(i))
            np.testing.assert_array_equal(w.grad.numpy(), total)


def test_shapes_that_numbers_decide_are_refused_by_name():
    captured = gmcore.capture(lambda x: x[x > 0.0])
    for _ in range(3):
        captured(gmcore.tensor([1.0, 1.0, -1.0]))
    with pytest.raises(CaptureError, match=r"getitem \(at .*\) gave the shape \(2,\) .* and \(1,\) now"):
        captured(gmcore.tensor([1.0, -1.0, -1.0]))


def test_a_backward_pass_through_what_a_repetition_returns_is_refused():
    w, v = leaf(0), leaf(1)
    captured = gmcore.capture(lambda x: (loss(x, w), x * 2.0))
    for i in range(CALLS):
        found, off_tape = captured(batch(i))
        assert found.requires_grad and not off_tape.requires_grad
    for differentiate in (gmcore.Tensor.backward, lambda total: gmcore.grad(total, w)):
        with pytest.raises(GraphError, match="backward through a captured step .* leaves no tape"):
            differentiate(found + ops.sum(w * off_tape) + ops.sum(v))
    assert found.detach().item() == loss(batch(i), w).item()


def test_a_repetition_that_refuses_its_arguments_counts_and_draws_nothing():
    table, own = nn.Embedding(3, 2), Generator(1)
    optimizer = optim.Adam(table.parameters(), lr=0.1)

    @gmcore.capture
    def step(index):
        optimizer.zero_grad()
        ops.sum(ops.normal((2,), generator=own) * table(index)).backward()
        optimizer.step()

    for _ in range(3):
        step(gmcore.tensor([0, 2]))
    with pytest.raises(ArgumentError, match="expected integers from 0 to 2"):
        step(gmcore.tensor([0, 3]))
    assert step.programs and own.state == (1, 3) and optimizer.state[table.weight]["step"] == 3


def test_what_a_step_keeps_without_returning_it_says_so():
    w, kept = leaf(), {}

    def step(x):
        w.grad = None
        loss(x, w).backward()
        kept["norm"] = optim.clip_grad_norm_([w], 1.0)
        kept["leaf"] = x.detach().requires_grad_()
        loss(kept["leaf"]).backward()

    captured = gmcore.capture(step)
    for i in range(3):
        captured(batch(i))
    for tensor in (kept["norm"], kept["leaf"], kept["leaf"].grad):
        with pytest.raises(GraphError, match="computed inside a captured step"):
            tensor.detach().numpy()


def test_an_object_that_is_made_anew_cannot_be_returned():
    class Result:
        def __init__(self, y):
            self.y = y

    refused(lambda x: Result(x * 2.0), "a new Result, then a new Result. It may return tensors")


def test_a_captured_function_is_pickled_by_name():
    captured = pickle.loads(pickle.dumps(gmcore.capture(loss, limit=3, fallback=True)))
    assert captured(batch(0)).item() == loss(batch(0)).item()
