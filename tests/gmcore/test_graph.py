"""Captured steps on a GPU: CUDA graphs with the bits of eager steps, fresh numbers, and nothing that crosses."""

import numpy as np
import pytest

import gmcore
from gmcore import nn, ops, optim
from gmcore.capture import CaptureWarning
from gmcore.errors import CaptureError
from gmcore.graph import GraphProgram
from gmcore.random import Generator
from tests.support import cuda_stand_in
from tests.support.cupy_stand_in import has_gpu

pytestmark = [pytest.mark.gpu] if has_gpu() else []
trains = pytest.mark.gpu if has_gpu() else pytest.mark.slow
"""Of tests that train a network: emulated, that takes long."""
STEPS = 14
"""The first few are recorded; a short batch in every four."""


class Net:
    """A variational autoencoder in small: sampling, two products a side, a schedule, and a clipped gradient."""

    def __init__(self, device="cuda"):
        gmcore.manual_seed(1)
        self.encoder, self.decoder = nn.Linear(6, 8).to(device), nn.Linear(4, 6).to(device)
        self.parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.optimizer = optim.Adam(self.parameters, lr=1e-2)
        self.generator = Generator(2)

    def step(self, x, weight):
        self.optimizer.zero_grad()
        mu, logvar = ops.split(self.encoder(x), 2, axis=-1)
        z, kl, _ = ops.gaussian_sample(mu, logvar, generator=self.generator)
        log_p = ops.bernoulli_log_prob(self.decoder(ops.tanh(z)), x)
        loss = ops.mean(weight * kl - log_p)
        loss.backward()
        optim.clip_grad_norm_(self.parameters, 0.5)
        self.optimizer.step()
        return loss, z


def batches():
    rng = np.random.default_rng(3)
    for i in range(STEPS):
        yield (rng.random((3 if i % 4 == 3 else 5, 6)) < 0.4).astype(np.float32), np.float32(0.1 * i)


def bits(tensors):
    return [t.detach().cpu().numpy().tobytes() for t in tensors]


def training(capture, device="cuda", arguments="cuda"):
    """Bits of the results of `STEPS` steps, and of parameters and gradients after them."""
    net = Net(device)
    run = gmcore.capture(net.step) if capture else net.step
    found = []
    for i, (x, weight) in enumerate(batches()):
        net.optimizer.param_groups[0]["lr"] = 1e-2 * 0.9**i
        x, weight = gmcore.tensor(x, device=arguments), gmcore.tensor(weight, device=arguments)
        found += run(x.to(device), weight.to(device)) if not capture else run(x, weight)
    return bits(found), bits(net.parameters), bits([p.grad for p in net.parameters]), net, run


@trains
def test_graphs_have_the_bits_of_eager_steps():
    *eager, _, _ = training(False)
    *captured, _, run = training(True)
    assert len(run.programs) == 2 and run.refusal is None
    assert captured == eager


@trains
def test_a_gpu_computes_what_the_cpu_does():
    (losses, *_), (expected, *_) = training(True), training(False, "cpu", "cpu")
    for a, b in zip(losses, expected, strict=True):
        np.testing.assert_allclose(np.frombuffer(a, np.float32), np.frombuffer(b, np.float32), rtol=2e-4, atol=2e-5)


@trains
def test_arguments_on_the_cpu_go_along():
    def moving(net):
        return lambda x, weight: Net.step(net, x.to("cuda"), weight.to("cuda"))

    net = Net()
    run = gmcore.capture(moving(net))
    found = [t for x, w in batches() for t in run(gmcore.tensor(x), gmcore.tensor(w))]
    assert run.programs and bits(found) == bits_of_constant_rate()


def bits_of_constant_rate():
    net = Net()
    return bits([t for x, w in batches() for t in net.step(*[gmcore.tensor(a, device="cuda") for a in (x, w)])])


@trains
def test_a_repetition_is_one_launch_of_a_graph():
    *_, net, run = training(True)
    x, weight = next(batches())
    x, weight = (gmcore.tensor(a, device="cuda") for a in (x, weight))
    run(x, weight)
    with cuda_stand_in.counting() as counts:
        run(x, weight)
    if not has_gpu():
        assert counts["graph"] == 1 and not counts["launch"] and not counts["to_host"]


def test_each_repetition_draws_anew():
    generator = Generator(7)
    x = gmcore.tensor(np.zeros(4, np.float32), device="cuda")
    draw = gmcore.capture(lambda x: x + ops.normal((4,), generator=generator, device="cuda"))
    found = bits([draw(x) for _ in range(6)])
    generator.manual_seed(7)
    assert found == bits([x + ops.normal((4,), generator=generator, device="cuda") for _ in range(6)])
    assert len(set(found)) == 6


def test_a_graph_that_cannot_be_made_changes_no_parameter(monkeypatch):
    call = GraphProgram._call

    def fail(program):
        call(program)
        raise CaptureError("no room")

    monkeypatch.setattr(GraphProgram, "_call", fail)

    def trained(wrap):
        p = gmcore.tensor(np.ones(3, np.float32), device="cuda", requires_grad=True)
        optimizer = optim.Adam([p], lr=0.1)

        def step(x):
            p.grad = x * 1.0
            optimizer.step()

        step = wrap(step)
        for _ in range(4):
            step(gmcore.tensor(np.ones(3, np.float32), device="cuda"))
        return bits([p])

    with pytest.warns(CaptureWarning, match="no room"):
        assert trained(lambda step: gmcore.capture(step, fallback=True)) == trained(lambda step: step)


@pytest.mark.parametrize("n", [3, 4, 10])
def test_tensors_are_joined_without_a_table_from_the_cpu(n, monkeypatch):
    """Which CuPy makes of their addresses where they are more than three."""
    import cupy

    theirs, most = cupy.concatenate, []
    monkeypatch.setattr(cupy, "concatenate", lambda xs, **rest: most.append(len(xs)) or theirs(xs, **rest))
    joined = gmcore.capture(lambda x: ops.concatenate([x + float(i) for i in range(n)], axis=1))
    for start in range(4):
        x = np.arange(start, start + 6, dtype=np.float32).reshape(2, 3)
        found = joined(gmcore.tensor(x, device="cuda")).cpu().numpy()
        np.testing.assert_array_equal(found, np.concatenate([x + np.float32(i) for i in range(n)], axis=1))
    assert joined.programs and 1 < max(most) <= 3


def test_numbers_in_the_cpus_memory_are_read_at_each_repetition():
    weight = gmcore.tensor(np.ones(3, np.float32))
    step = gmcore.capture(lambda x: x * weight.to("cuda"))
    x = gmcore.tensor(np.arange(3, dtype=np.float32), device="cuda")
    for i in range(6):
        weight.copy_(np.full(3, i if step.programs else 1, np.float32))
        assert step(x).tolist() == (np.arange(3) * weight.numpy()).tolist()
    assert step.programs


@pytest.mark.parametrize(
    "look", [lambda y: y.item(), lambda y: float(y), lambda y: ops.sum(y).cpu()], ids=["item", "float", "cpu"]
)
def test_numbers_that_go_back_to_the_cpu_are_refused(look):
    @gmcore.capture
    def step(x):
        y = ops.sum(ops.exp(x))
        look(y)
        return y

    x = gmcore.tensor(np.ones(3, np.float32), device="cuda")
    with pytest.raises(CaptureError, match="looks at numbers|back to the CPU"):
        for _ in range(4):
            step(x)


@trains
def test_explain_says_that_it_is_a_graph_and_whose_kernels_run():
    *_, run = training(True)
    text = gmcore.explain.captured(run)
    assert "one CUDA graph" in text
    kernels = [line.split()[1:3] for line in text.splitlines() if ":" in line.split(" -> ")[0]]
    assert kernels and "reference" not in {backend for _, backend in kernels}, kernels
