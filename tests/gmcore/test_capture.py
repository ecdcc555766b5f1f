"""Captured steps: the bits of eager ones, memory that does not grow, and what cannot be repeated refused by name."""

import copy
import gc
import itertools
import re
import threading
import tracemalloc
import warnings
from contextlib import contextmanager

import numpy as np
import pytest

import gmcore
from gmcore import data, models, nn, ops, optim
from gmcore.capture import Captured, CaptureWarning
from gmcore.errors import ArgumentError, CaptureError, GraphError
from gmcore.models.latent.vae import VAE
from gmcore.nn.utils.parametrizations import spectral_norm, weight_norm
from gmcore.optim import lr_scheduler
from gmcore.random import Generator
from gmcore.streams import drawing_from
from gmcore.train import make_optimizer
from gmcore.watch import Watch, watch
from gmkernels import pool

REPLAYED = 200
"""Steps of training that are repeated, beside the few that are recorded."""


def bits(tensors):
    return [None if t is None else t.detach().numpy().tobytes() for t in tensors]


# -- the same bits ---------------------------------------------------------------------------------------------------
SETTINGS = {
    "vae": ("vae", {"hidden_sizes": [11], "latent_size": 3}),
    "vae, estimator A, Gaussian": (
        "vae",
        {"hidden_sizes": [11], "estimator": "A", "samples": 2, "likelihood": "gaussian"},
    ),
    "iwae": ("iwae", {"hidden_sizes": [9, 7], "latent_size": 4, "samples": 5}),
    "rbm": ("rbm", {"hidden_size": 13, "chains": 0}),
    "rbm, persistent, Gaussian": ("rbm", {"hidden_size": 13, "chains": 8, "units": "gaussian", "steps": 2}),
    "boltzmann": ("boltzmann", {"chains": 6}),
    "char_rnn": ("char_rnn", {"hidden_size": 8, "sequence_length": 6}),
    "char_rnn, gru": ("char_rnn", {"hidden_size": 8, "sequence_length": 6, "cell": "gru", "dropout": 0.2}),
    "char_rnn, relu": ("char_rnn", {"hidden_size": 8, "sequence_length": 6, "cell": "relu", "num_layers": 1}),
}


def test_every_model_is_captured():
    assert {name for name, _ in SETTINGS.values()} == set(models.names())


WIDE = {
    "vae": ("vae", {"hidden_sizes": [300], "latent_size": 20}),
    "vae, estimator A, Gaussian": ("vae", {"hidden_sizes": [200], "estimator": "A", "likelihood": "gaussian"}),
    "iwae": ("iwae", {"hidden_sizes": [200, 100], "latent_size": 50, "samples": 20}),
    "rbm": ("rbm", {"hidden_size": 500, "chains": 0}),
    "rbm, persistent, Gaussian": ("rbm", {"hidden_size": 200, "chains": 50, "units": "gaussian", "steps": 2}),
    "boltzmann": ("boltzmann", {"chains": 100}),
    "char_rnn": ("char_rnn", {"hidden_size": 128, "sequence_length": 20}),
    "char_rnn, gru": ("char_rnn", {"hidden_size": 100, "sequence_length": 20, "cell": "gru", "dropout": 0.2}),
    "char_rnn, relu": ("char_rnn", {"hidden_size": 100, "sequence_length": 20, "cell": "relu", "num_layers": 1}),
}
"""The same at sizes whose kernels have many blocks."""


def training(name, settings, capture, batch_size=9, size=12):
    """Bits of the losses of `REPLAYED` steps and those before them, and of the state after them.

    The learning rate warms up, and then decays, from step to step; the last batch of an epoch is short.
    """
    cls = models.get(name)
    recipe = cls.recipe.__class__(epochs=1, batch_size=batch_size, learning_rate=1e-3, weight_decay=1e-3, max_norm=0.5)
    rng = np.random.default_rng(3)
    if name == "char_rnn":
        vocabulary = data.Vocabulary("abcdefg")
        codes = rng.integers(7, size=batch_size * 52).astype(np.int32)
        dataset = data.Text("letters", codes, codes[:9], codes[:9], vocabulary)
    else:
        rows = (rng.random((10 * batch_size // 3, size)) < rng.random(size)).astype(np.float32)
        dataset = data.Dataset("bits", rows, rows[:4], rows[:4])
    init = Generator(5)
    model = drawing_from(init, cls.build, dataset, settings, init)
    optimizer = make_optimizer(model, recipe)
    parts = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=20), lr_scheduler.ExponentialLR(optimizer, 0.99)
    schedule = lr_scheduler.SequentialLR(optimizer, list(parts), [20])
    noise = Generator(11)
    eager = 0

    def step(batch):
        nonlocal eager
        eager += 1
        optimizer.zero_grad()
        found = drawing_from(noise, model.compute_gradients, batch, generator=noise)
        optim.clip_grad_norm_(model.parameters(), recipe.max_norm)
        optimizer.step()
        return found

    run = gmcore.capture(step) if capture else step
    losses, sizes = [], set()
    for epoch in itertools.count():
        for batch in model.batches(dataset, recipe, 0, epoch):
            found = run(batch)
            losses.append(found.loss.detach())
            sizes.add(found.examples)
            schedule.step()
        if len(losses) >= REPLAYED + 10:
            break
    if capture:
        assert len(losses) - eager >= REPLAYED and len(sizes) == 2
    state = {**{k: v.numpy() for k, v in model.state_dict().items()}, **optimizer.state_dict()}
    state |= model.training_state()
    return (
        bits(losses),
        {k: v.tobytes() for k, v in state.items()},
        noise.state,
        bits([p.grad for p in model.parameters()]),
    )


@pytest.mark.parametrize("case", SETTINGS)
def test_steps_of_every_model_have_the_bits_of_eager_ones(case):
    name, settings = SETTINGS[case]
    eager, captured = (training(name, settings, capture) for capture in (False, True))
    for a, b in zip(eager, captured, strict=True):
        assert a == b


@pytest.mark.slow
@pytest.mark.parametrize("case", WIDE)
def test_wide_steps_of_every_model_have_the_bits_of_eager_ones(case):
    name, settings = WIDE[case]
    size = 100 if name == "boltzmann" else 784  # its units take their turns
    eager, captured = (training(name, settings, capture, 60, size) for capture in (False, True))
    for a, b in zip(eager, captured, strict=True):
        assert a == b


def test_a_weight_of_the_divergence_that_warms_up_is_read_from_memory():
    """A number that varies is an argument, or a leaf that is written between the steps."""

    def runs(wrap):
        model, noise = VAE(12, 3, (7,), generator=Generator(5)), Generator(11)
        optimizer = optim.Adam(model.parameters(), lr=1e-2)
        floor = gmcore.tensor(0.0)

        def step(x, weight):
            optimizer.zero_grad()
            mu, logvar = model.encode(x)
            z, kl, _ = ops.gaussian_sample(mu, logvar, generator=noise)
            kl = ops.maximum(kl, floor)
            loss = ops.mean(weight * kl) - ops.mean(model.decoder.log_prob(z, x))
            loss.backward()
            optimizer.step()
            return loss, ops.mean(kl)

        run = wrap(step)
        rng = np.random.default_rng(0)
        found = []
        for i in range(REPLAYED + 4):
            x = (rng.random((3 if i % 4 == 3 else 8, 12)) < 0.3).astype(np.float32)
            floor.copy_(np.float32(max(0.0, 0.5 - i / 100)))
            found += run(gmcore.tensor(x), gmcore.tensor(np.float32(min(1.0, i / 50))))
        return bits(found), bits(model.parameters())

    assert runs(lambda step: step) == runs(gmcore.capture)


class Net:
    """A network with batch, weight and spectral normalisation, dropout, a schedule inside the step, and an average."""

    def __init__(self):
        gmcore.manual_seed(2)
        self.model = nn.Sequential(
            weight_norm(nn.Conv2d(1, 3, 3)),
            nn.BatchNorm2d(3),
            nn.LeakyReLU(0.1),
            nn.Dropout(0.3),
            nn.Flatten(),
            spectral_norm(nn.Linear(48, 5)),
        )
        self.optimizer = optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.schedule = optim.lr_scheduler.LambdaLR(self.optimizer, lambda epoch: min(1.0, (epoch + 1) / 30))
        self.average = optim.EMA(self.model, 0.9)

    def step(self, x, target, weight):
        self.optimizer.zero_grad()
        logits = self.model(x)
        loss = ops.cross_entropy(logits, target) + weight * ops.mean(ops.square(logits))
        loss.backward()
        optim.clip_grad_value_(self.model.parameters(), 0.05)
        self.optimizer.step()
        self.schedule.step()
        self.average.update()
        return {"loss": loss, "logits": logits}


def batches(count, rng=None):
    rng = rng or np.random.default_rng(0)
    for i in range(count):
        n = 3 if i % 5 == 4 else 8
        x = rng.standard_normal((n, 1, 6, 6), np.float32)
        # A warm-up of the penalty, read from memory.
        yield gmcore.tensor(x), rng.integers(5, size=n), gmcore.tensor(np.float32(min(1.0, i / 20)))


def test_modules_schedule_average_and_a_short_batch_have_the_bits_of_eager_steps():
    ours, theirs = Net(), Net()
    gmcore.manual_seed(9)
    count = REPLAYED + 4
    expected = [ours.step(*batch) for batch in batches(count)]
    captured = gmcore.capture(theirs.step)
    gmcore.manual_seed(9)
    found = [captured(*batch) for batch in batches(count)]
    assert len(captured.programs) == 2
    for a, b in zip(expected, found, strict=True):
        assert bits(a.values()) == bits(b.values())
    for name, tensor in ours.model.state_dict().items():
        assert bits([tensor]) == bits([theirs.model.state_dict()[name]])
    assert bits(ours.average.averages.values()) == bits(theirs.average.averages.values())
    assert ours.average.updates == theirs.average.updates == count
    assert ours.schedule.get_last_lr() == theirs.schedule.get_last_lr()
    assert gmcore.default_generator().state == (9, count)


def test_a_program_reads_nothing_that_it_has_not_written():
    """Its memory is filled with nonsense before each repetition."""
    ours, theirs = Net(), Net()
    gmcore.manual_seed(9)
    expected = [ours.step(*batch) for batch in batches(20)]
    captured = gmcore.capture(theirs.step)
    gmcore.manual_seed(9)
    for batch, a in zip(batches(20), expected, strict=True):
        for program in captured.programs:
            program._arena[...] = 0xFF
        assert bits(a.values()) == bits(captured(*batch).values())


CHOICES = (
    lambda a, b: a + b,
    lambda a, b: a * b,
    lambda a, b: ops.tanh(a),
    lambda a, b: a @ b,
    lambda a, b: a.T - b,
    lambda a, b: ops.where(ops.greater(a, b), a, b),
    lambda a, b: a[::-1] * 0.5,
    lambda a, b: ops.sum(a, axis=0, keepdims=True) + b,
)


def random_step(seed):
    """A chain of random operations on two matrices, whose values are used at random later on."""
    weight = gmcore.tensor(np.random.default_rng(seed).standard_normal((4, 4)), requires_grad=True)

    def step(x, y):
        rng = np.random.default_rng(seed)
        known = [x, y, weight]
        for _ in range(25):
            a, b = (known[rng.integers(len(known))] for _ in range(2))
            known.append(ops.tanh(CHOICES[rng.integers(len(CHOICES))](a, b)))
        loss = ops.sum(known[-1]) + ops.sum(known[-2] * known[-5])
        weight.grad = None
        (loss + ops.sum(weight)).backward()
        return loss, known[rng.integers(len(known))]

    return step, weight


@pytest.mark.parametrize("seed", range(12))
def test_random_programs_have_the_bits_of_eager_steps_and_their_memory_does_not_collide(seed):
    (eager, w), (step, v) = random_step(seed), random_step(seed)
    captured = gmcore.capture(step)
    rng = np.random.default_rng(100 + seed)
    for _ in range(5):
        x, y = (gmcore.tensor(rng.standard_normal((4, 4))) for _ in range(2))
        assert bits(eager(x, y)) == bits(captured(x, y))
        assert bits([w.grad]) == bits([v.grad])
        for program in captured.programs:
            program._arena[...] = 0xFF
    (program,) = captured.programs
    blocks = list(program.offsets)
    for a, b in itertools.combinations(blocks, 2):
        (a_first, a_last), (b_first, b_last) = program.lifetimes[a], program.lifetimes[b]
        apart = program.offsets[a] + a.size <= program.offsets[b] or program.offsets[b] + b.size <= program.offsets[a]
        # At the instruction where one dies and the other is born, an elementwise result may take its input's place.
        assert apart or a_last <= b_first or b_last <= a_first
    assert program.size <= sum(-(-b.size // 64) * 64 for b in blocks)


# -- what a repetition does ------------------------------------------------------------------------------------------
def counting(generator):
    x = gmcore.tensor(np.zeros(3, np.float32), requires_grad=True)

    def step():
        x.grad = None
        z = ops.normal((3,), generator=generator)
        ops.sum(x * z).backward()
        return z

    return x, step


def test_each_repetition_draws_anew_and_the_generator_goes_on():
    generator = Generator(3)
    x, step = counting(generator)
    captured = gmcore.capture(step)
    found = [captured() for _ in range(6)]
    assert generator.state == (3, 6)
    expected = [ops.normal((3,), generator=other) for other in [Generator(3)] for _ in range(6)]
    assert bits(found) == bits(expected)
    assert bits([x.grad]) == bits(expected[-1:])
    generator.state = (4, 0)
    assert bits([captured()]) == bits([ops.normal((3,), generator=Generator(4))])


def test_a_default_generator_that_is_exchanged_is_drawn_from():
    captured = gmcore.capture(lambda: ops.normal((2,)))
    for seed in (5, 5, 6):
        gmcore.manual_seed(seed)
        expected = [ops.normal((2,)) for _ in range(4)]
        gmcore.manual_seed(seed)
        assert bits([captured() for _ in range(4)]) == bits(expected)
        assert gmcore.default_generator().state == (seed, 4)
    assert len(captured.programs) == 1


def test_checkpointed_parts_draw_the_same_noise_again():
    def runs(wrap):
        generator = Generator(1)
        x = gmcore.tensor(np.arange(4.0), requires_grad=True)

        def step():
            x.grad = None
            y = gmcore.checkpoint(lambda: ops.tanh(x * ops.normal((4,), dtype="float64", generator=generator)))
            ops.sum(y).backward()
            return y

        step = wrap(step)
        return [(bits([step()]), bits([x.grad])) for _ in range(5)]

    assert runs(lambda f: f) == runs(gmcore.capture)


def test_results_have_memory_of_their_own():
    captured = gmcore.capture(lambda x: (x * 2.0, [x]))
    xs = [gmcore.tensor(np.full(3, float(i))) for i in range(5)]
    found = [captured(x) for x in xs]
    for i, (y, (x,)) in enumerate(found):
        assert y.numpy().tolist() == [2.0 * i] * 3 and x.numpy().tolist() == [float(i)] * 3


def test_large_results_are_written_where_the_caller_has_them():
    x = gmcore.tensor(np.linspace(-1, 1, 40_000, dtype=np.float32).reshape(200, 200))
    w = gmcore.tensor(np.linspace(0, 1, 40_000, dtype=np.float32).reshape(200, 200))

    def step(x, w):
        product = x @ w
        return product, product + x, product[1:3], ops.sum(product)

    captured = gmcore.capture(step)
    for _ in range(3):
        captured(x, w)
    (program,) = captured.programs
    assert [block.size for block in program.renewed] == [160_000, 160_000]
    assert not set(program.renewed) & set(program.offsets) and "given to the caller" in gmcore.explain.captured(
        captured
    )
    found = []
    for i in range(1, 5):  # results that are kept, and results whose memory comes back
        found.append(captured(x * float(i), w))
        captured(x, w)
    for i, results in enumerate(found, 1):
        assert bits(results) == bits(step(x * float(i), w))
    product, _, rows, _ = found[0]
    assert np.shares_memory(product.numpy(), rows.numpy())  # as of an eager step
    start, size = pool.address(product._data), product._data.nbytes
    assert not any(start <= pool.address(a._data) < start + size for results in found[1:] for a in results)


def test_results_that_a_call_of_python_writes_or_that_are_gradients_too_are_copied():
    w = gmcore.tensor(np.linspace(-1, 1, 40_000).reshape(200, 200), requires_grad=True)

    def step(x):
        w.grad = None
        ops.sum(ops.square(w @ x)).backward()
        return w.grad, ops.tanh(x)

    captured = gmcore.capture(step)
    xs = [gmcore.tensor(np.full((200, 200), float(i))) for i in range(5)]
    found = [captured(x) for x in xs]
    assert not captured.programs[0].renewed
    for x, results in zip(xs, found, strict=True):
        assert bits(results) == bits(step(x))


def test_memory_is_flat_and_small_arrays_are_all_that_a_repetition_allocates():
    w = gmcore.tensor(np.zeros((300, 300), np.float32), requires_grad=True)

    def step(x):
        w.grad = None
        loss = ops.sum(ops.square(ops.tanh(x @ w) * x)) + ops.sum(ops.iwae_bound(x.T + 1.0))  # which is packed
        loss.backward()
        optim.clip_grad_norm_([w], 1.0)
        return loss

    captured = gmcore.capture(step)
    x = gmcore.tensor(np.ones((300, 300), np.float32))
    for _ in range(4):
        captured(x)
    assert "pack" in gmcore.explain.captured(captured)
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(50):  # in which Python and NumPy fill their lists of free objects
            captured(x)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(50):
            captured(x)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert after - before < 2000
    assert peak - before < 20_000  # an array of the step has 360,000 bytes


def test_tapes_that_saved_a_parameter_notice_that_a_repetition_wrote_it():
    w = gmcore.tensor(np.ones(2), requires_grad=True)
    optimizer = optim.SGD([w], lr=0.1)

    def step():
        optimizer.zero_grad()
        ops.sum(w * w).backward()
        optimizer.step()

    captured = gmcore.capture(step)
    for _ in range(3):
        captured()
    y = ops.sum(w * w)
    captured()
    with pytest.raises(GraphError, match="changed after it was recorded"):
        y.backward()


def test_a_state_loaded_into_the_optimiser_is_used():
    def runs(wrap):
        w = gmcore.tensor(np.array([1.0, -2.0]), requires_grad=True)
        optimizer = optim.Adam([w], lr=0.1)

        def step():
            optimizer.zero_grad()
            ops.sum(ops.square(w)).backward()
            optimizer.step()

        step = wrap(step)
        for _ in range(4):
            step()
        saved = {name: array.copy() for name, array in optimizer.state_dict().items()}
        for _ in range(4):
            step()
        optimizer.load_state_dict(saved)
        for _ in range(4):
            step()
        return bits([w]), {name: array.tobytes() for name, array in optimizer.state_dict().items()}

    assert runs(lambda f: f) == runs(gmcore.capture)


def test_a_hyperparameter_outside_its_range_is_refused_and_nothing_changes():
    w = gmcore.tensor(np.ones(2), requires_grad=True)
    optimizer = optim.SGD([w], lr=0.1)

    def step():
        optimizer.zero_grad()
        ops.sum(w).backward()
        optimizer.step()

    captured = gmcore.capture(step)
    for _ in range(3):
        captured()
    before = bits([w])
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ArgumentError, match="lr must be"):
        captured()
    assert bits([w]) == before
    optimizer.param_groups[0]["lr"] = 0.5
    captured()
    np.testing.assert_allclose(w.detach().numpy(), 0.2)


def test_classes_out_of_range_are_refused_in_a_repetition_too():
    captured = gmcore.capture(lambda x, t: ops.cross_entropy(x, t))
    x = gmcore.tensor(np.zeros((2, 3)))
    for _ in range(3):
        captured(x, gmcore.tensor([0, 2]))
    with pytest.raises(ArgumentError, match="expected a class in 0..2"):
        captured(x, gmcore.tensor([0, 3]))


def test_an_index_out_of_range_is_refused_in_a_repetition_too():
    """By a check that computes nothing."""
    table = nn.Embedding(3, 2)
    captured = gmcore.capture(lambda i: table(i))
    for _ in range(3):
        captured(gmcore.tensor([0, 2]))
    with pytest.raises(ArgumentError, match="Embedding: expected integers from 0 to 2"):
        captured(gmcore.tensor([0, 3]))


def test_parameters_in_other_memory_are_used():
    """Converting a module and back puts its parameters elsewhere."""
    net = nn.Linear(2, 1)
    captured = gmcore.capture(lambda x: net(x))
    x = gmcore.tensor(np.ones((1, 2), np.float32))
    for _ in range(3):
        captured(x)
    net.to("float64").to("float32")
    net.weight.copy_(np.full((1, 2), 3.0, np.float32))
    net.bias.copy_(np.zeros(1, np.float32))
    assert [captured(x).item() for _ in range(4)] == [6.0] * 4


def test_a_norm_that_exceeds_its_bound_only_later_is_clipped():
    w = gmcore.tensor(np.zeros(2), requires_grad=True)

    def step(x):
        w.grad = None
        ops.sum(w * x).backward()
        return optim.clip_grad_norm_([w], 1.0)

    captured = gmcore.capture(step)
    for size in (0.1, 0.2, 0.3, 30.0, 0.4):
        x = np.array([size, 0.0])
        assert captured(gmcore.tensor(x)).item() == size
        np.testing.assert_allclose(w.grad.numpy(), x / max(1.0, size), rtol=1e-6)


def test_kernels_that_draw_in_several_steps_draw_anew():
    """Their keys are made of the draw's by the kernel's Python."""
    rng = np.random.default_rng(0)
    v, w = (gmcore.tensor(rng.random(shape).round()) for shape in ((6, 5), (4, 5)))
    biases = [gmcore.tensor(np.zeros(n)) for n in (5, 4)]

    def runs(wrap):
        generator = Generator(2)
        step = wrap(lambda: ops.gibbs_chain(v, w, *biases, steps=3, generator=generator))
        return [bits(found if isinstance(found := step(), tuple) else [found]) for _ in range(6)]

    assert runs(lambda f: f) == runs(gmcore.capture)


def test_gradients_stay_where_the_step_leaves_them():
    w = gmcore.tensor(np.ones(2), requires_grad=True)

    def step(x):
        w.grad = None
        ops.sum(w * x).backward()

    captured = gmcore.capture(step)
    for i in range(5):
        captured(gmcore.tensor(np.full(2, float(i))))
        assert w.grad.numpy().tolist() == [i, i]
        w.grad = None


def test_threads_take_turns():
    captured = gmcore.capture(lambda x: ops.sum(ops.tanh(x) * x))
    xs = [gmcore.tensor(np.full(50, 0.01 * i)) for i in range(40)]
    expected = [ops.sum(ops.tanh(x) * x).item() for x in xs]
    found = {}

    def work(part):
        for i in range(part, 40, 4):
            found[i] = captured(xs[i]).item()

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(40)] == expected


# -- other arguments -------------------------------------------------------------------------------------------------
def test_other_shapes_dtypes_and_numbers_make_programs_of_their_own_up_to_a_limit():
    captured = gmcore.capture(lambda x, power: x**power, limit=3)
    kinds = [(np.ones(2), 2), (np.ones(3), 2), (np.ones(2, np.float32), 3)]
    for _ in range(3):
        for x, power in kinds:
            assert captured(gmcore.tensor(x * 2), power).numpy().tolist() == (x * 2**power).tolist()
    assert len(captured.programs) == 3
    with pytest.warns(CaptureWarning, match=r"more than 3 kinds of arguments, the last of float64\[4\], 2"):
        assert captured(gmcore.tensor(np.ones(4)), 2).shape == (4,)
    assert len(captured.programs) == 3


def test_an_argument_that_requires_a_gradient_is_known_by_itself():
    captured = gmcore.capture(lambda w: ops.sum(w * w).backward())
    a, b = (gmcore.tensor(np.array([value]), requires_grad=True) for value in (1.0, 2.0))
    for _ in range(3):
        for w in (a, b):
            w.grad = None
            captured(w)
    assert (a.grad.item(), b.grad.item()) == (2.0, 4.0)
    with pytest.raises(GraphError, match="capture: an argument was computed"):
        captured(a * 2.0)


def test_backends_and_modes_make_programs_of_their_own():
    import gmkernels

    captured = gmcore.capture(lambda x: ops.iwae_bound(x))
    x = gmcore.tensor(np.random.default_rng(0).standard_normal((5, 3)))
    for _ in range(3):
        captured(x)
        with gmkernels.use("reference"):
            captured(x)
        with gmcore.no_grad():
            captured(x)
    assert len(captured.programs) == 3


def test_inside_a_watch_the_step_runs_eagerly():
    captured = gmcore.capture(lambda x: ops.log(x))
    for _ in range(3):
        captured(gmcore.tensor([1.0]))
    with gmcore.detect_anomaly(), np.errstate(invalid="ignore"), pytest.raises(gmcore.errors.AnomalyError, match="log"):
        captured(gmcore.tensor([-1.0]))


def test_a_captured_step_inside_another_is_part_of_it():
    inner = gmcore.capture(lambda x: x * 2.0)
    outer = gmcore.capture(lambda x: inner(x) + 1.0)
    for i in range(5):
        assert outer(gmcore.tensor([float(i)])).item() == 2.0 * i + 1.0
    assert outer.programs and not inner.programs


# -- what cannot be repeated -----------------------------------------------------------------------------------------
def refused(step, match, calls=4):
    captured = gmcore.capture(step)
    with pytest.raises(CaptureError, match=match) as caught:
        for i in range(calls):
            captured(gmcore.tensor(np.full(2, i + 1.0)))
    assert "It has been run, eagerly" in str(caught.value)
    return str(caught.value)


def test_python_that_looks_at_computed_numbers_is_refused_with_the_line():
    message = refused(lambda x: x * 2.0 if ops.sum(x) > 3.0 else x, "looks at numbers")
    assert "test_capture.py:" in message
    refused(lambda x: x * ops.sum(x).item(), "looks at numbers")
    refused(lambda x: x * float(x[0]), "looks at numbers")
    refused(lambda x: gmcore.tensor(np.sqrt(x.numpy())), "looks at numbers")
    refused(lambda x: x * x.tolist()[0], "looks at numbers")


def asserting(x):
    assert ops.sum(x) > 0.0
    return x * 2.0


def matching(x):
    match ops.sum(x).item():
        case 2.0:
            return x * 2.0
    return x


def comparing_elements(x):
    return x * float(sum(element > 1.0 for element in x * 1.0))


def printing(x):
    return x * len(f"{ops.sum(x)}")


def copying(x):
    """What is copied still varies."""
    return x * 2.0 if copy.deepcopy(ops.sum(x)).item() > 9.0 else x


@pytest.mark.parametrize(
    "step",
    [
        asserting,
        matching,
        comparing_elements,
        printing,
        copying,
        lambda x: x * int(ops.argmax(x)),
        lambda x: x * 2.0 if 3.0 in x * 1.0 else x,
        lambda x: x * 2.0 if not (ops.sum(x) != 3.0) else x,
        lambda x: ops.stack(sorted(x * 1.0, key=float)),
        lambda x: gmcore.tensor(np.asarray(x * 1.0) + 1.0),
        lambda x: x * 2.0 if np.allclose(x, 1.0) else x,
        lambda x: gmcore.tensor(np.frexp(x)[0]),
        lambda x: gmcore.tensor(np.from_dlpack(x * 1.0)),
    ],
)
def test_every_way_to_look_at_numbers_is_seen(step):
    refused(step, "looks at numbers")


def test_what_does_not_depend_on_numbers_may_be_asked():
    captured = gmcore.capture(lambda x: sum([2.0 * row for row in x]) * len(x) * x.shape[0] * x.ndim)
    for i in range(4):
        x = gmcore.tensor(np.full((2, 3), i + 1.0))
        assert captured(x).numpy().tolist() == [32.0 * (i + 1)] * 3
    assert captured.programs


def test_numbers_that_vary_and_come_from_nowhere_are_refused():
    counter = itertools.count()
    refused(lambda x: x * float(next(counter)), r"multiply reads an array of float64\[\] that changes")
    refused(lambda x: ops.sum(x) if next(counter) % 2 else ops.mean(x), "multiply .* in some calls and not in others")
    refused(lambda x: ops.exp(x) if next(counter) % 2 else ops.tanh(x), "(exp|tanh) .* in one call and (exp|tanh)")
    refused(lambda x: ops.reshape(x, (1, 2) if next(counter) % 2 else (2, 1)) * 1.0, "from step to step")
    rng = np.random.default_rng(0)
    message = refused(lambda x: x + rng.standard_normal(2), "Python or NumPy made it")
    assert "Give it to the step as an argument" in message


def test_results_that_vary_and_that_no_operation_computes_are_refused():
    counter = itertools.count()
    refused(lambda x: np.full(1, float(next(counter))), r"returns an array of float64\[1\].* no operation")
    refused(lambda x: (x * 2.0, next(counter)), "what it returns changes from call to call.*: 6, then 7")
    w = gmcore.tensor(np.ones(2), requires_grad=True)

    def leave(x):
        w.grad = gmcore.Tensor(np.full(2, float(next(counter))))
        return w * x

    refused(leave, "leaves it as a gradient")
    constant = gmcore.capture(lambda x: (gmcore.tensor([2.0]), "unchanged", float("nan")))
    for _ in range(3):
        result = constant(gmcore.tensor(np.ones(2)))
    assert constant.programs and result[0].item() == 2.0 and result[1] == "unchanged"


def test_a_retained_gradient_is_computed_anew():
    w = gmcore.tensor(np.ones(2), requires_grad=True)

    @gmcore.capture
    def step(x):
        y = w * x
        y.retain_grad()
        w.grad = None
        ops.sum(y * y).backward(retain_graph=True)
        ops.sum(y).backward()
        return y.grad

    for i in range(4):
        np.testing.assert_array_equal(step(gmcore.tensor(np.full(2, float(i)))).numpy(), 2.0 * i + 1.0)
    assert step.programs


def test_state_that_is_not_kept_in_a_leaf_is_refused():
    class Holder:
        h = gmcore.tensor(np.zeros(2))

    def step(x):
        Holder.h = (Holder.h + x).detach()
        return Holder.h * 1.0

    refused(step, "keep it in a leaf that the step writes with copy_")


def test_gradients_that_pile_up_are_refused():
    w = gmcore.tensor(np.ones(2), requires_grad=True)
    refused(lambda x: ops.sum(w * x).backward(), "adds to a `.grad` that an earlier call has left")


def test_a_tensor_that_is_kept_but_not_returned_says_so_when_it_is_used():
    kept, generator = [], Generator(0)

    def step(x):
        y = x * 2.0
        w = nn.Parameter(y)
        key = generator.draw()
        kept[:] = [y, y.detach(), copy.deepcopy(y), w, x, key]
        return y + ops.normal((1,), dtype="float64", generator=generator)

    captured = gmcore.capture(step)
    for i in range(3):
        captured(gmcore.tensor([float(i)]))
    for y in kept:
        with pytest.raises(GraphError, match="computed inside a captured step") as caught:
            y.detach()
        assert "test_capture.py:" in str(caught.value)


def test_with_fallback_a_step_that_cannot_be_repeated_runs_eagerly_and_says_why():
    captured = gmcore.capture(lambda x: x * x.numpy().sum(), fallback=True)
    with pytest.warns(CaptureWarning, match=r"runs eagerly: Python looks at numbers .* \(called at .*test_capture.py"):
        captured(gmcore.tensor([2.0]))
    assert captured.refusal.startswith("Python looks at numbers") and "eager" in repr(captured)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert captured(gmcore.tensor([3.0])).item() == 9.0


def test_an_error_in_the_step_leaves_it_as_it_was():
    fails = [True]

    def step(x):
        if fails[0]:
            raise ValueError("no")
        return x * 2.0

    captured = gmcore.capture(step)
    with pytest.raises(ValueError, match="no"):
        captured(gmcore.tensor([1.0]))
    fails[0] = False
    assert [captured(gmcore.tensor([float(i)])).item() for i in range(4)] == [0.0, 2.0, 4.0, 6.0]
    assert len(captured.programs) == 1


def test_explain_prints_the_program():
    captured = gmcore.capture(lambda x, w: ops.sum(ops.tanh(x @ w) + 1.0))
    assert gmcore.explain.captured(captured).startswith("no program yet")
    x = gmcore.tensor(np.ones((2, 3)))
    for _ in range(3):
        captured(x, gmcore.tensor(np.ones((3, 4))))
    text = gmcore.explain.captured(captured)
    assert "4 instructions in 4 stages; 128 B for 4 arrays of 200 B" in text
    assert [line[4:].split(" ->")[0] for line in text.splitlines()[2:] if line[3] == " " and line[2] != " "] == [
        "matmul: cpu",
        "tanh",
        "add",
        "sum: cpu",
    ]
    assert "argument0 float64[2, 3]" in text and "computed3 float64[] at" in text and "until the end" in text
    captured(gmcore.tensor(np.ones((500, 3))), gmcore.tensor(np.ones((3, 400))))
    captured(gmcore.tensor(np.ones((500, 3))), gmcore.tensor(np.ones((3, 400))))
    text = " ".join(gmcore.explain.captured(captured).split())
    assert re.search(r"sum: cpu -> computed3 .*; scratch computed4 float64\[\d+\] at \d+, \d+ B, until 4", text)


def test_bad_arguments_of_capture():
    with pytest.raises(ArgumentError, match="capture: expected a function, got 3"):
        gmcore.capture(3)
    with pytest.raises(ArgumentError, match="capture: limit must be"):
        gmcore.capture(len, limit=0)
    assert isinstance(gmcore.capture(len), Captured)


# -- fusions ---------------------------------------------------------------------------------------------------------
class Operations(Watch):
    """Notes what operations an eager step calls."""

    def __init__(self):
        self.names = []

    def call(self, call):
        self.names.append(call.op.name)


def elementwise(x):
    """As many elements as a loop of its own is compiled for."""
    return ops.sum(gmcore.fuse(lambda x: ops.tanh(x) * ops.exp(-x) + x)(x))


LAYER, DECODER, CELLS = nn.Sequential(nn.Linear(64, 5), nn.Tanh()), nn.Linear(64, 7), nn.LSTM(64, 3)
PIXELS = gmcore.tensor(np.ones(7, np.float32))
FUSIONS = {
    "an elementwise chain": (elementwise, {"fused"}, {"chain_"}),
    "linear, bias and activation": (lambda x: ops.sum(LAYER(x)), *2 * [{"linear", "activation_backward"}]),
    "the last layer with its likelihood": (
        lambda x: ops.sum(nn.bernoulli_log_prob(DECODER, x, PIXELS)),
        *2 * [{"linear_bernoulli_residual", "linear_bernoulli_residual_backward"}],
    ),
    "the gates of an LSTM": (lambda x: ops.sum(CELLS(x)[0]), *2 * [{"lstm", "lstm_backward"}]),
}


@pytest.mark.parametrize("case", FUSIONS)
def test_an_eager_step_fuses_what_a_captured_one_does(case):
    function, operations, kernels = FUSIONS[case]
    parameters = [*LAYER.parameters(), *DECODER.parameters(), *CELLS.parameters()]
    x = gmcore.tensor(np.random.default_rng(0).standard_normal((512, 64), np.float32), requires_grad=True)

    def step():
        for leaf in (x, *parameters):
            leaf.grad = None
        loss = function(x)
        loss.backward()
        return loss

    eager, captured = Operations(), gmcore.capture(step)
    with watch(eager):
        step()
    for _ in range(3):
        captured()
    names = [instruction.name for instruction in captured.programs[0].instructions]
    for found, wanted in ((eager.names, operations), (names, kernels)):
        assert all(any(name.startswith(part) for name in found) for part in wanted)
        assert not {"tanh", "exp", "sigmoid"} & set(found)
    if case == "an elementwise chain":
        assert eager.names.count("fused") == 2 and names[0].startswith("chain_") and names[-1].startswith("chain_")


def test_one_launch_of_adam_updates_all_parameters():
    launches = []

    @contextmanager
    def noted(launch):
        launches.append(launch)
        yield

    optimizer = optim.Adam([*LAYER.parameters(), *DECODER.parameters(), *CELLS.parameters()])
    for p in optimizer.param_groups[0]["params"]:
        p.grad = gmcore.tensor(np.ones(p.shape, np.float32))
    with pool.watched(noted):
        optimizer.step()
    assert len(launches) == 1
    captured = gmcore.capture(optimizer.step)
    for _ in range(3):
        captured()
    assert [i.name for i in captured.programs[0].instructions] == ["adam"]


# -- how it runs ------------------------------------------------------------------------------------------------------
def test_what_needs_nothing_of_each_other_runs_at_once():
    def step(x):
        twice, thrice = x * 2.0, x * 3.0
        return twice + thrice, twice - thrice, x - 1.0

    captured = gmcore.capture(step)
    x = gmcore.tensor([1.0, 4.0])
    for _ in range(3):
        results = [y.numpy().tolist() for y in captured(x)]
    assert results == [[5.0, 20.0], [-1.0, -4.0], [0.0, 3.0]]
    (launches,) = captured.programs[0]._body
    # Before a task of the second stage the three of the first have ended.
    assert launches._tasks[:, 3].tolist() == [0, 0, 0, 3, 3]


def test_a_dictionary_is_not_taken_for_keywords():
    captured = gmcore.capture(lambda given=None, x=None: (x + 1.0) if given is None else given["x"] * 10.0)
    for _ in range(3):
        assert captured({"x": gmcore.tensor([2.0])}).item() == 20.0
        assert captured(x=gmcore.tensor([2.0])).item() == 3.0
